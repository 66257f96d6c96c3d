"""Fused kernels against the PyTorch code that defines them."""

import multiprocessing
import sys

import pytest
import torch
from cases import event_index, every_event
from frequencies import p_value

from armodels import heads, orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.walk import draw_noise
from armodels.kernels import binarize, compiled
from armodels.kernels import nade as kernels
from armodels.networks.made import MADE
from armodels.networks.nade import NADE
from armodels.networks.wavenet import WaveNet
from armodels.spec import ContextSpec, DataSpec

ACTIVATIONS = ["relu", "sigmoid", "tanh", "elu"]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def arguments(
    batch=11, steps=7, width=1, features=1, params=1, hidden=13, sparse=True, each=False, seed=0
):
    """Random inputs of ``kernels.conditionals`` for a random order, without the activation."""
    g = torch.Generator().manual_seed(seed)
    num_dims = steps * width
    order = torch.randperm(steps, generator=g)[:, None] + steps * torch.arange(width)
    weight = torch.randn(num_dims, features, hidden, generator=g)
    hidden_bias = torch.randn(*[batch] * each, hidden, generator=g)
    output = torch.randn(steps, params, hidden, generator=g)
    shape = (batch, steps, width)
    if features > 1:
        values = torch.randint(features, shape, generator=g).double()
    else:
        values = torch.randn(shape, generator=g)
        if sparse:
            values = (values > 0.8).double()
    inputs = [t.requires_grad_() for t in (weight, hidden_bias, output)]
    return [*inputs, order, values]


SHAPES = {
    "binary": {},
    "one step": {"steps": 1},
    "one example, P = 3": {"batch": 1, "params": 3},
    "real values": {"sparse": False, "params": 6},
    "levels": {"features": 5, "params": 5},
    "K = 3": {"width": 3, "sparse": False, "params": 4},
    "K = 3, levels": {"width": 3, "features": 4, "params": 2},
    "a bias each": {"each": True, "batch": 19},
    "a bias each, levels": {"each": True, "features": 4, "params": 4},
    "several chunks": {"batch": 41, "steps": 26, "hidden": 33},
}


def with_gradients(function, args, activation, weights):
    params = function(*args, activation)
    # With one step the reference does not read W at all.
    return [params, *torch.autograd.grad(params, args[:3], weights, materialize_grads=True)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nade_kernel_equals_reference(shape, activation, threads):
    threads(2)
    args = arguments(**SHAPES[shape])
    weights = torch.randn(len(args[4]), *args[2].shape[:2])
    fused = with_gradients(kernels.conditionals, args, activation, weights)
    plain = with_gradients(kernels.reference, args, activation, weights)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_nade_reference_against_a_loop_by_hand():
    weight, hidden_bias, output, order, values = (
        t.detach() for t in arguments(batch=3, steps=4, params=2)
    )
    by_hand = torch.zeros(3, 4, 2)
    for b in range(3):
        total = hidden_bias.clone()
        for s in range(4):
            by_hand[b, s] = output[order[s, 0]] @ torch.sigmoid(total)
            total = total + weight[order[s, 0], 0] * values[b, s, 0]
    params = kernels.reference(weight, hidden_bias, output, order, values, "sigmoid")
    torch.testing.assert_close(params, by_hand, rtol=1e-12, atol=1e-12)


def test_relu_at_exactly_zero():
    """A pre-activation that returns to exactly 0 must get PyTorch's gradient there, 0.

    Recovered by subtraction it would come back as a rounding error, on either side.
    """
    weight, hidden_bias, output, order, values = arguments(batch=9, steps=12, hidden=8)
    with torch.no_grad():
        hidden_bias.fill_(0.1)
        weight.fill_(0.7)
        weight[order[0, 0]] = -0.1
    args = [weight, hidden_bias, output, order, torch.ones_like(values)]
    weights = torch.randn(9, 12, 1)
    fused = with_gradients(kernels.conditionals, args, "relu", weights)
    plain = with_gradients(kernels.reference, args, "relu", weights)
    assert (plain[0][:, 1] == 0).all()
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_run_gives_the_same_bits(num_threads, threads):
    threads(num_threads)
    args = arguments(batch=45, steps=30, hidden=40)
    weights = torch.randn(45, 30, 1)
    first = with_gradients(kernels.conditionals, args, "relu", weights)
    for _ in range(3):
        again = with_gradients(kernels.conditionals, args, "relu", weights)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_batch_does_not_matter(threads):
    threads(2)
    args = arguments(batch=43)
    whole = kernels.conditionals(*args, "relu")
    alone = [kernels.conditionals(*args[:4], args[4][i : i + 1], "relu") for i in (0, 9, 42)]
    assert torch.equal(whole[[0, 9, 42]], torch.cat(alone))


def test_float32_is_close_to_float64():
    args = arguments(batch=16, steps=50, hidden=64)
    exact = kernels.conditionals(*args, "relu")
    single = [t if t.dtype == torch.long else t.detach().float() for t in args]
    params = kernels.conditionals(*single, "relu")
    assert params.dtype == torch.float
    torch.testing.assert_close(params.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_nan_weight_stays_a_nan():
    weight, hidden_bias, output, order, values = (t.detach() for t in arguments())
    hidden_bias[3] = float("nan")
    for activation in ACTIVATIONS:
        params = kernels.conditionals(weight, hidden_bias, output, order, values, activation)
        assert params.isnan().all()


def test_second_derivatives():
    args = arguments(batch=3, steps=4, hidden=3)

    def function(weight, hidden_bias, output):
        return kernels.conditionals(weight, hidden_bias, output, *args[3:], "tanh")

    assert torch.autograd.gradgradcheck(function, args[:3])


def test_gradient_of_the_values():
    args = arguments(batch=3, sparse=False)
    args[4].requires_grad_()
    kernels.conditionals(*args, "tanh").sum().backward()
    assert args[4].grad[:, :-1].abs().min() > 0


# The compiler looks at .grad of what the kernel returned.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_under_compile(threads):
    threads(2)
    tiny = model(NADE, spec((5,)), hidden_size=4).net
    x = torch.randint(2, (20, 5), dtype=torch.uint8)
    compiled_net = torch.compile(tiny, backend="eager")
    assert torch.equal(compiled_net(x), tiny(x))
    compiled_net(x).sum().backward()
    assert tiny.weight.grad.abs().sum() > 0


def _child(args, queue):
    queue.put(kernels.conditionals(*args, "relu").sum().item())


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_forked_process(threads):
    """Numba's OpenMP pool would abort here, and a pool of Python threads would hang."""
    threads(2)
    args = [t.detach() for t in arguments(batch=40)]
    expected = kernels.conditionals(*args, "relu").sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(args, queue), daemon=True)
    child.start()
    assert queue.get(timeout=30) == expected
    child.join()


def spec(shape, levels=2):
    kind = "image" if len(shape) == 3 else "vector"
    return DataSpec("tiny", kind, shape, levels, "probability")


def model(network, data, order="raster", seed=0, **options):
    torch.manual_seed(seed)
    head = heads.auto(data)
    net = network(data, head.num_params, orders.make(order, data.shape, seed=1), **options)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return AutoregressiveModel(net, head)


WALKS = {
    "nade": (NADE, spec((2, 3, 4)), {"hidden_size": 9}),
    "nade, random order": (NADE, spec((7,)), {"order": "random", "activation": "sigmoid"}),
    "nade, one value": (NADE, spec((1,)), {"hidden_size": 3}),
    "nade, one-hot": (NADE, spec((3, 2, 3), 5), {"order": "columns", "activation": "tanh"}),
    "nade, scaled": (NADE, spec((9,), 5), {"encoding": "scaled", "activation": "elu"}),
    "made": (MADE, spec((1, 3, 5)), {"hidden_sizes": [20]}),
    "made, one value": (MADE, spec((1,)), {"hidden_sizes": [3, 3]}),
    "fvsbn": (MADE, spec((8,)), {"hidden_sizes": [], "direct_connections": True}),
    "made, deep": (
        MADE,
        spec((1, 3, 4)),
        {
            "hidden_sizes": [17, 9, 21],
            "order": "random",
            "connectivity": "random",
            "direct_connections": True,
            "activation": "elu",
            "seed": 1,
        },
    ),
    "made, one-hot": (
        MADE,
        spec((3, 2, 2), 4),
        {"hidden_sizes": [30, 20], "direct_connections": True, "activation": "sigmoid"},
    ),
    "made, scaled": (
        MADE,
        spec((9,), 5),
        {"hidden_sizes": [12], "encoding": "scaled", "order": "reverse", "activation": "tanh"},
    ),
    "wavenet": (
        WaveNet,
        DataSpec("tiny", "sequence", (19,), 5, "probability"),
        {"num_layers": 3, "num_stacks": 2, "num_channels": 9, "num_skip_channels": 21},
    ),
    "wavenet, one layer": (
        WaveNet,
        DataSpec("tiny", "sequence", (5,), 2, "probability"),
        {"num_layers": 1, "num_channels": 3, "num_skip_channels": 4},
    ),
}


def loops(tiny, noise, temperature):
    """Values and log-probabilities of the fused walk, the cached loop and the naive loop."""
    options = {"noise": noise, "temperature": temperature}
    n = len(noise)
    assert tiny.net.fused_walk(tiny.head.family, noise, temperature) is not None
    fused = tiny.sample_with_log_prob(n, **options)
    naive = tiny.sample_with_log_prob(n, sampler="naive", **options)
    cached = tiny.sample_with_log_prob(n, sampler="cached", **options)
    return fused, cached, naive


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("name", WALKS)
def test_fused_walk_equals_the_loops(name, temperature):
    network, data, options = WALKS[name]
    tiny = model(network, data, **options)
    noise = draw_noise((19, data.num_dims, 1), torch.Generator().manual_seed(5), "cpu")
    fused, cached, naive = loops(tiny, noise, temperature)
    assert fused[0].dtype == data.dtype
    for other in (cached, naive):
        assert torch.equal(fused[0], other[0])
        torch.testing.assert_close(fused[1], other[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused[1], tiny.log_prob(fused[0]), rtol=1e-10, atol=1e-10)


def test_fused_walk_under_a_context():
    network, data, options = WALKS["wavenet"]
    context = ContextSpec("label", (), 3)
    tiny = model(network, data, context=context, **options)
    given = {"context": torch.arange(10) % 3, "noise": torch.rand(10, 19, 1)}
    fused = tiny.sample_with_log_prob(10, **given)
    cached = tiny.sample_with_log_prob(10, sampler="cached", **given)
    assert torch.equal(fused[0], cached[0])
    torch.testing.assert_close(fused[1], cached[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["nade, one-hot", "made, one-hot"])
def test_fused_walk_takes_the_first_of_equal_levels(name):
    network, data, options = WALKS[name]
    tiny = model(network, data, **options)
    torch.nn.init.zeros_(tiny.net.bias)
    torch.nn.init.zeros_(tiny.net.output if network is NADE else tiny.net.output.weight)
    if network is MADE:
        torch.nn.init.zeros_(tiny.net.direct.weight)
    assert (tiny.sample(3, temperature=0.0) == 0).all()
    noise = torch.full((1, data.num_dims, 1), 1 - 2.0**-53)
    assert (tiny.sample(1, noise=noise) == data.levels - 1).all()


@pytest.mark.parametrize("network", [NADE, MADE])
def test_frequencies_of_the_fused_walk(network):
    data = spec((6,))
    options = {"hidden_sizes": [12]} if network is MADE else {"hidden_size": 12}
    tiny = model(network, data, "random", **options)
    x = tiny.sample(20_000, generator=torch.Generator().manual_seed(0))
    log_probs = tiny.log_prob(every_event(data)).detach()
    assert abs(float(log_probs.logsumexp(0))) < 1e-9
    assert p_value(event_index(x, data), log_probs) > 1e-3


@pytest.mark.parametrize("network", [NADE, MADE])
def test_no_fused_walk_where_compiled_code_cannot_go(network):
    options = {"hidden_sizes": [4]} if network is MADE else {"hidden_size": 4}
    tiny = model(network, spec((5,)), **options)
    noise = torch.rand(2, 5, 1)
    assert tiny.net.fused_walk("gaussian_mixture", noise, 1.0) is None
    assert tiny.net.fused_walk("bernoulli", noise, 1.0, torch.zeros(2)) is None
    assert tiny.bfloat16().net.fused_walk("bernoulli", noise, 1.0) is None


def test_nade_shares_its_weights_among_orders():
    tiny = model(NADE, spec((6,)), hidden_size=5)
    other = tiny.with_order(orders.make("random", (6,), seed=4))
    assert other.net.weight is tiny.net.weight
    assert tiny.net.order_table.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    every = (torch.arange(64)[:, None] // 2 ** torch.arange(6) % 2).to(torch.uint8)
    for m in (tiny, other):
        total = m.log_prob(every).exp().sum()
        torch.testing.assert_close(total, torch.tensor(1.0), rtol=1e-12, atol=0)
    assert not torch.allclose(tiny.log_prob(every), other.log_prob(every))


@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 1), (8,), (1023,), (1024,), (3, 1, 28, 28)])
def test_fresh_bits_are_those_of_the_reference(shape):
    g = torch.Generator().manual_seed(0)
    grey = torch.randint(256, shape, dtype=torch.uint8, generator=g)
    for seed in (0, 1, 2**63 - 2, 2**64 - 1):
        bits = binarize.draw(grey, seed)
        assert bits.dtype == torch.bool
        assert torch.equal(bits, binarize.reference(grey, seed))
    wide = torch.stack([grey, grey], -1)
    assert torch.equal(binarize.draw(wide[..., 0], 3), binarize.draw(grey, 3))


def test_chunks_cover_the_batch():
    for batch in (1, 7, 8, 9, 64, 100):
        for num_threads in (1, 2, 3, 16):
            parts = []
            compiled.run_chunks(lambda *part, parts=parts: parts.append(part), batch, num_threads)
            parts.sort()
            assert all(first < last for _, first, last in parts)
            assert [i for _, a, b in parts for i in range(a, b)] == list(range(batch))
            assert [chunk for chunk, _, _ in parts] == list(range(len(parts)))
            assert len(parts) == compiled.chunks(batch, num_threads)[0] <= num_threads
