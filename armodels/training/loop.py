"""The loop: steps, evaluations and candidates, until a limit is reached.

Nothing here knows which model it trains. Every random draw is a function of (seed, step), so a
training that continues from any checkpoint repeats the steps it lost bit for bit, and evaluating
more or less often changes no weight.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from armodels import checkpoints, limits, show
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.density.stream import learn, reads
from armodels.evaluation import NoMean, evaluate
from armodels.loggers.base import Status
from armodels.training.batches import Batches
from armodels.training.drawing import Drawing
from armodels.training.ends import interrupted, stopped
from armodels.training.learner import Candidate, Learner, placed
from armodels.training.losses import Losses
from armodels.training.processes import LostProcess, any_of, largest, summed, together
from armodels.training.record import Record
from armodels.training.report import Report
from armodels.training.result import Origin, Result, final_metrics
from armodels.training.settings import Settings, Watching
from armodels.training.sharded import whole_for_first
from armodels.training.state import State
from armodels.training.streams import STEP, flushed_denormals, seed_draws, stream
from armodels.training.timing import Timetable


class Unfit(ValueError):
    """A model that cannot be fitted to the data."""


@final
class Trainer:
    """One training: its candidates one after another, and the best of them evaluated.

    Args:
        candidates: What is trained, at least one.
        splits: The data.
        settings: Limits, sizes, device and precision.
        watching: What is evaluated and drawn beside the steps.
        fabric: Device, precision and processes.
        record: Where weights and numbers go.
        origin: How it was asked for.
        budget: The time of the run, which may have begun before; None: it begins now.
        model: The first candidate's, where it is built already.
        hopeless: Epochs, valid nats -> whether the run is given up; asked after each evaluation
            but the last, where there are no several candidates.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        splits: Splits,
        settings: Settings,
        watching: Watching,
        fabric: Fabric,
        record: Record,
        origin: Origin,
        budget: limits.Budget | None = None,
        model: DensityModel | None = None,
        hopeless: Callable[[float, float], bool] | None = None,
    ):
        self.candidates = candidates
        self.splits = splits
        self.settings = settings
        self.watching = watching
        self.fabric = fabric
        self.record = record
        self.origin = origin
        self.hopeless = hopeless
        self.state = State()
        self.learner, self.batches = self._take(0, model)
        averaged = self.learner.average and watching.weights == "ema"
        self.weights = "ema" if averaged else "raw"
        self.budget = budget or limits.Budget(settings.max_minutes)
        self.times = Timetable(self.budget, settings.max_minutes, len(candidates), fabric)
        self.watch = limits.Watch(self.budget)
        self.losses = Losses()
        self.report = Report(splits, record, self.batches.steps_per_epoch, fabric)
        progress = settings.progress
        self.drawing = Drawing(splits, watching, record, fabric, origin.seed, progress)
        self._saved_at = self._started = time.monotonic()
        self._doing = "before the first step"

    def _take(self, number: int, model: DensityModel | None = None) -> tuple[Learner, Batches]:
        """A candidate as if it alone were trained; its model is built where it is not given."""
        candidate = self.candidates[number]
        learner = Learner(candidate, self.settings, self.fabric, model)
        size, seed = self.settings.batch_size, self.origin.seed
        batches = Batches(self.splits, learner.model.context, size, seed, self.fabric)
        total = self.settings.total_steps(batches.steps_per_epoch)
        learner.schedule(0, total)  # refuses at once what it cannot schedule
        return learner, batches

    @property
    def total(self) -> int | None:
        """Steps after which a candidate ends; None: they are not limited."""
        return self.settings.total_steps(self.batches.steps_per_epoch)

    @property
    def several(self) -> bool:
        """Whether there is anything to choose from."""
        return len(self.candidates) > 1

    def run(self, conclude: Callable[[Result], None] | None = None) -> Result:
        """Train, evaluate the best weights, record all of it.

        Args:
            conclude: Called with the result while signals still wait.

        Raises:
            limits.Stopped: A signal asked; everything is saved.
            limits.OutOfTime: The time ended before the evaluations did; everything is saved.
            limits.GivenUp: Whoever watches it expects nothing of it; everything is saved.
            LostProcess: Another process that shared the work has ended.
            FloatingPointError: The weights broke, or have no mean.
        """
        ended: Status = "failed"
        evaluated = self.state.valid_step == self.state.step
        self.record.begin(self.state.total_step, evaluated=evaluated)
        try:
            with self.watch, limits.unhidden(), together(self.fabric, self.watch):
                self.fit()
                result = self.result()
                # From here on all is known: who asks to stop now waits for its last files.
                self.record.finish(result.metrics)
                ended = "done"
                if conclude:
                    conclude(result)
        except (KeyboardInterrupt, limits.OutOfTime, limits.GivenUp, LostProcess) as stop:
            reason = interrupted(stop, self.record, self.settings, self.state, self._doing)
            if ended != "done":
                ended = "interrupted"
                self.record.stop(str(reason))
            raise reason from None
        finally:
            self.record.end(ended)
        return result

    # Checkpoints

    def _state_dict(self) -> dict[str, Any]:
        return {
            "config": self.learner.candidate.config,
            "spec": self.splits.spec.to_dict(),
            **self.learner.state_dict(),
            "step": self.state.step,
            "state": {**asdict(self.state), **summed(self.fabric, self.state.sums)},
        }

    def save_last(self) -> None:
        """Save the checkpoint from which the training goes on as if it had never stopped."""
        self.losses.flush(self.state, self.record.last_good())
        # A large model on a slow disk takes longer to save than to evaluate.
        with self.times.measured("saving"):
            self.state.spent = self.budget.spent
            optimizer = self.learner.optimizer
            state = whole_for_first(optimizer.state_dict()) if optimizer else None
            self.record.save("last", {**self._state_dict(), "optimizer": state})
            self._saved_at = time.monotonic()
        self.times.reserve()

    def take_up(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Go on from what a last checkpoint holds.

        Args:
            checkpoint: Its content.
            path: Where it lies, for sentences.

        Raises:
            ValueError: It is of another model, or of an optimizer of other parameters.
        """
        saved = checkpoint["state"]
        own = {} if self.fabric.is_global_zero else dict.fromkeys(self.state.sums, 0)
        self.state = State(**{"own_best_nats": saved["best_nats"], **saved, **own})
        if self.state.candidate:
            self.learner, self.batches = self._take(self.state.candidate)
        learner = self.learner
        checkpoints.load_weights(learner.model, checkpoint["model"], path)
        learner.take_up(checkpoint["optimizer"], path)
        if learner.average and checkpoint["ema"]:
            learner.average.load_state_dict(checkpoint["ema"])
        self.budget.before = self.state.spent

    # Evaluations

    @contextlib.contextmanager
    def _at_once(self, doing: str) -> Iterator[None]:
        """A request to stop needs not wait for the end of the block: nothing is lost by it."""
        self._doing = f"while {doing}"
        with self.watch.at_once():
            yield
        self._doing = "between two steps"

    def _evaluate(self, model: DensityModel, split: str) -> dict[str, float]:
        examples = self.splits.examples(split, model.context)
        with self.times.measured(split), self._at_once(f"evaluating {split}"):
            result = evaluate(
                model,
                examples,
                self.watching.batch_size,
                fabric=self.fabric,
                keep=self.record.partial,
                progress=self.settings.progress and self.fabric.is_global_zero,
                name=split,
            )
        return result.report(self.splits.spec)

    def validate(self) -> None:
        """Evaluate on valid, keep the best, draw pictures.

        Raises:
            FloatingPointError: An example has no finite log-probability.
        """
        self.losses.flush(self.state, self.record.last_good())
        state, learner = self.state, self.learner
        try:
            with learner.holding(self.weights) as model:
                state.valid = self._evaluate(model, "valid")
                state.valid_step = state.step
        except NoMean as error:
            raise FloatingPointError(
                f"{error} at step {state.step}; {self.record.last_good()}"
                if learner.optimizer
                else f"{error}; raise its margin or smoothing, or choose another"
            ) from error
        self.report.evaluation(state, self._seconds())
        if best := state.take_evaluation(state.valid):
            self.record.save("best", self._state_dict())
        self.report.line(state, self._seconds(), self._progress(), best=best)
        self.report.judge(state)
        last = state.total_step == self.total
        with self.times.measured("pictures"), learner.holding(self.weights) as model:
            if self.record.draws:
                with self._at_once("drawing"):
                    self.drawing.draw(model, state.total_step, last=last)

    def _progress(self) -> float:
        """How much of the training is over, from 0 to 1, by steps or by time."""
        own = self.state.step / self.total if self.total else 0.0
        whole = self.learner.optimizer is None or self.total == 0
        own = 1.0 if whole else max(own, self.times.share(self.state))
        return (self.state.candidate + own) / len(self.candidates)

    def warning(self) -> str | None:
        """What is wrong with a training that has ended, if anything."""
        return self.report.warning(self.state, trained=self.learner.optimizer is not None)

    def result(self) -> Result:
        """What the best weights had on valid and, evaluated for the only time, on test.

        Without ``settings.test`` they are not evaluated on test.

        Raises:
            FloatingPointError: An example has no finite log-probability.
        """
        self.fabric.barrier()  # the first process may still be saving it
        best, state = self.record.load("best"), self.state
        # The model of the best weights may be another one than that of the last candidate.
        model = self.candidates[state.selected].model()
        model = placed(model, self.settings, self.fabric.device)
        model.load_state_dict(best["model"])
        if self.weights == "ema":
            model.load_state_dict(best["ema"], strict=False)
        # An exact evaluation may take many minutes: valid had its own when this was saved.
        known = self.record.evaluated_weights(best) == self.watching.weights
        valid = best["state"]["valid"] if known else self._evaluate(model, "valid")
        try:
            tested = {"test": self._evaluate(model, "test")} if self.settings.test else {}
        except NoMean as error:
            every = self.record.scores("test")
            raise FloatingPointError(
                f"{error}, so the run has no result; see every row with: {every}"
            ) from error
        chosen = self.candidates[state.selected].values if self.several else None
        metrics = final_metrics(
            model,
            self.splits,
            {"valid": valid, **tested},
            origin=self.origin,
            state=state,
            weights=self.weights,
            epochs=state.total_step / self.batches.steps_per_epoch,
            selected=chosen,
            warning=self.warning(),
            device=self.fabric.device,
        )
        return Result(model.eval(), metrics, self.record.history, self.record.path)

    # The loop

    def fit(self) -> None:
        """Train until a limit is reached; every candidate in turn, where there are several.

        Raises:
            limits.Stopped: A signal asked; everything is saved.
            limits.OutOfTime: The time ended before the evaluations did; everything is saved.
            FloatingPointError: A loss is not finite.
            Unfit: The model cannot be fitted to the data.
        """
        self._started = time.monotonic()
        state = self.state
        while True:
            if len(state.tried) <= state.candidate or not self.several:
                if self.several:
                    number = f"{state.candidate + 1} of {len(self.candidates)}"
                    show.say(f"trying {number}: {self.learner.candidate.typed}")
                outcome = self._outcome()
                state.tried[state.candidate :] = [outcome]
                self._book_seconds()
                self.save_last()
            if state.candidate + 1 == len(self.candidates):
                break
            state.next_candidate(self.budget.spent)
            self.learner, self.batches = self._take(state.candidate)
        if self.several:
            self._show_selection()

    def _outcome(self) -> float | None:
        """The best valid nats of this candidate; None: it cannot be, and others may."""
        try:
            self._train()
        except (Unfit, FloatingPointError) as reason:
            # Processes cannot agree on it: a loss may be finite for the others.
            if not self.several or self.fabric.world_size > 1:
                raise
            last = self.state.candidate + 1 == len(self.candidates)
            if last and self.state.best_nats == math.inf:
                raise
            show.say(f"left out: {reason}")
            self.losses.clear()
            # No checkpoint holds broken weights.
            self.learner, self.batches = self._take(self.state.candidate)
            return None
        return self.state.own_best_nats

    def _show_selection(self) -> None:
        state = self.state
        for candidate, valid in zip(self.candidates, state.tried, strict=True):
            outcome = "left out" if valid is None else f"{valid:.4f} valid nats"
            show.say(f"tried    {candidate.typed}: {outcome}")
        show.say(f"selected {self.candidates[state.selected].typed}")

    def _initialize(self) -> None:
        show.say("initializing from the training split")
        train, learner = self.splits.examples("train"), self.learner
        try:
            with torch.no_grad(), self._at_once("initializing"):
                model = learner.model
                rows = (row for batch in train.batches(1000) for row in batch.x)
                if not (reads(model) and learn(model, train.pieces or rows)):
                    model.initialize(
                        (batch.x.to(self.fabric.device) for batch in train.batches(1000)),
                        progress=self.settings.progress and self.fabric.is_global_zero,
                    )
        except ValueError as error:
            raise Unfit(str(error)) from error
        learner.restart_average()

    def _train(self) -> None:
        """Train one candidate until a limit is reached."""
        state, learner = self.state, self.learner
        self.losses.clear()
        if state.step == 0 and learner.candidate.initialize:
            self._initialize()
        if learner.optimizer is None:
            self._validate_once()
            return
        with self._at_once("measuring how long an evaluation takes"):
            size = self.watching.batch_size
            saves = self.record.command() is not None
            holds_evaluations = self.times.plan(learner.model, self.splits, size, saves=saves)
        learner.set_up()
        if any_of(self.fabric, not self.record.has("last")):
            self.save_last()
        self.report.restart(state)
        with self._bar() as bar, flushed_denormals():
            if state.step and state.valid_step != state.step:
                self._validate_if_due()  # the evaluation in which the run was stopped
            while not self._over():
                learner.model.train()
                self._step()
                bar.update()
                self._after_step(bar)
            self.losses.flush(state, self.record.last_good())
        if state.valid_step != state.step:
            self._save_and_book()  # an exact evaluation may take longer than training
            if not holds_evaluations:
                raise limits.OutOfTime
            self.validate()

    def _bar(self) -> tqdm:
        shown = self.settings.progress and self.fabric.is_global_zero
        about = {"initial": self.state.step, "desc": "training", "unit": "step"}
        # None: where there is no terminal.
        return tqdm(total=self.total, disable=None if shown else True, **about)

    def _validate_once(self) -> None:
        """Evaluate a model without weights to move, unless that is done."""
        if self.state.valid_step is not None:
            return
        self.validate()
        if self.total:  # a line as long as the curves beside it
            for name in ("nats", "bits_per_dim"):
                self.record.scalar(f"valid/{name}", self.state.valid[name], self.total)

    def _step(self) -> None:
        step, fabric = self.state.step, self.fabric
        num_examples = len(self.batches.rows(step))
        seed_draws(stream(STEP, self.origin.seed, step), fabric.device)
        factor = self.learner.schedule(step, self.total, self.times.share(self.state))
        parts = list(self.batches.parts(step, self.settings.accumulate))
        log_prob, norm = self.learner.step(parts, num_examples, factor, step + 1)
        self.state.step += 1
        self.losses.add(sum(len(part.batch.x) for part in parts if part.counts), log_prob, norm)
        self.state.examples += num_examples

    def _after_step(self, bar: tqdm) -> None:
        """Log, evaluate and save where that is due.

        Raises:
            limits.Stopped: A signal asked; everything is saved.
            limits.GivenUp: Whoever watches it expects nothing of it; everything is saved.
        """
        settings, state = self.settings, self.state
        if state.step % settings.log_every == 0:
            self.losses.flush(state, self.record.last_good())
            rate = self.learner.optimizer.param_groups[0]["lr"]
            seconds = self._seconds()
            text = self.report.point(state, self.losses, seconds, rate, self.budget)
            bar.set_postfix_str(text, refresh=False)
        due = time.monotonic() - self._saved_at >= settings.checkpoint_every
        evaluated = self._validate_if_due()
        # Processes save and stop together: by one number, as each costs a message.
        agreed = largest(self.fabric, 2.0 * (self.watch.asked is not None) + due)
        if evaluated or agreed:
            self._save_and_book()
        if evaluated and self.hopeless and not self.several and state.step != self.total:
            if self.hopeless(state.step / self.batches.steps_per_epoch, state.valid["nats"]):
                when = f"without promise at step {state.step}"
                raise limits.GivenUp(stopped(self.record, when))
        if agreed >= 2:
            reason = stopped(self.record, f"at step {state.step}")
            raise limits.Stopped(self.watch.asked or limits.SIGNALS[-1], reason)

    def _validate_if_due(self) -> bool:
        """Evaluate where an evaluation is due at this step, and fits; whether it did.

        Raises:
            limits.Stopped, limits.OutOfTime: Everything is saved; it is done when the run goes on.
        """
        every = self.settings.eval_every
        if not every or self.state.step % max(1, round(every * self.batches.steps_per_epoch)):
            return False
        if not self.times.holds_evaluation():
            return False
        try:
            self.validate()
        except (limits.Stopped, limits.OutOfTime):
            self._save_and_book()
            raise
        self.times.reserve()
        return True

    def _over(self) -> bool:
        state, settings = self.state, self.settings
        if self.total is not None and state.step >= self.total:
            return True
        if settings.patience and state.evaluations_since_best >= settings.patience:
            show.say(f"no better valid likelihood in {settings.patience} evaluations")
            return True
        return self.times.over(state)

    # Time

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._started

    def _book_seconds(self) -> None:
        """Book the seconds so far."""
        self.state.seconds = self._seconds()
        self._started = time.monotonic()

    def _save_and_book(self) -> None:
        self._book_seconds()
        self.save_last()
