"""What a training leaves behind: in memory, or in the files of a run directory."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from armodels import checkpoints, show, views
from armodels.loggers.base import Status
from armodels.run import RunDirectory
from armodels.tracking import Tracker, read_rows

Name = Literal["last", "best"]
"""``last``: from which a training goes on; ``best``: of the best weights on valid."""


class Record(ABC):
    """Where a training puts its weights, its curves and its pictures."""

    path: Path | None = None
    """The run directory; None: nothing is written."""

    draws = False
    """Whether pictures are wanted."""

    def begin(self, step: int, *, evaluated: bool) -> None:
        """The training begins, or goes on.

        Args:
            step: Where.
            evaluated: Whether the evaluation of that step is done.
        """
        return

    def end(self, status: Status) -> None:
        """Nothing more comes; how it ended."""
        return

    @abstractmethod
    def save(self, name: Name, state: Mapping[str, Any]) -> None:
        """Keep a checkpoint."""

    @abstractmethod
    def load(self, name: Name) -> Mapping[str, Any]:
        """A checkpoint that was kept.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def has(self, name: Name) -> bool:
        """Whether there is such a checkpoint."""

    @abstractmethod
    def evaluated_weights(self, state: Mapping[str, Any]) -> str | None:
        """Which weights of a checkpoint its evaluation is of; None: it is not known."""

    @abstractmethod
    def row(self, step: int, epoch: float, seconds: float, values: Mapping[str, float]) -> None:
        """A point of the curves.

        Args:
            step: Steps of the optimizer so far.
            epoch: Passes over the training examples so far.
            seconds: Of training so far.
            values: By tag, each a column of metrics.csv.
        """

    @property
    @abstractmethod
    def history(self) -> list[dict[str, float]]:
        """The points of the curves so far, by name."""

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point that belongs to no row.

        Args:
            tag: Its name.
            value: Its value.
            step: Where it stands.
        """
        return

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture.

        Args:
            tag: Its name.
            picture: (3, H, W).
            step: Where it stands.
        """
        return

    def view(self, shown: views.View, step: int) -> None:
        """Samples, which get files of their own."""
        return

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The training is done: its final numbers."""
        return

    def stop(self, reason: str) -> None:
        """The training was stopped before it was done."""
        return

    @property
    def partial(self) -> Path | None:
        """Folder for what an evaluation has found so far; None: it keeps nothing."""
        return None

    @abstractmethod
    def command(self, **changes: object) -> str | None:
        """How the training goes on, under changed settings; None: nothing was saved."""

    @abstractmethod
    def last_good(self) -> str:
        """Where good weights are, for the sentence about broken ones."""

    @abstractmethod
    def scores(self, split: str) -> str:
        """How every row of a split is scored, for the sentence about impossible ones."""


@final
class InMemory(Record):
    """The best weights and the curves, for as long as the process lives."""

    def __init__(self) -> None:
        self._best: dict[str, Any] | None = None
        self._rows: list[dict[str, float]] = []

    def save(self, name: Name, state: Mapping[str, Any]) -> None:
        if name == "best":
            copied = {
                key: {name: t.detach().clone() for name, t in state[key].items()}
                for key in ("model", "ema")
                if state[key] is not None
            }
            self._best = {**state, **copied}

    def load(self, name: Name) -> Mapping[str, Any]:
        if name != "best" or self._best is None:
            raise FileNotFoundError(f"no {name} weights are kept in memory")
        return self._best

    def has(self, name: Name) -> bool:
        return name == "last" or self._best is not None

    def evaluated_weights(self, state: Mapping[str, Any]) -> str | None:
        return None

    def row(self, step: int, epoch: float, seconds: float, values: Mapping[str, float]) -> None:
        self._rows.append({"step": step, "epoch": epoch, "seconds": seconds, **values})

    @property
    def history(self) -> list[dict[str, float]]:
        return self._rows

    def command(self, **changes: object) -> str | None:
        return None

    def last_good(self) -> str:
        return "no checkpoint is kept without a directory"

    def scores(self, split: str) -> str:
        return f"armodels.scoring.log_probs(model, splits.examples({split!r}))"


@final
class InFiles(Record):
    """The files of a run directory that this process holds.

    Args:
        directory: The run directory.
        config: Of the run, whose settings the loggers show; None: this process writes nothing,
            as all but the first of several.
        loggers: Names of those that get the curves.
        command: Settings that change -> the command by which the run goes on.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: Mapping[str, Any] | None,
        loggers: Iterable[str],
        command: Callable[..., str],
    ):
        self.directory = directory
        self.path = directory.path
        self.draws = config is not None
        self._config = config
        self._loggers = loggers
        self._command = command
        self._last = 0
        self._tracker: Tracker | None = None

    def begin(self, step: int, *, evaluated: bool) -> None:
        if self._config is not None:
            self._tracker = Tracker(self.directory.path, step, evaluated, self._loggers)
            self._tracker.start(self._config)

    def end(self, status: Status) -> None:
        if self._tracker:
            self._tracker.close(status)

    @property
    def partial(self) -> Path | None:
        return self.directory.path / "checkpoints"

    def save(self, name: Name, state: Mapping[str, Any]) -> None:
        if self._config is not None:
            checkpoints.save(self.directory, name, state)
        if self._tracker and name == "last":
            self._tracker.flush()

    def load(self, name: Name) -> Mapping[str, Any]:
        return checkpoints.load_checkpoint(self.directory.checkpoint(name))

    def has(self, name: Name) -> bool:
        return self.directory.checkpoint(name).is_file()

    def evaluated_weights(self, state: Mapping[str, Any]) -> str | None:
        return state["config"]["eval"]["weights"]

    def row(self, step: int, epoch: float, seconds: float, values: Mapping[str, float]) -> None:
        if self._tracker:
            self._tracker.row(step, epoch, seconds, values)

    @property
    def history(self) -> list[dict[str, float]]:
        rows = read_rows(self.directory.path)
        return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._last = max(self._last, step)
        if self._tracker:
            self._tracker.scalar(tag, value, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        if self._tracker:
            self._tracker.picture(tag, picture, step)

    def view(self, shown: views.View, step: int) -> None:
        stem = self.directory.samples / f"step-{step:07d}"
        if self._tracker:
            self._tracker.view(shown, step)
        views.save(shown, stem, together=True)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        if self._config is None:
            return
        # A baseline's line ends where the curves beside it do, and wandb takes no earlier step.
        last = max(metrics["steps"], self._last)
        for split in [split for split in ("valid", "test") if split in metrics]:
            for name in ("nats", "bits_per_dim"):
                self.scalar(f"with_best/{split}_{name}", metrics[split][name], last)
        before: dict = {}
        with contextlib.suppress(OSError, ValueError):  # damaged numbers give way to new ones
            before = self.directory.read_metrics() or {}
        # Numbers of a copy that learned (``eval adapt=true``) stay with the model they are of.
        same = all(before.get(key) == metrics.get(key) for key in ("best_step", "valid", "test"))
        adapted = [key for key in before if key.endswith("_adapted")] if same else []
        self.directory.write_metrics({**metrics, **{key: before[key] for key in adapted}})
        self.directory.write_status("done", warning=metrics.get("warning"))

    def stop(self, reason: str) -> None:
        if self._config is not None:
            self.directory.write_status("interrupted", reason)

    def command(self, **changes: object) -> str | None:
        return self._command(**changes)

    def last_good(self) -> str:
        return f"the last good checkpoint is {self.directory.checkpoint('last')}"

    def scores(self, split: str) -> str:
        return show.command("score", run=self.directory.path, split=split)
