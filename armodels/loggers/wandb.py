"""Weights & Biases: a run of its own there, whose files lie in ``wandb`` of the run directory.

Points have the training's step as theirs, which rises within a run: what a run that goes on has
recorded there is not recorded again.
"""

import html
import os
import re
import secrets
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from armodels import disk
from armodels.loggers.base import STATE, Logger, Status, place_of, read_state
from armodels.views import Sound
from armodels.waveform import wav

FIRST_SECONDS = 60
"""Seconds that the start of a run waits for the server."""

MOST_SECONDS = 300
"""Seconds that the end of a run waits for what is still to be sent."""


def require_account() -> None:
    """Raise ValueError where records are to be sent, and nothing is known of the account."""
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared"):
        return
    try:  # asks no server: one that is gone must not keep a run from its training
        known = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ValueError(f"logger=wandb cannot log in: {error}") from error
    if not known:
        raise ValueError(
            "logger=wandb knows no account here: run wandb login, or keep its records on this "
            "machine with WANDB_MODE=offline"
        )


@final
class WandB(Logger):
    """One run there, which goes on where the run directory knows its id.

    Args:
        directory: The run directory.
    """

    name = "wandb"

    def __init__(self, directory: Path) -> None:
        import wandb

        state = read_state(directory)
        known = state.get("wandb")
        old = isinstance(known, str) and re.fullmatch(r"[0-9a-z]{8}", known)
        number: Any = known if old else secrets.token_hex(4)
        self._steps = _recorded(directory, number) if old else {}
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "armodels",
            dir=str(directory.absolute()),
            id=number,
            name=place_of(directory),
            resume="allow",
            reinit="create_new",  # beside runs that the user's own code has begun
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=FIRST_SECONDS,
                finish_timeout=MOST_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._first = 0 if self._run.offline else self._run.starting_step
        if self._run.offline is False:
            self._steps = {}  # what the server has counts
        if not old:
            disk.write_json(directory / STATE, {**state, "wandb": number})

    def has(self, tag: str, step: int) -> bool:
        return step < self._first or step in self._steps.get(tag, ())

    def start(self, settings: Mapping[str, float | bool | str], typed: Mapping[str, str]) -> None:
        self._run.config.update({**settings, **typed}, allow_val_change=True)

    def points(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        import wandb

        pixels = picture.permute(1, 2, 0).contiguous().numpy()
        self._log(tag, wandb.Image(pixels), step)

    def text(self, tag: str, text: str, step: int) -> None:
        import wandb

        self._log(tag, wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False), step)

    def sound(self, tag: str, sound: Sound, step: int) -> None:
        import wandb

        with tempfile.TemporaryDirectory(prefix="armodels-") as folder:
            file = Path(folder) / "sound.wav"
            file.write_bytes(wav(sound.samples, sound.rate))
            self._log(tag, wandb.Audio(str(file)), step)

    def _log(self, tag: str, value: object, step: int) -> None:
        if not self.has(tag, step):
            self._run.log({tag: value}, step=step)

    def close(self, status: Status) -> None:
        if status == "interrupted":
            self._run.mark_preempting()  # it may go on
        self._run.finish(exit_code=0 if status == "done" else 1)


_BLOCK = 2**15


def _records(content: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB writes it: blocks, in which long records go on in the next."""
    at, record = 7, b""  # after the name and version of wandb's
    while at + 7 <= len(content):
        if (left := _BLOCK - at % _BLOCK) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind not in (1, 2, 3, 4) or at + 7 + length > len(content):
            return  # the rest of a block that was never filled, or what was cut off
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _recorded(directory: Path, number: str) -> dict[str, set[int]]:
    """Steps of each tag that earlier processes have left in their files.

    A process that is killed loses what it had not written yet, so that only the files know.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # which makes its classes as it is imported
    steps: dict[str, set[int]] = {}
    for file in (directory / "wandb").glob(f"*run-*-{number}/run-{number}.wandb"):
        for content in _records(file.read_bytes()):
            record = messages.Record()
            try:
                record.ParseFromString(content)
            except DecodeError:  # cut off
                break
            for item in record.history.item:
                tag = item.key or item.nested_key[0]
                steps.setdefault(tag, set()).add(record.history.step.num)
    return steps
