"""Tiny models, a line each: every invariant runs on every case for which it makes sense.

A model added later is one line of ``CASES``. Cases keep to 6,561 outcomes where they can, so that
the tests enumerate them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from armodels import heads, orders
from armodels.baselines import (
    GMM,
    Histogram,
    Independent,
    MixtureOfCategoricals,
    Uniform,
)
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.completion import Completion
from armodels.density.mixture import OrderMixture
from armodels.density.walk import draw_noise
from armodels.flows import InverseFlow
from armodels.networks.base import AnyOrderNetwork, Network
from armodels.networks.blend import Blend
from armodels.networks.conv_nade import ConvNADE
from armodels.networks.deep_nade import DeepNADE
from armodels.networks.frames import Frames
from armodels.networks.gated_pixelcnn import GatedPixelCNN
from armodels.networks.lmconv import LMConv
from armodels.networks.made import MADE
from armodels.networks.masked_transformer import MaskedTransformer
from armodels.networks.multiscale import MultiScale
from armodels.networks.nade import NADE
from armodels.networks.ngram import NGram
from armodels.networks.pixel_rnn import DiagonalBiLSTM, RowLSTM
from armodels.networks.pixel_snail import PixelSNAIL
from armodels.networks.pixelcnn import PixelCNN
from armodels.networks.pixelcnn_pp import PixelCNNPP
from armodels.networks.recurrent import Recurrent
from armodels.networks.separate import SeparateMLPs
from armodels.networks.sigma_gpt import SigmaGPT
from armodels.networks.transformer import Transformer
from armodels.networks.wavenet import WaveNet
from armodels.notes import Notes
from armodels.spec import ContextSpec, DataSpec

LABEL = ContextSpec("label", (), 3)
VECTOR = ContextSpec("features", (2,), None)


@dataclass(frozen=True)
class Case:
    """A family on tiny data.

    Attributes:
        shows: What it is a case of: its network, how that is trained, its head.
        spec: Of the model.
        build: seed -> the model in float64 and evaluation mode; orders and masks are the same
            for every seed, weights are not.
        steps: An AutoregressiveModel, with a network, a head and an order. Any other case is a
            DensityModel and no more.
        num_orders: Of a mixture of orders, else 1.
        any_order: Trained for all orders, so that completion chooses one.
        reads_known: So is its network by itself, which reads the values that are known
            (DeepNADE, ConvNADE); else masks are drawn anew for each order.
        canonical: Trained for its own order of what is unknown alone.
        jumps: The density has jumps, which quadrature on a grid cannot integrate (the model's own
            tests do).
    """

    shows: tuple[str, ...]
    spec: DataSpec
    build: Callable[..., DensityModel]
    steps: bool = False
    num_orders: int = 1
    any_order: bool = False
    reads_known: bool = False
    canonical: bool = False
    jumps: bool = False
    counted: bool = False

    def events(self, n: int, seed: int = 0) -> Tensor:
        """Random events in the support: (n, *event)."""
        return random_events(self.spec, n, seed)


def every(cases: dict[str, Case], argument: str = "case"):
    """Run a test on each case, as ``case`` or by ``name``.

    Every time where the case is the first of them that shows something; else in the slow suite.
    """
    shown: set[str] = set()
    params = []
    for name, case in cases.items():
        marks = [pytest.mark.slow] if shown.issuperset(case.shows) else []
        shown.update(case.shows)
        params.append(pytest.param({"case": case, "name": name}[argument], id=name, marks=marks))
    return pytest.mark.parametrize(argument, params)


def random_events(spec: DataSpec, n: int, seed: int = 0) -> Tensor:
    """(n, *event); neighbours are mostly equal, so that a fit has something to find."""
    generator = torch.Generator().manual_seed(seed)
    if spec.levels is None:
        steps = torch.randn(n, spec.num_dims, generator=generator, dtype=torch.double)
        return (steps.cumsum(1) / 2).view(n, *spec.shape)
    start = torch.randint(spec.levels, (n, 1), generator=generator)
    moves = torch.rand(n, spec.num_dims, generator=generator) < 0.2
    return ((start + moves.cumsum(1)) % spec.levels).to(spec.dtype).view(n, *spec.shape)


def every_event(spec: DataSpec) -> Tensor:
    """All L^D events, the last dimension fastest: (L^D, *event)."""
    values = torch.arange(spec.levels).to(spec.dtype)
    return torch.cartesian_prod(*[values] * spec.num_dims).view(-1, *spec.shape)


def event_index(x: Tensor, spec: DataSpec) -> Tensor:
    """Row of each event in ``every_event``: (B, *event) -> (B,)."""
    place = spec.levels ** torch.arange(spec.num_dims - 1, -1, -1)
    return (x.flatten(1).long() * place).sum(1)


def _autoregressive(spec, head, network, order, order_seed, keys, scale, trained, seed):
    made = orders.make(order, spec.shape, joint=head.joint, seed=order_seed)
    net = network(spec, head.num_params, made, **keys)
    model = AutoregressiveModel(net, head, **trained).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.double)
            weight.copy_(scale * noise)
    return model.eval()


def _trained(resample: bool, canonical: bool) -> dict:
    """How a model is trained, as its class takes it."""
    objective = "canonical" if canonical else "all_orders"
    return {"resample_orders": resample, "objective": objective}


def autoregressive(
    spec,
    head,
    network,
    *,
    order="raster",
    order_seed=0,
    scale=0.7,
    resample=False,
    canonical=False,
    **keys,
) -> Case:
    """One network under one order, with random weights."""
    trained = _trained(resample, canonical)

    def build(seed, context=None):
        more = keys | {"context": context}
        made = head(spec)
        return _autoregressive(spec, made, network, order, order_seed, more, scale, trained, seed)

    own = network.any_order
    kinds = {"any_order": resample or own, "reads_known": own, "canonical": canonical}
    shows = _shows(network, head, resample=resample, canonical=canonical)
    return Case(shows, spec, build, steps=True, **kinds)


def _shows(network, head, **traits: bool) -> tuple[str, ...]:
    """The network under what it is trained for, and the head."""
    trained = " ".join(trait for trait in traits if traits[trait])
    return f"{network.__name__} {trained}", head.__name__


class Given(Network):
    """A network under one context: what must hold of any network must hold of this one."""

    kinds = frozenset({"vector", "image", "sequence"})

    def __init__(self, net: Network, given: Tensor):
        super().__init__(net.spec, net.num_params, net.order)
        self.net = net
        self.register_buffer("given", given, persistent=False)

    def _contexts(self, n: int) -> Tensor:
        return self.given.expand(n, *self.given.shape)

    def forward(self, x, context=None):
        return self.net(x, self._contexts(len(x)))

    def pack(self):
        return self.net.pack()

    def start(self, pack, n, context=None):
        return self.net.start(pack, n, self._contexts(n))

    def step(self, values, s, state, pack):
        return self.net.step(values, s, state, pack)

    def set_marginals(self, params):
        self.net.set_marginals(params)

    def initialize(self, x):
        self.net.initialize(x)


class GivenAnyOrder(Given, AnyOrderNetwork):
    """The same for a network that serves every order."""

    any_order = True

    def __init__(self, net: Network, given: Tensor):
        Given.__init__(self, net, given)

    def forward(self, x, context=None):
        return self.net(x, self._contexts(len(x)))

    def params_given(self, x, known, context=None):
        return self.net.params_given(x, known, self._contexts(len(x)))

    def with_order(self, order, *, seed=None):
        return GivenAnyOrder(self.net.with_order(order, seed=seed), self.given)


def given(one: Case, context: ContextSpec = LABEL) -> Case:
    """A case whose network is conditioned on ``context``, under one value of it."""

    def build(seed):
        model = one.build(seed, context)
        kind = GivenAnyOrder if model.net.any_order else Given
        net = kind(model.net, context_values(context, 2)[1])
        return AutoregressiveModel(net, model.head).eval()

    shows = f"{one.shows[0]} given {context.name}", *one.shows[1:]
    return dataclasses.replace(one, shows=shows, build=build)


def context_values(spec: ContextSpec, n: int) -> Tensor:
    """(n, *shape) contexts, no two alike."""
    if not spec.shape:
        return torch.arange(n) % spec.levels
    generator = torch.Generator().manual_seed(n)
    if spec.levels is None:
        return torch.randn(n, *spec.shape, generator=generator, dtype=torch.double)
    return torch.randint(spec.levels, (n, *spec.shape), generator=generator, dtype=torch.uint8)


def order_mixture(
    spec,
    head,
    network,
    *,
    order="random",
    num_orders=3,
    scale=0.7,
    resample=False,
    canonical=False,
    **keys,
) -> Case:
    """One network under several orders, as construct.py makes it."""
    trained = _trained(resample, canonical)

    def build(seed):
        made = head(spec)
        model = _autoregressive(spec, made, network, order, 0, keys, scale, trained, seed)
        several = [
            orders.make(order, spec.shape, joint=made.joint, seed=i) for i in range(num_orders)
        ]
        return OrderMixture(model, several).eval()

    own = network.any_order
    kinds = {"any_order": resample or own, "reads_known": own, "canonical": canonical}
    shows = _shows(network, head, mixture=True, resample=resample, canonical=canonical)
    return Case(shows, spec, build, num_orders=num_orders, **kinds)


def flow(spec, *sizes, num_layers=2) -> Case:
    """An inverse autoregressive flow with random weights."""

    def build(seed):
        model = InverseFlow(
            spec, num_layers=num_layers, hidden_sizes=list(sizes), activation="tanh"
        ).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.double)
                weight.copy_(0.2 * noise)
        return model.eval()

    return Case(("InverseFlow",), spec, build, jumps=True)  # kinks, at the knots of splines


def fitted(spec, kind, *, jumps=False, **keys) -> Case:
    """A DensityModel without steps, fitted to random events."""

    def build(seed):
        model = kind(spec, **keys).double()
        model.initialize([random_events(spec, 200, seed), random_events(spec, 100, seed + 100)])
        return model.eval()

    return Case((kind.__name__,), kind(spec, **keys).spec, build, jumps=jumps)


class Least(DensityModel):
    """The least DensityModel: keeps every test honest about what it may ask of a model."""

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.spec = spec

    def _log_prob(self, x, context):
        each = -torch.tensor(float(self.spec.levels), dtype=torch.double).log()
        return (each * self.spec.num_dims).expand(len(x))

    def sample_with_log_prob(
        self, n, *, context=None, temperature=1.0, generator=None, progress=False
    ):
        noise = draw_noise((n, *self.spec.shape), generator, "cpu")
        x = (noise * self.spec.levels).to(self.spec.dtype)
        return x, self._log_prob(x, None)

    def complete(self, x, known, *, num_particles=1, generator=None, **options):
        drawn = self.sample(len(x), generator=generator).to(x.device)
        ones = torch.ones(len(x), dtype=torch.double)
        return Completion(torch.where(known, x, drawn), "exact", ones, 1)


def data(kind: str, *shape: int, levels: int | None) -> DataSpec:
    """A spec of tiny data."""
    measure = "density" if levels is None else "probability"
    return DataSpec(f"tiny-{kind}", kind, shape, levels, measure)


def mixture_of_2(spec):
    return heads.GaussianMixture(spec, num_components=2)


def uniform_mixture_of_3(spec):
    return heads.GaussianMixture(spec, num_components=3, mixing="uniform")


def logistics(spec):
    return heads.DiscretizedLogisticMixture(spec, num_components=2)


BITS = data("vector", 6, levels=2)
GREY = data("image", 1, 2, 3, levels=2)
WIDE = data("image", 1, 1, 6, levels=2)
SQUARE = data("image", 1, 2, 2, levels=2)
RGB = data("image", 3, 1, 2, levels=3)
SMALL_RGB = data("image", 3, 1, 2, levels=2)
RGB_BITS = data("image", 3, 1, 3, levels=2)
TALL = data("image", 1, 3, 2, levels=3)
LEVELS = data("vector", 4, levels=5)
PLANE = data("vector", 2, levels=None)
SPACE = data("vector", 4, levels=None)

TEXT = data("sequence", 4, levels=5)
CHORDS = dataclasses.replace(data("sequence", 6, levels=2), notes=Notes(size=2))
LINES = dataclasses.replace(data("sequence", 6, levels=3), notes=Notes(size=3))
REAL_FRAMES = dataclasses.replace(data("sequence", 4, levels=None), notes=Notes(size=2))
BIT_TEXT = data("sequence", 6, levels=2)

BERNOULLI, CATEGORICAL = heads.Bernoulli, heads.Categorical


def made(spec, head, *sizes, activation="tanh", **keys) -> Case:
    return autoregressive(
        spec, head, MADE, hidden_sizes=list(sizes), activation=activation, **keys
    )


def nade(spec, head, size, activation="tanh", **keys) -> Case:
    return autoregressive(spec, head, NADE, hidden_size=size, activation=activation, **keys)


def separate(spec, head, *sizes, activation="tanh", **keys) -> Case:
    return autoregressive(
        spec, head, SeparateMLPs, hidden_sizes=list(sizes), activation=activation, **keys
    )


def pixelcnn(spec, head, size, activation="tanh", num_layers=3, **keys) -> Case:
    sizes = {"num_layers": num_layers, "num_channels": size, "activation": activation}
    return autoregressive(spec, head, PixelCNN, **sizes, **keys)


def gated(spec, head, size, activation="tanh", num_layers=3, **keys) -> Case:
    sizes = {"num_layers": num_layers, "num_channels": size, "activation": activation}
    return autoregressive(spec, head, GatedPixelCNN, **sizes, **keys)


def pixelcnn_pp(spec, head, num_stages, num_channels=2, **keys) -> Case:
    keys = {"num_resnets": 1, "num_stages": num_stages, "num_channels": num_channels} | keys
    return autoregressive(spec, head, PixelCNNPP, **keys)


def pixel_snail(spec, head, num_blocks=1, **keys) -> Case:
    sizes = {"num_channels": 2, "num_key_channels": 2, "num_value_channels": 3, "num_resnets": 1}
    return autoregressive(spec, head, PixelSNAIL, num_blocks=num_blocks, **sizes | keys)


def multiscale(spec, head, size, **keys) -> Case:
    sizes = {"base_layers": 2, "base_channels": size, "num_blocks": 1, "num_channels": size}
    keys = {"base_size": 1, "activation": "tanh", "scale": 0.5} | keys
    return autoregressive(spec, head, MultiScale, **sizes, **keys)


def deep_nade(spec, head, *sizes, activation="tanh", **keys) -> Case:
    return autoregressive(
        spec, head, DeepNADE, hidden_sizes=list(sizes), activation=activation, **keys
    )


def conv_nade(spec, head, num_channels, num_layers, **keys) -> Case:
    keys = {"kernel_size": 3, "activation": "elu", "scale": 0.4} | keys
    return autoregressive(
        spec, head, ConvNADE, num_channels=num_channels, num_layers=num_layers, **keys
    )


def row_lstm(spec, head, size, **keys) -> Case:
    sizes = {"num_layers": 2, "num_channels": size, "num_output_channels": 4}
    return autoregressive(spec, head, RowLSTM, **sizes | {"activation": "tanh"} | keys)


def diagonal(spec, head, size, **keys) -> Case:
    sizes = {"num_layers": 2, "num_channels": size, "num_output_channels": 4}
    keys = {"activation": "tanh", "first_kernel_size": 3} | keys
    return autoregressive(spec, head, DiagonalBiLSTM, **sizes | keys)


def rnn(spec, head, size, **keys) -> Case:
    return autoregressive(spec, head, Recurrent, hidden_size=size, **keys)


def frames(spec, head, size, **keys) -> Case:
    sizes = {"context_size": 3, "inner_size": 5, "activation": "tanh"}
    return autoregressive(spec, head, Frames, hidden_size=size, **sizes | keys)


def transformer(spec, head, size, past=9, **keys) -> Case:
    keys = {"num_layers": 2, "num_heads": 2, "activation": "gelu", "scale": 0.5} | keys
    return autoregressive(spec, head, Transformer, hidden_size=size, past=past, **keys)


def wavenet(spec, head, size, **keys) -> Case:
    keys = {"num_layers": 2, "num_stacks": 2, "num_skip_channels": 16, "scale": 0.4} | keys
    return autoregressive(spec, head, WaveNet, num_channels=size, **keys)


def sigma_gpt(spec, head, size, **keys) -> Case:
    keys = {"num_layers": 2, "num_heads": 2, "activation": "gelu", "scale": 0.5} | keys
    return autoregressive(spec, head, SigmaGPT, hidden_size=size, **keys)


def masked_transformer(spec, head, size, **keys) -> Case:
    keys = {"num_layers": 2, "num_heads": 2, "activation": "gelu", "scale": 0.5} | keys
    return autoregressive(spec, head, MaskedTransformer, hidden_size=size, **keys)


def ngram(spec, n) -> Case:
    """n-grams, fitted to random events."""

    def build(seed):
        head = heads.Categorical(spec)
        net = NGram(spec, head.num_params, orders.make("raster", spec.shape), n=n)
        net.learn([random_events(spec, 60, seed).flatten(), random_events(spec, 9, 7).flatten()])
        return AutoregressiveModel(net, head).double().eval()

    return Case(("NGram",), spec, build, steps=True, counted=True)


def blend(spec, *members: Case, **keys) -> Case:
    """Members with random weights or counts, and a gate with random weights."""

    def build(seed):
        model = AutoregressiveModel.of(
            Blend, spec, runs=[one.build(seed) for one in members], **keys
        )
        generator = torch.Generator().manual_seed(seed)
        if (gate := model.net.gate) is not None:
            for weight in gate.double().parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.double))
        return model.double().eval()

    return Case(("Blend",), spec, build, steps=True, counted=True)


def made_orders(spec, head, *sizes, **keys) -> Case:
    return order_mixture(spec, head, MADE, hidden_sizes=list(sizes), activation="tanh", **keys)


def lmconv(spec, head, channels, blocks=2, kernel_size=3, dilations=(1,), **keys) -> Case:
    sizes = {"num_blocks": blocks, "num_channels": channels, "kernel_size": kernel_size}
    return autoregressive(spec, head, LMConv, dilations=list(dilations), **sizes, **keys)


# Activations are smooth: where a ReLU is off, a value that must matter seems not to.
CASES: dict[str, Case] = {
    "made": made(BITS, BERNOULLI, 12),
    "made-permuted": made(BITS, BERNOULLI, 11, order="random", order_seed=3),
    "made-deep": made(BITS, BERNOULLI, 9, 14, order="reverse", dropout=0.5),
    "made-direct": made(BITS, BERNOULLI, 2, order="s_curve", direct_connections=True),
    "made-random": made(BITS, BERNOULLI, 40, 40, connectivity="random", activation="sigmoid"),
    "made-sequence": made(data("sequence", 5, levels=2), BERNOULLI, 8, activation="elu"),
    "made-image": made(GREY, BERNOULLI, 12, order="columns"),
    "made-subscale": made(WIDE, BERNOULLI, 12, order="subscale"),
    "made-levels": made(LEVELS, CATEGORICAL, 12, order="random", order_seed=1),
    "made-scaled": made(LEVELS, CATEGORICAL, 12, encoding="scaled"),
    "made-rgb": made(RGB, CATEGORICAL, 14, order="reverse", direct_connections=True),
    "made-rgb-joint": made(RGB, logistics, 12),
    "made-rgb-joint-permuted": made(RGB_BITS, logistics, 12, order="random", order_seed=2),
    "made-logistics": made(LEVELS, logistics, 12, order="reverse"),
    "made-mog": made(PLANE, mixture_of_2, 8, scale=0.4),
    "made-mog-uniform": made(PLANE, uniform_mixture_of_3, 8, order="reverse", scale=0.4),
    "made-mog-deep": made(SPACE, mixture_of_2, 10, 12, order="random", scale=0.4),
    "made-mog-direct": made(SPACE, mixture_of_2, 6, direct_connections=True, scale=0.2),
    "made-one-bit": made(data("vector", 1, levels=2), BERNOULLI, 3),
    "made-one-pixel": made(data("image", 1, 1, 1, levels=4), CATEGORICAL, 3),
    "made-one-real": made(data("vector", 1, levels=None), mixture_of_2, 3),
    "fvsbn": made(BITS, BERNOULLI, order="random", order_seed=7, direct_connections=True),
    "fvsbn-rgb": made(RGB, CATEGORICAL, direct_connections=True),
    "made-given": given(made(LEVELS, CATEGORICAL, 9, 12, order="random", direct_connections=True)),
    "nade-given": given(nade(RGB, logistics, 9, order="random"), VECTOR),
    "nade": nade(BITS, BERNOULLI, 12),
    "nade-permuted": nade(BITS, BERNOULLI, 5, order="random", activation="sigmoid"),
    "nade-image": nade(GREY, BERNOULLI, 7, order="columns", activation="elu"),
    "nade-levels": nade(LEVELS, CATEGORICAL, 9, order="random", order_seed=1),
    "nade-scaled": nade(LEVELS, CATEGORICAL, 9, encoding="scaled"),
    "nade-rgb": nade(RGB, CATEGORICAL, 9, order="reverse"),
    "nade-rgb-joint": nade(RGB, logistics, 9),
    "nade-rgb-joint-permuted": nade(RGB_BITS, logistics, 9, order="random", order_seed=2),
    "nade-mog": nade(PLANE, mixture_of_2, 6, scale=0.4),
    "nade-mog-uniform": nade(SPACE, uniform_mixture_of_3, 6, order="random", scale=0.4),
    "nade-one-bit": nade(data("vector", 1, levels=2), BERNOULLI, 3),
    "separate-mog": separate(PLANE, mixture_of_2, 6, scale=0.4),
    "separate-mog-uniform": separate(SPACE, uniform_mixture_of_3, 6, order="random", scale=0.4),
    "separate-linear": separate(BITS, BERNOULLI, order="random"),
    "separate-rgb-joint": separate(RGB, logistics, 6, order="reverse", dropout=0.5),
    "separate-deep": separate(GREY, BERNOULLI, 4, 5, order="columns", activation="elu"),
    "separate-given": given(separate(LEVELS, CATEGORICAL, 5, order="reverse")),
    "separate-one-bit": separate(data("vector", 1, levels=2), BERNOULLI, 3),
    "pixelcnn": pixelcnn(GREY, BERNOULLI, 4, dropout=0.5),
    "pixelcnn-tall": pixelcnn(TALL, CATEGORICAL, 3, residual=False),
    "pixelcnn-rgb": pixelcnn(RGB, CATEGORICAL, 4, scale=0.5),
    "pixelcnn-rgb-joint": pixelcnn(RGB, logistics, 4),
    "pixelcnn-one-pixel": pixelcnn(data("image", 1, 1, 1, levels=4), CATEGORICAL, 2, num_layers=1),
    "pixelcnn-given": given(pixelcnn(RGB_BITS, BERNOULLI, 4, scale=0.4)),
    "gated-pixelcnn": gated(GREY, BERNOULLI, 5, dropout=0.5),
    "gated-pixelcnn-tall": gated(TALL, CATEGORICAL, 3, first_kernel_size=5),
    "gated-pixelcnn-rgb": gated(RGB, CATEGORICAL, 5, scale=0.5, encoding="scaled"),
    "gated-pixelcnn-rgb-joint": gated(RGB, logistics, 3),
    "gated-pixelcnn-one-layer": gated(RGB_BITS, BERNOULLI, 3, num_layers=1),
    "gated-pixelcnn-given": given(gated(GREY, BERNOULLI, 4), VECTOR),
    "pixelcnn-pp": pixelcnn_pp(GREY, BERNOULLI, 2, dropout=0.5),
    "pixelcnn-pp-rgb": pixelcnn_pp(RGB, CATEGORICAL, 1),
    "pixelcnn-pp-rgb-joint": pixelcnn_pp(RGB_BITS, logistics, 2),
    "pixelcnn-pp-given": given(pixelcnn_pp(GREY, BERNOULLI, 1)),
    "pixel-snail": pixel_snail(GREY, BERNOULLI, 2, dropout=0.5),
    "pixel-snail-rgb": pixel_snail(RGB, CATEGORICAL),
    "pixel-snail-rgb-joint": pixel_snail(RGB_BITS, logistics, num_key_channels=4),
    "pixel-snail-given": given(pixel_snail(GREY, BERNOULLI), VECTOR),
    "multiscale": multiscale(GREY, BERNOULLI, 4, dropout=0.5),
    "multiscale-tall": multiscale(TALL, CATEGORICAL, 3, base_size=2),
    "multiscale-rgb": multiscale(RGB, CATEGORICAL, 4, encoding="scaled"),
    "multiscale-rgb-joint": multiscale(RGB_BITS, logistics, 4),
    "multiscale-base": multiscale(SQUARE, BERNOULLI, 3, base_size=4),
    "multiscale-given": given(multiscale(GREY, BERNOULLI, 4)),
    "rnn": rnn(TEXT, CATEGORICAL, 6),
    "rnn-gru": rnn(data("sequence", 6, levels=2), BERNOULLI, 5, cell="gru", num_layers=2),
    "rnn-vanilla": rnn(TEXT, CATEGORICAL, 7, cell="vanilla", embedding_size=3, dropout=0.5),
    "rnn-mog": rnn(data("sequence", 2, levels=None), mixture_of_2, 5, scale=0.4),
    "rnn-given": given(rnn(TEXT, CATEGORICAL, 6, num_layers=2)),
    "rnn-one": rnn(data("sequence", 1, levels=4), CATEGORICAL, 3),
    "frames": frames(CHORDS, BERNOULLI, 5, dropout=0.5),
    "frames-made": frames(LINES, CATEGORICAL, 4, inner="made", cell="gru", num_layers=2),
    "frames-mog": frames(REAL_FRAMES, mixture_of_2, 4, cell="vanilla", scale=0.4),
    "frames-given": given(frames(LINES, CATEGORICAL, 5)),
    "transformer": transformer(TEXT, CATEGORICAL, 8),
    "transformer-past": transformer(TEXT, CATEGORICAL, 8, past=3, num_layers=3, dropout=0.5),
    "transformer-bits": transformer(
        data("sequence", 6, levels=2), BERNOULLI, 4, num_heads=1, activation="relu_squared"
    ),
    "transformer-mog": transformer(data("sequence", 2, levels=None), mixture_of_2, 4, scale=0.2),
    "transformer-full": transformer(TEXT, CATEGORICAL, 8, past=None, attention="full"),
    "transformer-strided": transformer(TEXT, CATEGORICAL, 8, attention="strided", stride=2),
    "transformer-fixed": transformer(
        TEXT, CATEGORICAL, 8, past=6, attention="fixed", stride=3, summary=1
    ),
    "transformer-learned": transformer(TEXT, CATEGORICAL, 8, past=4, places="learned"),
    "transformer-sinusoidal": transformer(TEXT, CATEGORICAL, 8, past=4, places="sinusoidal"),
    "transformer-memory": transformer(TEXT, CATEGORICAL, 8, past=3, memory=2, dropout=0.5),
    "transformer-given": given(transformer(TEXT, CATEGORICAL, 8)),
    "wavenet": wavenet(TEXT, CATEGORICAL, 4),
    "wavenet-bits": wavenet(data("sequence", 6, levels=2), BERNOULLI, 3, num_layers=3),
    "wavenet-one-layer": wavenet(
        data("sequence", 2, levels=5), CATEGORICAL, 3, num_layers=1, num_stacks=1
    ),
    "wavenet-mog": wavenet(data("sequence", 2, levels=None), mixture_of_2, 3, scale=0.2),
    "wavenet-given": given(wavenet(TEXT, CATEGORICAL, 4)),
    "ngram": ngram(TEXT, 9),
    "blend": blend(TEXT, rnn(TEXT, CATEGORICAL, 6), ngram(TEXT, 3), weights="gate"),
    "blend-constants": blend(
        BIT_TEXT,
        rnn(BIT_TEXT, BERNOULLI, 5),
        transformer(BIT_TEXT, CATEGORICAL, 4),
        ngram(BIT_TEXT, 9),
        weights=[0.5, 0.2, 0.3],
    ),
    "masked-transformer": masked_transformer(BITS, BERNOULLI, 8, order="random"),
    "masked-transformer-rgb": masked_transformer(RGB, CATEGORICAL, 8, order="columns"),
    "masked-transformer-rgb-joint": masked_transformer(
        RGB_BITS, logistics, 8, order="random", order_seed=2, activation="relu_squared"
    ),
    "masked-transformer-mog": masked_transformer(PLANE, mixture_of_2, 4, scale=0.2),
    "masked-transformer-canonical": masked_transformer(LEVELS, CATEGORICAL, 4, canonical=True),
    "masked-transformer-given": given(masked_transformer(GREY, BERNOULLI, 8), VECTOR),
    "sigma-gpt": sigma_gpt(BITS, BERNOULLI, 8, order="random", dropout=0.5),
    "sigma-gpt-sequence": sigma_gpt(TEXT, CATEGORICAL, 4, num_heads=1, activation="relu_squared"),
    "sigma-gpt-rgb": sigma_gpt(RGB, CATEGORICAL, 8, order="columns"),
    "sigma-gpt-rgb-joint": sigma_gpt(RGB_BITS, logistics, 8, order="random", order_seed=2),
    "sigma-gpt-mog": sigma_gpt(PLANE, mixture_of_2, 4, order="reverse", scale=0.2),
    "sigma-gpt-given": given(sigma_gpt(GREY, BERNOULLI, 8), VECTOR),
    "sigma-gpt-one-bit": sigma_gpt(data("vector", 1, levels=2), BERNOULLI, 4),
    "sigma-gpt-resampled": sigma_gpt(SMALL_RGB, BERNOULLI, 8, order="random", resample=True),
    "sigma-gpt-canonical": sigma_gpt(
        SMALL_RGB, BERNOULLI, 8, order="columns", resample=True, canonical=True
    ),
    "orders-sigma-gpt-canonical": order_mixture(
        LEVELS,
        CATEGORICAL,
        SigmaGPT,
        num_orders=2,
        resample=True,
        canonical=True,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
    ),
    "orders-sigma-gpt-resampled": order_mixture(
        LEVELS,
        CATEGORICAL,
        SigmaGPT,
        num_orders=2,
        resample=True,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
    ),
    "deep-nade": deep_nade(BITS, BERNOULLI, 8, 9),
    "deep-nade-levels": deep_nade(LEVELS, CATEGORICAL, 6, 7, 8, order="reverse"),
    "deep-nade-rgb": deep_nade(RGB, CATEGORICAL, 8, 6, order="columns", encoding="scaled"),
    "deep-nade-rgb-joint": deep_nade(RGB_BITS, logistics, 9, 8, order="random", order_seed=2),
    "deep-nade-mog": deep_nade(PLANE, mixture_of_2, 6, 5, scale=0.4),
    "deep-nade-one-bit": deep_nade(data("vector", 1, levels=2), BERNOULLI, 3),
    "deep-nade-given": given(deep_nade(RGB, logistics, 8, 7, order="random"), VECTOR),
    "deep-nade-canonical": deep_nade(
        LEVELS, CATEGORICAL, 7, 6, order="random", order_seed=4, canonical=True
    ),
    "conv-nade": conv_nade(GREY, BERNOULLI, 5, 3, order="random"),
    "conv-nade-rgb": conv_nade(RGB, CATEGORICAL, 5, 2),
    "conv-nade-rgb-joint": conv_nade(RGB_BITS, logistics, 6, 2, order="reverse", kernel_size=5),
    "conv-nade-canonical": conv_nade(SQUARE, BERNOULLI, 5, 2, order="columns", canonical=True),
    "conv-nade-given": given(conv_nade(GREY, BERNOULLI, 4, 2, kernel_size=5)),
    "made-resampled": made(SPACE, mixture_of_2, 9, order="random", resample=True, scale=0.4),
    "nade-resampled": nade(RGB, CATEGORICAL, 8, order="random", resample=True),
    "orders-deep-nade": order_mixture(
        BITS, BERNOULLI, DeepNADE, hidden_sizes=[8, 7], activation="tanh"
    ),
    "orders-deep-nade-canonical": order_mixture(
        RGB_BITS,
        logistics,
        DeepNADE,
        hidden_sizes=[8, 7],
        activation="tanh",
        num_orders=2,
        canonical=True,
    ),
    "orders-made-resampled": made_orders(
        LEVELS, CATEGORICAL, 8, connectivity="random", num_orders=2, resample=True
    ),
    "orders-made-connectivity": made_orders(
        BITS, BERNOULLI, 12, connectivity="random", order="raster"
    ),
    "row-lstm": row_lstm(GREY, BERNOULLI, 3, dropout=0.5),
    "row-lstm-rgb": row_lstm(SMALL_RGB, BERNOULLI, 4, first_kernel_size=3),
    "row-lstm-rgb-joint": row_lstm(RGB, logistics, 2),
    "row-lstm-given": given(row_lstm(SMALL_RGB, BERNOULLI, 3)),
    "diagonal-bilstm": diagonal(GREY, BERNOULLI, 3, dropout=0.5),
    "diagonal-bilstm-tall": diagonal(TALL, CATEGORICAL, 2, num_layers=1),
    "diagonal-bilstm-rgb": diagonal(SMALL_RGB, BERNOULLI, 4),
    "diagonal-bilstm-rgb-joint": diagonal(RGB, logistics, 2),
    "diagonal-bilstm-given": given(diagonal(SMALL_RGB, BERNOULLI, 3, num_layers=1), VECTOR),
    "orders-nade": order_mixture(BITS, BERNOULLI, NADE, hidden_size=8, activation="tanh"),
    "orders-made": made_orders(BITS, BERNOULLI, 12, connectivity="random"),
    "orders-made-rgb-joint": made_orders(RGB, logistics, 12, num_orders=2),
    "orders-made-mog": made_orders(PLANE, mixture_of_2, 8, num_orders=2, scale=0.4),
    "lmconv": lmconv(GREY, BERNOULLI, 3, order="s_curve", order_seed=6),
    "lmconv-dilated": lmconv(TALL, CATEGORICAL, 3, order="s_curve", dilations=[1, 2], dropout=0.5),
    "lmconv-rgb": lmconv(SMALL_RGB, BERNOULLI, 2, order="reverse", normalize=False),
    "lmconv-rgb-joint": given(lmconv(RGB, logistics, 4, order="random", normalize=False)),
    "lmconv-resampled": lmconv(SMALL_RGB, BERNOULLI, 2, order="random", resample=True),
    "orders-lmconv-resampled": order_mixture(
        RGB,
        CATEGORICAL,
        LMConv,
        num_orders=2,
        resample=True,
        num_blocks=1,
        num_channels=2,
        dilations=[1],
    ),
    "orders-lmconv": order_mixture(
        SQUARE, BERNOULLI, LMConv, num_orders=2, num_blocks=1, num_channels=2, dilations=[1]
    ),
    "inverse-flow": flow(PLANE, 8),
    "inverse-flow-space": flow(SPACE, 7, 6, num_layers=3),
    "inverse-flow-sequence": flow(data("sequence", 2, levels=None), 5),
    "least": fitted(LEVELS, Least),
    "uniform": fitted(RGB, Uniform),
    "uniform-real": fitted(PLANE, Uniform, jumps=True),
    "histogram": fitted(LEVELS, Histogram, num_bins=3),
    "histogram-real": fitted(PLANE, Histogram, num_bins=6, jumps=True),
    "histogram-joint": fitted(BITS, Histogram, joint=True, smoothing=0.5),
    "histogram-joint-real": fitted(PLANE, Histogram, num_bins=4, joint=True, jumps=True),
    "independent": fitted(LEVELS, Independent),
    "independent-rgb": fitted(RGB, Independent),
    "independent-real": fitted(PLANE, Independent),
    "bernoullis": fitted(BITS, MixtureOfCategoricals, num_components=3),
    "categoricals": fitted(LEVELS, MixtureOfCategoricals, num_components=3),
    "gmm": fitted(PLANE, GMM, num_components=2),
    "gmm-space": fitted(SPACE, GMM, num_components=2, covariance_type="tied"),
    "gmm-levels": fitted(LEVELS, GMM, num_components=2, covariance_type="diag"),
    "gmm-levels-bound": fitted(LEVELS, GMM, num_components=2),
}
