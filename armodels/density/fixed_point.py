"""Many steps guessed at once and verified by one pass, until nothing changes: a fixed point.

A walk under fixed noise is a function of itself: the values x of all steps are those that the
chooser writes where the network has read x. A pass computes what the chooser writes where the
network has read a guess. Up to and with the first step where guess and outcome differ, the outcome
is final, since no wrong value came before it; so a pass makes one step final at least, and the
values are those of the walk after S passes at most.

Shapes: B batch, A events that are not done, S steps, t steps of a pass, K values per step, P
parameters per step.

Sources: Song et al., 2021, https://arxiv.org/abs/2002.03629 (Jacobi and Gauss-Seidel iterations of
feedforward computation); Wiggers & Hoogeboom, 2020, https://arxiv.org/abs/2002.09928 (the same as
predictive sampling, forecasting by the last pass).
Differs from the papers: a block is not waited for: it moves on to the first step that is not final
after each pass. Events that are done are left out, once they are half of those that are computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor
from tqdm import tqdm

from armodels.density.walk import Choose, as_event, score
from armodels.heads import Head, precise
from armodels.networks.base import AnyOrderNetwork, Network, State, check_params

BLOCK = 16
"""Steps of a block where a pass costs by its steps: of what reads, or serves all orders."""


@final
@dataclass
class Tally:
    """What passes took and found, summed over all walks that were counted in it.

    Attributes:
        num_steps: Steps that were walked, S of each walk of B events side by side.
        passes: Times that the network was asked.
        work: The same in whole passes: of each the share of the steps and events that it computed.
        judged: Guesses that were found right, or the first wrong ones of an event.
        accepted: Those of them that were right.
    """

    num_steps: int = 0
    passes: int = 0
    work: float = 0.0
    judged: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right, of those that were judged."""
        return self.accepted / max(self.judged, 1)


class Passes(ABC):
    """A way to compute the parameters of several steps at once, of events that are guessed."""

    @abstractmethod
    def params(self, values: Tensor, first: int, end: int) -> tuple[Tensor, float]:
        """Parameters (A, t, P) of some steps, and what they cost of a whole pass, 0 to 1.

        Args:
            values: (A, S, K), of which those before step ``first`` are final.
            first: The first of the steps.
            end: The step after the last of them.
        """

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with these of the events alone, int64 (A',)."""


@final
class WholePasses(Passes):
    """Forward passes over whole events.

    Of a network for all orders a step is a pass of its own, so that it computes the steps alone.

    Args:
        net: Of any kind.
        context: (B, *context.shape), where the network has one.
    """

    def __init__(self, net: Network, context: Tensor | None):
        self._net, self._context = net, context

    def params(self, values: Tensor, first: int, end: int) -> tuple[Tensor, float]:
        """As of ``Passes``."""
        net, x = self._net, as_event(values, self._net)
        if isinstance(net, AnyOrderNetwork) and end - first < net.num_steps:
            share = (end - first) / net.num_steps
            return net.params_at(x, first, end, self._context), share
        return check_params(net, net(x, self._context), len(x))[:, first:end], 1.0

    def keep(self, rows: Tensor) -> None:
        """As of ``Passes``."""
        if self._context is not None:
            self._context = self._context[rows]


class Reading(Protocol):
    """What reads: a network over streams, or one after a prompt."""

    @property
    def num_steps(self) -> int:
        """S."""

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """Parameters of the first value, and the state."""
        ...

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """Parameters after each of the values, and the state, of which the old one is used up."""
        ...


class _Reached(NamedTuple):
    """Where the last pass came to: right, if the values that it read were.

    Attributes:
        end: The step after the last value that was read.
        values: (A, t, K), what was read.
        after: (A, P), what was said after it.
        state: After it.
    """

    end: int
    values: Tensor
    after: Tensor
    state: State


@final
class ReadPasses(Passes):
    """Reads of the guesses from the state that is cached after values that are final.

    Args:
        net: Reads.
        n: Events, B.
        context: (B, *context.shape), where the network has one.
    """

    def __init__(self, net: Reading, n: int, context: Tensor | None):
        self._net = net
        self._before, self._state = net.begin(n, context)
        self._base = 0  # values before this step are read
        self._reached: _Reached | None = None

    def params(self, values: Tensor, first: int, end: int) -> tuple[Tensor, float]:
        """As of ``Passes``."""
        cost = self._advance(values, first, end - first)
        unread = values[:, self._base : min(end, self._net.num_steps - 1)]
        if not unread.shape[1]:
            return self._before[:, None], cost
        after, state = self._net.read(unread, self._state.fork())
        stop = self._base + unread.shape[1]
        self._reached = _Reached(stop, unread.clone(), after[:, -1], state)
        found = torch.cat([self._before[:, None], after], 1)  # of the steps from base to stop
        cost += unread.shape[1] / self._net.num_steps
        return found[:, first - self._base : end - self._base], cost

    def _advance(self, values: Tensor, first: int, size: int) -> float:
        """Move the cached state on to final values; returns what this cost of a whole pass."""
        reached, self._reached = self._reached, None
        if reached is not None and reached.end <= first:
            if values[:, self._base : reached.end].equal(reached.values):
                self._base, self._before, self._state = reached.end, reached.after, reached.state
        late = first - self._base
        if late <= size:  # Some values more in the next pass cost less than a call for them.
            return 0.0
        after, self._state = self._net.read(values[:, self._base : first], self._state)
        self._before, self._base = after[:, -1], first
        return late / self._net.num_steps

    def keep(self, rows: Tensor) -> None:
        """As of ``Passes``."""
        self._before, self._state = self._before[rows], self._state.fork(rows)
        self._reached = None


class Guess(Protocol):
    """Fills in guesses before each pass; without one the guess is what the last pass found."""

    def __call__(self, values: Tensor, done: Tensor, first: int, end: int) -> None:
        """Write guesses for the steps from ``first`` to ``end`` of each event, from ``done`` on.

        Args:
            values: (B, S, K), changed in place.
            done: (B,), so many steps of each event are final.
            first: The first of the steps.
            end: The step after the last of them.
        """


def settle(
    passes: Passes,
    head: Head,
    choose: Choose,
    values: Tensor,
    *,
    block: int,
    tally: Tally,
    guess: Guess | None = None,
    watch: Callable[[Tensor], None] | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pass after pass, until what the chooser writes is what the network has read.

    Args:
        passes: Of the network.
        head: Of the model.
        choose: Draws several steps at once.
        values: (B, S, K) the first guess, changed in place.
        block: So many steps are guessed at a time, from the first that is not final.
        tally: What is counted is added to it.
        guess: Says better what the steps of a block may be.
        watch: Gets the values (t, K) of the first event as they become final, in turn.
        progress: Show a bar with an ETA once a second has passed.

    Returns:
        (B, S, K) values, as those of a walk with this chooser, and their log-probabilities
        (B, S), nats.
    """
    n, num_steps = values.shape[:2]
    done = torch.zeros(n, dtype=torch.int64, device=values.device)
    rows = torch.arange(n, device=values.device)  # of those that are computed
    log_probs: Tensor | None = None
    tally.num_steps += num_steps
    with tqdm(
        total=num_steps,
        desc="sampling",
        unit="step",
        delay=1,
        disable=None if progress else True,
    ) as bar:
        while (first := int(done.min())) < num_steps:
            end = min(first + block, num_steps)
            if guess is not None:
                guess(values, done, first, end)
            some, cost = passes.params(values[rows], first, end)
            some = precise(some)
            params = some if len(rows) == n else some.new_zeros(n, *some.shape[1:])
            if some is not params:
                params[rows] = some
            if log_probs is None:
                log_probs = params.new_empty(n, num_steps)
            chosen = choose(slice(first, end), params)
            now = _verified(values[:, first:end], chosen, done - first)
            values[:, first:end] = now.values
            log_probs[:, first:end][now.decided] = score(
                head, params[now.decided], now.values[now.decided]
            )
            before, done = done, done + now.decided.sum(1)
            if watch is not None:
                watch(values[0, int(before[0]) : int(done[0])])
            tally.passes += 1
            tally.work += cost * len(rows) / n
            tally.judged += int(now.decided.sum())
            tally.accepted += int(now.accepted.sum())
            bar.update(int(done.min()) - first)
            left = done[rows] < num_steps
            if 0 < int(left.sum()) <= len(rows) // 2:
                kept = left.nonzero()[:, 0]
                passes.keep(kept)
                rows = rows[kept]
    assert log_probs is not None  # There is a step at least.
    return values, log_probs


class _Verified(NamedTuple):
    """What one pass has found of a block.

    Attributes:
        values: (B, t, K): what is final, and what was chosen for the other steps.
        decided: (B, t) steps that the pass made final.
        accepted: (B, t) those of them of which the guess was right.
    """

    values: Tensor
    decided: Tensor
    accepted: Tensor


def _verified(guessed: Tensor, chosen: Tensor, final_steps: Tensor) -> _Verified:
    """Compare a guess with what was chosen where it had been read.

    Args:
        guessed: (B, t, K).
        chosen: (B, t, K).
        final_steps: (B,) so many steps of the block were final before; any number, also beyond t.
    """
    settled = torch.arange(guessed.shape[1], device=guessed.device) < final_steps[:, None]
    right = (guessed == chosen).all(-1) | settled
    so_far = right.long().cumprod(1).bool()  # right, as all before it
    # The first wrong guess was chosen after right values, so that what was chosen there is final.
    after_right = torch.cat([torch.ones_like(so_far[:, :1]), so_far[:, :-1]], 1)
    values = torch.where(settled[..., None], guessed, chosen)
    return _Verified(values, after_right & ~settled, so_far & ~settled)
