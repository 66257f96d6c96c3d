"""Density models: exact log-probabilities, and the only sampling loop.

Shapes: B batch, S steps, K values per step, P parameters per step, N particles.
"""

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from armodels import orders
from armodels.heads import Head
from armodels.networks.base import Network
from armodels.spec import ContextSpec, DataSpec

IMPOSSIBLE = "the observed values have probability 0 under the model"
"""Why there is nothing to complete."""

DISTRUST = 2.0
"""Nats. Halves of many particles with an effective sample size of n differ by about 2 / sqrt(n),
so that particles that differ by more hang on one of them."""


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
    """Walks that keep the observed values, weighted by what they say of those values.

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


class DensityModel(nn.Module, ABC):
    """All that the tasks know about a model."""

    spec: DataSpec
    context: ContextSpec | None = None
    """What the model is conditioned on; None: nothing."""

    @property
    def any_order(self) -> bool:
        """Trained for all orders, so that it may be used under whichever serves best."""
        return False

    @property
    def description(self) -> str:
        """A few words for the log: which distribution this is."""
        return type(self).__name__

    @property
    def num_parameters(self) -> int:
        """How many numbers were fitted to the data."""
        return sum(p.numel() for p in self.parameters())

    @final
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log p(x), nats: (B, *event) -> (B,).

        Raises:
            ValueError: A value lies outside the support.
        """
        self.spec.check(x)
        self.check_context(context, len(x))
        return self._log_prob(x, context)

    @final
    def check_context(self, context: Tensor | None, batch_size: int) -> None:
        """Raise ValueError unless ``context`` is what the model is conditioned on."""
        self._require_context(context)
        if context is not None:
            self.context.check(context, batch_size)

    @final
    def _require_context(self, context: Tensor | None) -> None:
        """Raise ValueError where a context lacks or is one too many; its values are not read."""
        if self.context is None:
            if context is not None:
                raise ValueError(
                    f"{self.description} takes no context: it was trained without model.context"
                )
        elif context is None:
            raise ValueError(
                f"{self.description} is conditioned on {self.context.name}: "
                f"give one for each event"
            )

    @abstractmethod
    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``log_prob`` of values known to be in the support."""

    @abstractmethod
    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` events: (n, *event), and the model's log p of each (at temperature 1): (n,).

        ``progress`` shows a bar with an ETA once a second has passed.
        """

    @final
    def sample(self, n: int, **options) -> Tensor:
        """Draw ``n`` events: (n, *event); options as in ``sample_with_log_prob``."""
        return self.sample_with_log_prob(n, **options)[0]

    @abstractmethod
    def complete(
        self,
        x: Tensor,
        observed: Tensor,
        *,
        num_particles: int = 1,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Completion:
        """Fill in what is not observed.

        Args:
            x: (B, *event); values where ``observed`` is False are ignored.
            observed: Boolean, True = known, (*event) or (B, *event).
            num_particles: Particles per event where the order does not put known values first.
            context: What the model is conditioned on.
            temperature: As in ``sample_with_log_prob``.
            generator: Seeds the draw.
            progress: Show a bar with an ETA once a second has passed.
        """

    def objective(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What training maximizes: (B, *event) -> (B,); by default the log-probability."""
        return self._log_prob(x, context)

    @final
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The objective in train mode, else log_prob: what DDP, compile and autocast see."""
        if not self.training:
            return self.log_prob(x, context)
        self._require_context(context)  # without a look at values: a step must not wait for them
        return self.objective(x, context)

    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Hook before training: closed-form fits, EM, output biases from the data.

        ``progress`` shows a bar where this takes long.
        """
        return

    def log_prob_map(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Log-probability of each value given those before it, (B, *event), where defined."""
        return None


def check_draw(temperature: float, n: int = 0) -> None:
    """Raise ValueError unless ``n`` events can be drawn at this temperature."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be finite and 0 or more")
    if n < 0:
        raise ValueError(f"{n} samples cannot be drawn; ask for 0 or more")


def as_mask(observed: Tensor, x: Tensor) -> Tensor:
    """``observed`` as one mask per event, (B, *event), after checking its shape."""
    if observed.dtype != torch.bool:
        raise ValueError(f"observed must be boolean, True = known, got {observed.dtype}")
    if observed.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}, the events {tuple(x.shape[1:])}"
        )
    return observed.expand_as(x)


def known_first(observed: Tensor, order: Tensor) -> bool:
    """Whether the order (S, K) writes what is observed, (B, *event), before all else."""
    known = observed.flatten(1)[:, order.flatten().to(observed.device)]
    return bool((known[:, 1:] <= known[:, :-1]).all())


def draw_noise(shape: tuple[int, ...], generator: torch.Generator | None, device) -> Tensor:
    """Uniforms in the open interval (0, 1), float64, drawn where the generator lives."""
    source = device if generator is None else generator.device
    noise = torch.rand(shape, dtype=torch.double, generator=generator, device=source)
    return noise.clamp_min_(2.0**-54).to(device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread, for loops of small operations: a second slows them several times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _sampling(model: nn.Module, *, naive: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, and one thread unless steps are forward passes."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), contextlib.nullcontext() if naive else one_thread():
            yield
    finally:
        model.train(training)


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
    weights = log_weights.double().softmax(1)
    uniform = draw_noise((len(x), 1), generator, x.device)
    cdf = weights.cumsum(1)
    index = (cdf <= uniform * cdf[:, -1:]).sum(1)
    rows = torch.arange(len(x), device=x.device)
    return x[rows, index], 1 / weights.square().sum(1)


def disagreement(log_weights: Tensor, num_splits: int = 20) -> Tensor:
    """How far halves of the particles are from each other, nats: (B, M, N) -> (B,).

    The log of a mean weight estimates log p(known). Particles that all missed a mode agree with
    each other, so that their effective sample size is large; where one has found it and weighs
    more than all others, the half without it says something else. What no particle of any event
    has found remains unseen.

    Args:
        log_weights: N particles of each of M components, not normalized, N > 1.
        num_splits: Random halves; their root mean square counts.
    """
    half = log_weights.shape[2] // 2
    generator = torch.Generator().manual_seed(0)  # of its own: no draw may depend on a warning
    squares = []
    for _ in range(num_splits):
        order = torch.randperm(log_weights.shape[2], generator=generator).to(log_weights.device)
        first, second = (
            log_weights[:, :, part].double().flatten(1).logsumexp(1)
            for part in (order[:half], order[half : 2 * half])
        )
        squares.append((first - second).nan_to_num(math.inf).square())  # both -inf
    return torch.stack(squares).mean(0).sqrt()


def draw_known(batch_size: int, num_steps: int, device) -> tuple[Tensor, Tensor]:
    """Random known parts for training on all orders at once, from the global random stream.

    The number of known steps is uniform on 0..S-1, and so is the set of that size.

    Returns:
        known (B, S) bool, and weights (B, S) of the steps' log-probabilities given the known
        ones: S over the number of unknown steps, 0 at known ones. The mean of the weighted sum is
        the mean of log p(x | order) over all orders.
    """
    num_known = torch.randint(num_steps, (batch_size, 1), device=device)
    order = torch.rand(batch_size, num_steps, device=device).argsort(1)
    first = torch.arange(num_steps, device=device) < num_known
    # Sorting is a good part of a small network's step: once, not once more for the ranks.
    known = torch.empty_like(first).scatter_(1, order, first)
    return known, known.logical_not() * (num_steps / (num_steps - num_known))


def _precise(params: Tensor) -> Tensor:
    """Parameters as a head reads them: half precision cannot tell log-probabilities apart."""
    return params.float() if params.dtype in (torch.bfloat16, torch.float16) else params


@final
class AutoregressiveModel(DensityModel):
    """p(x) = prod{ p(x[order[s]] | x[order[<s]]) : s = 1..S }: an order, a network and a head.

    Args:
        net: Says what earlier values tell about each step; holds the order.
        head: Says what the network's parameters mean.
        resample_orders: Train each batch under a random order of its own, with random
            connectivity of its own where the network has some.
    """

    def __init__(self, net: Network, head: Head, *, resample_orders: bool = False):
        super().__init__()
        self.resample_orders = resample_orders
        self.spec = net.spec
        self.context = net.context
        self.net = net
        self.head = head

    @property
    def description(self):
        """Network and head."""
        return f"{type(self.net).__name__} with {self.head.family} head"

    def with_order(self, order: Tensor, *, seed: int | None = None) -> "AutoregressiveModel":
        """The same weights under another order; ``seed`` is for random connectivity."""
        net = self.net.with_order(order, seed=seed)
        view = AutoregressiveModel(net, self.head, resample_orders=self.resample_orders)
        return view.train(self.training)

    def mixture(self, name: str, seeds: Iterable[int]) -> "OrderMixture":
        """The uniform mixture under several orders of a kind (see ``orders.make``).

        Raises:
            ValueError: Some would be the same distribution: there are not so many orders.
        """
        make = functools.partial(
            orders.make, name, self.spec.shape, joint=self.net.order.shape[1] > 1
        )
        made = [(make(seed=seed), seed) for seed in seeds]
        different = {order.numpy().tobytes() for order, _ in made}
        # Random ones may coincide where there are few; the others repeat themselves.
        if name != "random" and len(different) < len(made) and not self.net.random_connectivity:
            raise ValueError(
                f"{len(made)} orders called {name} are asked for, but only {len(different)} of "
                f"them {'is' if len(different) == 1 else 'are'} different; ask for no more, or "
                f"train with model.order=random"
            )
        return OrderMixture(self, made)

    @property
    def any_order(self):
        """Of the network, or trained so."""
        return self.net.any_order or self.resample_orders

    def empty(self, n: int) -> Tensor:
        """Room for n events, (n, *event), where the model is."""
        real = self.spec.levels is None
        dtype = next(self.net.parameters()).dtype if real else self.spec.dtype
        return torch.empty(n, *self.spec.shape, dtype=dtype, device=self.net.order.device)

    def _to_steps(self, x: Tensor) -> Tensor:
        """(B, *event) -> (B, S, K), in generation order."""
        order = self.net.order
        return x.flatten(1).index_select(1, order.flatten()).unflatten(1, order.shape)

    def _to_event(self, values: Tensor) -> Tensor:
        """(B, S, K) -> (B, *event)."""
        x = torch.empty_like(values).flatten(1)
        x[:, self.net.order.flatten()] = values.flatten(1)
        return x.view(-1, *self.spec.shape)

    def _head_log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        with torch.autocast(params.device.type, enabled=False):
            return self.head.log_prob(_precise(params), values)

    def conditional_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(values of step s | earlier steps), nats: (B, *event) -> (B, S)."""
        self.check_context(context, len(x))
        return self._conditional_log_prob(x, context)

    def _conditional_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._head_log_prob(self.net(x, context), self._to_steps(x))

    def _log_prob(self, x, context):
        return self._conditional_log_prob(x, context).sum(1)

    def objective(self, x, context=None):
        """log_prob; of a model for all orders an unbiased estimate of its mean over them."""
        if self.net.any_order:
            known, weights = draw_known(len(x), self.net.num_steps, x.device)
            params = self.net.params_given(x, known, context)
            return (weights * self._head_log_prob(params, self._to_steps(x))).sum(1)
        if self.resample_orders:
            seed = int(torch.randint(2**31, ()))
            joint = self.net.order.shape[1] > 1
            order = orders.make("random", self.spec.shape, joint=joint, seed=seed)
            return self.with_order(order, seed=seed)._log_prob(x, context)
        return self._log_prob(x, context)

    def log_prob_map(self, x, context=None):
        """A step's log-probability, shared evenly by its K values."""
        steps = self.conditional_log_prob(x, context) / self.net.order.shape[1]
        return steps[:, orders.ranks(self.net.order)].view(-1, *self.spec.shape)

    def initialize(self, batches, *, progress=False):
        """Start the output biases at the marginals of the data, and what else the network sets."""
        chunks, size, first = [], 0, None
        for x in batches:
            first = x if first is None else first
            chunks.append(self._to_steps(x))
            size += chunks[-1].numel()
            if size > 100_000_000:
                break
        self.net.set_marginals(self.head.marginal_params(torch.cat(chunks)))
        self.net.initialize(first)

    def _walk(
        self,
        noise: Tensor,
        *,
        context: Tensor | None,
        temperature: float,
        progress: bool,
        naive: bool = False,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The only sampling loop.

        Args:
            noise: (B, S, num_noise) uniforms.
            context: What the model is conditioned on.
            temperature: Of the draws; log-probabilities are the model's own.
            progress: Show a bar with an ETA.
            naive: Use the step that defines all others: a whole forward pass.
            given: Values (B, S, K) and a mask (B, S) of the steps at which they are kept.

        Returns:
            (B, S, K) values and their log-probabilities (B, S), nats.
        """
        if given is None and not naive:
            fused = self.net.fused_walk(self.head.family, noise, temperature, context)
            if fused is not None:
                values, params = fused
                return values, self._head_log_prob(params, values)
        kind = Network if naive else type(self.net)
        cache = kind.init_cache(self.net, len(noise), context)
        all_values, all_log_probs, pending = [], [], []
        values = None
        steps = range(self.net.num_steps)
        for s in tqdm(
            steps, desc="sampling", unit="step", delay=1, disable=None if progress else True
        ):
            params, cache = kind.step(self.net, values, s, cache)
            params = _precise(params)  # or draws would follow another distribution than log_prob
            values = self.head.sample(params, noise[:, s], temperature)
            if given is not None:
                values = torch.where(given[1][:, s, None], given[0][:, s], values)
            all_values.append(values)
            pending.append(params)
            if len(pending) == 64 or s == steps[-1]:  # in bulk: each call costs as much as a step
                drawn = torch.stack(all_values[-len(pending) :], 1)
                all_log_probs.append(self._head_log_prob(torch.stack(pending, 1), drawn))
                pending = []
        return torch.stack(all_values, 1), torch.cat(all_log_probs, 1)

    def sample_with_log_prob(
        self,
        n,
        *,
        context=None,
        temperature=1.0,
        generator=None,
        progress=False,
        noise=None,
        naive=False,
    ):
        """As in the base class.

        ``noise`` (n, S, num_noise) replaces the generator; ``naive`` walks by whole forward
        passes, which gives the same samples, slowly.
        """
        check_draw(temperature, n)
        self.check_context(context, n)
        if noise is None:
            shape = (n, self.net.num_steps, self.head.num_noise)
            noise = draw_noise(shape, generator, self.net.order.device)
        if n == 0:  # so that no network need reshape nothing
            return self.empty(0), self.net.order.new_zeros(0, dtype=torch.float)
        with _sampling(self, naive=naive):
            values, log_probs = self._walk(
                noise, context=context, temperature=temperature, progress=progress, naive=naive
            )
            return self._to_event(values), log_probs.sum(1)

    def particles(
        self,
        x: Tensor,
        observed: Tensor,
        num_particles: int,
        *,
        context: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> Particles:
        """Walks that keep the observed values, weighted by what they say of those values.

        A model for all orders walks under one of them that puts the known values first, or, where
        none does, the pixels of which most is known.

        Raises:
            ValueError: A step that writes several values is known in part, or a known value lies
                outside the support.
        """
        observed = as_mask(observed, x)
        self.spec.check(x.masked_fill(~observed, 0))
        self.check_context(context, len(x))
        known = self._to_steps(observed)  # (B, S, K)
        if (known.any(-1) != known.all(-1)).any():
            raise ValueError(
                "the head writes all channels of a pixel in one step: "
                "each pixel must be known wholly or not at all"
            )
        known = known.all(-1)
        options = {"temperature": temperature, "generator": generator, "progress": progress}
        if not self.any_order or known_first(observed, self.net.order):
            return self._weighted(x, observed, known, num_particles, context, options)
        return self._weighted_by_part(x, observed, known, num_particles, context, options)

    def _weighted(self, x, observed, known, num_particles, context, options) -> Particles:
        """Walks under the model's own order; known (B, S)."""
        exact = known_first(observed, self.net.order)
        n = 1 if exact else num_particles
        values = self._to_steps(x).repeat_interleave(n, 0)
        mask = known.repeat_interleave(n, 0)
        if context is not None:
            context = context.repeat_interleave(n, 0)
        shape = (len(values), self.net.num_steps, self.head.num_noise)
        with _sampling(self):
            drawn, log_probs = self._walk(
                draw_noise(shape, options["generator"], x.device),
                context=context,
                temperature=options["temperature"],
                progress=options["progress"],
                given=(values, mask),
            )
        log_weights = log_probs.masked_fill(~mask, 0).sum(1).view(-1, n)
        return Particles(self._to_event(drawn).unflatten(0, (-1, n)), log_weights, exact, False)

    def _weighted_by_part(self, x, observed, known, num_particles, context, options) -> Particles:
        """Walks under an order for each known part: its values first, as far as may be."""
        parts, which = known.unique(dim=0, return_inverse=True)
        done = []
        for i, part in enumerate(parts):
            rows = (which == i).nonzero()[:, 0]
            order = self.net.order[self._latest(part).argsort(stable=True)]
            view = self.with_order(order)
            given = None if context is None else context[rows]
            mask = view._to_steps(observed[rows]).all(-1)
            one = view._weighted(x[rows], observed[rows], mask, num_particles, given, options)
            done.append((rows, one))
        exact = all(one.exact for _, one in done)
        n = 1 if exact else num_particles
        values = x[:, None].repeat_interleave(n, 1)
        log_weights = done[0][1].log_weights.new_empty(len(x), n)
        for rows, one in done:  # of an exact draw all particles are that one
            values[rows], log_weights[rows] = one.values, one.log_weights
        return Particles(values, log_weights, exact, True)

    def _latest(self, known: Tensor) -> Tensor:
        """How late each step comes in the order that is chosen for a known part: (S,) -> (S,).

        A network for all orders is trained on every one. ``resample_orders`` trains on orders of
        the pixels, each with its channels in turn, so there a pixel moves as a whole: by how many
        of its channels are unknown.
        """
        unknown = known.logical_not().long()
        if self.net.any_order:
            return unknown
        channels = self.spec.shape[0] if self.spec.kind == "image" else 1
        place = self.net.order[:, 0] % (self.spec.num_dims // channels)
        return unknown.new_zeros(self.spec.num_dims).index_add(0, place, unknown)[place]

    def complete(
        self,
        x,
        observed,
        *,
        num_particles=1,
        context=None,
        temperature=1.0,
        generator=None,
        progress=False,
    ):
        """Known values first in the order: exact. Otherwise by weighted particles.

        A model trained for all orders chooses one for each known part: exact, unless it was
        trained on orders of whole pixels and some pixel is known in part.
        """
        return _complete(
            [self], x, observed, num_particles, context, temperature, generator, progress
        )


def _complete(
    models, x, observed, num_particles, context, temperature, generator, progress
) -> Completion:
    """Completion under a uniform mixture of autoregressive models (one model: itself).

    Every model contributes its particles; as their weights are the models' probabilities of the
    known values, resampling also draws the model from its posterior.
    """
    check_draw(temperature)
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; it must be at least 1")
    if len(x) == 0:
        return Completion(x, "exact", x.new_zeros(0, dtype=torch.double), 1)
    parts = [
        model.particles(
            x,
            observed,
            num_particles,
            context=context,
            temperature=temperature,
            generator=generator,
            progress=progress,
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
        if num_particles == 1:  # of each of several models: those are what can be halved
            apart = disagreement(log_weights[:, None])
        else:
            apart = disagreement(log_weights.unflatten(1, (len(parts), -1)))
    chosen = any(part.order_chosen for part in parts)
    return Completion(values, method, effective, log_weights.shape[1], apart, chosen)


@final
class OrderMixture(DensityModel):
    """The uniform mixture of one model's distributions under several orders, sharing weights.

    p(x) = 1/N sum{ p(x | order i) }: the mean of *joint* probabilities. Averaging logits or
    conditionals instead would not be a distribution.

    Args:
        model: Its network must support ``with_order``.
        orders: One (order, seed) each; the seed is for random connectivity.
    """

    def __init__(self, model: AutoregressiveModel, orders: list[tuple[Tensor, int]]):
        super().__init__()
        self.spec = model.spec
        self.context = model.context
        self.model = model
        self.orders = orders

    @property
    def description(self):
        """Number of orders and what they share."""
        return f"mixture of {len(self.orders)} orders of {self.model.description}"

    def component(self, i: int) -> AutoregressiveModel:
        """The model under order ``i``; made when asked for, so weights exist once."""
        order, seed = self.orders[i]
        return self.model.with_order(order.to(self.model.net.order.device), seed=seed)

    def _components(self) -> Iterator[AutoregressiveModel]:
        # One at a time: the masks of many wide layers would not fit into memory.
        return (self.component(i) for i in range(len(self.orders)))

    def mixture(self, name: str, seeds: Iterable[int]) -> "OrderMixture":
        """The same weights under other orders."""
        return self.model.mixture(name, seeds)

    @property
    def any_order(self) -> bool:
        """Trained for all orders, not for those of the mixture alone."""
        return self.model.any_order

    def _log_prob(self, x, context):
        joint = torch.stack([model._log_prob(x, context) for model in self._components()])
        return joint.logsumexp(0) - torch.log(torch.tensor(len(self.orders), dtype=joint.dtype))

    def objective(self, x, context=None):
        """log p(x | a random order): its mean bounds the mixture's log_prob from below.

        A model for all orders draws from all of them, not from the mixture's.
        """
        if self.any_order:  # whose masks need not be made
            return self.model.objective(x, context)
        i = int(torch.randint(len(self.orders), ()))
        return self.component(i).objective(x, context)

    def initialize(self, batches, *, progress=False):
        """Initialize the shared weights."""
        self.model.initialize(batches, progress=progress)

    def sample_with_log_prob(
        self, n, *, context=None, temperature=1.0, generator=None, progress=False
    ):
        """Each event is drawn under an order chosen at random."""
        check_draw(temperature, n)
        self.check_context(context, n)
        device = self.model.net.order.device
        which = (draw_noise((n,), generator, device) * len(self.orders)).long()
        options = {"temperature": temperature, "generator": generator, "progress": progress}
        x = self.model.empty(n)
        for i in which.unique().tolist():
            rows = (which == i).nonzero()[:, 0]
            given = None if context is None else context[rows]
            x[rows] = self.component(i).sample(len(rows), context=given, **options)
        with _sampling(self):
            return x, self._log_prob(x, context)

    def complete(
        self,
        x,
        observed,
        *,
        num_particles=1,
        context=None,
        temperature=1.0,
        generator=None,
        progress=False,
    ):
        """Under those orders alone that put the known values first, where there are some: exact.

        Otherwise by particles from every order, weighted together.
        """
        observed = as_mask(observed, x)
        every = range(len(self.orders))
        fitting = [i for i in every if known_first(observed, self.orders[i][0])]
        chosen = every if self.any_order else fitting or every
        done = _complete(
            (self.component(i) for i in chosen),
            x,
            observed,
            num_particles,
            context,
            temperature,
            generator,
            progress,
        )
        return replace(done, order_chosen=done.order_chosen or len(chosen) < len(every))
