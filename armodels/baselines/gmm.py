"""Mixture of Gaussians, over real values and over cells of levels.

Shapes: B batch, D values per example, L levels, M mixture components, N particles.
"""

import math
import warnings
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from armodels.baselines.base import Baseline, require_spread
from armodels.baselines.normal import (
    log_cell,
    log_normal,
    normal_noise,
    truncated_mean,
    truncated_normal,
)
from armodels.checks import Count, NotNegative, Seed, checked
from armodels.density import query
from armodels.density.walk import draw_noise, one_thread
from armodels.heads import pick
from armodels.spec import DataSpec

_SWEEPS = 4
"""Of the mean-field bound; on digits the next one gains 0.02 nats."""

_BLOCK = 32
"""Dimensions whose updates share a matrix product; twice as fast at 784 dimensions as none."""


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

    log_weights: Tensor
    means: Tensor
    scale: Tensor

    @checked
    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Count = 10,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        regularization: NotNegative = 1e-6,
        max_iter: Count = 100,
        tolerance: NotNegative = 0.001,
        num_init: Count = 1,
        seed: Seed = 0,
    ):
        m, d = num_components, spec.num_dims
        shapes = {"full": (m, d, d), "tied": (1, d, d), "diag": (m, d), "spherical": (m, 1)}
        self._diagonal = covariance_type in ("diag", "spherical")
        if spec.levels is not None:
            spec = replace(spec, measure="probability" if self._diagonal else "bound")
        super().__init__(spec)
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

    def _fit(self, x: Tensor, progress: bool) -> None:
        # scikit-learn is imported for a fit alone: a restored model does without it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        self._require_examples(len(x), len(self.means))
        levels = self.spec.levels is not None
        if not levels:
            require_spread(x, self.spec)
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
                warnings.simplefilter("ignore", ConvergenceWarning)  # ours follows
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
            upper.masked_fill(x == self.spec.num_levels - 1, math.inf),
        )

    def _flat_log_prob(self, x: Tensor) -> Tensor:
        if self._diagonal:
            return self._diagonal_joint(x, torch.ones_like(x, dtype=torch.bool)).logsumexp(1)
        scales = self.scale.expand(len(self.means), -1, -1)
        if self.spec.levels is not None:
            with one_thread():
                return (self._bound(x, scales) + self.log_weights).logsumexp(1)
        joint = []
        # All components at once would take M times the memory of the batch.
        for mean, scale in zip(self.means, scales, strict=True):
            z = torch.linalg.solve_triangular(scale, (x - mean).T, upper=False)  # (D, B)
            joint.append(log_normal(z, scale.diagonal()[:, None]).sum(0))
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
            # A block's pull is one product over all values, kept up to date within the block.
            stop = min(start + _BLOCK, num_dims)
            pull = precision[:, start:stop] @ shift  # (M, block, B)
            for d in range(start, stop):
                scale = std[:, d, None]
                mean = centre[:, d] + shift[:, d] - scale**2 * pull[:, d - start]
                lower, upper = self._edges(x[d].to(mean.dtype).expand_as(mean), mean, scale)
                z = truncated_mean(lower, upper)
                change = mean + scale * z - centre[:, d] - shift[:, d]
                shift[:, d] += change
                pull += precision[:, start:stop, d, None] * change[:, None]
                # What of E log N and of the entropy depends on q(y[d]) beyond its mean.
                own[:, d] = log_cell(lower, upper) + 0.5 * z * z
        log_volume = (std.log() - scales.diagonal(dim1=1, dim2=2).log()).sum(1)  # (M,)
        quadratic = (shift * (precision @ shift)).sum(1)
        return (own.sum(1) - 0.5 * quadratic).T + log_volume

    def _diagonal_joint(self, x: Tensor, known: Tensor) -> Tensor:
        """log p(component, known values) of diagonal Gaussians: (B, D), (B, D) -> (B, M)."""
        joint = []
        for mean, std in zip(self.means, self.scale, strict=True):
            if self.spec.levels is None:
                value = log_normal((x - mean) / std, std)
            else:
                value = log_cell(*self._edges(x.to(mean.dtype), mean, std))
            joint.append(torch.where(known, value, 0).sum(1))
        return torch.stack(joint, 1) + self.log_weights

    def _part_log_prob(self, x: Tensor, part: Tensor) -> Tensor | None:
        if self._diagonal:
            return self._diagonal_joint(x, part).logsumexp(1)
        if self.spec.levels is not None:
            return None
        found = x.new_zeros(len(x), dtype=self.means.dtype)
        masks, group = torch.unique(part, dim=0, return_inverse=True)
        for i, mask in enumerate(masks):
            rows = (group == i).nonzero()[:, 0]
            dims = mask.nonzero()[:, 0]
            factor = self._factor(dims)
            _, log_weights = self._within_gaussians(x[rows][:, dims], self.means[:, dims], factor)
            found[rows] = (log_weights.T + self.log_weights).logsumexp(1)
        return found

    def _estimate(self, one: query.Query) -> query.Weights:
        """By the draws that complete: the known cells first, then those that are asked."""
        both = one.x.new_zeros(
            len(one.x), len(self.means), one.num_particles, dtype=self.means.dtype
        )
        known = torch.zeros_like(both)
        masks = torch.stack([one.known.flatten(1), one.asked.flatten(1)], 1)
        parts, group = torch.unique(masks, dim=0, return_inverse=True)
        for i, part in enumerate(parts):
            rows = (group == i).nonzero()[:, 0]
            first = part[0].nonzero()[:, 0]
            dims = torch.cat([first, part[1].nonzero()[:, 0]])
            _, each = self._draw_within_cells(
                one.x.flatten(1)[rows][:, dims],
                self.means[:, dims],
                self._factor(dims),
                one.num_particles,
                one.generator,
                one.progress,
            )  # (M, B, N, K)
            prior = self.log_weights[:, None, None] + math.log(len(self.means))
            both[rows] = (each.sum(-1) + prior).transpose(0, 1)
            known[rows] = (each[..., : len(first)].sum(-1) + prior).transpose(0, 1)
        return query.Weights(both, known, False)

    def _factor(self, dims: Tensor) -> Tensor:
        """Lower Cholesky factors (M, K, K) of the covariances of some values (K,)."""
        rows = self.scale.expand(len(self.means), -1, -1)[:, dims]
        return torch.linalg.cholesky(rows @ rows.mT)

    def _within_gaussians(self, x: Tensor, means: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The noise behind real values, and their log-density under each component.

        Args:
            x: (B, K).
            means: (M, K).
            factor: (M, K, K), lower Cholesky factors.

        Returns:
            (M, K, B) and (M, B).
        """
        shift = (self._to_real(x) - means[:, None]).mT  # (M, K, B)
        z = torch.linalg.solve_triangular(factor, shift, upper=False)
        diagonal = factor.diagonal(dim1=1, dim2=2)
        return z, log_normal(z, diagonal[..., None]).sum(1)

    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if self._diagonal:
            uniform = draw_noise((len(x),), generator, x.device)
            index = pick(self._diagonal_joint(x, known), uniform, temperature)
            noise = normal_noise(x.shape, generator, self.means)
            y = self.means[index] + math.sqrt(temperature) * self.scale[index] * noise
            return self._to_values(y), None
        exact = self.spec.levels is None or not known.any()
        if exact:
            num_particles = 1
        y = torch.zeros_like(x, dtype=self.means.dtype)
        log_weights = y.new_zeros(len(x), len(self.means), num_particles)
        masks, group = torch.unique(known, dim=0, return_inverse=True)
        for i, mask in enumerate(masks):  # factors are shared by events with the same mask
            events = (group == i).nonzero()[:, 0]
            y[events], log_weights[events] = self._fill_group(
                x[events], mask, num_particles, temperature, generator, progress
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
        factor = self._factor(perm)  # (M, D, D)
        means = self.means[:, perm]
        if self.spec.levels is None:
            z, each = self._within_gaussians(x[:, perm[:k]], means[:, :k], factor[:, :k, :k])
            z, log_weights = z.mT[:, :, None], each[..., None]  # (M, B, N, K), (M, B, N)
        else:
            z, each = self._draw_within_cells(
                x[:, perm[:k]], means[:, :k], factor[:, :k, :k], num_particles, generator, progress
            )
            log_weights = each.sum(-1)
        log_weights = (log_weights + self.log_weights[:, None, None]).transpose(0, 1)  # (B, M, N)
        uniforms = draw_noise((2, len(x)), generator, x.device)
        events = torch.arange(len(x), device=x.device)
        component = pick(log_weights.logsumexp(2), uniforms[0], temperature)
        particle = pick(log_weights[events, component], uniforms[1], 1.0)
        noise = math.sqrt(temperature) * normal_noise(
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
            (M, B, N, K) standard normal noise, and the logs of its weights (M, B, N, K): the mean
            of the product of the first k estimates the probability of the first k cells under
            each component, without bias.
        """
        z = means.new_zeros(len(means), len(x), num_particles, x.shape[1])
        log_weights = torch.zeros_like(z)
        steps = range(x.shape[1])
        for i in tqdm(
            steps, desc="conditioning", unit="value", delay=1, disable=None if progress else True
        ):
            mean = means[:, i, None, None] + torch.einsum(
                "mj,mbnj->mbn", factor[:, i, :i], z[..., :i]
            )
            values = x[:, i, None].to(mean.dtype)
            lower, upper = self._edges(values.expand_as(mean), mean, factor[:, i, i, None, None])
            log_weights[..., i] = log_cell(lower, upper)
            uniform = draw_noise(tuple(mean.shape), generator, x.device).to(mean.dtype)
            z[..., i] = truncated_normal(lower, upper, uniform)
        return z, log_weights
