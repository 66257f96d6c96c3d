"""Heads: families of conditionals. A head alone knows what its parameters mean.

Shapes: P parameters per step, K values per step, M components, L levels. A head has no weights;
``log_prob``, ``level_log_probs`` and ``sample`` work on any leading shape.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from armodels.checks import Count, checked
from armodels.spec import DataSpec


class Head(ABC):
    """p(values of one step | params).

    Attributes:
        family: Short name; a network that offers a fused walk goes by it.
        num_params: P, numbers that the network must give for each step.
        num_noise: Uniforms in (0, 1) that ``sample`` turns into the values of one step.
        joint: True when the head takes all channels of a pixel in one step (K = C).
    """

    family: ClassVar[str]
    joint: ClassVar[bool] = False
    num_params: int
    num_noise: int

    @abstractmethod
    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Nats: (..., P), (..., K) -> (...)."""

    @abstractmethod
    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        """Nats of every level of one value of a step, given the step's earlier values.

        ``log_prob`` in factors: over k, the entries at the values of a step sum to it; with K = 1
        each entry is ``log_prob`` of its level. Entropy coding, entropy maps, top-k and top-p read
        these numbers.

        A row's probabilities sum to one as far as ``log_prob`` is rounded: within 1e-12 in
        float64, and within 5e-5 in float32, where the edges of a logistic's bins are rounded to
        6e-8 and its scale may be as small as e^-7. Half precision is computed in float32.

        Args:
            params: (..., P).
            earlier: (..., k) values 0..k-1 of the step; k, from 0 to K - 1, is the value in
                question.

        Returns:
            (..., L) log p(value k = level | params, earlier).

        Raises:
            ValueError: The head is of real values, which have a density and no levels; k is K or
                more, earlier values are no levels, or shapes do not go together.
        """

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Turn explicit noise into values: (..., P), (..., num_noise) -> (..., K).

        Logits are divided by the temperature and scales multiplied by its square root: 1 is the
        model itself, 0 the mode (of the likeliest component).

        Args:
            params: (..., P).
            noise: (..., num_noise), uniform in (0, 1).
            temperature: 0 or more.
        """

    @abstractmethod
    def marginal_params(self, values: Tensor) -> Tensor:
        """Parameters that fit each step alone: (N, S, K) -> (S, P); where training starts."""


def _check_levels(head: Head, params: Tensor, earlier: Tensor, num_values: int) -> None:
    """Raise ValueError unless parameters are the head's, and earlier values leave one in question.

    Args:
        head: Of L levels.
        params: (..., P).
        earlier: (..., k); of k = 0, as ``log_prob`` asks, no value is read.
        num_values: K.
    """
    if params.shape[-1:] != (head.num_params,):
        raise ValueError(
            f"head {head.family} reads {head.num_params} parameters a step, (..., P), but got "
            f"{tuple(params.shape)}"
        )
    if earlier.shape[-1] >= num_values:
        raise ValueError(
            f"head {head.family} has {num_values} values a step, so at most {num_values - 1} are "
            f"earlier, but got earlier values of shape {tuple(earlier.shape)}"
        )
    if earlier.shape[-1] and earlier.shape[:-1] != params.shape[:-1]:
        raise ValueError(
            f"earlier values of shape {tuple(earlier.shape)} do not stand beside parameters of "
            f"shape {tuple(params.shape)}"
        )


def precise(params: Tensor) -> Tensor:
    """Half precision as float32, which tells log-probabilities, and 256 levels, apart.

    Draws read the same parameters, or they would follow another distribution than ``log_prob``.
    """
    return params.float() if params.dtype in (torch.bfloat16, torch.float16) else params


def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Index drawn from softmax(logits / temperature) by its CDF: (..., N), (...) -> (...).

    Args:
        logits: (..., N).
        uniform: Noise (...) in (0, 1).
        temperature: 0 takes the largest logit.
    """
    if temperature == 0:
        return logits.argmax(-1).expand_as(uniform)
    cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # Scaled by the last entry, rounding cannot push a draw past the last level.
    return (cdf <= (uniform.double() * cdf[..., -1])[..., None]).sum(-1)


@final
class Bernoulli(Head):
    """One binary value; the parameter is its logit. P = 1.

    Raises:
        ValueError: The data has no two levels.
    """

    family = "bernoulli"
    num_params = 1
    num_noise = 1

    def __init__(self, spec: DataSpec):
        if spec.levels != 2:
            kind = "real values" if spec.levels is None else f"{spec.levels} levels"
            raise ValueError(
                f"head bernoulli needs data of 2 levels, but {spec.name} has {kind}; "
                f"use head=auto, or binarize the data"
            )

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        # softplus rather than a binary cross-entropy: exact and finite at any logit.
        # A sign rather than torch.where, which is as slow as all the rest.
        logits = params[..., 0]
        return -F.softplus(logits * (1 - 2 * values[..., 0].to(logits.dtype)))

    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        _check_levels(self, params, earlier, 1)
        levels = torch.arange(2, device=params.device)[:, None]
        return self.log_prob(precise(params)[..., None, :], levels)

    def sample(self, params: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return (params > 0).to(torch.uint8)
        return (noise < (params / temperature).sigmoid()).to(torch.uint8)

    def marginal_params(self, values: Tensor) -> Tensor:
        ones = values[..., 0].double().sum(0)  # (S,)
        return torch.log((ones + 1) / (len(values) - ones + 1))[:, None]


@final
class Categorical(Head):
    """One of L levels; the parameters are logits. P = L.

    Raises:
        ValueError: The data has real values.
    """

    family = "categorical"
    num_noise = 1

    def __init__(self, spec: DataSpec):
        if spec.levels is None:
            raise ValueError(
                f"head categorical needs data with levels, but {spec.name} has real values; "
                f"use head=gaussian_mixture"
            )
        self.num_params = spec.levels
        self._dtype = spec.dtype

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return self.level_log_probs(params, values[..., :0]).gather(-1, values.long()).squeeze(-1)

    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        _check_levels(self, params, earlier, 1)
        return precise(params).log_softmax(-1)

    def sample(self, params: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return pick(params, noise[..., 0], temperature)[..., None].to(self._dtype)

    def marginal_params(self, values: Tensor) -> Tensor:
        # One example's weight is spread over the levels, so that an unseen level stays possible.
        num_levels, num_steps = self.num_params, values.shape[1]
        first = num_levels * torch.arange(num_steps, device=values.device)
        counts = torch.zeros(num_steps * num_levels, dtype=torch.double, device=values.device)
        for part in values[..., 0].split(1000):  # a one-hot of 256 levels would not fit in memory
            places = (part.long() + first).flatten()
            counts += torch.bincount(places, minlength=len(counts))
        counts = counts.view(num_steps, num_levels)
        return torch.log((counts + 1 / self.num_params) / (len(values) + 1))


def _spread(values: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Component means at quantiles and a common log-scale: (N, S) -> (S, M), (S, 1)."""
    levels = (torch.arange(num_components, dtype=torch.double) + 0.5) / num_components
    # torch.quantile takes at most 16M values.
    values = values[:: 1 + values.numel() // 10_000_000].double().cpu()
    means = torch.quantile(values, levels, dim=0).T  # (S, M)
    scale = values.std(0, correction=0).clamp_min(1e-3) / math.sqrt(num_components)
    return means, scale.log()[:, None]


@final
class GaussianMixture(Head):
    """Mixture of M Gaussians over one real value. P = 3M, or 2M with uniform mixing weights.

    Args:
        spec: What a datum is.
        num_components: M.
        mixing: ``"learned"`` mixing weights, or ``"uniform"``: 1/M each.
        min_log_scale: Floor of log sigma; keeps the density bounded on repeated values.
        max_log_scale: Ceiling of log sigma; keeps draws finite whatever the network says.

    Raises:
        ValueError: The data has levels, or the floor of log sigma is not below its ceiling.

    References:
        RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013)
        https://arxiv.org/abs/1306.0186

    Differs from the paper: scales are exp(.) with a floor and a ceiling; gradients are not
    rescaled.
    """

    family = "gaussian_mixture"
    num_noise = 2

    @checked
    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Count = 10,
        mixing: Literal["learned", "uniform"] = "learned",
        min_log_scale: float = -7.0,
        max_log_scale: float = 20.0,
    ):
        if spec.levels is not None:
            raise ValueError(
                f"head gaussian_mixture needs real values, but {spec.name} has {spec.levels} "
                f"levels; use head=auto"
            )
        self.num_components = num_components
        self.mixing = mixing
        if not min_log_scale < max_log_scale:
            raise ValueError(
                f"min_log_scale is {min_log_scale} and max_log_scale {max_log_scale}; the floor "
                f"must lie below the ceiling"
            )
        self.min_log_scale = min_log_scale
        self.max_log_scale = max_log_scale
        self.num_params = num_components * (3 if mixing == "learned" else 2)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixing logits, means, log-scales: (..., P) -> three of (..., M)."""
        means, log_scales, *logits = params.split(self.num_components, -1)
        log_scales = log_scales.clamp(self.min_log_scale, self.max_log_scale)
        return (logits[0] if logits else torch.zeros_like(means)), means, log_scales

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        logits, means, log_scales = self._split(params)
        z = (values - means) * torch.exp(-log_scales)
        log_normal = -0.5 * z * z - log_scales - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(logits.log_softmax(-1) + log_normal, -1)

    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        raise ValueError(
            "head gaussian_mixture has no level_log_probs: real values have a density, not levels"
        )

    def sample(self, params: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        logits, means, log_scales = self._split(params)
        index = pick(logits, noise[..., 0], temperature)[..., None]
        scale = math.sqrt(temperature) * log_scales.gather(-1, index).exp()
        return means.gather(-1, index) + scale * torch.special.ndtri(noise[..., 1:]).to(scale)

    def marginal_params(self, values: Tensor) -> Tensor:
        means, log_scale = _spread(values[..., 0], self.num_components)
        rest = self.num_params // self.num_components - 2
        return torch.cat([means, log_scale.expand_as(means), *[torch.zeros_like(means)] * rest], 1)


def log_one_minus_exp(log_t: Tensor) -> Tensor:
    """log(1 - e^-t) from log t, finite with a finite gradient however small t is."""
    t = log_t.exp()
    # Where t vanishes 1 - e^-t is t (1 - t / 2); the other branch must not see that t.
    rest = torch.log(-torch.expm1(-t.clamp_min(1e-7)))
    return torch.where(t < 1e-7, log_t - t / 2, rest)


class _Parts(NamedTuple):
    """Parameters of a DiscretizedLogisticMixture; C channels, M components.

    Attributes:
        logits: (..., M) of the components.
        means: (..., C, M) on the [-1, 1] scale.
        log_scales: (..., C, M).
        coefficients: (..., C (C - 1) / 2, M) of earlier channels in a later channel's mean.
        inverse_scales: (..., C, M).
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor
    inverse_scales: Tensor


@final
class DiscretizedLogisticMixture(Head):
    """Mixture of M logistics, each integrated over the bins of L levels, over a whole pixel.

    p(v) = sigma((v + 1/2 - mu) / s) - sigma((v - 1/2 - mu) / s), the outer bins open to infinity;
    the mean of a later channel is shifted linearly by the earlier channels' values, within each
    component. Values are scaled to [-1, 1]. P = M (1 + 2 C + C (C - 1) / 2).

    Args:
        spec: What a datum is; vectors and sequences have C = 1.
        num_components: M.
        min_log_scale: Floor of log s on the [-1, 1] scale.

    Raises:
        ValueError: The data has real values.

    References:
        PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood
        (Salimans et al., 2017) https://arxiv.org/abs/1701.05517

    Differs from the paper: bins in closed form, log sigma(a) + log sigma(-b) + log(1 - e^(b-a)),
    without the threshold branch; any number of levels and channels.
    """

    family = "discretized_logistic_mixture"
    joint = True

    @checked
    def __init__(self, spec: DataSpec, *, num_components: Count = 10, min_log_scale: float = -7.0):
        if spec.levels is None:
            raise ValueError(
                f"head discretized_logistic_mixture needs data with levels, but {spec.name} has "
                f"real values; use head=gaussian_mixture"
            )
        self.levels = spec.levels
        self.channels = spec.shape[0] if spec.kind == "image" else 1
        self.num_components = num_components
        self.min_log_scale = min_log_scale
        self._dtype = spec.dtype
        self._num_coefficients = self.channels * (self.channels - 1) // 2
        self.num_params = num_components * (1 + 2 * self.channels + self._num_coefficients)
        self.num_noise = 1 + self.channels

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., P) -> logits (..., M); means, log-scales (..., C, M); coefficients (..., ?, M)."""
        parts = params.unflatten(-1, (-1, self.num_components))
        logits, means, log_scales, coefficients = parts.split(
            [1, self.channels, self.channels, self._num_coefficients], -2
        )
        log_scales = log_scales.clamp_min(self.min_log_scale)
        return logits.squeeze(-2), means, log_scales, coefficients.tanh()

    def _parts(self, params: Tensor) -> _Parts:
        logits, means, log_scales, coefficients = self._split(params)
        return _Parts(logits, means, log_scales, coefficients, torch.exp(-log_scales))

    def _scaled(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype) * (2 / (self.levels - 1)) - 1

    def _shift(self, coefficients: Tensor, c: int, earlier: Tensor) -> Tensor:
        """Shift of channel c's mean by the scaled values of earlier channels.

        Args:
            coefficients: (..., C (C - 1) / 2, M).
            c: The channel.
            earlier: (..., c).

        Returns:
            (..., M).
        """
        first = c * (c - 1) // 2
        return (coefficients[..., first : first + c, :] * earlier[..., None]).sum(-2)

    def _channel_log_prob(self, parts: _Parts, c: int, value: Tensor, earlier: Tensor) -> Tensor:
        """Nats of a value of channel c in each component.

        Args:
            parts: Of the parameters.
            c: The channel.
            value: (...).
            earlier: (..., c) values of the channels before it.

        Returns:
            (..., M).
        """
        shift = self._shift(parts.coefficients, c, self._scaled(earlier, parts.means.dtype))
        mean, inverse = parts.means[..., c, :] + shift, parts.inverse_scales[..., c, :]
        v, half = value[..., None], 1 / (self.levels - 1)
        x = self._scaled(v, mean.dtype)
        upper = (x - mean + half) * inverse
        lower = (x - mean - half) * inverse
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        inner = below + above + log_one_minus_exp(math.log(2 * half) - parts.log_scales[..., c, :])
        return torch.where(v == 0, below, torch.where(v == self.levels - 1, above, inner))

    def _joint_log_prob(self, parts: _Parts, values: Tensor) -> Tensor:
        """Nats of each component and the values of the first k channels: (..., k) -> (..., M)."""
        total = parts.logits.log_softmax(-1)
        for c in range(values.shape[-1]):
            total = total + self._channel_log_prob(parts, c, values[..., c], values[..., :c])
        return total

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return torch.logsumexp(self._joint_log_prob(self._parts(params), values), -1)

    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        _check_levels(self, params, earlier, self.channels)
        if earlier.numel() and not 0 <= int(earlier.min()) <= int(earlier.max()) < self.levels:
            raise ValueError(f"earlier values must be levels from 0 to {self.levels - 1}")
        # The levels fill an axis of their own; tensors of (..., L, M) numbers are held.
        parts, earlier = self._parts(precise(params)[..., None, :]), earlier[..., None, :]
        levels = torch.arange(self.levels, device=params.device)
        each = self._channel_log_prob(parts, earlier.shape[-1], levels, earlier)
        # The earlier channels tell the components apart: weights are responsibilities for them.
        log_weights = self._joint_log_prob(parts, earlier).log_softmax(-1)
        return torch.logsumexp(log_weights + each, -1)

    def sample(self, params: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        logits, means, log_scales, coefficients = self._split(params)
        index = pick(logits, noise[..., 0], temperature)[..., None, None]

        def chosen(t: Tensor) -> Tensor:  # (..., ?, M) -> (..., ?, 1)
            return t.gather(-1, index.expand(*t.shape[:-1], 1))

        means, log_scales, coefficients = map(chosen, (means, log_scales, coefficients))
        scales = math.sqrt(temperature) * log_scales[..., 0].exp()  # (..., C)
        values = torch.zeros(*params.shape[:-1], self.channels, device=params.device)
        values = values.to(self._dtype)
        for c in range(self.channels):
            x = self._scaled(values[..., :c], params.dtype)
            mean = (means[..., c, :] + self._shift(coefficients, c, x))[..., 0]
            drawn = mean + scales[..., c] * torch.logit(noise[..., 1 + c]).to(mean)
            level = ((drawn + 1) * ((self.levels - 1) / 2)).round()
            # On the grid before it conditions the next channel.
            values[..., c] = level.clamp(0, self.levels - 1).to(self._dtype)
        return values

    def marginal_params(self, values: Tensor) -> Tensor:
        x = self._scaled(values, torch.double)  # (N, S, C)
        spreads = [_spread(x[..., c], self.num_components) for c in range(self.channels)]
        means = torch.stack([mean for mean, _ in spreads], 1)  # (S, C, M)
        # A logistic of scale s has standard deviation s pi / sqrt(3).
        log_scales = torch.stack([s.expand(-1, self.num_components) for _, s in spreads], 1)
        log_scales = log_scales + math.log(math.sqrt(3) / math.pi)
        zeros = torch.zeros(len(means), 1 + self._num_coefficients, self.num_components)
        parts = torch.cat([zeros[:, :1], means, log_scales, zeros[:, 1:]], 1)
        return parts.flatten(1)


def auto(spec: DataSpec, *, num_components: Count | None = None) -> Head:
    """2 levels: Bernoulli; more levels: Categorical; real values: GaussianMixture, of its own or
    ``num_components`` components.

    Raises:
        ValueError: A number of components is named, and there is no mixture.

    Examples:
        >>> from armodels import DataSpec, heads
        >>> bits = DataSpec("bits", "vector", (3,), 2, "probability")
        >>> heads.auto(bits).family, heads.auto(bits).num_params
        ('bernoulli', 1)
    """
    if spec.levels is None:
        if num_components is None:
            return GaussianMixture(spec)
        return GaussianMixture(spec, num_components=num_components)
    if num_components is not None:
        raise ValueError(
            f"num_components is {num_components}, but head=auto takes a mixture for real values "
            f"alone and {spec.name} has levels; leave it at null, or name a head"
        )
    return Bernoulli(spec) if spec.levels == 2 else Categorical(spec)
