"""What a run records while it goes: metrics.csv, and the same in each of its loggers.

Tags are the same in every run and every logger, so that runs overlay.
"""

import contextlib
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import final

from torch import Tensor

from armodels import limits, show
from armodels.disk import read_csv, write_csv
from armodels.loggers.base import (
    Logger,
    Status,
    read_names,
    require_packages,
    settings_of,
    typed_of,
)
from armodels.loggers.mlflow import MLflow, require_store
from armodels.loggers.tensorboard import TensorBoard
from armodels.loggers.wandb import WandB, require_account
from armodels.views import View

COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "train/nats",
    "valid/nats",
    "train/nats_per_symbol",
    "valid/nats_per_symbol",
    "valid/bits_per_dim",
    "watch/lr",
    "watch/grad_norm",
    "watch/examples_per_s",
)

RENAMED = {
    "train/lr": "watch/lr",
    "train/grad_norm": "watch/grad_norm",
    "speed/examples_per_s": "watch/examples_per_s",
}
"""Columns of metrics.csv as older runs named them, and their names now."""

OPENERS: dict[str, Callable[[Path, int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda directory, step: WandB(directory),
    "mlflow": lambda directory, step: MLflow(directory),
}


def read_rows(directory: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv so far, under today's names of its columns.

    Raises:
        ValueError: It is damaged.
    """
    path = directory / "metrics.csv"
    found = read_csv(path)
    for i, row in enumerate(found):
        if not (row.get("step") or "").isdecimal():
            raise ValueError(
                f"{path} is damaged: the step in row {i + 1} is {str(row.get('step'))[:50]!r}; "
                f"mend it, or move it away"
            )
    return [{RENAMED.get(name, name): value for name, value in row.items()} for row in found]


def require_loggers(value: object) -> tuple[str, ...]:
    """The loggers that a ``logger`` key names, which can do their work here.

    Raises:
        ValueError: It names none that there are, or one lacks a package, an account or a store.
    """
    loggers = read_names(value)
    require_packages(loggers)
    if "wandb" in loggers:
        require_account()
    if "mlflow" in loggers:
        require_store()
    return loggers


@final
class Tracker:
    """Writes one run's metrics.csv, and gives its loggers the same.

    A logger that fails is left out from there on, and said: it must not end a training.

    Args:
        directory: The run directory.
        step: Where this process starts; rows and points that an earlier process wrote after it
            are dropped.
        evaluated: Whether the checkpoint holds the evaluation of that step; if not, its row is
            dropped, too: the evaluation is done and written once more.
        loggers: Their names.
    """

    def __init__(
        self,
        directory: Path,
        step: int = 0,
        evaluated: bool = True,
        loggers: Iterable[str] = ("tensorboard",),
    ):
        self._csv = directory / "metrics.csv"
        # Rows are kept at step 0, too: that of a fitted baseline stands there.
        rows = [row for row in read_rows(directory) if int(row["step"]) <= step]
        if not evaluated:
            rows = [row for row in rows if int(row["step"]) < step or not row["valid/nats"]]
        write_csv(self._csv, COLUMNS, [[row.get(name, "") for name in COLUMNS] for row in rows])
        self._before = rows
        self._loggers: list[Logger] = []
        self._broken: list[Logger] = []
        for name in loggers:
            with self._surviving(name):
                self._loggers.append(OPENERS[name](directory, step))

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """Say what breaks a logger inside the block, and go on without it."""
        try:
            with limits.unhidden():
                yield
        except (limits.OutOfTime, limits.GivenUp):
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            show.warn(f"logger {name} records nothing more of this run ({why}); {self._csv} does")
            self._broken += [one for one in self._loggers if one.name == name]
            self._loggers = [one for one in self._loggers if one.name != name]

    def _each(self, do: Callable[[Logger], None]) -> None:
        for logger in [*self._loggers]:
            with self._surviving(logger.name):
                do(logger)

    def start(self, config: Mapping) -> None:
        """The hyperparameters of a run's config, before its first step."""
        self._each(lambda logger: logger.start(settings_of(config), typed_of(config)))
        for logger in [one for one in self._loggers if not one.complete]:
            with self._surviving(logger.name):
                for row in self._before:
                    values = {tag: float(row[tag]) for tag in COLUMNS[3:] if row.get(tag)}
                    _record(logger, values, int(row["step"]))

    def row(self, step: int, epoch: float, seconds: float, values: Mapping[str, float]) -> None:
        """One row of metrics.csv and its points.

        Args:
            step: Steps of the optimizer so far.
            epoch: Passes over the training examples so far.
            seconds: Of training so far.
            values: By tag, each one of ``COLUMNS``.
        """
        with open(self._csv, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(
                {"step": step, "epoch": f"{epoch:.4f}", "seconds": f"{seconds:.3f}", **values}
            )
        self._each(lambda logger: _record(logger, values, step))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point that belongs to no row of the table.

        Args:
            tag: Its name.
            value: The number.
            step: Training steps so far.
        """
        self._each(lambda logger: _record(logger, {tag: value}, step))

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture (3, H, W).

        Args:
            tag: Its name.
            picture: uint8 (3, H, W).
            step: Training steps so far.
        """
        self._each(lambda logger: logger.picture(tag, picture, step))

    def view(self, shown: View, step: int) -> None:
        """Samples as a text, a picture and a sound, each under a tag of its kind.

        Args:
            shown: The view.
            step: Training steps so far.
        """
        text, sound = shown.text, shown.sound
        if text is not None:
            self._each(lambda logger: logger.text("view/samples", text, step))
        if shown.picture is not None:
            self.picture("view/samples", shown.picture, step)
        if sound is not None:
            # A tag has one kind of values: the other one of the two would not be shown.
            self._each(lambda logger: logger.sound("view/sound", sound, step))

    def flush(self) -> None:
        """Everything written so far goes to disk."""
        self._each(lambda logger: logger.flush())

    def close(self, status: Status) -> None:
        """The session's end, then no more."""
        self._each(lambda logger: logger.close(status))
        for logger in self._broken:  # what failed in the middle may hear of the end
            with contextlib.suppress(Exception):
                logger.close(status)


def _record(logger: Logger, values: Mapping[str, float], step: int) -> None:
    """Give a logger those points that no earlier process has given it."""
    new = {tag: value for tag, value in values.items() if not logger.has(tag, step)}
    if new:
        logger.points(new, step)
