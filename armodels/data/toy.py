"""Toy distributions that know their own log-density, in closed form and to full precision.

The usual recipes for rings, moons and spirals add noise to a curve, which leaves no closed form.
Here they are drawn in polar coordinates, p(x) = p(r) p(angle | r) / r, or by maps that keep area
(shears, twists), so that each looks as usual and its log-density is exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from armodels.checks import Count, Seed, checked
from armodels.data.base import Box, Source, Splits
from armodels.spec import DataSpec

LOG_2PI = math.log(2 * math.pi)

Draws = Callable[[np.random.RandomState, int], np.ndarray]
Density = Callable[[Tensor], Tensor]

Numbers = TypeVar("Numbers", np.ndarray, Tensor)


@dataclass(frozen=True)
class Toy2D:
    """A density on the plane: draws (RandomState, N) -> (N, 2), and log-density of (B, 2)."""

    sample: Draws
    log_prob: Density
    box: Box


class Line(NamedTuple):
    """A density on the line: draws (RandomState, N) -> (N,), and log-density of (B,)."""

    sample: Draws
    log_prob: Density


def _square(half: float) -> Box:
    return ((-half, half), (-half, half))


def _normal(z: Tensor, scale: float | Tensor) -> Tensor:
    """Log-density of N(0, scale^2)."""
    scale = torch.as_tensor(scale, dtype=z.dtype, device=z.device)
    return -0.5 * (z / scale) ** 2 - scale.log() - 0.5 * LOG_2PI


def _gaussian(scale: float) -> Line:
    return Line(lambda rng, n: scale * rng.randn(n), lambda x: _normal(x, scale))


def _plateau(low: float, high: float, scale: float) -> Line:
    """Uniform on [low, high] plus N(0, scale^2): flat, with soft ends."""
    centre, half = (low + high) / 2, (high - low) / 2

    def log_prob(x: Tensor) -> Tensor:
        # The tails' difference keeps its digits by erfc, on the side where both are small.
        z = (x - centre).abs() / (scale * math.sqrt(2))
        width = half / (scale * math.sqrt(2))
        mass = torch.special.erfc(z - width) - torch.special.erfc(z + width)
        return torch.log(mass) - math.log(4 * half)

    return Line(lambda rng, n: rng.uniform(low, high, n) + scale * rng.randn(n), log_prob)


def _radius(x: Tensor) -> Tensor:
    """Distance from 0, (B, 2) -> (B,), kept off 0: there p(r) is nothing, but 1 / r infinite."""
    return x.norm(dim=1).clamp_min(1e-6)


def _constant(inside: Tensor, log_prob: float) -> Tensor:
    """The log-density of a uniform distribution: (B,) bool -> (B,) float64."""
    constant = torch.full_like(inside, log_prob, dtype=torch.double)
    return constant.masked_fill(~inside, -math.inf)


def _gaussians(means: Tensor, scale: float, box: Box) -> Toy2D:
    """Equal mixture of round Gaussians: means (M, 2)."""

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        return means.numpy()[rng.randint(len(means), size=n)] + scale * rng.randn(n, 2)

    def log_prob(x: Tensor) -> Tensor:
        z = x[:, None] - means.to(x)  # (B, M, 2)
        return _normal(z, scale).sum(-1).logsumexp(1) - math.log(len(means))

    return Toy2D(sample, log_prob, box)


def _regression(
    first: Line, mean: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor], box: Box
) -> Toy2D:
    """x0 from ``first``, then x1 ~ N(mean(x0), scale(x0)^2)."""

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        x0 = torch.from_numpy(first.sample(rng, n))
        x1 = mean(x0) + scale(x0) * torch.from_numpy(rng.randn(n))
        return torch.stack([x0, x1], 1).numpy()

    def log_prob(x: Tensor) -> Tensor:
        x0, x1 = x.unbind(1)
        return first.log_prob(x0) + _normal(x1 - mean(x0), scale(x0))

    return Toy2D(sample, log_prob, box)


def _rings(radii: list[float], scale: float, box: Box) -> Toy2D:
    """Equal mixture of rings: radius N(R, scale^2), angle uniform.

    Radii are so many scales from 0 that the mass below 0 is nothing in float64.
    """

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        r = np.asarray(radii)[rng.randint(len(radii), size=n)] + scale * rng.randn(n)
        angle = rng.uniform(-np.pi, np.pi, n)
        return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)

    def log_prob(x: Tensor) -> Tensor:
        r = _radius(x)
        z = r[:, None] - torch.tensor(radii).to(r)  # (B, M)
        return _normal(z, scale).logsumexp(1) - math.log(len(radii)) - LOG_2PI - r.log()

    return Toy2D(sample, log_prob, box)


def _moons(radius: float, scale: float, box: Box) -> Toy2D:
    """Two half rings that reach into each other; the second is the first, turned about 0.

    The angle from the upright has soft ends at +-pi/2, fifteen scales away from where it wraps.
    """
    angle = _plateau(-math.pi / 2, math.pi / 2, 0.1)
    shift = (radius / 2, radius / 4)

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        r = radius + scale * rng.randn(n)
        a = angle.sample(rng, n)
        moon = np.stack([r * np.sin(a) - shift[0], r * np.cos(a) - shift[1]], 1)
        return moon * (1 - 2 * rng.randint(2, size=(n, 1)))

    def log_prob_moon(x: Tensor) -> Tensor:
        x = x + torch.tensor(shift).to(x)
        r = _radius(x)
        return _normal(r - radius, scale) + angle.log_prob(torch.atan2(*x.T)) - r.log()

    def log_prob(x: Tensor) -> Tensor:
        return torch.logaddexp(log_prob_moon(x), log_prob_moon(-x)) - math.log(2)

    return Toy2D(sample, log_prob, box)


def _spirals(num_arms: int, radius: Line, rate: float, width: float, box: Box) -> Toy2D:
    """Angle ``rate * r`` plus von Mises noise, such that each arm is about ``width`` across."""

    def concentration(r: Numbers) -> Numbers:
        # An arm that leaves the circle at a slope is cut obliquely: wider along the circle.
        return (r / width) ** 2 / (1 + (rate * r) ** 2)

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        r = radius.sample(rng, n)
        arm = rng.randint(num_arms, size=n) * (2 * np.pi / num_arms)
        angle = rate * r + arm + rng.vonmises(0, concentration(r))
        return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)

    def log_prob(x: Tensor) -> Tensor:
        r, angle = _radius(x), torch.atan2(x[:, 1], x[:, 0])
        arm = torch.arange(num_arms).to(x) * (2 * math.pi / num_arms)
        kappa = concentration(r)
        # The factor i0e(k) is exp(-k) I0(k), so it is cos - 1, not cos.
        bend = kappa[:, None] * (torch.cos((angle - rate * r)[:, None] - arm) - 1)  # (B, arms)
        log_angle = bend.logsumexp(1) - math.log(num_arms) - LOG_2PI
        log_angle = log_angle - torch.special.i0e(kappa).log()
        return radius.log_prob(r) + log_angle - r.log()

    return Toy2D(sample, log_prob, box)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate each point (B, 2) by its own angle (B,)."""
    x0, x1 = x.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x0 - sin * x1, sin * x0 + cos * x1], 1)


def _pinwheel(num_arms: int, radius: float, scales: tuple, rate: float, box: Box) -> Toy2D:
    """Long Gaussians around 0, twisted by ``rate * r``: a rotation of each circle keeps area."""
    arms = torch.arange(num_arms, dtype=torch.double) * (2 * math.pi / num_arms)

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        z = torch.from_numpy(rng.randn(n, 2) * scales + (radius, 0))
        z = _turn(z, arms[torch.from_numpy(rng.randint(num_arms, size=n))])
        return _turn(z, rate * z.norm(dim=1)).numpy()

    def log_prob(x: Tensor) -> Tensor:
        z = _turn(x, -rate * x.norm(dim=1))
        arm = [_turn(z, -angle.to(z).expand(len(z))) for angle in arms]
        logs = [_normal(a[:, 0] - radius, scales[0]) + _normal(a[:, 1], scales[1]) for a in arm]
        return torch.stack(logs).logsumexp(0) - math.log(num_arms)

    return Toy2D(sample, log_prob, box)


def _uniform(half: float, box: Box) -> Toy2D:
    """Uniform on a square, edges included."""

    def log_prob(x: Tensor) -> Tensor:
        return _constant((x.abs() <= half).all(1), -2 * math.log(2 * half))

    return Toy2D(lambda rng, n: rng.uniform(-half, half, (n, 2)), log_prob, box)


def _checkerboard(box: Box) -> Toy2D:
    """Uniform on every other unit square of [-2, 2]^2."""

    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        cell = rng.randint(4, size=(n, 2))
        cell[:, 1] = 2 * (cell[:, 1] // 2) + cell[:, 0] % 2
        # No draw lies on an edge, not even rounded to float32: the neighbour's density is 0.
        return cell - 2 + (rng.randint(2**20, size=(n, 2)) + 0.5) / 2**20

    def log_prob(x: Tensor) -> Tensor:
        cell = x.floor()
        inside = ((cell >= -2) & (cell <= 1)).all(1) & (cell.sum(1) % 2 == 0)
        return _constant(inside, -math.log(8))

    return Toy2D(sample, log_prob, box)


def _on_circle(num: int, radius: float) -> Tensor:
    angle = torch.arange(num, dtype=torch.double) * (2 * math.pi / num)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _on_grid(num: int, spacing: float) -> Tensor:
    side = (torch.arange(num, dtype=torch.double) - (num - 1) / 2) * spacing
    return torch.cartesian_prod(side, side)


DENSITIES: dict[str, Toy2D] = {
    "eight_gaussians": _gaussians(_on_circle(8, 2.0), 0.2, _square(4)),
    "gaussian_grid": _gaussians(_on_grid(5, 1.0), 0.15, _square(4)),
    "rings": _rings([1.0, 2.0, 3.0], 0.1, _square(4)),
    "checkerboard": _checkerboard(_square(2.5)),
    "pinwheel": _pinwheel(5, 2.0, (0.6, 0.2), 0.7, _square(5)),
    "two_moons": _moons(2.0, 0.2, _square(4)),
    "two_spirals": _spirals(2, _plateau(0.6, 3.4, 0.06), 2.5, 0.1, _square(4)),
    "swiss_roll": _spirals(1, _plateau(0.6, 3.4, 0.06), 4.0, 0.1, _square(4)),
    "cosine": _regression(
        _plateau(-3, 3, 0.1),
        lambda x: 2 * torch.cos(2 * x),
        lambda x: torch.full_like(x, 0.2),
        _square(4),
    ),
    "banana": _regression(
        _gaussian(1.2),
        lambda x: 0.6 * x**2 - 2,
        lambda x: torch.full_like(x, 0.4),
        ((-5, 5), (-4, 8)),
    ),
    "funnel": _regression(
        _gaussian(1.2), torch.zeros_like, lambda x: torch.exp(x / 2), ((-6, 6), (-12, 12))
    ),
    "uniform": _uniform(2.0, _square(2.5)),
}
"""Densities on the plane, by name."""


def _copy_chain(num_dims: int) -> tuple[Draws, Density]:
    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        return rng.randint(2, size=(n, 1)).repeat(num_dims, 1)

    def log_prob(x: Tensor) -> Tensor:
        return _constant((x == x[:, :1]).all(1), -math.log(2))

    return sample, log_prob


def _parity(num_dims: int) -> tuple[Draws, Density]:
    def sample(rng: np.random.RandomState, n: int) -> np.ndarray:
        x = rng.randint(2, size=(n, num_dims))
        x[:, -1] = x[:, :-1].sum(1) % 2
        return x

    def log_prob(x: Tensor) -> Tensor:
        return _constant(x.sum(1) % 2 == 0, -(num_dims - 1) * math.log(2))

    return sample, log_prob


CODES = {"copy_chain": _copy_chain, "parity": _parity}
"""Distributions of bits, by name: all bits equal; an even number of ones."""


Name = Literal[
    "eight_gaussians", "gaussian_grid", "rings", "checkerboard", "pinwheel", "two_moons",
    "two_spirals", "swiss_roll", "cosine", "banana", "funnel", "uniform", "copy_chain", "parity",
]  # fmt: skip
"""Of a density, or of a distribution of bits."""


@final
class Toy(Source):
    """Draws from a distribution that knows its own log-density.

    Args:
        name: A density on the plane (a key of ``DENSITIES``), or of bits (a key of ``CODES``).
        num_dims: D of a distribution of bits; None: 8. A density on the plane has 2.
        num_train: Number of draws to train on.
        num_valid: Number of draws to select by.
        num_test: Number of draws to test on.
        seed: Of the draws. Each split has a stream of its own: another ``num_train`` leaves
            valid and test as they are.

    Raises:
        ValueError: There is no such distribution, or it has other dimensions.

    References:
        The names are those of the experiments in FFJORD (Grathwohl et al., 2018)
        https://arxiv.org/abs/1810.01367 and Neural spline flows (Durkan et al., 2019)
        https://arxiv.org/abs/1906.04032

    Differs from the paper: shapes are re-made so that each has an exact log-density.
    """

    @checked
    def __init__(
        self,
        name: Name = "eight_gaussians",
        num_dims: Count | None = None,
        num_train: Count = 50_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        seed: Seed = 0,
    ):
        if name in DENSITIES and num_dims not in (None, 2):
            raise ValueError(f"toy data {name} has 2 dimensions; leave num_dims at null")
        self.name = name
        if num_dims is None:
            num_dims = 2 if name in DENSITIES else 8
        self.num_dims = num_dims
        self.sizes = (num_train, num_valid, num_test)
        self.seed = seed

    @property
    def spec(self) -> DataSpec:
        if self.name in DENSITIES:
            return DataSpec(f"toy-{self.name}", "vector", (2,), None, "density")
        # Bits of another length are another distribution.
        name = f"toy-{self.name}-{self.num_dims}"
        return DataSpec(name, "vector", (self.num_dims,), 2, "probability")

    def load(self) -> Splits:
        box: Box | None
        if self.name in DENSITIES:
            density = DENSITIES[self.name]
            sample, log_prob, box = density.sample, density.log_prob, density.box
        else:
            (sample, log_prob), box = CODES[self.name](self.num_dims), None
        spec = self.spec
        splits = [
            torch.from_numpy(sample(np.random.RandomState([self.seed, i]), size)).to(spec.dtype)
            for i, size in enumerate(self.sizes)
        ]

        def true_log_prob(x: Tensor) -> Tensor:
            spec.check(x)
            return log_prob(x.double())

        return Splits(spec, *splits, true_log_prob=true_log_prob, box=box)
