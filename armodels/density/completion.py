"""Completion: values that are known stay, all others are drawn given them.

Shapes: B batch, N particles, S steps, K values per step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from armodels.checks import Count, require_class, require_types
from armodels.density.samplers import Sampler
from armodels.density.walk import check_draw, draw_noise

IMPOSSIBLE = "the known values have probability 0 under the model"
"""Why there is nothing to complete."""

DISTRUST = 2.0
"""Nats. Halves of many particles with an effective sample size of n differ by about 2 / sqrt(n),
so that particles that differ by more hang on one of them."""


@final
@dataclass(frozen=True)
class Completion:
    """Events whose unknown values were filled in.

    Attributes:
        values: (B, *event); known values are those given, bit for bit.
        method: ``"exact"``: drawn from p(unknown | known). ``"likelihood weighting"``: resampled
            from weighted particles, exact in the limit. ``"clamped"``: known values that come
            late in the order did not inform the earlier ones.
        effective_sample_size: (B,) 1 / sum w^2 of the normalized particle weights.
        num_particles: Particles that the weights were spread over.
        disagreement: (B,) nats by which halves of the particles differ in what they make of
            log p(known), see ``disagreement``; None where no particles were weighted. Above
            ``DISTRUST`` the effective sample size says nothing.
        order_chosen: The order was chosen for each known part, so that it comes first, as far as
            it may: a draw under that order, which need not be the one that ``log_prob`` follows,
            or is one of those that it averages over.
    """

    values: Tensor
    method: str
    effective_sample_size: Tensor
    num_particles: int
    disagreement: Tensor | None = None
    order_chosen: bool = False


class Particles(NamedTuple):
    """Walks that keep the known values, weighted by what they say of those values.

    Attributes:
        values: (B, N, *event).
        log_weights: (B, N).
        exact: The order puts every known value first; then N = 1.
        order_chosen: As in ``Completion``.
    """

    values: Tensor
    log_weights: Tensor
    exact: bool
    order_chosen: bool


def as_mask(known: Tensor, x: Tensor, name: str = "known") -> Tensor:
    """One mask per event, (B, *event), of a mask of all events or of each.

    Args:
        known: Boolean, (*event) or (B, *event).
        x: (B, *event).
        name: Of the mask, for sentences.

    Raises:
        ValueError: It is no such mask.
        TypeError: It, or what it is a mask of, is no tensor.
    """
    require_class("x", x, Tensor, "such as torch.from_numpy(array) makes")
    require_class(name, known, Tensor, "such as torch.arange(9) < 5")
    if known.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, True = {name}, got {known.dtype}")
    if known.shape not in (x.shape, x.shape[1:]):
        raise ValueError(f"{name} has shape {tuple(known.shape)}, the events {tuple(x.shape[1:])}")
    return known.expand_as(x)


def known_first(known: Tensor, order: Tensor) -> bool:
    """Whether the order (S, K) writes what is known, (B, *event), before all else."""
    in_order = known.flatten(1)[:, order.flatten().to(known.device)]
    return bool((in_order[:, 1:] <= in_order[:, :-1]).all())


def resample(
    x: Tensor, log_weights: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Keep one particle per event, by weight.

    Args:
        x: (B, N, *event).
        log_weights: (B, N), not normalized.
        generator: Seeds the choice.

    Returns:
        (B, *event) and the effective sample sizes (B,).

    Raises:
        ValueError: All particles of an event have weight zero.
    """
    if not torch.isfinite(log_weights.amax(1)).all():
        raise ValueError(IMPOSSIBLE)
    index = chosen(log_weights, draw_noise((len(x), 1), generator, x.device))[:, 0]
    rows = torch.arange(len(x), device=x.device)
    return x[rows, index], 1 / log_weights.double().softmax(1).square().sum(1)


def chosen(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Which particles are kept, by weight.

    Args:
        log_weights: (B, N), not normalized, not all of an event zero.
        uniform: (B, M) noise.

    Returns:
        (B, M) indices.
    """
    cdf = log_weights.double().softmax(1).cumsum(1)
    index = torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True)
    return index.clamp_max(log_weights.shape[1] - 1)


def disagreement(
    log_weights: Tensor, num_splits: int = 20, *, taken_off: Tensor | None = None
) -> Tensor:
    """How far halves of the particles are from each other, nats: (B, M, N) -> (B,).

    The log of a mean weight estimates log p(known). Particles that all missed a mode agree with
    each other, so that their effective sample size is large; where one has found it and weighs
    more than all others, the half without it says something else. What no particle of any event
    has found remains unseen.

    Args:
        log_weights: N particles of each of M components, not normalized, N > 1.
        num_splits: Random halves; their root mean square counts.
        taken_off: Other log-weights of the same particles: of the ratio of both means.
    """
    half = log_weights.shape[2] // 2
    # A generator of its own: no draw may depend on whether a warning was computed.
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(num_splits):
        order = torch.randperm(log_weights.shape[2], generator=generator).to(log_weights.device)
        first, second = (
            _log_sum(log_weights[:, :, part])
            - (0 if taken_off is None else _log_sum(taken_off[:, :, part]))
            for part in (order[:half], order[half : 2 * half])
        )
        squares.append((first - second).nan_to_num(math.inf).square())  # NaN: both are -inf
    return torch.stack(squares).mean(0).sqrt()


def _log_sum(log_weights: Tensor) -> Tensor:
    """(B, M, N) -> (B,)."""
    return log_weights.double().flatten(1).logsumexp(1)


class Weighted(Protocol):
    """A model that can weigh particles, see ``autoregressive.AutoregressiveModel``."""

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
        """Draws of what is not known, with their weights.

        Args:
            x: (N, *event); what is not known may be anything.
            known: Bool (N, *event).
            num_particles: Particles of each example.
            context: (N, *context), or None.
            temperature: Of the draws.
            generator: Of the noise; None: the global one of torch.
            progress: Whether a bar is shown.
            sampler: Which walk is taken.
        """
        ...


def complete(
    models: Iterable[Weighted],
    x: Tensor,
    known: Tensor,
    *,
    num_particles: int,
    context: Tensor | None,
    temperature: float,
    generator: torch.Generator | None,
    progress: bool,
    sampler: Sampler,
) -> Completion:
    """Completion under a uniform mixture of models (one model: itself).

    Every model contributes its particles; as their weights are the models' probabilities of the
    known values, resampling also draws the model from its posterior.

    Args:
        models: Made one after another, as each is asked for.
        x: (B, *event); values that are not known are ignored.
        known: Boolean, (*event) or (B, *event).
        num_particles: Of each model, where its order does not put the known values first.
        context: What the events are conditioned on, if anything.
        temperature: Of the draws.
        generator: Seeds the draws.
        progress: Show a bar with an ETA once a second has passed.
        sampler: Which walk is taken.

    Raises:
        ValueError: The numbers make no draw, or the known values are impossible.
    """
    check_draw(temperature)
    require_types({"num_particles": num_particles}, {"num_particles": Count})
    parts = [
        model.particles(
            x,
            known,
            num_particles,
            context=context,
            temperature=temperature,
            generator=generator,
            progress=progress,
            sampler=sampler,
        )
        for model in models
    ]
    log_weights = torch.cat([part.log_weights for part in parts], 1)
    values, effective = resample(torch.cat([p.values for p in parts], 1), log_weights, generator)
    if all(part.exact for part in parts):
        method = "exact"
    else:
        method = "clamped" if num_particles == 1 and len(parts) == 1 else "likelihood weighting"
    apart = None
    if method == "likelihood weighting":
        if num_particles == 1:  # Halves are of the models, each of which has one particle.
            apart = disagreement(log_weights[:, None])
        else:
            apart = disagreement(log_weights.unflatten(1, (len(parts), -1)))
    chosen = any(part.order_chosen for part in parts)
    return Completion(values, method, effective, log_weights.shape[1], apart, chosen)
