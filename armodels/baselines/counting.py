"""Baselines by counting: uniform values, independent values, histograms.

Shapes: B batch, D values per example, L levels.
"""

import math
from typing import final

import torch
from torch import Tensor

from armodels.baselines.base import Baseline, SeparateValues, require_spread
from armodels.baselines.normal import log_normal, normal_noise
from armodels.checks import Count, NotNegative, checked
from armodels.density.completion import IMPOSSIBLE
from armodels.density.walk import draw_noise
from armodels.heads import Categorical, pick
from armodels.spec import DataSpec

MAX_CELLS = 10_000_000
"""Of a joint histogram: 80 MB of numbers."""


@final
class Uniform(SeparateValues):
    """Every value as likely as any other: what knowing nothing costs.

    Levels: log2 L bits per dimension, exactly. Real values: uniform over the box of the training
    data, widened; outside it the density is 0 and the log-probability -inf, so a test set that
    leaves the box has infinitely many nats (model=histogram has tails).

    Accepts: vector, image, sequence. Completion: exact.

    Args:
        spec: What a datum is.
        margin: Real values: how far the box reaches beyond the training data on each side, as a
            part of its width.

    Shapes:
        x: (B, *event).

    References:
        None needed.

    Differs from the paper: there is none.
    """

    low: Tensor
    width: Tensor

    @checked
    def __init__(self, spec: DataSpec, *, margin: NotNegative = 0.1):
        super().__init__(spec)
        self.margin = margin
        if spec.levels is None:
            self._register("low", spec.num_dims)
            self._register("width", spec.num_dims)

    def _fit(self, x: Tensor, progress: bool) -> None:
        if self.spec.levels is None:
            require_spread(x, self.spec)
            low, high = x.double().aminmax(dim=0)
            self.width.copy_((high - low) * (1 + 2 * self.margin))
            self.low.copy_(low - (high - low) * self.margin)

    def _value_log_prob(self, x: Tensor) -> Tensor:
        if self.spec.levels is not None:
            each = -math.log(self.spec.levels)
            return torch.full(x.shape, each, dtype=torch.double, device=x.device)
        inside = (x >= self.low) & (x <= self.low + self.width)
        return torch.where(inside, -self.width.log(), -math.inf)

    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        share = _share_of_cell(draw_noise(x.shape, generator, x.device), temperature)
        if self.spec.levels is None:
            return self.low + self.width * share, None
        return (share * self.spec.levels).floor(), None


@final
class Independent(SeparateValues):
    """Every value on its own: p(x) = prod{ p(x[d]) : d = 1..D }, by counting.

    Levels: p(x[d] = l) = (count + smoothing) / (N + L smoothing) over N training examples. Real
    values: a Gaussian of the empirical mean and variance, not smoothed.

    Accepts: vector, image, sequence. Completion: exact.

    Args:
        spec: What a datum is.
        smoothing: Examples added to every level; 0 is the plain maximum of the likelihood, under
            which a level that never occurred has log-probability -inf.

    Shapes:
        x: (B, *event).

    References:
        The independent baseline of The Neural Autoregressive Distribution Estimator
        (Larochelle & Murray, 2011) https://proceedings.mlr.press/v15/larochelle11a.html

    Differs from the paper: nothing known.
    """

    params: Tensor

    @checked
    def __init__(self, spec: DataSpec, *, smoothing: NotNegative = 1.0):
        super().__init__(spec)
        self.smoothing = smoothing
        # (D, L) log-probabilities, or (D, 2) mean and standard deviation.
        self._register("params", spec.num_dims, spec.levels or 2)

    def _fit(self, x: Tensor, progress: bool) -> None:
        levels = self.spec.levels
        if levels is None:
            require_spread(x, self.spec)
            x = x.double()
            self.params.copy_(torch.stack([x.mean(0), x.std(0, correction=0)], 1))
            return
        counts = torch.zeros(self.params.numel(), dtype=torch.double, device=x.device)
        first = torch.arange(self.spec.num_dims, device=x.device) * levels
        for chunk in x.split(5000):
            counts += (first + chunk).flatten().bincount(minlength=len(counts))
        total = len(x) + levels * self.smoothing
        self.params.copy_(torch.log((counts.view(-1, levels) + self.smoothing) / total))

    def _value_log_prob(self, x: Tensor) -> Tensor:
        if self.spec.levels is None:
            mean, std = self.params.unbind(1)
            return log_normal((x - mean) / std, std)
        return self.params[torch.arange(self.spec.num_dims, device=x.device), x.long()]

    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if self.spec.levels is None:
            mean, std = self.params.unbind(1)
            noise = normal_noise(x.shape, generator, self.params)
            return mean + math.sqrt(temperature) * std * noise, None
        noise = draw_noise((*x.shape, 1), generator, x.device)
        return Categorical(self.spec).sample(self.params, noise, temperature)[..., 0], None


@final
class Histogram(Baseline):
    """Counts in bins: of every value on its own, or jointly for data of few dimensions.

    Real values: bins of equal width between the least and the greatest training value, and an
    exponential tail on either side that decays over that whole range, so that the density is
    positive everywhere (if ``smoothing`` is) and integrates to one. Levels: neighbouring levels
    share a bin where there are fewer bins than levels. Within a bin the density is flat.

    Temperature divides the log-density of the cells; within a cell draws move to the middle.

    Accepts: vector, image, sequence. Completion: exact.

    Args:
        spec: What a datum is.
        num_bins: B, bins along each dimension; on L levels at most L.
        joint: Count cells of all dimensions together, B^D of them (with the two tails,
            (B + 2)^D), instead of each dimension on its own.
        smoothing: Examples added to every bin or cell; 0 leaves those that no training example
            fell into impossible, tails included.

    Raises:
        ValueError: A joint histogram would have more than ``MAX_CELLS`` cells.

    Shapes:
        x: (B, *event).

    References:
        On the histogram as a density estimator: L2 theory (Freedman & Diaconis, 1981)
        https://doi.org/10.1007/BF01025868

    Differs from the paper: the number of bins is an argument; tails and smoothing are added.
    """

    log_mass: Tensor
    edges: Tensor

    @checked
    def __init__(
        self,
        spec: DataSpec,
        *,
        num_bins: Count = 32,
        joint: bool = False,
        smoothing: NotNegative = 1.0,
    ):
        super().__init__(spec)
        real = spec.levels is None
        self.num_bins = num_bins if real else min(num_bins, spec.num_levels)
        self.joint = joint
        self.smoothing = smoothing
        self.num_cells = self.num_bins + (2 if real else 0)
        shape: tuple[int, ...] = (spec.num_dims, self.num_cells)
        if joint:
            # Logarithms are compared: the number itself may have thousands of digits.
            if spec.num_dims * math.log(self.num_cells) > math.log(MAX_CELLS):
                tails = ", the two tails included" if real else ""
                raise ValueError(
                    f"a joint histogram of data {spec.name!r} takes "
                    f"{self.num_cells}^{spec.num_dims} cells{tails}, more than {MAX_CELLS:,}; "
                    f"use a smaller num_bins, or joint=false"
                )
            shape = (self.num_cells**spec.num_dims,)
        # (D, B) by value, or (B^D,) jointly, the last dimension fastest.
        self._register("log_mass", *shape)
        if real:
            self._register("edges", spec.num_dims, num_bins + 1)

    def _first_level(self, cells: Tensor) -> Tensor:
        """The least level in a cell."""
        return (cells * self.spec.num_levels + self.num_bins - 1) // self.num_bins

    def _log_volume(self) -> Tensor:
        """Of each cell along each dimension, (D, B): levels in it, width, or scale of a tail."""
        if self.spec.levels is not None:
            cells = torch.arange(self.num_bins, device=self.log_mass.device)
            size = self._first_level(cells + 1) - self._first_level(cells)
            return size.to(self.log_mass).log().expand(self.spec.num_dims, -1)
        span = (self.edges[:, -1] - self.edges[:, 0]).log()[:, None]  # (D, 1)
        inner = (span - math.log(self.num_bins)).expand(-1, self.num_bins)
        return torch.cat([span, inner, span], 1)

    def _cells(self, x: Tensor) -> Tensor:
        """The cell of each value along its dimension: (B, D) -> (B, D)."""
        if self.spec.levels is not None:
            return x.long() * self.num_bins // self.spec.levels
        x = x.to(self.edges)
        inner = self.edges[:, 1:-1].contiguous()
        cells = torch.searchsorted(inner, x.T.contiguous(), right=True).T + 1
        cells = cells.masked_fill(x < self.edges[:, 0], 0)
        return cells.masked_fill(x > self.edges[:, -1], self.num_bins + 1)

    def _within(self, x: Tensor, cells: Tensor) -> Tensor:
        """Log-density of each value within its cell, nats: (B, D), (B, D) -> (B, D)."""
        log_density = -self._log_volume()[self._each_dim(), cells]
        if self.spec.levels is not None:
            return log_density
        low, high = self.edges[:, 0], self.edges[:, -1]
        return log_density - ((low - x).clamp_min(0) + (x - high).clamp_min(0)) / (high - low)

    def _each_dim(self) -> Tensor:
        return torch.arange(self.spec.num_dims, device=self.log_mass.device)

    def _joint_cell(self, cells: Tensor) -> Tensor:
        """Number of a joint cell: (B, D) -> (B,)."""
        return (cells * self.num_cells ** self._each_dim().flip(0)).sum(1)

    def _fit(self, x: Tensor, progress: bool) -> None:
        if self.spec.levels is None:
            require_spread(x, self.spec)
            low, high = x.double().aminmax(dim=0)
            steps = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.double, device=x.device)
            edges = low[:, None] + (high - low)[:, None] * steps
            edges[:, -1] = high  # which rounding could pass
            self.edges.copy_(edges)
        cells = self._cells(x)
        if self.joint:
            index, num_cells = self._joint_cell(cells), self.log_mass.numel()
        else:
            index, num_cells = cells + self._each_dim() * self.num_cells, self.num_cells
        counts = index.flatten().bincount(minlength=self.log_mass.numel()).double()
        mass = (counts + self.smoothing) / (len(x) + num_cells * self.smoothing)
        self.log_mass.copy_(mass.log().view_as(self.log_mass))

    def _value_log_prob(self, x: Tensor) -> Tensor | None:
        if self.joint:
            return None  # the draw finds out whether known values are possible together
        cells = self._cells(x)
        return self.log_mass[self._each_dim(), cells] + self._within(x, cells)

    def _flat_log_prob(self, x: Tensor) -> Tensor:
        each = self._value_log_prob(x)
        if each is not None:
            return each.sum(1)
        cells = self._cells(x)
        return self.log_mass[self._joint_cell(cells)] + self._within(x, cells).sum(1)

    def _part_log_prob(self, x: Tensor, part: Tensor) -> Tensor:
        each = self._value_log_prob(x)
        if each is not None:
            return torch.where(part, each, 0).sum(1)
        cells = self._cells(x)
        log_mass = torch.where(part, self._within(x, cells), 0).sum(1)
        whole = self.log_mass.view((self.num_cells,) * self.spec.num_dims)
        masks, group = torch.unique(part, dim=0, return_inverse=True)
        for i, mask in enumerate(masks):  # a table of the marginal serves all events of a part
            rows = (group == i).nonzero()[:, 0]
            dims, others = (m.nonzero()[:, 0].tolist() for m in (mask, ~mask))
            table = whole.logsumexp(others) if others else whole
            log_mass[rows] += table[tuple(cells[rows, d] for d in dims)]
        return log_mass

    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if self.joint:
            cells = self._draw_joint(x, known, temperature, generator)
        else:
            logits = self._tempered(self.log_mass, self._log_volume(), temperature)
            noise = draw_noise(x.shape, generator, x.device)
            cells = pick(logits, noise, float(temperature > 0))
        uniform = draw_noise(x.shape, generator, x.device)
        return self._values_in(cells, uniform, temperature), None

    def _tempered(self, log_mass: Tensor, log_volume: Tensor, temperature: float) -> Tensor:
        """Log-weights of cells whose density is tempered; at 0 the density itself."""
        density = log_mass - log_volume
        return density if temperature == 0 else density / temperature + log_volume

    def _draw_joint(
        self,
        x: Tensor,
        known: Tensor,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Cells given those of the known values: (B, D), (B, D) -> (B, D)."""
        shape = (self.num_cells,) * self.spec.num_dims
        log_volume = torch.zeros((), dtype=self.log_mass.dtype, device=x.device)
        for volume in self._log_volume():
            log_volume = log_volume[..., None] + volume
        logits = self._tempered(self.log_mass.view(shape), log_volume, temperature)
        uniform = draw_noise((len(x),), generator, x.device)
        cells = torch.where(known, self._cells(x), -1)
        # Events that know the same cells share one distribution of the others.
        keys, group = torch.unique(cells, dim=0, return_inverse=True)
        for i, key in enumerate(keys):
            events = (group == i).nonzero()[:, 0]
            rest = logits[tuple(int(c) if c >= 0 else slice(None) for c in key)]
            if not torch.isfinite(rest.max()):
                raise ValueError(IMPOSSIBLE)
            if temperature == 0:
                index = rest.argmax().expand(len(events))
            else:
                cdf = rest.flatten().double().softmax(0).cumsum(0)
                index = torch.searchsorted(cdf, uniform[events] * cdf[-1], right=True)
            drawn = torch.unravel_index(index, rest.shape)
            for d, one in zip((key < 0).nonzero()[:, 0].tolist(), drawn, strict=True):
                cells[events, d] = one
        return cells

    def _values_in(self, cells: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """A value in each cell: (B, D), (B, D) -> (B, D)."""
        share = _share_of_cell(uniform, temperature)
        if self.spec.levels is not None:
            first = self._first_level(cells)
            size = self._first_level(cells + 1) - first
            return first + (share * size).floor()
        low, high = self.edges[:, 0], self.edges[:, -1]
        bins = (cells - 1).clamp(0, self.num_bins - 1)
        left, right = self.edges[self._each_dim(), bins], self.edges[self._each_dim(), bins + 1]
        y = left + (right - left) * share
        tail = -temperature * torch.log1p(-uniform) * (high - low)
        y = torch.where(cells == 0, low - tail, y)
        return torch.where(cells == self.num_bins + 1, high + tail, y)


def _share_of_cell(uniform: Tensor, temperature: float) -> Tensor:
    """Share of a flat cell that lies below a draw: one half at temperature 0, any from 1 on."""
    return 0.5 + min(1.0, math.sqrt(temperature)) * (uniform - 0.5)
