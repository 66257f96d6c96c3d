"""Inverse autoregressive flows: densities of real values that are drawn in one pass.

Shapes: B batch, D values per example, N particles.
"""

import math
from collections.abc import Iterable
from typing import Annotated, final

import torch
from torch import Tensor

from armodels import orders
from armodels.checks import Count, Range, checked
from armodels.density import query
from armodels.density.base import DensityModel
from armodels.density.completion import Completion, Particles, as_mask, complete
from armodels.density.samplers import Sampler
from armodels.density.walk import check_draw, draw_noise, sampling
from armodels.networks import layers, splines
from armodels.networks.made import MADE
from armodels.spec import DataSpec

LIMIT = 2.0
"""Of the log-scales of a layer: early in training too, draws stay finite and have an inverse."""

WIDER = 1.5
"""Particles of unknown values are spread by so many standard deviations of the data."""


@final
class InverseFlow(DensityModel):
    """Normal noise, bent, scaled and shifted layer by layer by what the noise before it says.

    A layer maps z to g(z) exp(s) + m, where the spline g, s and m of a value are those of a MADE
    that reads the values of z before it; the order is turned round from layer to layer. So a draw,
    and its own
    log-probability, take one pass of each layer. The log-probability of another event takes the
    inverse, value after value: up to D passes of each layer, exact.

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
    that one layer has several modes; scales are exp(2 tanh(s / 2)); a last layer without a
    network starts at mean and deviation of the data.
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
        """Start the last layer at mean and deviation of the data."""
        x = torch.cat([batch.flatten(1) for batch in batches]).double()
        with torch.no_grad():
            self.mean.copy_(x.mean(0))
            self.log_std.copy_(x.std(0, correction=0).clamp_min(1e-3).log())

    def _change(self, net: MADE, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a layer does to each value: shifts and log-scales (B, D), and splines (B, D, P)."""
        params = net(z).index_select(1, orders.ranks(net.order_table))
        return params[..., 0], LIMIT * torch.tanh(params[..., 1] / LIMIT), params[..., 2:]

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Events that normal noise becomes, and their log-probabilities, with gradients.

        Args:
            noise: (B, D).

        Returns:
            (B, *event) and (B,), nats.
        """
        z, log_prob = noise, _log_normal(noise)
        for net in self.nets:
            shift, log_scale, params = self._change(net, z)
            bent, log_slope = splines.forward(z, params)
            z = bent * log_scale.exp() + shift
            log_prob = log_prob - (log_slope + log_scale).sum(1)
        x = z * self.log_std.exp() + self.mean
        return x.view(-1, *self.spec.shape), log_prob - self.log_std.sum()

    def _inverse(self, net: MADE, y: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer made ``y`` of, and the log of its slope at each value: each (B, D).

        A pass settles at least one more value, the next in the order: after D of them all are
        what the layer read, and without gradients it ends where a pass changes nothing.
        """
        z, total = y, torch.zeros_like(y)
        for _ in range(self.spec.num_dims):
            shift, log_scale, params = self._change(net, z)
            before = z
            z, log_slope = splines.inverse((y - shift) * torch.exp(-log_scale), params)
            total = log_slope + log_scale
            if not torch.is_grad_enabled() and torch.equal(before, z):
                break
        return z, total

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        z = (x.flatten(1).to(self.mean) - self.mean) * torch.exp(-self.log_std)
        log_prob = -self.log_std.sum()
        for net in reversed(self.nets):
            z, log_slope = self._inverse(net, z)
            log_prob = log_prob - log_slope.sum(1)
        return log_prob + _log_normal(z)

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
        """Events whose unknown values are independent normal ones, weighted by the flow.

        Args:
            x: (B, *event); values that are not known are ignored.
            known: Boolean, (*event) or (B, *event).
            num_particles: N.
            context: None.
            temperature: Of the normal ones.
            generator: Seeds the draws.
            progress: There is nothing to show.
            sampler: There is no walk.
        """
        known = as_mask(known, x)
        self.spec.check(x.masked_fill(~known, 0))
        self.check_context(context, len(x))
        noise = self._normal((len(x), num_particles, self.spec.num_dims), generator)
        values, log_weights = self._weighted(x, known, noise, temperature)
        values = values.to(x).unflatten(2, self.spec.shape)
        return Particles(values, log_weights, bool(known.all()), False)

    def _weighted(
        self, x: Tensor, known: Tensor, noise: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What noise (B, N, D) puts beside the known values: (B, N, D) and log-weights (B, N)."""
        flat, mask = x.flatten(1)[:, None].to(self.mean), known.flatten(1)[:, None]
        spread = WIDER * math.sqrt(temperature) * self.log_std.exp()
        values = torch.where(mask, flat, (self.mean + spread * noise).detach())
        with sampling(self, naive=True):
            log_weights = self._log_prob(values.flatten(0, 1), None).unflatten(0, noise.shape[:2])
        drawn = torch.distributions.Normal(0, 1).log_prob(noise) - spread.log()
        return values, log_weights - drawn.masked_fill(mask, 0).sum(-1)

    def _weights_of(self, one: query.Query) -> query.Weights:
        """By the particles of a completion, under the same noise for both parts."""
        noise = self._normal((len(one.x), one.num_particles, self.spec.num_dims), one.generator)
        parts = one.both, one.known
        # p of nothing is 1.
        found = [
            self._weighted(one.x, part, noise)[1].double()
            if part.any()
            else torch.zeros(noise.shape[:2], dtype=torch.double, device=noise.device)
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
        """By weighted particles: independent normal values, of which in many dimensions few hit.

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
