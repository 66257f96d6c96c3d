"""What a training tells while it goes on: lines, warnings, points of the curves."""

import math
import sys
import time
from typing import final

from lightning_fabric import Fabric

from armodels import limits, show
from armodels.data.base import Splits
from armodels.evaluation import knowing_nothing
from armodels.lines import Lines, number
from armodels.spec import nats
from armodels.training.losses import Losses
from armodels.training.processes import mean_of
from armodels.training.record import Record
from armodels.training.state import State


@final
class Report:
    """Lines for people, and points for the curves of a record.

    Args:
        splits: The data.
        record: Gets the points.
        steps_per_epoch: Steps by which epochs are counted.
        fabric: The processes, each with losses of its own.
    """

    def __init__(
        self, splits: Splits, record: Record, steps_per_epoch: int, fabric: Fabric
    ) -> None:
        self._spec = splits.spec
        self._record = record
        self._steps_per_epoch = steps_per_epoch
        self._fabric = fabric
        spec = splits.spec
        self._symbols = spec.num_units
        self._lines = Lines(
            all_of_them=sys.stdout.isatty(),
            per=spec.unit if self._symbols else "",
            size=self._symbols or 1,
        )
        self._nothing = knowing_nothing(splits)
        self._worse = False
        self._last_point = (time.monotonic(), 0)

    def restart(self, state: State) -> None:
        """Measure speed from here on."""
        self._last_point = (time.monotonic(), state.examples)

    def point(
        self, state: State, losses: Losses, seconds: float, rate: float, budget: limits.Budget
    ) -> str:
        """Record one point of the training curve; what a bar shows beside it.

        Args:
            state: Where the training stands; its window is emptied.
            losses: Brought over from the device.
            seconds: Of the training so far.
            rate: The learning rate.
            budget: The time of the run.
        """
        train_nats = self._mean_nats(state.window_log_prob, state.window_examples)
        now = time.monotonic()
        before, examples = self._last_point
        speed = (state.examples - examples) / max(now - before, 1e-9)
        self._last_point = (now, state.examples)
        state.window_log_prob, state.window_examples = 0.0, 0
        self._record.row(
            state.total_step,
            state.total_step / self._steps_per_epoch,
            seconds,
            {
                "train/nats": train_nats,
                **self._per_symbol("train", train_nats),
                "watch/lr": rate,
                "watch/grad_norm": losses.norm,
                "watch/examples_per_s": speed,
            },
        )
        mean = f"{train_nats:.3f} nats"
        if self._symbols:
            mean = f"{train_nats / self._symbols:.3f} nats/{self._spec.unit}"
        text = f"{mean}, {speed:,.0f} examples/s"
        if budget.limit < math.inf:
            text += f", {limits.spoken(max(budget.end - budget.spent, 0))} left"
        return text

    def _per_symbol(self, split: str, nats: float) -> dict[str, float]:
        """The point of a sequence's symbol beside that of its window."""
        return {f"{split}/nats_per_symbol": nats / self._symbols} if self._symbols else {}

    def _mean_nats(self, log_prob: float, examples: int) -> float:
        return nats(mean_of(self._fabric, log_prob, examples), self._spec)

    def evaluation(self, state: State, seconds: float) -> None:
        """Record the point of an evaluation on valid."""
        self._record.row(
            state.total_step,
            state.total_step / self._steps_per_epoch,
            seconds,
            {
                "valid/nats": state.valid["nats"],
                "valid/bits_per_dim": state.valid["bits_per_dim"],
                **self._per_symbol("valid", state.valid["nats"]),
            },
        )

    def line(self, state: State, seconds: float, progress: float, *, best: bool) -> None:
        """Print a line for an evaluation, unless many others come.

        Args:
            state: Where the training stands; its sums since the evaluation before are emptied.
            seconds: Of the training so far.
            progress: How much of the training is over, from 0 to 1.
            best: Whether no evaluation was better.
        """
        train = None
        if state.since_examples:
            train = self._mean_nats(state.since_log_prob, state.since_examples)
            state.since_log_prob, state.since_examples = 0.0, 0
        if not self._lines.due(progress):
            return
        for line in self._lines.add(
            state.step / self._steps_per_epoch,
            state.step,
            train,
            (state.valid["nats"], state.valid["nats_ci95"]),
            seconds,
            best=best,
        ):
            show.say(line)

    def judge(self, state: State) -> None:
        """Warn at once where the model is worse than one that knows nothing."""
        if self._nothing is None:
            return
        name, nothing = self._nothing
        valid = state.valid["nats"]
        worse = self._is_worse(valid, state, nothing)
        if worse and not self._worse:
            show.warn(
                f"{number(valid)} nats on valid at step {state.step} are worse than the "
                f"{number(nothing)} of {name}"
            )
        self._worse = worse

    def _is_worse(self, valid: float, state: State, nothing: float) -> bool:
        """Whether valid nats are worse than knowing nothing by more than their interval.

        A single example has no interval: there only what is far worse counts. What is known of no
        example, such as a uniform model, has none either: there rounding does not.
        """
        half = state.valid["nats_ci95"]
        if math.isclose(valid, nothing, rel_tol=1e-6):
            return False
        return valid - (half if math.isfinite(half) else abs(nothing)) > nothing

    def warning(self, state: State, *, trained: bool) -> str | None:
        """What is wrong with a training that has ended, if anything.

        Args:
            state: Where it stands.
            trained: Whether it took steps, as a model that is fitted at once does not.
        """
        last = state.valid["nats"] if state.selected == state.candidate else state.best_nats
        if self._nothing is None or not self._is_worse(last, state, self._nothing[1]):
            return None
        name, nothing = self._nothing
        valid = f"{number(last)} nats on valid, but {number(nothing)} of {name}"
        if state.best_nats > nothing:
            advice = "lower optimizer.lr, or train longer" if trained else "choose another"
            return f"worse than knowing nothing: {valid}; {advice}"
        return (
            f"diverged: {valid}; the best weights, of step {state.best_step}, are kept; "
            f"lower optimizer.lr, or set trainer.max_grad_norm"
        )
