"""Density models without a network, fitted to the training data in one go.

``initialize`` fits them, in closed form or by EM; they take no training steps. All that is fitted
stands in buffers whose shapes follow from the spec and the arguments, so a plain state_dict
restores a model exactly.

Shapes: B batch, D values per example, L levels, M mixture components, N particles.
"""

import math
import warnings
from abc import abstractmethod
from dataclasses import replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from armodels.checks import Count, NotNegative, Seed
from armodels.density.base import DensityModel
from armodels.density.completion import IMPOSSIBLE, Completion, as_mask, disagreement
from armodels.density.walk import check_draw, draw_noise, one_thread
from armodels.heads import Categorical, pick
from armodels.spec import DataSpec


class Baseline(DensityModel):
    """A density model that knows how to fill in unknown values, of which sampling is a case.

    Args:
        spec: What a datum is.
    """

    fitted: Tensor
    """False until ``initialize`` or ``load_state_dict``."""

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def num_parameters(self):
        """What is fitted stands in buffers; a baseline has no weights."""
        return sum(b.numel() for name, b in self.named_buffers() if name != "fitted")

    @abstractmethod
    def _fit(self, x: Tensor, progress: bool) -> None:
        """Set the buffers from all training examples, (B, D)."""

    @abstractmethod
    def _flat_log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats: (B, D) -> (B,)."""

    @abstractmethod
    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw every value from p(. | known values).

        Args:
            x: (B, D), zero where not known.
            known: (B, D).
            num_particles: For models whose conditionals have no closed form.
            temperature: As in ``sample_with_log_prob``.
            generator: Seeds the draw.
            progress: Show a bar where this takes long.

        Returns:
            (B, D) values, of any kind where known, and the log-weights (B, M, N) of the
            particles, not normalized, or None where the draw is exact.
        """

    def _require_possible(self, x: Tensor, known: Tensor) -> None:
        """Raise ValueError where known values have probability 0; here none have."""
        return

    def _register(self, name: str, *shape: int) -> None:
        # Double: a fit is solved once, and must not lose digits to the dtype of training.
        self.register_buffer(name, torch.zeros(shape, dtype=torch.double))

    def _require_ready(self) -> None:
        name = type(self).__name__
        if not self.fitted:
            raise RuntimeError(
                f"model {name} is not fitted; call initialize(batches) or load a checkpoint first"
            )

    def _count(self, name: str, value: int) -> None:
        if value < 1:
            raise ValueError(f"{name} of model {type(self).__name__} is {value}; use 1 or more")

    def _require_examples(self, num_examples: int, num_components: int) -> None:
        if num_examples < num_components:
            raise ValueError(
                f"data {self.spec.name!r} has {num_examples} training examples for the "
                f"{num_components} components of model {type(self).__name__}; "
                f"use a smaller num_components"
            )

    @final
    @torch.no_grad()
    def initialize(self, batches, *, progress=False):
        """Fit to the training examples; the only training there is.

        Raises:
            ValueError: There are no examples, or they lie outside the support.
        """
        chunks = []
        for x in batches:
            self.spec.check(x)
            chunks.append(x.flatten(1))
        if sum(map(len, chunks)) == 0:
            raise ValueError(f"data {self.spec.name!r} has no training examples to fit")
        self._fit(torch.cat(chunks), progress)
        self.fitted.fill_(True)

    @final
    def _log_prob(self, x, context):
        self._require_ready()
        with torch.autocast(x.device.type, enabled=False):
            return self._flat_log_prob(x.flatten(1))

    @final
    @torch.no_grad()
    def sample_with_log_prob(
        self, n, *, context=None, temperature=1.0, generator=None, progress=False
    ):
        """Fill in everything."""
        check_draw(temperature, n)
        self.check_context(context, n)
        self._require_ready()
        device = self.fitted.device
        x = torch.zeros(n, self.spec.num_dims, dtype=self.spec.dtype, device=device)
        known = torch.zeros_like(x, dtype=torch.bool)
        values, _ = self._fill(x, known, 1, temperature, generator, progress)
        values = values.to(self.spec.dtype).view(n, *self.spec.shape)
        return values, self._log_prob(values, None)

    @final
    @torch.no_grad()
    def complete(
        self,
        x,
        known,
        *,
        num_particles=1,
        context=None,
        temperature=1.0,
        generator=None,
        progress=False,
    ):
        """Any part given any other."""
        check_draw(temperature)
        self.check_context(context, len(x))
        self._require_ready()
        if num_particles < 1:
            raise ValueError(f"num_particles is {num_particles}; it must be at least 1")
        mask = as_mask(known, x)
        kept = x.masked_fill(~mask, 0)
        self.spec.check(kept)
        flat, flat_mask = kept.flatten(1), mask.flatten(1)
        self._require_possible(flat, flat_mask)
        values, log_weights = self._fill(
            flat, flat_mask, num_particles, temperature, generator, progress
        )
        values = torch.where(mask, x, values.view_as(x).to(x.dtype))
        if log_weights is None:
            return Completion(values, "exact", torch.ones(len(x), device=x.device), 1)
        weights = log_weights.flatten(1).softmax(1)
        return Completion(
            values,
            "likelihood weighting",
            1 / weights.square().sum(1),
            weights.shape[1],
            # One particle a component says nothing of how far others would be from it.
            disagreement(log_weights) if num_particles > 1 else None,
        )


class SeparateValues(Baseline):
    """What baselines share under which every value has a probability of its own."""

    @abstractmethod
    def _value_log_prob(self, x: Tensor) -> Tensor:
        """log p of each value, nats: (B, D) -> (B, D)."""

    def _flat_log_prob(self, x):
        return self._value_log_prob(x).sum(1)

    def _require_possible(self, x, known):
        if (self._value_log_prob(x).isneginf() & known).any():
            raise ValueError(IMPOSSIBLE)

    def log_prob_map(self, x, context=None):
        """Earlier values say nothing here."""
        self.check_context(context, len(x))
        self._require_ready()
        return self._value_log_prob(x.flatten(1)).view(x.shape)


_SWEEPS = 4
"""Of the mean-field bound; on digits the next one gains 0.02 nats."""

_BLOCK = 32
"""Dimensions whose updates share a matrix product; twice as fast at 784 dimensions as none."""


def _require_spread(x: Tensor, spec: DataSpec) -> None:
    """Refuse real values (B, D) on which a Gaussian's density has no bound."""
    constant = (x == x[0]).all(0).nonzero()
    if len(constant):
        raise ValueError(
            f"dimension {int(constant[0])} of data {spec.name!r} is constant in the training "
            f"examples, so its density is unbounded; drop it or dequantize the data"
        )


def _normal_noise(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor):
    return torch.special.ndtri(draw_noise(shape, generator, like.device)).to(like.dtype)


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

    def __init__(self, spec: DataSpec, *, smoothing: float = 1.0):
        super().__init__(spec)
        if smoothing < 0:
            raise ValueError(f"smoothing is {smoothing}; it must be 0 or more")
        self.smoothing = smoothing
        # (D, L) log-probabilities, or (D, 2) mean and standard deviation.
        self._register("params", spec.num_dims, spec.levels or 2)

    def _fit(self, x, progress):
        levels = self.spec.levels
        if levels is None:
            _require_spread(x, self.spec)
            x = x.double()
            self.params.copy_(torch.stack([x.mean(0), x.std(0, correction=0)], 1))
            return
        counts = torch.zeros(self.params.numel(), dtype=torch.double, device=x.device)
        first = torch.arange(self.spec.num_dims, device=x.device) * levels
        for chunk in x.split(5000):
            counts += (first + chunk).flatten().bincount(minlength=len(counts))
        total = len(x) + levels * self.smoothing
        self.params.copy_(torch.log((counts.view(-1, levels) + self.smoothing) / total))

    def _value_log_prob(self, x):
        if self.spec.levels is None:
            mean, std = self.params.unbind(1)
            return _log_normal((x - mean) / std, std)
        return self.params[torch.arange(self.spec.num_dims, device=x.device), x.long()]

    def _fill(self, x, known, num_particles, temperature, generator, progress):
        if self.spec.levels is None:
            mean, std = self.params.unbind(1)
            noise = _normal_noise(x.shape, generator, self.params)
            return mean + math.sqrt(temperature) * std * noise, None
        noise = draw_noise((*x.shape, 1), generator, x.device)
        return Categorical(self.spec).sample(self.params, noise, temperature)[..., 0], None


def _log_normal(z: Tensor, std: Tensor) -> Tensor:
    """Log-density of a Gaussian value, standardized to z, nats."""
    return -0.5 * z * z - std.log() - 0.5 * math.log(2 * math.pi)


@final
class MixtureOfCategoricals(Baseline):
    """Mixture of products of categoricals: p(x) = sum_k w[k] prod{ p(x[d] | k) : d = 1..D }.

    On two levels it is the mixture of Bernoullis, with one logit a value; on more, latent class
    analysis. A product is written by its natural parameters, the log-odds of levels 1 .. L-1
    against level 0.

    Fitted by EM, smoothed: each component sees, beside the training examples, ``smoothing`` more
    at the mean of the data. A pixel that is always 0 in a component's few examples then keeps the
    small probability that it has in all of them, which is worth more nats on unseen data than a
    smoothing towards one half. Every iteration raises the penalized likelihood.

    Accepts: vector, image, sequence with levels. Completion: exact.

    Args:
        spec: What a datum is.
        num_components: M.
        smoothing: Examples at the mean of the data, added to each component.
        max_iter: Iterations of EM at most.
        tolerance: EM stops once an iteration gains less than this, nats per example.
        seed: Of the training examples that the components start from.

    Shapes:
        x: (B, *event), levels 0 .. L-1.

    Raises:
        ValueError: The data has real values, or an argument is out of its range.

    References:
        The mixture baseline of The Neural Autoregressive Distribution Estimator
        (Larochelle & Murray, 2011) https://proceedings.mlr.press/v15/larochelle11a.html
        Exploratory latent structure analysis using both identifiable and unidentifiable models
        (Goodman, 1974) https://doi.org/10.1093/biomet/61.2.215

    Differs from the paper: EM is smoothed; on binarized MNIST with 500 components ours has 125.4
    nats, where the first paper has 137.64.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Count = 100,
        smoothing: float = 2.0,
        max_iter: Count = 100,
        tolerance: NotNegative = 0.001,
        seed: Seed = 0,
    ):
        super().__init__(spec)
        if spec.levels is None:
            raise ValueError(
                f"model MixtureOfCategoricals needs data with levels, but {spec.name} has real "
                f"values; use model=gmm"
            )
        self._count("num_components", num_components)
        self._count("max_iter", max_iter)
        if not smoothing > 0:
            raise ValueError(
                f"smoothing is {smoothing}; it must be more than 0, or a pixel that is constant "
                f"in one component would make other examples impossible"
            )
        self.smoothing = smoothing
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.seed = seed
        self._register("log_weights", num_components)
        self._register("logits", num_components, spec.num_dims * (spec.levels - 1))

    def _fit(self, x, progress):
        num_components = len(self.log_weights)
        self._require_examples(len(x), num_components)
        dtype, levels = torch.get_default_dtype(), self.spec.levels
        counts = sum(_features(part, levels, dtype).sum(0).double() for part in _parts(x, levels))
        mean = (counts + 1) / (len(x) + levels)
        # Half a training example each, so that none starts with values that it cannot leave; the
        # other half jitters, or components that start from equal examples would stay equal.
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(x), generator=generator)[:num_components].to(x.device)
        jitter = torch.rand(self.logits.shape, generator=generator).to(mean)
        start = 0.5 * _features(x[chosen], levels, dtype) + 0.5 * mean * (0.5 + 0.5 * jitter)
        logits = _log_odds(start, levels).to(dtype)
        log_weights = torch.full_like(logits[:, 0], -math.log(num_components))
        previous = -math.inf
        bar = tqdm(
            range(self.max_iter),
            desc="EM",
            unit="iteration",
            delay=1,
            disable=None if progress else True,
        )
        for _ in bar:
            weights, probs, objective = _em_step(x, log_weights, logits, mean, self.smoothing)
            log_weights, logits = weights.log().to(dtype), _log_odds(probs, levels).to(dtype)
            bar.set_postfix(penalized_nats=f"{-objective:.3f}")
            if objective - previous < self.tolerance:
                break
            previous = objective
        bar.close()
        self.log_weights.copy_(weights.log())
        self.logits.copy_(_log_odds(probs, levels))

    def _joint(self, x: Tensor, known: Tensor | None) -> Tensor:
        """log p(component, known values): (B, D), zero where unknown, (B, D) -> (B, M)."""
        levels = self.spec.levels
        log_zero = _log_zero(self.logits, levels)  # (M, D)
        joint = torch.cat(
            [
                F.linear(_features(part, levels, self.logits.dtype), self.logits)
                for part in _parts(x, levels)
            ]
        )
        if known is None:
            return joint + (self.log_weights + log_zero.sum(1))
        return joint + F.linear(known.to(joint), log_zero) + self.log_weights

    def _flat_log_prob(self, x):
        return self._joint(x, None).logsumexp(1)

    def _fill(self, x, known, num_particles, temperature, generator, progress):
        uniform = draw_noise((len(x),), generator, x.device)
        index = pick(self._joint(x, known), uniform, temperature)
        noise = draw_noise((*x.shape, 1), generator, x.device)
        logits = F.pad(_by_level(self.logits, self.spec.levels), (1, 0))  # (M, D, L)
        return Categorical(self.spec).sample(logits[index], noise, temperature)[..., 0], None


def _parts(x: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Examples (B, D) in parts whose ``_features`` fit into memory."""
    return x.split(max(1, min(5000, 2**25 // (x.shape[1] * (levels - 1)))))


def _features(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Which of the levels 1 .. L-1 each value has: (B, D) -> (B, D (L-1)) of 0 and 1."""
    if levels == 2:
        return x.to(dtype)
    return F.one_hot(x.long(), levels)[..., 1:].flatten(1).to(dtype)


def _by_level(t: Tensor, levels: int) -> Tensor:
    """(..., D (L-1)) -> (..., D, L-1)."""
    return t.unflatten(-1, (-1, levels - 1))


def _log_zero(logits: Tensor, levels: int) -> Tensor:
    """log p(x[d] = 0): (M, D (L-1)) -> (M, D)."""
    return -F.pad(_by_level(logits, levels), (1, 0)).logsumexp(-1)


def _log_odds(probs: Tensor, levels: int) -> Tensor:
    """log p(level l) / p(level 0), l = 1 .. L-1: (M, D (L-1)) -> the same."""
    zero = 1 - _by_level(probs, levels).sum(-1, keepdim=True)
    return (_by_level(probs, levels).log() - zero.log()).flatten(-2)


def _em_step(
    x: Tensor, log_weights: Tensor, logits: Tensor, mean: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, float]:
    """One iteration of smoothed EM for a mixture of products.

    Args:
        x: (B, D), levels, any dtype.
        log_weights: (M,).
        logits: (M, D (L-1)), log-odds against level 0.
        mean: (D (L-1),) probabilities of levels 1 .. L-1 that each component is smoothed towards.
        smoothing: By as many examples.

    Returns:
        New weights (M,) and probabilities (M, D (L-1)), in double, and the penalized
        log-likelihood of the old ones, nats per example.
    """
    levels = 1 + logits.shape[1] // x.shape[1]
    log_zero = _log_zero(logits, levels).sum(1)
    counts = torch.zeros_like(log_weights, dtype=torch.double)
    others = torch.zeros_like(logits, dtype=torch.double)
    penalty = (mean * logits).double().sum() + log_zero.double().sum()
    objective = smoothing * penalty
    for part in _parts(x, levels):
        features = _features(part, levels, logits.dtype)
        joint = torch.addmm(log_weights + log_zero, features, logits.T)  # (B, M)
        total = joint.logsumexp(1, keepdim=True)
        posterior = (joint - total).exp()
        objective += total.double().sum()
        counts += posterior.double().sum(0)
        others += (posterior.T @ features).double()
    sizes = counts[:, None] + smoothing
    probs = (others + smoothing * mean) / sizes
    # Level 0 keeps what smoothing gives it; sums in single precision may say less, or even < 0.
    most = 1 - smoothing * (1 - _by_level(mean, levels).sum(-1)) / sizes  # (M, D)
    excess = (_by_level(probs, levels).sum(-1) / most).clamp_min(1)
    probs = (_by_level(probs, levels) / excess[..., None]).flatten(-2)
    return counts / counts.sum(), probs, float(objective) / len(x)


def _centred(uniform: Tensor, temperature: float) -> Tensor:
    """Where a draw lies in a flat cell: its middle at temperature 0, anywhere from 1 on."""
    return 0.5 + min(1.0, math.sqrt(temperature)) * (uniform - 0.5)


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

    def __init__(self, spec: DataSpec, *, margin: float = 0.1):
        super().__init__(spec)
        if margin < 0:
            raise ValueError(f"margin is {margin}; it must be 0 or more")
        self.margin = margin
        if spec.levels is None:
            self._register("low", spec.num_dims)
            self._register("width", spec.num_dims)

    def _fit(self, x, progress):
        if self.spec.levels is None:
            _require_spread(x, self.spec)
            low, high = x.double().aminmax(dim=0)
            self.width.copy_((high - low) * (1 + 2 * self.margin))
            self.low.copy_(low - (high - low) * self.margin)

    def _value_log_prob(self, x):
        if self.spec.levels is not None:
            each = -math.log(self.spec.levels)
            return torch.full(x.shape, each, dtype=torch.double, device=x.device)
        inside = (x >= self.low) & (x <= self.low + self.width)
        return torch.where(inside, -self.width.log(), -math.inf)

    def _fill(self, x, known, num_particles, temperature, generator, progress):
        place = _centred(draw_noise(x.shape, generator, x.device), temperature)
        if self.spec.levels is None:
            return self.low + self.width * place, None
        return (place * self.spec.levels).floor(), None


MAX_CELLS = 10_000_000
"""Of a joint histogram: 80 MB of numbers."""


@final
class Histogram(SeparateValues):
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

    Shapes:
        x: (B, *event).

    References:
        On the histogram as a density estimator: L2 theory (Freedman & Diaconis, 1981)
        https://doi.org/10.1007/BF01025868

    Differs from the paper: the number of bins is given; tails and smoothing are added.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_bins: Count = 32,
        joint: bool = False,
        smoothing: float = 1.0,
    ):
        super().__init__(spec)
        self._count("num_bins", num_bins)
        if smoothing < 0:
            raise ValueError(f"smoothing is {smoothing}; it must be 0 or more")
        real = spec.levels is None
        self.num_bins = num_bins if real else min(num_bins, spec.levels)
        self.joint = joint
        self.smoothing = smoothing
        self.num_cells = self.num_bins + (2 if real else 0)
        shape = (spec.num_dims, self.num_cells)
        if joint:
            # Compared as logarithms: the number itself may have thousands of digits.
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

    def _first(self, cells: Tensor) -> Tensor:
        """The least level in a cell."""
        return (cells * self.spec.levels + self.num_bins - 1) // self.num_bins

    def _log_volume(self) -> Tensor:
        """Of each cell along each dimension, (D, B): levels in it, width, or scale of a tail."""
        if self.spec.levels is not None:
            cells = torch.arange(self.num_bins, device=self.log_mass.device)
            size = self._first(cells + 1) - self._first(cells)
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
        log_density = -self._log_volume()[self._dims(), cells]
        if self.spec.levels is not None:
            return log_density
        low, high = self.edges[:, 0], self.edges[:, -1]
        return log_density - ((low - x).clamp_min(0) + (x - high).clamp_min(0)) / (high - low)

    def _dims(self) -> Tensor:
        return torch.arange(self.spec.num_dims, device=self.log_mass.device)

    def _flat(self, cells: Tensor) -> Tensor:
        """Number of a joint cell: (B, D) -> (B,)."""
        return (cells * self.num_cells ** self._dims().flip(0)).sum(1)

    def _fit(self, x, progress):
        if self.spec.levels is None:
            _require_spread(x, self.spec)
            low, high = x.double().aminmax(dim=0)
            steps = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.double, device=x.device)
            edges = low[:, None] + (high - low)[:, None] * steps
            edges[:, -1] = high  # which rounding could pass
            self.edges.copy_(edges)
        cells = self._cells(x)
        if self.joint:
            index, per_row = self._flat(cells), self.log_mass.numel()
        else:
            index, per_row = cells + self._dims() * self.num_cells, self.num_cells
        counts = index.flatten().bincount(minlength=self.log_mass.numel()).double()
        mass = (counts + self.smoothing) / (len(x) + per_row * self.smoothing)
        self.log_mass.copy_(mass.log().view_as(self.log_mass))

    def _value_log_prob(self, x):
        cells = self._cells(x)
        return self.log_mass[self._dims(), cells] + self._within(x, cells)

    def _flat_log_prob(self, x):
        if not self.joint:
            return super()._flat_log_prob(x)
        cells = self._cells(x)
        return self.log_mass[self._flat(cells)] + self._within(x, cells).sum(1)

    def _require_possible(self, x, known):
        if not self.joint:  # jointly it depends on what else is known: the draw finds out
            super()._require_possible(x, known)

    def log_prob_map(self, x, context=None):
        """Of separate bins; a joint cell has no shares."""
        return None if self.joint else super().log_prob_map(x, context)

    def _fill(self, x, known, num_particles, temperature, generator, progress):
        if self.joint:
            cells = self._draw_joint(x, known, temperature, generator)
        else:
            logits = self._tempered(self.log_mass, self._log_volume(), temperature)
            noise = draw_noise(x.shape, generator, x.device)
            cells = pick(logits, noise, float(temperature > 0))
        uniform = draw_noise(x.shape, generator, x.device)
        return self._place(cells, uniform, temperature), None

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
            rows = (group == i).nonzero()[:, 0]
            rest = logits[tuple(int(c) if c >= 0 else slice(None) for c in key)]
            if not torch.isfinite(rest.max()):
                raise ValueError(IMPOSSIBLE)
            if temperature == 0:
                index = rest.argmax().expand(len(rows))
            else:
                cdf = rest.flatten().double().softmax(0).cumsum(0)
                index = torch.searchsorted(cdf, uniform[rows] * cdf[-1], right=True)
            drawn = torch.unravel_index(index, rest.shape)
            for d, one in zip((key < 0).nonzero()[:, 0].tolist(), drawn, strict=True):
                cells[rows, d] = one
        return cells

    def _place(self, cells: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """A value in each cell: (B, D), (B, D) -> (B, D)."""
        place = _centred(uniform, temperature)
        if self.spec.levels is not None:
            first, size = self._first(cells), self._first(cells + 1) - self._first(cells)
            return first + (place * size).floor()
        low, high = self.edges[:, 0], self.edges[:, -1]
        bins = (cells - 1).clamp(0, self.num_bins - 1)
        left, right = self.edges[self._dims(), bins], self.edges[self._dims(), bins + 1]
        y = left + (right - left) * place
        tail = -temperature * torch.log1p(-uniform) * (high - low)
        y = torch.where(cells == 0, low - tail, y)
        return torch.where(cells == self.num_bins + 1, high + tail, y)


@final
class GMM(Baseline):
    """Mixture of M Gaussians, fitted by scikit-learn's EM.

    Real values: an exact density, its exact conditionals, of any part given any other.

    Levels: the Gaussians describe y = x + u, u uniform in [0, 1)^D, in units of one level, so
    that the density integrated over the unit cell of x is a probability; the outer cells reach
    to infinity, so the cells cover everything, and a sample is y rounded down into its cell.
    Fitting x + 1/2 with 1/12 added to every variance gives the mean and the covariance that y has
    on average over u, without noise. What ``log_prob`` then means depends on the covariance:

    - ``diag``, ``spherical``: a cell's probability is a product of differences of normal
      distribution functions. Exact: measure ``"probability"``. Conditionals are exact.
    - ``full``, ``tied``: it has no closed form. ``log_prob`` is the bound
      log sum_k w[k] exp(E log N(y; mean[k], cov[k]) + entropy of y) <= log p(x), under the
      product of truncated normals within the cell that makes it tightest, found by coordinate
      ascent: no noise. With y uniform in the cell it would be the bound that dequantization
      gives; this one is never below, and as it counts the tails of the outer cells it lies 24
      nats above on scikit-learn's digits, 1.3 below log p(x). ``spec`` says measure
      ``"bound"``. Conditionals are drawn by weighted particles: the known cells' probability
      under each component is estimated by drawing its values one after the other, each within
      its cell (Geweke, Hajivassiliou and Keane); exact in the limit of many.

    Temperature divides the log-weights and multiplies the covariances.

    Accepts: vector, image, sequence.

    Args:
        spec: What a datum is.
        num_components: M.
        covariance_type: full, tied (one for all components), diag or spherical.
        regularization: Added to every variance, squared units of the data (of a level); on data
            with levels 1/12 is added too, so that constant pixels need no more.
        max_iter: Iterations of EM at most.
        tolerance: EM stops once an iteration gains less than this, nats per example.
        num_init: Starts from k-means; the best is kept.
        seed: Of the starts.

    Shapes:
        x: (B, *event).

    References:
        Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977)
        https://www.jstor.org/stable/2984875
        Simulation estimation of mixed discrete-continuous econometric models (GHK; Keane, 1994)
        https://www.jstor.org/stable/2951588

    Differs from the paper: EM's posterior over components sees x + 1/2, not the mean over u, so
    on levels it maximizes the likelihood of the densities, not the bound.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Count = 10,
        covariance_type: str = "full",
        regularization: float = 1e-6,
        max_iter: Count = 100,
        tolerance: NotNegative = 0.001,
        num_init: Count = 1,
        seed: Seed = 0,
    ):
        m, d = num_components, spec.num_dims
        shapes = {"full": (m, d, d), "tied": (1, d, d), "diag": (m, d), "spherical": (m, 1)}
        if covariance_type not in shapes:
            raise ValueError(
                f"covariance_type is {covariance_type!r}; choose full, tied, diag or spherical"
            )
        self._diagonal = covariance_type in ("diag", "spherical")
        if spec.levels is not None:
            spec = replace(spec, measure="probability" if self._diagonal else "bound")
        super().__init__(spec)
        self._count("num_components", num_components)
        self._count("max_iter", max_iter)
        self._count("num_init", num_init)
        if regularization < 0:
            raise ValueError(f"regularization is {regularization}; it must be 0 or more")
        self.covariance_type = covariance_type
        self.regularization = regularization
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.num_init = num_init
        self.seed = seed
        self._register("log_weights", m)
        self._register("means", m, d)
        # Standard deviations, or lower Cholesky factors of the covariances.
        self._register("scale", *shapes[covariance_type])

    def _fit(self, x, progress):
        # Here, as a model restored from a checkpoint has no need of it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        self._require_examples(len(x), len(self.means))
        levels = self.spec.levels is not None
        if not levels:
            _require_spread(x, self.spec)
        mixture = GaussianMixture(
            len(self.means),
            covariance_type=self.covariance_type,
            reg_covar=self.regularization + (1 / 12 if levels else 0),
            max_iter=self.max_iter,
            tol=self.tolerance,
            n_init=self.num_init,
            random_state=self.seed,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in our words
                mixture.fit(self._to_real(x).double().cpu().numpy())
        except ValueError as error:
            raise ValueError(
                f"a covariance of model GMM on data {self.spec.name!r} is singular; use a larger "
                f"regularization or a smaller num_components"
            ) from error
        if not mixture.converged_:
            warnings.warn(
                f"EM of model GMM stopped at max_iter={self.max_iter} before it converged",
                stacklevel=3,
            )
        self.log_weights.copy_(torch.from_numpy(mixture.weights_).log())
        self.means.copy_(torch.from_numpy(mixture.means_))
        covariance = torch.from_numpy(mixture.covariances_)
        if self._diagonal:
            self.scale.copy_(covariance.sqrt().view_as(self.scale))
            return
        self.scale.copy_(torch.linalg.cholesky(covariance).view_as(self.scale))

    def _to_real(self, x: Tensor) -> Tensor:
        """Where x lies among the Gaussians: the middle of its cell."""
        return x.to(self.means.dtype) + (0 if self.spec.levels is None else 0.5)

    def _to_values(self, y: Tensor) -> Tensor:
        """The cell that y lies in."""
        levels = self.spec.levels
        return y if levels is None else y.floor().clamp(0, levels - 1)

    def _edges(self, x: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Standardized edges of the cell of x; the outer cells reach to infinity."""
        lower, upper = (x - mean) / std, (x + 1 - mean) / std
        return (
            lower.masked_fill(x == 0, -math.inf),
            upper.masked_fill(x == self.spec.levels - 1, math.inf),
        )

    def _flat_log_prob(self, x):
        if self._diagonal:
            return self._diagonal_joint(x, torch.ones_like(x, dtype=torch.bool)).logsumexp(1)
        scales = self.scale.expand(len(self.means), -1, -1)
        if self.spec.levels is not None:
            with one_thread():
                return (self._bound(x, scales) + self.log_weights).logsumexp(1)
        joint = []
        # One component after the other: all at once would take M times the memory of the batch.
        for mean, scale in zip(self.means, scales, strict=True):
            z = torch.linalg.solve_triangular(scale, (x - mean).T, upper=False)  # (D, B)
            joint.append(_log_normal(z, scale.diagonal()[:, None]).sum(0))
        return (torch.stack(joint, 1) + self.log_weights).logsumexp(1)

    def _bound(self, x: Tensor, scales: Tensor) -> Tensor:
        """Bound on the log-probability of cells under full Gaussians, nats.

        The mean-field bound under q(y) = prod{ q(y[d]) : d = 1..D }. Given the others, the best
        q(y[d]) is the conditional Gaussian at their means, truncated to the cell; each such
        update raises the bound, which holds after any number of them.

        Args:
            x: (B, D).
            scales: (M, D, D), lower Cholesky factors.

        Returns:
            (B, M).
        """
        precision = torch.cholesky_inverse(scales)  # (M, D, D)
        std = precision.diagonal(dim1=1, dim2=2).rsqrt()  # (M, D), given all other values
        x = x.T  # (D, B), so that the values of one dimension lie side by side
        centre = self.means[..., None]  # (M, D, 1)
        shift = self._to_real(x) - centre  # (M, D, B), of q's mean from the Gaussian's
        own = torch.empty_like(shift)
        num_dims = len(x)
        for start in [*range(0, num_dims, _BLOCK)] * _SWEEPS:
            # The pull of all values on a block at once; within it, kept up to date.
            stop = min(start + _BLOCK, num_dims)
            pull = precision[:, start:stop] @ shift  # (M, block, B)
            for d in range(start, stop):
                scale = std[:, d, None]
                mean = centre[:, d] + shift[:, d] - scale**2 * pull[:, d - start]
                lower, upper = self._edges(x[d].to(mean.dtype).expand_as(mean), mean, scale)
                z = _truncated_mean(lower, upper)
                change = mean + scale * z - centre[:, d] - shift[:, d]
                shift[:, d] += change
                pull += precision[:, start:stop, d, None] * change[:, None]
                # What of E log N and of the entropy depends on q(y[d]) beyond its mean.
                own[:, d] = _log_cell(lower, upper) + 0.5 * z * z
        log_volume = (std.log() - scales.diagonal(dim1=1, dim2=2).log()).sum(1)  # (M,)
        quadratic = (shift * (precision @ shift)).sum(1)
        return (own.sum(1) - 0.5 * quadratic).T + log_volume

    def _diagonal_joint(self, x: Tensor, known: Tensor) -> Tensor:
        """log p(component, known values) of diagonal Gaussians: (B, D), (B, D) -> (B, M)."""
        joint = []
        for mean, std in zip(self.means, self.scale, strict=True):
            if self.spec.levels is None:
                value = _log_normal((x - mean) / std, std)
            else:
                value = _log_cell(*self._edges(x.to(mean.dtype), mean, std))
            joint.append(torch.where(known, value, 0).sum(1))
        return torch.stack(joint, 1) + self.log_weights

    def _fill(self, x, known, num_particles, temperature, generator, progress):
        if self._diagonal:
            uniform = draw_noise((len(x),), generator, x.device)
            index = pick(self._diagonal_joint(x, known), uniform, temperature)
            noise = _normal_noise(x.shape, generator, self.means)
            y = self.means[index] + math.sqrt(temperature) * self.scale[index] * noise
            return self._to_values(y), None
        exact = self.spec.levels is None or not known.any()
        if exact:
            num_particles = 1
        y = torch.zeros_like(x, dtype=self.means.dtype)
        log_weights = y.new_zeros(len(x), len(self.means), num_particles)
        masks, group = torch.unique(known, dim=0, return_inverse=True)
        for i, mask in enumerate(masks):  # factors are shared by events with the same mask
            rows = (group == i).nonzero()[:, 0]
            y[rows], log_weights[rows] = self._fill_group(
                x[rows], mask, num_particles, temperature, generator, progress
            )
        return self._to_values(y), None if exact else log_weights

    def _fill_group(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor]:
        """``_fill`` with full covariances and one mask (D,), before rounding.

        Every component draws N particles of the noise z behind the known values (one where they
        are real: then z is their function).
        """
        perm = torch.cat([known.nonzero()[:, 0], (~known).nonzero()[:, 0]])
        k = int(known.sum())
        # With the known values first, the blocks of the factor are all that conditioning takes:
        # y_known = mean + A z, y_unknown = mean + C z + E noise.
        rows = self.scale.expand(len(self.means), -1, -1)[:, perm]
        factor = torch.linalg.cholesky(rows @ rows.mT)  # (M, D, D)
        means = self.means[:, perm]
        if self.spec.levels is None:
            shift = (self._to_real(x)[:, perm[:k]] - means[:, None, :k]).mT  # (M, K, B)
            z = torch.linalg.solve_triangular(factor[:, :k, :k], shift, upper=False)
            diagonal = factor[:, :k, :k].diagonal(dim1=1, dim2=2)
            log_weights = _log_normal(z, diagonal[..., None]).sum(1)[..., None]  # (M, B, N)
            z = z.mT[:, :, None]  # (M, B, N, K)
        else:
            z, log_weights = self._draw_within_cells(
                x[:, perm[:k]], means[:, :k], factor[:, :k, :k], num_particles, generator, progress
            )
        log_weights = (log_weights + self.log_weights[:, None, None]).transpose(0, 1)  # (B, M, N)
        uniforms = draw_noise((2, len(x)), generator, x.device)
        events = torch.arange(len(x), device=x.device)
        component = pick(log_weights.logsumexp(2), uniforms[0], temperature)
        particle = pick(log_weights[events, component], uniforms[1], 1.0)
        noise = math.sqrt(temperature) * _normal_noise(
            (len(x), len(perm) - k), generator, self.means
        )
        latent = torch.cat([z[component, events, particle], noise], 1)  # (B, D)
        y = torch.empty_like(latent)
        for m in component.unique():
            chosen = (component == m).nonzero()[:, 0]
            y[chosen[:, None], perm] = means[m] + latent[chosen] @ factor[m].mT
        return y, log_weights

    def _draw_within_cells(
        self,
        x: Tensor,
        means: Tensor,
        factor: Tensor,
        num_particles: int,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor]:
        """Draw the noise behind K known values, one after the other, within their cells.

        Args:
            x: (B, K).
            means: (M, K).
            factor: (M, K, K), lower Cholesky factors.
            num_particles: N.
            generator: Seeds the draw.
            progress: Show a bar.

        Returns:
            (M, B, N, K) standard normal noise, and the log of its weight (M, B, N): the mean
            weight estimates the probability of the cells under each component, without bias.
        """
        z = means.new_zeros(len(means), len(x), num_particles, x.shape[1])
        log_weights = z.new_zeros(z.shape[:-1])
        steps = range(x.shape[1])
        for i in tqdm(
            steps, desc="conditioning", unit="value", delay=1, disable=None if progress else True
        ):
            mean = means[:, i, None, None] + torch.einsum(
                "mj,mbnj->mbn", factor[:, i, :i], z[..., :i]
            )
            values = x[:, i, None].to(mean.dtype)
            lower, upper = self._edges(values.expand_as(mean), mean, factor[:, i, i, None, None])
            log_weights += _log_cell(lower, upper)
            uniform = draw_noise(tuple(mean.shape), generator, x.device).to(mean.dtype)
            z[..., i] = _truncated_normal(lower, upper, uniform)
        return z, log_weights


def _to_left_tail(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror intervals that lie right of 0, where the distribution function rounds to 1."""
    mirrored = lower + upper > 0
    return (
        torch.where(mirrored, -upper, lower),
        torch.where(mirrored, -lower, upper),
        mirrored,
    )


def _truncated_mean(lower: Tensor, upper: Tensor) -> Tensor:
    """Mean of a standard normal value within an interval."""
    log_mass = _log_cell(lower, upper) + 0.5 * math.log(2 * math.pi)
    mean = torch.exp(-0.5 * lower**2 - log_mass) - torch.exp(-0.5 * upper**2 - log_mass)
    return torch.maximum(torch.minimum(mean, upper), lower)


def _log_cell(lower: Tensor, upper: Tensor) -> Tensor:
    """log of the standard normal probability of an interval, accurate in both tails."""
    lower, upper, _ = _to_left_tail(lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))


def _truncated_normal(lower: Tensor, upper: Tensor, uniform: Tensor) -> Tensor:
    """A standard normal value within an interval, by the inverse of its distribution function."""
    lower, upper, mirrored = _to_left_tail(lower, upper)
    # By erfc: torch.special.ndtr is (1 + erf) / 2, which is 0 from 8.5 sigma on.
    below, above = (0.5 * torch.erfc(-z / math.sqrt(2)) for z in (lower, upper))
    z = torch.special.ndtri(below + uniform * (above - below))
    # Beyond 37 sigma the function underflows; there all mass lies within 1/37 of the edge.
    z = torch.where(above == 0, upper, torch.maximum(torch.minimum(z, upper), lower))
    return torch.where(mirrored, -z, z)
