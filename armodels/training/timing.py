"""How the time of a run is shared out: among its candidates, their evaluations and its files."""

import contextlib
from collections.abc import Iterator
from typing import final

from lightning_fabric import Fabric

from armodels import limits, show
from armodels.data.base import Splits
from armodels.data.rows import Examples
from armodels.density.base import DensityModel
from armodels.density.stream import CHUNK, ROWS, pieces_log_probs
from armodels.evaluation import is_whole
from armodels.scoring import log_probs
from armodels.training.processes import any_of, largest
from armodels.training.state import State

FIRST = 5.0
"""Seconds below which the first evaluation of a plan is not counted, but repeated."""

ENOUGH = 0.5
"""Seconds of an evaluation from which that of a split can be foretold."""


@final
class Timetable:
    """The time of a run, and what is kept of it for what comes at its end.

    Args:
        budget: The time.
        max_minutes: Its limit; None: there is none.
        num_candidates: Each has an equal part.
        fabric: The processes, which must agree.
    """

    def __init__(
        self,
        budget: limits.Budget,
        max_minutes: float | None,
        num_candidates: int,
        fabric: Fabric,
    ):
        self.budget = budget
        self.max_minutes = max_minutes
        self._num_candidates = num_candidates
        self._fabric = fabric
        self._seconds_of: dict[str, float] = {}

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Note how long the block took: an evaluation of a split, ``pictures`` or ``saving``."""
        started = limits.now()
        yield
        self._seconds_of[name] = limits.now() - started

    def reserve(self) -> bool:
        """Keep time for the last evaluations; whether there is enough."""
        # The last weights are saved before and after the evaluations; the best are saved and read.
        parts = {"valid": 1, "pictures": 1, "test": 1, "saving": 4}
        return self.budget.reserve(
            sum(times * self._seconds_of.get(name, 0.0) for name, times in parts.items())
        )

    def holds_evaluation(self) -> bool:
        """Whether an evaluation now leaves time for the last ones."""
        if not self.max_minutes:
            return True
        parts = ("valid", "pictures", "saving", "saving")
        seconds = sum(self._seconds_of.get(name, 0.0) for name in parts)
        return not any_of(self._fabric, not self.budget.fits(seconds))

    def own_end(self, state: State) -> float:
        """Seconds of the run after which the next candidate begins: each has an equal part."""
        began, left = state.began, self._num_candidates - state.candidate
        return began + (self.budget.end - began) / left

    def over(self, state: State) -> bool:
        """Whether the time of this candidate is over."""
        if self.max_minutes is None:
            return False
        return any_of(self._fabric, self.budget.spent >= self.own_end(state))

    def share(self, state: State) -> float:
        """How much of the time of this candidate is over, 0 to 1; 0 without a limit."""
        if not self.max_minutes:
            return 0.0
        began, end = state.began, self.own_end(state)
        share = (self.budget.spent - began) / (end - began) if end > began else 1.0
        return largest(self._fabric, min(share, 1.0))

    def plan(
        self, model: DensityModel, splits: Splits, batch_size: int, *, saves: bool = True
    ) -> bool:
        """Measure how long the evaluations take; whether the time of the run holds them.

        Args:
            model: Evaluated on a few examples of valid, or the first symbols of a text.
            splits: The data.
            batch_size: Examples evaluated at a time.
            saves: Whether weights are kept where the time ends.
        """
        if self.max_minutes is None:
            return True
        model.eval()
        num, per_one, first = 1, 0.0, True
        valid = splits.examples("valid", model.context)
        whole = is_whole(model, valid)
        pieces = valid.pieces[: min(batch_size, ROWS)]
        longest = max(map(len, pieces), default=0)
        most = min(CHUNK, longest) if whole else min(batch_size, len(valid))
        while True:
            started = limits.now()
            if whole:
                some = [piece[:num] for piece in pieces]
                for _ in pieces_log_probs(model, some, valid.piece_context):
                    pass
            else:
                log_probs(model, Examples(*valid[:num]), num, check=False)
            size = sum(map(len, some)) if whole else num
            seconds = limits.now() - started
            per_one = seconds / size
            if first and seconds < FIRST:
                first = False  # It paid for what is made once, such as compiled code.
                continue
            if num >= most or seconds > ENOUGH:
                break
            num = min(4 * num, most)
        check = 0.0  # of a network's causality, once an evaluation
        if not whole:
            started = limits.now()
            log_probs(model, Examples(*valid[:1]), 1)
            check = max(limits.now() - started - per_one, 0.0)
        # Pieces are shared by processes as wholes, so one of them may have all the work.
        world = 1 if whole else self._fabric.world_size
        per_one = largest(self._fabric, per_one) / world
        for split in ("valid", "test"):
            examples = splits.examples(split, model.context)
            number = sum(map(len, examples.pieces)) if whole else len(examples)
            self._seconds_of[split] = check + per_one * number
        fits = self.reserve()
        each = {split: limits.spoken(self._seconds_of[split]) for split in ("valid", "test")}
        cost = (
            f"an evaluation of valid takes about {each['valid']}, the one of test {each['test']}"
        )
        if fits:
            limit, until = limits.spoken(self.budget.limit), limits.spoken(self.budget.end)
            show.say(f"time   {limit} in all, training until {until}: {cost}")
        else:
            then = "saves, and says how to evaluate" if saves else "and ends without numbers"
            show.warn(
                f"trainer.max_minutes={self.max_minutes:g} holds no exact evaluation "
                f"({cost}): the run trains until then, {then}"
            )
        return fits
