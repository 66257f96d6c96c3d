"""Queries: the log-probability of part of an event, by itself or given another part.

What is neither asked nor known is summed out. Shapes: B batch, M terms of a mixture, N particles,
S steps, D values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, final

import torch
from torch import Tensor, nn

from armodels import objectives
from armodels.checks import Range, require_types
from armodels.density.completion import IMPOSSIBLE, as_mask, disagreement, known_first
from armodels.density.walk import Scored, draw, draw_noise, keep, one_thread, sampling, walk
from armodels.heads import Head
from armodels.networks.base import Network
from armodels.orders import Order
from armodels.spec import DataSpec

PARTICLES = 100
"""Where nothing else is asked for."""


FEW = 20.0
"""Effective particles: by fewer, the variance that the standard error states is itself a guess."""


class LogProbOf(NamedTuple):
    """The answer to a query.

    Attributes:
        log_prob: (B,) log p(asked | known), nats.
        standard_error: (B,) nats; 0 where the answer is exact, infinite where no particle found
            the asked part possible, and of one particle.
        method: ``"exact"``, or ``"likelihood weighting"``: an estimate by particles.
        effective_sample_size: (B,) so many particles of equal weight have as much error; infinite
            where the answer is exact. Below ``FEW`` the standard error is no more than a guess.
        num_particles: All of them, of every order or component; 0 where the answer is exact.
    """

    log_prob: Tensor
    standard_error: Tensor
    method: str
    effective_sample_size: Tensor
    num_particles: int

    @property
    def doubtful(self) -> Tensor:
        """(B,) bool: too few particles count for the standard error to be trusted."""
        return self.effective_sample_size < FEW


@final
@dataclass(frozen=True)
class Query:
    """What is asked of a model.

    Attributes:
        x: (B, *event); 0 where a value is neither asked nor known.
        asked: Boolean (B, *event).
        known: Boolean (B, *event), nowhere where ``asked`` is.
        context: What the model is conditioned on, if anything.
        num_particles: N, where the answer has no closed form.
        generator: Seeds the particles.
        progress: Show a bar with an ETA once a second has passed.
    """

    x: Tensor
    asked: Tensor
    known: Tensor
    context: Tensor | None
    num_particles: int
    generator: torch.Generator | None
    progress: bool

    @property
    def both(self) -> Tensor:
        """What is asked or known."""
        return self.asked | self.known


class Weights(NamedTuple):
    """Log-weights (B, M, N) whose mean weight, over M and N, is p(part), or estimates it.

    Attributes:
        both: Of the part that is asked or known.
        known: Of the part that is known, by the same particles as far as may be: of what both
            have in common the ratio keeps nothing.
        exact: The weights are the probabilities themselves.
    """

    both: Tensor
    known: Tensor
    exact: bool


def make(
    spec: DataSpec,
    x: Tensor,
    asked: Tensor,
    known: Tensor | None,
    *,
    context: Tensor | None,
    num_particles: int,
    generator: torch.Generator | None,
    progress: bool,
) -> Query:
    """A query that makes sense.

    Args:
        spec: What a datum is.
        x: (B, *event); what is neither asked nor known may be anything.
        asked: Boolean, (*event) or (B, *event).
        known: The same; None: nothing.
        context: See ``Query``.
        num_particles: See ``Query``.
        generator: See ``Query``.
        progress: See ``Query``.

    Raises:
        ValueError: A value is both asked and known, nothing is asked, a value lies outside the
            support, or there are no particles.
        TypeError: An argument is no tensor.
    """
    require_types({"num_particles": num_particles}, {"num_particles": int})
    if num_particles not in Range(1):
        raise ValueError(f"num_particles is {num_particles}; it must be at least 1")
    asked = as_mask(asked, x, "asked")
    known = torch.zeros_like(asked) if known is None else as_mask(known, x)
    if (asked & known).any():
        raise ValueError("a value is both asked and known; what is known has probability 1")
    if len(x) and not asked.flatten(1).any(1).all():
        raise ValueError("nothing is asked of an event; name at least one value of it")
    x = x.masked_fill(~(asked | known), 0)
    spec.check(x)
    return Query(x, asked, known, context, num_particles, generator, progress)


def answer(weights: Weights) -> LogProbOf:
    """log p(asked | known) of weights, with its standard error by the delta method.

    The log of the ratio of two means moves by ``a / mean(a) - b / mean(b)`` where a particle has
    the weights ``a`` and ``b``; its error is that of the mean of these, within each term.
    Where few particles count, the logarithm is far from straight, and one particle that outweighs
    all others in both parts even seems to leave no error: there the larger of this error and of
    that by which halves of the particles differ is stated.

    Sources: Owen, 2013, https://artowen.su.domains/mc/ (ratios of importance-sampled means, and
    the effective sample size); McCarthy, 1969, https://doi.org/10.2307/1402116 (half-samples).

    Args:
        weights: Of the query.

    Raises:
        ValueError: What is known is impossible.
    """
    found: list[Tensor] = []
    shares: list[Tensor] = []
    for each in (weights.both, weights.known):
        each = each.double()
        total = each.flatten(1).logsumexp(1)
        number = each.shape[1] * each.shape[2]
        found.append(total - torch.tensor(float(number)).log())
        shares.append((each - total[:, None, None]).exp().nan_to_num(0.0) * number)
    if not found[1].isfinite().all():
        raise ValueError(IMPOSSIBLE)
    log_prob = found[0] - found[1]
    if weights.exact:
        error, effective = torch.zeros_like(log_prob), torch.full_like(log_prob, torch.inf)
        return LogProbOf(log_prob, error, "exact", effective, 0)
    terms, particles = weights.both.shape[1:]
    if particles == 1:  # one tells nothing of how far others would lie from it
        error, effective = torch.full_like(log_prob, torch.inf), torch.ones_like(log_prob)
        return LogProbOf(log_prob, error, "likelihood weighting", effective, terms)
    effective = torch.stack([_effective(one) for one in shares]).amin(0)
    moves = (shares[0] - shares[1]).var(2).sum(1) / (terms**2 * particles)
    error = moves.sqrt()
    few = effective < FEW
    both, known = weights.both[few], weights.known[few]
    error[few] = error[few].maximum(disagreement(both, taken_off=known) / 2)
    none = log_prob.isneginf()
    error, effective = error.masked_fill(none, torch.inf), effective.masked_fill(none, 0)
    return LogProbOf(log_prob, error, "likelihood weighting", effective, terms * particles)


def _effective(shares: Tensor) -> Tensor:
    """Effective sample size (B,) of weights (B, M, N) with the mean 1.

    Of one term it is (sum w)^2 / sum w^2. What the means of terms differ by is no error.
    """
    terms, particles = shares.shape[1:]
    variance = shares.var(2, correction=0).sum(1) / (terms**2 * particles)
    return 1 / (variance + 1 / (terms * particles))


def exactly(both: Tensor, known: Tensor) -> Weights:
    """Weights of log-probabilities (B,) of both parts and of the known one."""
    return Weights(both[:, None, None], known[:, None, None], True)


def together(terms: list[Weights]) -> Weights:
    """Weights under the uniform mixture of models, of those under each of them."""
    exact = all(one.exact for one in terms)
    n = max(one.both.shape[2] for one in terms)
    both, known = (
        torch.cat([getattr(one, part).expand(-1, -1, n) for one in terms], 1)
        for part in ("both", "known")
    )
    return Weights(both, known, exact)


class Stepwise(Protocol):
    """What is asked of a model with steps, see ``autoregressive.AutoregressiveModel``."""

    @property
    def spec(self) -> DataSpec:
        """What a datum is."""
        ...

    @property
    def net(self) -> Network:
        """Its order and what follows of it."""
        ...

    @property
    def any_order(self) -> bool:
        """Trained for all orders."""
        ...

    def with_order(self, order: Order) -> "Stepwise":
        """The same weights under another order."""
        ...

    @property
    def head(self) -> Head:
        """What the parameters of a step mean."""
        ...

    def conditional_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S)."""
        ...


def by_steps(model: Stepwise, query: Query) -> Weights:
    """Weights under a model with steps.

    Exact where the order writes what is known, then what is asked, then the rest. A model for all
    orders takes one that does, for each distinct part in the batch: so a conditional and the
    marginal of what is known are of one distribution, and their product is the joint under it.

    Args:
        model: With steps.
        query: What is asked.

    Raises:
        ValueError: A step that writes several values is asked or known in part.
    """
    table = model.net.order_table
    places = query.asked.long() + 2 * query.known.long()
    steps = places.flatten(1)[:, table.flatten()].unflatten(1, table.shape)  # (B, S, K)
    if (steps != steps[..., :1]).any():
        raise ValueError(
            "the head writes all channels of a pixel in one step: each pixel must be asked, or "
            "known, wholly or not at all"
        )
    if not model.any_order:
        return _of_order(model, query)
    parts, which = steps[..., 0].unique(dim=0, return_inverse=True)
    done: list[tuple[Tensor, Weights]] = []
    for i, part in enumerate(parts):
        rows = (which == i).nonzero()[:, 0]
        late = (2 - part).argsort(stable=True)  # the known ones first, then those that are asked
        view = model.with_order(model.net.order.permuted(_of_pixels(model, part, late)))
        done.append((rows, _of_order(view, _rows_of(query, rows))))
    n = max(one.both.shape[2] for _, one in done)
    both = torch.empty(len(query.x), 1, n, dtype=done[0][1].both.dtype, device=query.x.device)
    known = torch.empty_like(both)
    for rows, one in done:
        both[rows], known[rows] = one.both.expand(-1, -1, n), one.known.expand(-1, -1, n)
    return Weights(both, known, all(one.exact for _, one in done))


def _of_pixels(model: Stepwise, part: Tensor, late: Tensor) -> Tensor:
    """The steps in their new order: of a network trained on orders of pixels, whole pixels.

    Args:
        model: For all orders.
        part: (S,) 2 where a step is known, 1 where it is asked.
        late: (S,) the order of the steps that is wanted.
    """
    if model.net.any_order:
        return late
    pixel = objectives.pixels_of(model.net.order_table, model.spec)
    lateness = torch.zeros(model.spec.num_dims, dtype=torch.long, device=part.device)
    for i in (1, 2):  # of a pixel that is known or asked in part, what is latest counts
        lateness[pixel[2 - part == i]] = i
    return lateness[pixel].argsort(stable=True)


def _rows_of(query: Query, rows: Tensor) -> Query:
    context = None if query.context is None else query.context[rows]
    return Query(
        query.x[rows],
        query.asked[rows],
        query.known[rows],
        context,
        query.num_particles,
        query.generator,
        query.progress,
    )


def _of_order(model: Stepwise, query: Query) -> Weights:
    """Weights under the order that the model has."""
    table = model.net.order_table
    steps = [
        part.flatten(1)[:, table[:, 0]] for part in (query.both, query.known)
    ]  # (B, S), all K values of a step alike
    with sampling(cast(nn.Module, model), naive=True):
        if known_first(query.both, table) and known_first(query.known, table):
            each = model.conditional_log_prob(query.x, query.context).double()
            both, known = (each.masked_fill(~part, 0).sum(1) for part in steps)
            return exactly(both, known)
        return _by_particles(model, query, steps)


def _by_particles(model: Stepwise, query: Query, steps: Sequence[Tensor]) -> Weights:
    """Weights of walks that keep a part: of what is asked or known, and of what is known.

    The same noise draws both walks: they differ by what is asked alone, and so do their errors.

    Args:
        model: With steps.
        query: What is asked.
        steps: Boolean (B, S), of either part.
    """
    n, net = query.num_particles, model.net
    values = query.x.flatten(1)[:, net.order_table]  # (B, S, K)
    values = values.repeat_interleave(n, 0)
    context = None if query.context is None else query.context.repeat_interleave(n, 0)
    shape = (len(values), net.num_steps, model.head.num_noise)
    noise = draw_noise(shape, query.generator, query.x.device)
    found: list[Tensor] = []
    for part in steps:
        if not part.any():  # p of nothing is 1
            found.append(torch.zeros_like(found[0]))
            continue
        kept = part.repeat_interleave(n, 0)
        chooser = Scored(model.head, keep(values, kept, draw(model.head, noise)))
        with one_thread():
            walk(net, len(values), chooser, context, progress=query.progress)
        log_probs = chooser.log_probs().double()
        found.append(log_probs.masked_fill(~kept, 0).sum(1).view(-1, 1, n))
    return Weights(found[0], found[1], False)
