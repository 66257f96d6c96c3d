"""Speculative sampling: a small model drafts several steps, one pass of the model verifies them.

A drafted level d of probability q(d) is accepted with probability min(1, p(d) / q(d)), p being
the model's; else the level is drawn from what p has more than q, max(0, p - q) normalized. So a
level is drawn with probability min(p, q) + max(0, p - q) = p: the samples are the model's own,
whatever the draft says.

All noise is drawn first, 3 K uniforms a step: by which the draft draws, by which its level is
accepted, and by which another one is drawn. Each step is so a function of its noise and of what
stands before it, and the samples depend neither on the number of drafted steps nor on the other
events of a batch.

Shapes: B batch, S steps, t steps of a draft, K values per step, L levels.

Sources: Leviathan et al., 2023, https://arxiv.org/abs/2211.17192; Chen et al., 2023,
https://arxiv.org/abs/2302.01318.
Differs from the papers: the step after a draft that is accepted as a whole is drafted, too, rather
than drawn from p. The values of a step are accepted one by one, each by its own q given those that
were drafted before it, and its own p given those that were chosen.
"""

from typing import Any, Protocol, TypeGuard, cast, final

import torch
from torch import Tensor

from armodels.density.walk import Countable, likeliest, one_thread
from armodels.heads import Head, pick, precise
from armodels.networks.base import Network, State
from armodels.networks.stream import StreamNetwork
from armodels.spec import ContextSpec, DataSpec

READ_STEPS = 6
"""Steps of a draft for what reads: each that is wrong makes those after it worthless."""

EVENT_STEPS = 64
"""Steps of a draft for an event of one length, of which a pass computes all steps anyway."""


class Drafting(Protocol):
    """A model of steps, see ``autoregressive.AutoregressiveModel``."""

    net: Network
    head: Head
    spec: DataSpec
    context: ContextSpec | None


def _has_steps(model: object) -> TypeGuard[Drafting]:
    """Whether a model has one network, whose walk draws it.

    ``isinstance`` with a protocol does not see what a module registers, from Python 3.12 on.
    """
    network, head = getattr(model, "net", None), getattr(model, "head", None)
    return isinstance(network, Network) and isinstance(head, Head)


def _single(draft: object) -> object:
    """Of a mixture of orders of a model for all orders that model, whose walk may follow any."""
    return getattr(draft, "model", draft) if getattr(draft, "any_order", False) else draft


def _in_order_of(draft: Drafting, model: Drafting) -> Drafting:
    """A draft for all orders under the model's own, where its steps write as many values."""
    order, own = model.net.order, draft.net.order
    if not getattr(draft, "any_order", False) or own.table.shape != order.table.shape:
        return draft
    view: Drafting = cast(Any, draft).with_order(order)
    return view


def require_draft(draft: object, model: Drafting, temperature: float) -> Drafting:
    """A draft that suits a model: one for all orders under the model's own.

    Args:
        draft: Some model.
        model: The model that is drawn from.
        temperature: Of the draws.

    Raises:
        ValueError: It is of other data, of another order, or conditioned on something else; or
            nothing that the model draws can be drafted.
    """
    draft = _single(draft)
    if not _has_steps(draft):
        what = getattr(draft, "description", type(draft).__name__)
        raise ValueError(
            f"draft is {what}, which has no single walk of steps; choose a run of one order, such "
            f"as model=nade or model=made, or of text model=ngram"
        )
    if model.spec.levels is None:
        raise ValueError(
            f"sampler=speculative compares the probabilities of levels, but {model.spec.name} has "
            f"real values; leave sampler at auto"
        )
    if temperature != 1 and model.head.joint:
        raise ValueError(
            f"sampler=speculative draws from head {model.head.family} at temperature 1 alone, but "
            f"temperature is {temperature:g}; leave sampler at auto"
        )
    reads = isinstance(model.net, StreamNetwork) and isinstance(draft.net, StreamNetwork)
    same = _values_of(draft.spec, reads) == _values_of(model.spec, reads)
    if not same:
        raise ValueError(
            f"draft is a model of {draft.spec.name}, the run one of {model.spec.name}; choose a "
            f"draft that was trained on the same data"
        )
    if draft.context is not None and draft.context != model.context:
        heard = "nothing" if model.context is None else model.context.name
        raise ValueError(
            f"draft is conditioned on {draft.context.name}, the run on {heard}; choose a draft "
            f"that is conditioned on the same or on nothing"
        )
    if reads or draft.net.order_table.equal(model.net.order_table):
        return draft
    draft = _in_order_of(draft, model)
    if not draft.net.order_table.equal(model.net.order_table):
        raise ValueError(
            f"draft writes its values in another order ({draft.net.order.name}) than the run "
            f"({model.net.order.name}); train one with the run's model.order and head, or "
            f"for all orders"
        )
    return draft


def _values_of(spec: DataSpec, reads: bool) -> tuple[object, ...]:
    """What values are; of a stream, whatever the length of its windows."""
    if reads:
        return spec.levels, spec.alphabet, spec.notes, spec.waveform
    return spec.name, spec.shape, spec.levels, spec.checksum, spec.alphabet, spec.waveform


@final
class Levels:
    """Probabilities of levels as they are drawn: at a temperature, among the likeliest.

    Args:
        head: Of the model or of the draft.
        temperature: 0 or more.
        top_k: See ``walk.draw_among``.
        top_p: See ``walk.draw_among``.
    """

    def __init__(
        self, head: Head, temperature: float, top_k: int | None = None, top_p: float | None = None
    ):
        self._head, self._temperature = head, temperature
        self._top_k, self._top_p = top_k, top_p

    def __call__(self, params: Tensor, earlier: Tensor) -> Tensor:
        """(..., P), (..., k) earlier values of the step -> (..., L), float64, sums to one."""
        log_probs = self._head.level_log_probs(params, earlier).double()
        if self._temperature == 0:
            return torch.zeros_like(log_probs).scatter(-1, log_probs.argmax(-1, True), 1.0)
        among = likeliest(log_probs, self._top_k, self._top_p)
        return (among / self._temperature).softmax(-1)


@final
class Draft:
    """What a draft proposes, and the chooser that accepts it or draws instead.

    Args:
        steps: Of the draft: a network, or its steps after a prompt.
        drafted: Probabilities of the draft.
        model: Those of the model.
        noise: (B, S, 3 K), uniform in (0, 1).
        known: (B, S) steps of which the first guess is right; None: none.
        context: What the draft is conditioned on, if anything.
    """

    def __init__(
        self,
        steps: Countable,
        drafted: Levels,
        model: Levels,
        noise: Tensor,
        known: Tensor | None,
        context: Tensor | None,
    ):
        self._steps, self._drafted, self._model = steps, drafted, model
        self._noise, self._known = noise, known
        self._pack = steps.pack()
        self._states: dict[int, State] = {0: steps.start(self._pack, len(noise), context)}
        self._values: Tensor | None = None  # (B, t, K), the last draft
        self._probs: list[Tensor] = []  # of each of the K values of a step (B, t, L)

    def guess(self, values: Tensor, done: Tensor, first: int, end: int) -> None:
        """Write drafts for the steps from ``first`` to ``end`` of each event, from ``done`` on.

        A state of the draft is kept for each step that it drafts. Where a draft is wrong, the
        next one begins at the step after it or later, whose state has read right values alone.

        Args:
            values: (B, S, K), changed in place.
            done: (B,), so many steps of each event are final.
            first: The first of the steps.
            end: The step after the last of them.
        """
        state, self._states = self._states[first], {}
        probs: list[list[Tensor]] = []
        with one_thread():
            for s in range(first, end):
                self._states[s] = state.fork()
                before = values[:, s - 1].clone() if s else None
                params, state = self._steps.step(before, s, state, self._pack)
                drawn, each = self._draw(precise(params), s)
                there = s < done
                if self._known is not None:
                    there = there | self._known[:, s]
                values[:, s] = torch.where(there[:, None], values[:, s], drawn.to(values.dtype))
                probs.append(each)
        self._states[end] = state
        self._values = values[:, first:end].clone()
        self._probs = [torch.stack(part, 1) for part in zip(*probs, strict=True)]

    def _draw(self, params: Tensor, s: int) -> tuple[Tensor, list[Tensor]]:
        """Values (B, K) of a step, and the probabilities (B, L) by which each was drawn."""
        width = self._noise.shape[2] // 3
        drawn: Tensor = params.new_zeros(len(params), 0, dtype=torch.int64)
        each: list[Tensor] = []
        for k in range(width):
            each.append(self._drafted(params, drawn))
            level = pick(each[-1].log(), self._noise[:, s, k], 1.0)
            drawn = torch.cat([drawn, level[:, None]], 1)
        return drawn, each

    def choose(self, steps: Any, params: Tensor) -> Tensor:
        """A chooser of the block that was just drafted.

        Where p and q are equal, nothing is left of p - q; but then the draft is accepted.

        Args:
            steps: A slice, of the last draft.
            params: (B, t, P).

        Returns:
            (B, t, K).
        """
        assert self._values is not None
        noise, width = self._noise[:, steps], len(self._probs)
        drafted = self._values.long()
        chosen = drafted[..., :0]
        for k in range(width):
            p, q = self._model(params, chosen), self._probs[k]
            level = drafted[..., k : k + 1]
            own, other = p.gather(-1, level)[..., 0], q.gather(-1, level)[..., 0]
            accepted = noise[..., width + k] * other < own
            rest = pick((p - q).clamp_min(0).log(), noise[..., 2 * width + k], 1.0)
            level = torch.where(accepted, level[..., 0], rest)
            chosen = torch.cat([chosen, level[..., None]], -1)
        return chosen.to(self._values.dtype)


def noise_per_step(width: int) -> int:
    """Uniforms of a step of K values."""
    return 3 * width
