"""Monotone splines of rational quadratics: a value changed, in closed form both ways.

Source: Neural Spline Flows (Durkan et al., 2019) https://arxiv.org/abs/1906.04032

Shapes: K bins; a spline has 3 K - 1 parameters: K widths, K heights, K - 1 slopes at the knots.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 4.0
"""Splines act between -BOUND and BOUND; beyond, values stay as they are."""

LEAST = 1e-3
"""Of a bin's share of the width and of the height, and of a slope."""

ONE = math.log(math.expm1(1 - LEAST))
"""Softplus of it, and LEAST, are 1: parameters of zero make the identity."""


class Bin(NamedTuple):
    """The bin that each value lies in."""

    left: Tensor
    """Where it begins."""
    width: Tensor
    bottom: Tensor
    """What its beginning becomes."""
    height: Tensor
    first: Tensor
    """Slope at its beginning."""
    last: Tensor
    """Slope at its end."""


def num_params(num_bins: int) -> int:
    """Parameters of a spline."""
    return 3 * num_bins - 1


def _knots(shares: Tensor) -> Tensor:
    """(..., K) parameters -> (..., K + 1) ends of the bins, from -BOUND to BOUND."""
    num_bins = shares.shape[-1]
    sizes = LEAST + (1 - num_bins * LEAST) * shares.softmax(-1)
    ends = F.pad(sizes.cumsum(-1), (1, 0)) * (2 * BOUND) - BOUND
    return torch.cat([ends[..., :-1], torch.full_like(ends[..., :1], BOUND)], -1)


def _bins(value: Tensor, params: Tensor, *, inverse: bool) -> Bin:
    """The bins of values, by what they are, or by what they have become."""
    num_bins = (params.shape[-1] + 1) // 3
    widths, heights, slopes = params.split([num_bins, num_bins, num_bins - 1], -1)
    across, up = _knots(widths), _knots(heights)
    slopes = F.pad(F.softplus(slopes + ONE) + LEAST, (1, 1), value=1.0)
    ends = up if inverse else across
    index = (ends[..., 1:-1] <= value[..., None]).sum(-1, keepdim=True)

    def at(knots: Tensor, shift: int = 0) -> Tensor:
        return knots.gather(-1, index + shift)[..., 0]

    left, bottom = at(across), at(up)
    return Bin(left, at(across, 1) - left, bottom, at(up, 1) - bottom, at(slopes), at(slopes, 1))


def _log_slope(place: Tensor, one: Bin) -> Tensor:
    """Log of the slope at a place between 0 and 1 of a bin."""
    mean = one.height / one.width
    rest = 1 - place
    top = one.last * place**2 + 2 * mean * place * rest + one.first * rest**2
    bottom = mean + (one.first + one.last - 2 * mean) * place * rest
    return 2 * mean.log() + top.log() - 2 * bottom.log()


def forward(z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Values changed by their splines, and the log of the slope at each.

    Args:
        z: (...).
        params: (..., 3 K - 1), of which zeros make the identity; or (..., 0): there is no spline.
    """
    if not params.shape[-1]:
        return z, torch.zeros_like(z)
    inside = z.abs() < BOUND
    clamped = z.clamp(-BOUND, BOUND)
    one = _bins(clamped, params, inverse=False)
    place, mean = (clamped - one.left) / one.width, one.height / one.width
    mixed = place * (1 - place)
    bent = mean + (one.first + one.last - 2 * mean) * mixed
    y = one.bottom + one.height * (mean * place**2 + one.first * mixed) / bent
    log_slope = _log_slope(place, one)
    return torch.where(inside, y, z), torch.where(inside, log_slope, 0.0)


def inverse(y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Values that splines change into others, and the log of the slope at each.

    Args:
        y: (...), what they become.
        params: (..., 3 K - 1), or (..., 0): there is no spline.
    """
    if not params.shape[-1]:
        return y, torch.zeros_like(y)
    inside = y.abs() < BOUND
    clamped = y.clamp(-BOUND, BOUND)
    one = _bins(clamped, params, inverse=True)
    mean, up = one.height / one.width, clamped - one.bottom
    curve = one.first + one.last - 2 * mean
    a = one.height * (mean - one.first) + up * curve
    b = one.height * one.first - up * curve
    c = -mean * up
    root = (b**2 - 4 * a * c).clamp_min(0).sqrt()
    place = 2 * c / (-b - root)
    z = one.left + place * one.width
    log_slope = _log_slope(place, one)
    return torch.where(inside, z, y), torch.where(inside, log_slope, 0.0)
