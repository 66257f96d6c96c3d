"""Inverse autoregressive flows: densities of real values that are drawn in one pass.

Shapes: B batch, D values per example, N particles.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple, final

import torch
from torch import Tensor

from armodels import orders
from armodels.checks import Count, Range, checked
from armodels.density import population, query
from armodels.density.base import DensityModel
from armodels.density.completion import Completion, Particles, as_mask, complete
from armodels.density.samplers import Sampler
from armodels.density.walk import check_draw, draw_noise, sampling, walk
from armodels.networks import layers, splines
from armodels.networks.made import MADE
from armodels.spec import DataSpec

LIMIT = 2.0
"""Of the log-scales of a layer: early in training too, draws stay finite and have an inverse."""

REACH = 10.0
"""Layers hear values clipped to ±REACH, so that an inverse does not grow from step to step."""

RIDGE = 1e-3
"""Share of independent values in the covariance at which training starts."""

DRAWS = 256
"""Of the flow itself, which say where particles of unknown values are looked for."""


@final
class Change(NamedTuple):
    """What a layer does to values (...)."""

    shift: Tensor
    """(...)"""
    log_scale: Tensor
    """(...)"""
    spline: Tensor
    """(..., P) its parameters."""


@final
class InverseFlow(DensityModel):
    """Normal noise, bent, scaled and shifted layer by layer by what the noise before it says.

    A layer maps z to g(z) exp(s) + m, where the spline g, s and m of a value are those of a MADE
    that reads the values of z before it; the order is turned round from layer to layer. So a draw,
    and its own
    log-probability, take one pass of each layer. The log-probability of another event takes the
    inverse, value after value: D steps of each layer, exact.

    Made to be the student of ``armodels distill``; ``armodels train`` fits it to data, slowly.

    Accepts: vector, image, sequence of real values.

    Args:
        spec: What a datum is.
        num_layers: Layers.
        hidden_sizes: Units of each hidden layer of each MADE.
        num_bins: Of the splines; 0: there are none, and draws are much faster.
        activation: relu, sigmoid, tanh or elu.

    Raises:
        ValueError: The data has levels.

    Shapes:
        x: (B, *event).

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        https://arxiv.org/abs/1606.04934
        Parallel WaveNet: Fast High-Fidelity Speech Synthesis (van den Oord et al., 2017)
        https://arxiv.org/abs/1711.10433
        Neural Spline Flows (Durkan et al., 2019) https://arxiv.org/abs/1906.04032

    Differs from the papers: layers are MADEs, also of sequences; each bends values by a spline, so
    that one layer has several modes; scales are exp(2 tanh(s / 2)); layers hear values clipped to
    ±10, without which the recursion of the inverse may grow at each step, beyond what floats hold;
    the last layer starts at mean and covariance of the data.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        *,
        num_layers: Count = 4,
        hidden_sizes: list[Count] = [64, 64],  # noqa: B006  # read, never written
        num_bins: Annotated[int, Range(0, 500)] = 8,
        activation: layers.Activation = "elu",
    ):
        super().__init__()
        if spec.levels is not None:
            raise ValueError(
                f"model InverseFlow needs real values, but {spec.name} has {spec.levels} levels; "
                f"use model=made"
            )
        self.spec = spec
        turns = [orders.make(("raster", "reverse")[i % 2], spec.shape) for i in range(num_layers)]
        self.nets: layers.ModuleListOf[MADE] = layers.ModuleListOf(
            MADE(
                spec,
                2 + (splines.num_params(num_bins) if num_bins else 0),
                order,
                hidden_sizes=hidden_sizes,
                activation=activation,
                direct_connections=True,
            )
            for order in turns
        )
        self.mean = torch.nn.Parameter(torch.zeros(spec.num_dims))
        self.log_std = torch.nn.Parameter(torch.zeros(spec.num_dims))

    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Start the last layer at mean and covariance of the data.

        The direct connections of its MADE are the covariance's factor, whose diagonal scales.
        """
        x = torch.cat([batch.flatten(1) for batch in batches]).double()
        mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-3)
        net = self.nets[-1]
        order = net.order_table[:, 0]
        scaled = ((x - mean) / std)[:, order]
        correlation = scaled.mT @ scaled / len(x)
        ridge = RIDGE * torch.eye(len(order), dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky((1 - RIDGE) * correlation + ridge)
        diagonal = factor.diagonal()
        ranks = orders.ranks(net.order_table)
        lower = (factor / diagonal[:, None]).tril(-1)
        assert net.direct is not None
        shifts = net.direct.weight.unflatten(0, (self.spec.num_dims, -1))[:, 0]
        with torch.no_grad():
            self.mean.copy_(mean)
            self.log_std.copy_((std * diagonal[ranks]).log())
            shifts.copy_(lower[ranks][:, ranks])

    def _change(self, net: MADE, z: Tensor) -> Change:
        """What a layer does to each value, (B, D)."""
        heard = z.clamp(-REACH, REACH)
        return _change_of(net(heard).index_select(1, orders.ranks(net.order_table)))

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Events that normal noise becomes, and their log-probabilities, with gradients.

        Args:
            noise: (B, D).

        Returns:
            (B, *event) and (B,), nats.
        """
        z, log_prob = noise, _log_normal(noise)
        for net in self.nets:
            change = self._change(net, z)
            bent, log_slope = splines.forward(z, change.spline)
            z = bent * change.log_scale.exp() + change.shift
            log_prob = log_prob - (log_slope + change.log_scale).sum(1)
        x = z * self.log_std.exp() + self.mean
        return x.view(-1, *self.spec.shape), log_prob - self.log_std.sum()

    @torch.compiler.disable  # The compiler would write its steps out, one after another.
    def _inverse(self, net: MADE, y: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer made ``y`` of, and the log of its slope at each value: each (B, D).

        Without gradients by the steps of the MADE, which take no more than a pass in all. Their
        gradients are those of z = f(z, y), where f is one pass: those of f, through the inverse
        of the triangular I - df/dz. First derivatives alone are right.
        """
        with torch.no_grad():
            z, log_slope = self._inverse_by_steps(net, y)
        if not torch.is_grad_enabled():
            return z, log_slope
        in_order, ranks = net.order_table[:, 0], orders.ranks(net.order_table)
        heard = z.clamp(-REACH, REACH)
        params = net(heard)
        again, _ = _undone(_change_of(params), y[:, in_order])
        free = params.detach().requires_grad_()  # Weights of a model may be frozen.
        undone, _ = _undone(_change_of(free), y[:, in_order].detach())
        (weights,) = torch.autograd.grad(undone.sum(), free)
        slopes = net.slopes(heard, weights).to(z) * (z.abs() <= REACH)[:, None]
        moved = torch.linalg.solve_triangular(
            -slopes[:, :, in_order],
            (again - again.detach())[..., None],
            upper=False,
            unitriangular=True,  # It is I - df/dz: ones stand for the diagonal.
        )
        z = z + moved[:, ranks, 0]
        return z, _undone(self._change(net, z), y)[1]

    def _inverse_by_steps(self, net: MADE, y: Tensor) -> tuple[Tensor, Tensor]:
        in_order = y[:, net.order_table[:, 0]]
        undone: list[tuple[Tensor, Tensor]] = []

        def choose(s: int, params: Tensor) -> Tensor:
            undone.append(_undone(_change_of(params), in_order[:, s]))
            return undone[-1][0].clamp(-REACH, REACH)[:, None]

        walk(net, len(y), choose)
        ranks = orders.ranks(net.order_table)
        z, log_slope = (torch.stack(values, 1)[:, ranks] for values in zip(*undone, strict=True))
        return z, log_slope

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._tempered(x, 1.0)

    def _tempered(self, x: Tensor, temperature: float) -> Tensor:
        """Log-probabilities (B,) where the noise has this variance."""
        z = (x.flatten(1).to(self.mean) - self.mean) * torch.exp(-self.log_std)
        log_prob = -self.log_std.sum()
        for net in reversed(self.nets):
            z, log_slope = self._inverse(net, z)
            log_prob = log_prob - log_slope.sum(1)
        spread = math.sqrt(temperature)
        return log_prob + _log_normal(z / spread) - self.spec.num_dims * math.log(spread)

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        noise = draw_noise(shape, generator, self.mean.device)
        return torch.special.ndtri(noise).to(self.mean)

    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As in the base class, in one pass; the temperature multiplies the noise's variance."""
        check_draw(temperature, n)
        self.check_context(context, n)
        noise = self._normal((n, self.spec.num_dims), generator)
        with sampling(self, naive=True):
            return self.draw(math.sqrt(temperature) * noise)

    def particles(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        *,
        context: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
        sampler: Sampler,
    ) -> Particles:
        """Events whose unknown values are looked for by populations, weighted by the flow.

        Args:
            x: (B, *event); values that are not known are ignored.
            known: Boolean, (*event) or (B, *event).
            num_particles: N.
            context: None.
            temperature: Variance of the noise of the flow.
            generator: Seeds the draws.
            progress: There is nothing to show.
            sampler: There is no walk.

        Raises:
            ValueError: The temperature is 0.
        """
        known = as_mask(known, x)
        self.spec.check(x.masked_fill(~known, 0))
        self.check_context(context, len(x))
        if not temperature:
            raise ValueError(
                "at temperature 0 a flow draws one event alone, which has not these known values; "
                "choose a temperature above 0"
            )
        look = self._looking(len(x), num_particles, generator, temperature)
        values, log_weights = look(x, known)
        values = values.to(x).unflatten(2, self.spec.shape)
        return Particles(values, log_weights, bool(known.all()), False)

    def _looking(
        self, n: int, num_particles: int, generator: torch.Generator | None, temperature: float
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What looks for values (n, N, D) beside known ones, and log-weights (n, N).

        Its noise is the same whenever it is asked.
        """
        noise = population.noise_of(
            n, num_particles, self.spec.num_dims, generator, self.mean.device
        )
        drawn, _ = self.sample_with_log_prob(DRAWS, temperature=temperature, generator=generator)
        drawn = drawn.flatten(1).double()
        place = population.Place(drawn.mean(0), drawn.std(0), drawn[: population.FIRST])

        def log_density(x: Tensor) -> Tensor:
            return self._tempered(x, temperature)

        def look(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
            flat, mask = x.flatten(1).double(), known.flatten(1)
            with sampling(self, naive=True):
                return population.search(log_density, flat, mask, place, noise, num_particles)

        return look

    def _weights_of(self, one: query.Query) -> query.Weights:
        """By the particles of a completion, under the same noise for both parts."""
        look = self._looking(len(one.x), one.num_particles, one.generator, 1.0)
        parts = one.both, one.known
        # p of nothing is 1.
        found = [
            look(one.x, part)[1]
            if part.any()
            else torch.zeros(len(part), one.num_particles, dtype=torch.double, device=part.device)
            for part in parts
        ]
        exact = all(part.all() or not part.any() for part in parts)
        return query.Weights(found[0][:, None], found[1][:, None], exact)

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        num_particles: int = 1,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Completion:
        """By weighted particles that are looked for, of which in many dimensions few hit.

        The effective sample size says how many. Where nothing is known, a draw.
        """
        if not as_mask(known, x).any() and len(x):
            drawn = self.sample(
                len(x), context=context, temperature=temperature, generator=generator
            )
            return Completion(drawn.to(x), "exact", torch.ones(len(x), device=x.device), 1)
        return complete(
            [self],
            x,
            known,
            num_particles=num_particles,
            context=context,
            temperature=temperature,
            generator=generator,
            progress=progress,
            sampler=Sampler(),
        )


def _log_normal(z: Tensor) -> Tensor:
    """Of standard normal values, nats: (..., D) -> (...)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def _change_of(params: Tensor) -> Change:
    """What the parameters (..., P) of a layer mean."""
    return Change(params[..., 0], LIMIT * torch.tanh(params[..., 1] / LIMIT), params[..., 2:])


def _undone(change: Change, y: Tensor) -> tuple[Tensor, Tensor]:
    """What was changed into ``y`` (...), and the log of the slope there."""
    bent = (y - change.shift) * torch.exp(-change.log_scale)
    z, log_slope = splines.inverse(bent, change.spline)
    return z, log_slope + change.log_scale
