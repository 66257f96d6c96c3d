"""What a run records while it goes: TensorBoard events and metrics.csv.

Tags are the same in every run, so that runs overlay. TensorBoard's first page sorts them by what
stands before the slash, hence their names: ``train`` and ``valid`` (the curves) come before
``view`` (pictures), ``watch`` (rate, gradients, speed) and ``with_best`` (single points).
Hyperparameters go into the run's own event file as one session-start and one session-end summary:
TensorBoard then shows the union of all runs' columns, with every scalar as a live metric.
"""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from armodels import names
from armodels.disk import read_csv, write_csv

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

HPARAMS = ("data", "model", "head", "optimizer", "schedule", "trainer")
"""Parts of a run's config that TensorBoard's HParams page shows, each key as a column."""

FIRST = {
    "choices.model": "1 model",
    "choices.data": "2 data",
    "seed": "3 seed",
    "optimizer.lr": "4 lr",
    "sizes": "5 sizes",
    "name": "6 name",
    "tags": "7 tags",
    "choices.experiment": "8 experiment",
}
"""Columns that come first: TensorBoard sorts them by name, those that differ before the others."""


def flatten(config: Mapping, prefix: str = "") -> dict[str, float | bool | str]:
    """Nested config -> dotted names of single values, of one type for a key in every run.

    A null is left out (a word for it would turn a column of numbers into words), numbers become
    floats and lists become words.
    """
    flat: dict[str, float | bool | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, (bool, str)):
            flat[name] = value
        elif isinstance(value, (int, float)):
            flat[name] = float(value)
        elif value is not None:
            flat[name] = str(value)
    return flat


def hparams(config: Mapping) -> dict[str, float | bool | str]:
    """Columns of the HParams page and their values, of a run's config.

    Keys that change no number (where it ran, how often it was saved) are left out, and so are
    names of classes, for which the choices stand.
    """
    shown = {
        "choices": config["choices"],
        "seed": config["seed"],
        "sizes": ", ".join(f"{key} {one}" for key, one in names.sizes(config["model"]).items()),
        "name": config.get("name"),
        "tags": ", ".join(map(str, config.get("tags") or [])) or None,
        **{key: config[key] for key in HPARAMS},
    }
    flat = {
        key: value
        for key, value in flatten(shown).items()
        if not key.endswith("_target_")
        and (not key.startswith("trainer.") or names.what_was_trained([f"{key}="]))
    }
    return {FIRST.get(key, key): value for key, value in flat.items()}


def _session(tag: str, **info: object) -> Summary:
    """A summary of the HParams plugin, as its own writer (which needs TensorFlow) makes it."""
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **info)
    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _open_writer(directory: Path, **options: Any) -> SummaryWriter:
    """A writer whose file comes after all others in the directory.

    Files are read in the order of their names, which hold the second and then the process: a run
    that was resumed within the second of its end might otherwise be read backwards.
    """
    while True:
        before = {path.name for path in directory.glob("events.out.tfevents.*")}
        writer = SummaryWriter(str(directory), **options)
        (own,) = {path.name for path in directory.glob("events.out.tfevents.*")} - before
        second = own.split(".")[3]
        if not any(name > own and name.split(".")[3] == second for name in before):
            return writer
        writer.close()
        (directory / own).unlink()
        time.sleep(1 - time.time() % 1)


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


@final
class Tracker:
    """Writes one run's events and metrics.csv.

    Args:
        directory: The run directory.
        step: Where this process starts; rows and points that an earlier process wrote after it
            are dropped.
        evaluated: Whether the checkpoint holds the evaluation of that step; if not, its row is
            dropped, too: the evaluation is done and written once more.
    """

    def __init__(self, directory: Path, step: int = 0, evaluated: bool = True):
        self.writer = _open_writer(directory, purge_step=step + 1 if step else None)
        self._csv = directory / "metrics.csv"
        # Rows are kept at step 0, too: that of a fitted baseline stands there.
        rows = [row for row in read_rows(directory) if int(row["step"]) <= step]
        if not evaluated:
            rows = [row for row in rows if int(row["step"]) < step or not row["valid/nats"]]
        write_csv(self._csv, COLUMNS, [[row.get(name, "") for name in COLUMNS] for row in rows])

    def start(self, config: Mapping) -> None:
        """The hyperparameters of a run's config, before its first step."""
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams(config).items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, float):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = value
        summary = _session(metadata.SESSION_START_INFO_TAG, session_start_info=info)
        self._add(summary)
        typed = {"overrides": config.get("overrides"), "started": config.get("started")}
        lines = [f"    {key}: {value}" for key, value in typed.items() if value]  # as code
        self.writer.add_text("run", "\n".join(lines))

    def _add(self, summary: Summary) -> None:
        writer: Any = self.writer.file_writer  # which torch declares as None
        writer.add_summary(summary)

    def row(self, step: int, epoch: float, seconds: float, values: Mapping[str, float]) -> None:
        """One row of metrics.csv and its points.

        Args:
            step: Steps of the optimizer so far.
            epoch: Passes over the training examples so far.
            seconds: Of training so far.
            values: By tag, each one of ``COLUMNS``.
        """
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        with open(self._csv, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(
                {"step": step, "epoch": f"{epoch:.4f}", "seconds": f"{seconds:.3f}", **values}
            )

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point that belongs to no row of the table.

        Args:
            tag: Its name.
            value: The number.
            step: Training steps so far.
        """
        self.writer.add_scalar(tag, value, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture (3, H, W).

        Args:
            tag: Its name.
            picture: uint8 (3, H, W).
            step: Training steps so far.
        """
        self.writer.add_image(tag, picture, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """A text, as it is.

        Args:
            tag: Its name.
            text: Whose lines stay lines.
            step: Training steps so far.
        """
        # TensorBoard reads Markdown, which leaves lines alone that are indented.
        self.writer.add_text(tag, "\n".join(f"    {line}" for line in text.split("\n")), step)

    def sound(self, tag: str, sound: Tensor, rate: int, step: int) -> None:
        """A sound (samples,) in [-1, 1].

        Args:
            tag: Its name.
            sound: float32 (samples,).
            rate: Samples a second.
            step: Training steps so far.
        """
        self.writer.add_audio(tag, sound[None], step, sample_rate=rate)

    def flush(self) -> None:
        """Everything written so far goes to disk."""
        self.writer.flush()

    def close(self, *, success: bool) -> None:
        """The session's end, then no more."""
        status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        summary = _session(metadata.SESSION_END_INFO_TAG, session_end_info=info)
        self._add(summary)
        self.writer.close()
