"""A network of one's own: what it cannot do is one sentence, not a failure deep in torch."""

import re

import pytest
import torch
from cases import BITS, PLANE
from torch import Tensor, nn

from armodels import heads, orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.walk import follow, walk
from armodels.evaluation import evaluate
from armodels.networks.base import Network, State


class Own(Network):
    """A logit for each step, which hears nothing."""

    kinds = frozenset({"vector"})

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), self.num_steps, self.num_params, dtype=torch.float)


def refuses(sentence: str):
    """The block must raise this very ValueError."""
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def own(kind: type[Network] = Own, spec=BITS) -> Network:
    return kind(spec, 1, orders.make("raster", spec.shape))


@pytest.mark.parametrize("name", ["spec", "num_params", "order", "order_table", "context"])
def test_what_a_network_keeps_is_no_name_for_weights(name):
    net = own()
    for weights in (nn.Parameter(torch.zeros(3)), nn.Linear(2, 2)):
        with refuses(
            f"model Own sets self.{name}, which every network has for what it is about; "
            f"call the weights by another name"
        ):
            setattr(net, name, weights)
    net.table = nn.Parameter(torch.zeros(3))
    assert net.order_table.flatten().tolist() == list(range(net.num_steps))


def test_a_network_without_weights_samples_real_values():
    head = heads.auto(PLANE)
    model = AutoregressiveModel(Own(PLANE, head.num_params, orders.make("raster", (2,))), head)
    x = model.sample(3)
    assert (x.shape, x.dtype) == ((3, 2), torch.float)
    assert model.log_prob(x).isfinite().all()


def test_a_network_that_lacks_what_it_needs_is_refused():
    class Silent(Network):
        def forward(self, x, context=None):
            return x

    class Deaf(Network):
        kinds = Own.kinds

        def forward(self, x):
            return x

    with refuses(
        "model Silent does not say which data it takes (kinds is None); "
        'set kinds = frozenset({"vector"}) in its class, or the like'
    ):
        own(Silent)
    for kinds in (None, "vector", ["tree"]):
        Silent.kinds = kinds
        with refuses(
            f"model Silent does not say which data it takes (kinds is {kinds!r}); "
            f'set kinds = frozenset({{"vector"}}) in its class, or the like'
        ):
            own(Silent)
    with refuses("model Deaf must have forward(self, x, context=None), not forward(self, x)"):
        own(Deaf)


def test_parameters_of_another_shape_are_refused():
    class Flat(Network):
        kinds = Own.kinds

        def forward(self, x, context=None):
            return x.new_zeros(len(x), self.num_steps, dtype=torch.float)

    net = own(Flat)
    x = torch.zeros(4, *BITS.shape, dtype=BITS.dtype)
    sentence = "model Flat must return parameters (4, 6, 1), (B, S, P), but returned (4, 6)"
    with refuses(sentence):
        AutoregressiveModel(net, heads.auto(BITS)).log_prob(x)
    with refuses(sentence):
        walk(net, 4, follow(x[:, :, None]))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (lambda params: None, "NoneType"),
        (lambda params: (params,), "tuple"),
        (lambda params: params.numpy(), "ndarray"),
        (lambda params: params.long(), "integers, torch.int64"),
    ],
    ids=["nothing", "tuple", "array", "integers"],
)
def test_parameters_that_are_no_floats_in_a_tensor_are_refused(given, what):
    class Odd(Network):
        kinds = Own.kinds

        def forward(self, x, context=None):
            return given(x.new_zeros(len(x), self.num_steps, self.num_params, dtype=torch.float))

    net = own(Odd)
    sentence = f"model Odd must return parameters (4, 6, 1), (B, S, P), but returned {what}"
    with refuses(sentence):
        AutoregressiveModel(net, heads.auto(BITS)).log_prob(torch.zeros(4, 6, dtype=BITS.dtype))
    with refuses(sentence):
        walk(net, 4, follow(torch.zeros(4, 6, 1)))


def test_what_no_model_is_made_of_is_refused():
    class Hollow(Own):
        def __init__(self, spec, num_params, order):
            nn.Module.__init__(self)

    class Named(Own):
        def __init__(self, spec, num_params, order, context):
            super().__init__(spec, num_params, order, context)

    net, head = own(), heads.auto(BITS)
    made = AutoregressiveModel.of
    for make, sentence in {
        lambda: made(Own, "bits"): "spec is of type str; it must be of type DataSpec, such as",
        lambda: made("made", BITS): "network is str; it must be a class of networks",
        lambda: made(net, BITS): "network is Own; it must be a class of networks",
        lambda: made(Named, BITS, context="label"): "context is of type str; .* ContextSpec",
        lambda: Own(BITS, 1, "raster"): "order is of type str; it must be of type Order",
        lambda: AutoregressiveModel(net, None): "head is of type NoneType; .* Head, such as",
        lambda: AutoregressiveModel("made", head): "net is of type str; .* Network, such as",
        lambda: made(Hollow, BITS): "model Hollow is not made whole; its __init__ must begin",
        lambda: AutoregressiveModel(net, heads.auto(PLANE)): (
            "model Own gives 1 parameters a step, but head gaussian_mixture reads 30"
        ),
    }.items():
        with pytest.raises((TypeError, ValueError), match=sentence):
            make()


@pytest.mark.parametrize("rows", [[0, 5], [-1], [3]])
def test_a_state_is_forked_by_rows_that_it_has(rows):
    with refuses(f"a state is forked by rows from 0 to 2, but got {min(rows)} to {max(rows)}"):
        State({"x": torch.zeros(3, 2)}).fork(torch.tensor(rows))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([0, 1], "list"),
        (torch.tensor([True, False, True]), "bool (3,)"),
        (torch.tensor([0, 1], dtype=torch.int32), "int32 (2,)"),
        (torch.tensor([[0, 1]]), "int64 (1, 2)"),
    ],
    ids=["list", "mask", "int32", "two-dimensional"],
)
def test_a_state_is_forked_by_rows_alone(rows, what):
    state = State({"x": torch.zeros(3, 2)})
    with refuses(
        f"a state is forked by an int64 tensor of rows, (N,), but got {what}; "
        f"of a mask that is mask.nonzero()[:, 0]"
    ):
        state.fork(rows)


class Leaking(Network):
    """Weights on all values but those that ``leak`` leaves out, in generation order."""

    kinds = frozenset({"vector"})

    def __init__(self, spec, num_params, order, diagonal):
        super().__init__(spec, num_params, order)
        self.weight = nn.Parameter(torch.ones(self.num_steps, self.num_steps))
        self.diagonal = diagonal

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        weight = self.weight.tril(self.diagonal)
        steps = x[:, self.order_table[:, 0]].to(weight)
        return (steps @ weight.T)[..., None].expand(-1, -1, self.num_params)


class Sums(Network):
    """Honest sums of earlier values; subclasses are not."""

    kinds = frozenset({"vector"})

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.earlier(x.float())[..., None]

    def earlier(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :-1], (1, 0)).cumsum(1)


class Writing(Sums):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x[x > 0] = 0
        return super().forward(x)


class Gated(Sums):
    """It peeks where the first value is 1 alone."""

    def earlier(self, x: Tensor) -> Tensor:
        return super().earlier(x) + x[:, :1] * (torch.arange(x.shape[1]) == 3) * x


class Sparse(Sums):
    """It peeks at one step alone."""

    def earlier(self, x: Tensor) -> Tensor:
        return super().earlier(x) + (torch.arange(x.shape[1]) == 2) * x


class Sociable(Sums):
    """It hears the other events of its batch."""

    def earlier(self, x: Tensor) -> Tensor:
        return super().earlier(x) + x.mean(0)


class Random(Sums):
    def earlier(self, x: Tensor) -> Tensor:
        return super().earlier(x) + torch.randn(x.shape)


def test_an_honest_network_is_believed():
    model = AutoregressiveModel.of(Sums, BITS)
    x = torch.tensor([[0, 1, 0, 0, 1, 1]] * 3, dtype=torch.uint8)
    assert evaluate(model, x).num_examples == 3


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Writing, "writes to the events that it is given; let its forward copy them first"),
        (Gated, "has no likelihood: its parameters of step 3 change with values .* step 3 or"),
        (Sparse, "has no likelihood: its parameters of step 2 change with values .* step 2 or"),
        (Sociable, "has no likelihood: .* change with the other events of the batch"),
        (
            Random,
            "has no likelihood: .* change with the other events .*, or from call to call",
        ),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_other_ways_to_have_no_likelihood_are_found_out(kind, sentence, first):
    model = AutoregressiveModel.of(kind, BITS)
    x = torch.tensor([[first, 1, 0, 0, 1, 1]] * 3, dtype=torch.uint8)
    before = x.clone()
    with pytest.raises(ValueError, match=f"model {kind.__name__} {sentence}"):
        evaluate(model, x)
    if kind is not Writing:
        assert x.equal(before)


def test_what_forward_does_to_its_input_is_not_scored():
    x = torch.tensor([[1, 1, 0, 0, 1, 1]], dtype=torch.uint8)
    honest = AutoregressiveModel.of(Sums, BITS).log_prob(x)
    found = AutoregressiveModel.of(Writing, BITS).log_prob(x)
    assert found != honest
    # Every logit is 0 then, but the values are those that the caller had.
    assert found == pytest.approx(6 * -0.6931, abs=1e-3)


@pytest.mark.parametrize("spec", [BITS, PLANE], ids=["bits", "real"])
@pytest.mark.parametrize("diagonal", [-1, 0, 1, 9])
def test_a_network_that_hears_a_value_before_its_step_is_found_out(diagonal, spec, tmp_path):
    head = heads.auto(spec)
    net = Leaking(spec, head.num_params, orders.make("reverse", spec.shape), diagonal)
    model = AutoregressiveModel(net, head)
    x = torch.zeros(3, *spec.shape, dtype=torch.uint8 if spec.levels else torch.float)
    if diagonal < 0:
        assert evaluate(model, x).num_examples == 3
        return
    for _ in range(4):  # what is kept of one that was stopped must not get around it
        with pytest.raises(
            ValueError, match="model Leaking has no likelihood: its parameters of step"
        ):
            evaluate(model, x, 1, keep=tmp_path)
    assert not list(tmp_path.iterdir())
