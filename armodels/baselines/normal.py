"""The normal distribution: densities, draws, and both within an interval."""

import math

import torch
from torch import Tensor

from armodels.density.walk import draw_noise


def normal_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """Standard normal draws, of the dtype and on the device of ``like``.

    Args:
        shape: Of the draws.
        generator: Where they come from; None: the global one of torch.
        like: A tensor of the wanted dtype and device.
    """
    return torch.special.ndtri(draw_noise(shape, generator, like.device)).to(like.dtype)


def log_normal(z: Tensor, std: Tensor) -> Tensor:
    """Log-density of a Gaussian value, standardized to z, nats."""
    return -0.5 * z * z - std.log() - 0.5 * math.log(2 * math.pi)


def log_cell(lower: Tensor, upper: Tensor) -> Tensor:
    """log of the standard normal probability of an interval, accurate in both tails."""
    lower, upper, _ = _to_left_tail(lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))


def truncated_mean(lower: Tensor, upper: Tensor) -> Tensor:
    """Mean of a standard normal value within an interval."""
    log_mass = log_cell(lower, upper) + 0.5 * math.log(2 * math.pi)
    mean = torch.exp(-0.5 * lower**2 - log_mass) - torch.exp(-0.5 * upper**2 - log_mass)
    return torch.maximum(torch.minimum(mean, upper), lower)


def truncated_normal(lower: Tensor, upper: Tensor, uniform: Tensor) -> Tensor:
    """A standard normal value within an interval, by the inverse of its distribution function.

    Args:
        lower: Lower end of the interval, any shape.
        upper: Upper end of the interval, of the same shape.
        uniform: Noise in (0, 1), of the same shape.
    """
    lower, upper, mirrored = _to_left_tail(lower, upper)
    # By erfc: torch.special.ndtr is (1 + erf) / 2, which is 0 from 8.5 sigma on.
    below, above = (0.5 * torch.erfc(-z / math.sqrt(2)) for z in (lower, upper))
    z = torch.special.ndtri(below + uniform * (above - below))
    # Beyond 37 sigma the function underflows; there all mass lies within 1/37 of the edge.
    z = torch.where(above == 0, upper, torch.maximum(torch.minimum(z, upper), lower))
    return torch.where(mirrored, -z, z)


def _to_left_tail(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror intervals that lie right of 0, where the distribution function rounds to 1."""
    mirrored = lower + upper > 0
    return (
        torch.where(mirrored, -upper, lower),
        torch.where(mirrored, -lower, upper),
        mirrored,
    )
