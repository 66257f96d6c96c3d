"""Particles that look for where a density lies: populations, each drawn around the one before.

Shapes: B events, D values, N particles, M centres, R rounds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from armodels.density.completion import chosen
from armodels.density.walk import draw_noise

ROUNDS = 4
"""Populations: all but the last only look for where the last one is drawn."""

CENTRES = 64
"""Around which a population is drawn, beside those that the search begins with."""

FIRST = 32
"""Centres that a search may well begin with."""

LEAST = 256
"""Particles of a population that looks, where fewer are asked for."""

WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Of the normal kernels around a centre, in deviations."""

DEFENSIVE = 0.2
"""Share of the particles that are drawn around the mean, whatever was found."""

WIDE = (1.5, 5.0)
"""Deviations by which these are spread, half of them each."""

LOWEST = torch.finfo(torch.double).min
"""Log-weight of particles that are impossible, so that one can be chosen where all are."""


@final
class Noise(NamedTuple):
    """All that is random of a search.

    Attributes:
        normal: (R, B, N, D) standard normal.
        uniform: (R, B, N) of which kernel a particle is.
        choice: (R, B, M) of which particle the next population is drawn around.
    """

    normal: Tensor
    uniform: Tensor
    choice: Tensor


@final
class Place(NamedTuple):
    """Where the search begins.

    Attributes:
        mean: (D,).
        deviation: (D,).
        centres: (M, D).
    """

    mean: Tensor
    deviation: Tensor
    centres: Tensor


def noise_of(
    num_events: int,
    num_particles: int,
    num_dims: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Noise:
    """Noise for the particles of a search, and for those that look for their place.

    Args:
        num_events: B.
        num_particles: Of each event, N.
        num_dims: D.
        generator: Where it comes from; None: the global one of torch.
        device: Where it is needed.
    """
    shape = (ROUNDS, num_events, max(num_particles, LEAST))
    normal = torch.special.ndtri(draw_noise((*shape, num_dims), generator, device))
    uniform = draw_noise(shape, generator, device)
    return Noise(normal, uniform, draw_noise((*shape[:2], CENTRES), generator, device))


def search(
    log_density: Callable[[Tensor], Tensor],
    x: Tensor,
    known: Tensor,
    place: Place,
    noise: Noise,
    num_particles: int,
) -> tuple[Tensor, Tensor]:
    """Weighted particles of the values that are not known.

    A population is drawn from a mixture: normal kernels of several widths around centres that the
    one before found, the same around those that the search began with, and wide ones around the
    mean. A particle is weighed by the density of the whole mixture, so no weight is large where
    any kernel could have drawn it; and given the earlier populations the last one's mean weight is
    the integral of the density without bias.

    Args:
        log_density: (n, D) -> (n,), nats, not normalized.
        x: (B, D) float64; values that are not known are ignored.
        known: Boolean (B, D).
        place: Where the search begins.
        noise: Of ``noise_of``.
        num_particles: N.

    Returns:
        (B, N, D) values and (B, N) log-weights.

    References:
        Population Monte Carlo (Cappé et al., 2004) https://doi.org/10.1198/106186004X12803
        Safe and Effective Importance Sampling (Owen and Zhou, 2000)
        https://doi.org/10.1080/01621459.2000.10473909

    Differs from the papers: the last population alone is used, and kernels have fixed widths.
    """
    free = ~known
    first = place.centres.expand(len(x), -1, -1)
    centres = first
    for turn in range(ROUNDS):
        last = turn == ROUNDS - 1
        size = num_particles if last else noise.normal.shape[2]
        normal, uniform = noise.normal[turn, :, :size], noise.uniform[turn, :, :size]
        drawn = _drawn(centres, place, normal, uniform)
        values = torch.where(known[:, None], x[:, None], drawn)
        log_weights = log_density(values.flatten(0, 1)).double().unflatten(0, values.shape[:2])
        log_weights = log_weights - _log_mixture(values, free, centres, place)
        if not last:
            rows = torch.arange(len(x), device=x.device)[:, None]
            which = chosen(log_weights.clamp_min(LOWEST), noise.choice[turn])
            found = values[rows, which]
            centres = torch.cat([first, found], 1)
    return values, log_weights


def _drawn(centres: Tensor, place: Place, normal: Tensor, uniform: Tensor) -> Tensor:
    """Particles (B, N, D) of the mixture, by its noise."""
    widths, wide = (centres.new_tensor(each) for each in (WIDTHS, WIDE))
    share = (uniform - DEFENSIVE) / (1 - DEFENSIVE)
    which = (share.clamp_min(0) * centres.shape[1] * len(WIDTHS)).long()
    centre = centres.gather(1, (which // len(WIDTHS))[..., None].expand_as(normal))
    width = widths[which % len(WIDTHS)]
    around = (share < 0)[..., None]
    spread = wide[(uniform / DEFENSIVE * len(WIDE)).long().clamp_max(len(WIDE) - 1)]
    width = torch.where(share < 0, spread, width)[..., None]
    return torch.where(around, place.mean, centre) + width * place.deviation * normal


def _log_mixture(values: Tensor, free: Tensor, centres: Tensor, place: Place) -> Tensor:
    """Log-density (B, N) of the values that are free under the mixture."""
    scaled = [
        (each / place.deviation).masked_fill(~free[:, None], 0)
        for each in (values, centres, place.mean.expand(len(values), 1, -1))
    ]
    num_free = free.sum(1)[:, None]
    total = torch.full_like(values[..., 0], -math.inf)
    for points, widths, part in (
        (scaled[1], WIDTHS, 1 - DEFENSIVE),
        (scaled[2], WIDE, DEFENSIVE),
    ):
        mode = "donot_use_mm_for_euclid_dist"
        squared = torch.cdist(scaled[0], points, compute_mode=mode).square()
        for width in widths:
            kernels = (squared / (-2 * width**2)).logsumexp(2) - num_free * math.log(width)
            total = torch.logaddexp(
                total, kernels + math.log(part / len(widths) / points.shape[1])
            )
    constant = 0.5 * math.log(2 * math.pi) + place.deviation.log()
    return total - torch.where(free, constant, 0.0).sum(1)[:, None]
