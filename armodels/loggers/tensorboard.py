"""TensorBoard: an event file beside the other files of a run.

Its first page sorts tags by what stands before the slash, hence their names: ``train`` and
``valid`` (the curves) come before ``view`` (pictures), ``watch`` (rate, gradients, speed) and
``with_best`` (single points). Hyperparameters go into the run's own event file as one
session-start and one session-end summary: TensorBoard then shows the union of all runs' columns,
with every scalar as a live metric.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from armodels.loggers.base import Logger, Status, settings_of
from armodels.views import Sound

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


def hparams(config: Mapping) -> dict[str, float | bool | str]:
    """Columns of the HParams page and their values, of a run's config."""
    return _columns(settings_of(config))


def _columns(settings: Mapping[str, float | bool | str]) -> dict[str, float | bool | str]:
    return {FIRST.get(key, key): value for key, value in settings.items()}


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


@final
class TensorBoard(Logger):
    """Writes one run's events.

    Args:
        directory: The run directory.
        step: Where this process starts; points that an earlier process wrote after it are dropped.
    """

    name = "tensorboard"

    def __init__(self, directory: Path, step: int) -> None:
        self.complete = any(directory.glob("events.out.tfevents.*"))
        self.writer = _open_writer(directory, purge_step=step + 1 if step else None)

    def start(self, settings: Mapping[str, float | bool | str], typed: Mapping[str, str]) -> None:
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in _columns(settings).items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, float):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = value
        self._add(_session(metadata.SESSION_START_INFO_TAG, session_start_info=info))
        self.text("run", "\n".join(f"{key}: {value}" for key, value in typed.items()), 0)

    def _add(self, summary: Summary) -> None:
        writer: Any = self.writer.file_writer  # which torch declares as None
        writer.add_summary(summary)

    def points(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        self.writer.add_image(tag, picture, step)

    def text(self, tag: str, text: str, step: int) -> None:
        # TensorBoard reads Markdown, which leaves lines alone that are indented.
        lines = "\n".join(f"    {line}" for line in text.split("\n")) if text else ""
        self.writer.add_text(tag, lines, step)

    def sound(self, tag: str, sound: Sound, step: int) -> None:
        samples = torch.from_numpy(sound.samples)[None]
        self.writer.add_audio(tag, samples, step, sample_rate=sound.rate)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, status: Status) -> None:
        """The session's end, then no more."""
        ended = api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=ended, end_time_secs=time.time())
        self._add(_session(metadata.SESSION_END_INFO_TAG, session_end_info=info))
        self.writer.close()
