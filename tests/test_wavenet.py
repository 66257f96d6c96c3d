"""WaveNet against a loop by the paper's equations, and what it sees."""

import pytest
import torch
from cases import CASES, LABEL

from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.stream import describe_past, receptive_field
from armodels.networks.wavenet import WaveNet
from armodels.spec import DataSpec


def by_hand(net: WaveNet, x: torch.Tensor, context: int | None = None) -> torch.Tensor:
    """Parameters (S, P) of one event (S,): van den Oord et al., equations 2 and following.

    z_k = tanh(W_f * x + V_f h) (.) sigmoid(W_g * x + V_g h), by lists, one time after another.
    """
    features = [net.begins] + [net.embed.weight[int(value)] for value in x[:-1]]
    size = len(net.begins)
    total = [net.skip.bias.clone() for _ in features]
    of_layers = torch.zeros(len(net.layers), 2 * size, dtype=torch.double)
    if context is not None:
        of_layers = net.conditioning.weight[:, context].view(len(net.layers), 2 * size)
    dilation = 1
    for k, layer in enumerate(net.layers):
        new = []
        for t, now in enumerate(features):
            past = features[t - dilation] if t >= dilation else torch.zeros_like(now)
            filters, gates = [], []
            for i in range(size):
                sums = [layer.now.bias[j] + of_layers[k, j] for j in (i, size + i)]
                for n, j in enumerate((i, size + i)):
                    for c in range(size):
                        sums[n] = sums[n] + layer.before.weight[j, c] * past[c]
                        sums[n] = sums[n] + layer.now.weight[j, c] * now[c]
                filters.append(torch.tanh(sums[0]))
                gates.append(1 / (1 + torch.exp(-sums[1])))
            z = torch.stack(filters) * torch.stack(gates)
            total[t] = total[t] + net.skip.weight[:, k * size : (k + 1) * size] @ z
            if k < len(net.layers) - 1:
                new.append(now + layer.residual.weight @ z + layer.residual.bias)
        features = new
        dilation = 1 if (k + 1) % 2 == 0 else 2 * dilation  # two layers to a stack
    hidden = [net.mixed.weight @ one.clamp(min=0) + net.mixed.bias for one in total]
    return torch.stack([net.params.weight @ h.clamp(min=0) + net.params.bias for h in hidden])


@pytest.mark.parametrize("context", [None, 0, 2])
@torch.no_grad()
def test_a_loop_by_the_equations_of_the_paper(context):
    case = CASES["wavenet"]
    if context is None:
        model, heard = case.build(1), None
    else:
        model, heard = case.build(1, LABEL), torch.tensor([context])
    x = case.events(5).flatten()[:17]
    found = model.net.with_length(17)(x[None], heard)[0]
    torch.testing.assert_close(found, by_hand(model.net, x, context), rtol=0, atol=1e-12)


REAL = DataSpec("real", "sequence", (25,), None, "density")


@pytest.mark.parametrize(("num_layers", "num_stacks"), [(1, 1), (3, 1), (2, 3), (3, 2)])
def test_what_is_said_depends_on_the_receptive_field_and_nothing_before(num_layers, num_stacks):
    torch.manual_seed(0)
    sizes = {"num_layers": num_layers, "num_stacks": num_stacks, "num_channels": 4}
    model = AutoregressiveModel.of(WaveNet, REAL, **sizes).double()
    torch.nn.init.normal_(model.net.params.weight)
    x = torch.randn(1, 25, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.net(x)[0], x)[:, :, 0]
    heard = jacobian.abs().amax(1)  # (S, S): of the parameters of a step, by each value
    field = num_stacks * (2**num_layers - 1) + 1
    assert receptive_field(model) == field
    for s in range(25):
        for t in range(25):
            if t >= s or s - t > field:
                assert heard[s, t] == 0, (s, t)
            else:
                assert heard[s, t] > 1e-12, (s, t)


@pytest.mark.parametrize("name", ["rnn", "transformer-past", "wavenet", "ngram"])
@torch.no_grad()
def test_no_value_before_the_receptive_field_is_heard(name):
    model = CASES[name].build(0)
    field = receptive_field(model)
    said = "all" if field is None else field
    assert str(said) in describe_past(model)
    assert field == {"rnn": None, "transformer-past": 7, "wavenet": 7, "ngram": 8}[name]
    x = CASES[name].events(6).flatten()[:24][None]
    other = x.clone()
    other[0, 5] = (x[0, 5] + 1) % 5
    net = model.net.with_length(24)
    moved = (net(x) - net(other)).abs().amax(-1)[0] > 0
    last = int(moved.nonzero().max())
    assert last == 23 if field is None else last <= 5 + field
    if name != "ngram":  # what it has not seen it does not count
        assert last == (23 if field is None else 5 + field)


def test_a_stranger_to_streams_has_no_receptive_field():
    assert describe_past(CASES["made"].build(0)) == ""
    with pytest.raises(ValueError, match="takes events of one length alone"):
        receptive_field(CASES["made"].build(0))


def test_a_stack_of_forty_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers is 40; it must be"):
        AutoregressiveModel.of(WaveNet, REAL, num_layers=40)


@pytest.mark.parametrize("name", ["wavenet", "wavenet-one-layer"])
def test_a_step_writes_to_its_rings_and_to_nothing_else(name):
    """Rings begin as copies: the symbol for the beginning is a weight."""
    model = CASES[name].build(0)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    net = model.net.with_length(30)
    _, state = net.begin(1)
    with torch.no_grad():
        for value in range(5):
            _, state = net.read(torch.full((1, 1, 1), value), state)
            for i, layer in enumerate(net.layers):
                assert state[f"inputs.{i}"].shape[1] == layer.dilation
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_gradients_flow_through_what_is_kept():
    """Read in pieces, a loss has the gradient that it has in one."""
    model = CASES["wavenet"].build(0)
    x = CASES["wavenet"].events(5).flatten()[:20].view(1, 20, 1)
    gradients = []
    for sizes in ([20], [3, 1, 1, 9, 6]):
        model.zero_grad()
        _, state = model.net.begin(1)
        parts = []
        for part in x.split(sizes, 1):
            params, state = model.net.read(part, state)
            parts.append(params)
        torch.cat(parts, 1).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-9, atol=1e-9)
