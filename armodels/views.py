"""What events are shown as: which kind of data has a text, a picture, a sound and which files."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armodels import charts, notes, pictures, show
from armodels.data.midi import write_midi
from armodels.disk import atomic
from armodels.spec import ContextSpec, DataSpec
from armodels.waveform import wav

MOST_PLAYED = 4
"""Pieces of music in one view, where nothing is said of it."""
MOST_HEARD = 10
"""Sounds in one view: as many as there are digits, and as a page plays in a few seconds."""


@dataclass(frozen=True)
class Sound:
    """Mono samples.

    Attributes:
        samples: (T,) float32 in [-1, 1].
        rate: Samples a second.
    """

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class View:
    """What events are shown as; each part where the kind of data has it.

    Attributes:
        text: Of all events.
        picture: uint8 (3, H, W).
        sound: Of the first events, one after another.
        files: End of a file's name -> contents: what every event is outside of this program.
    """

    text: str | None = None
    picture: Tensor | None = None
    sound: Sound | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def view(
    x: Tensor,
    spec: DataSpec,
    *,
    titles: Sequence[str] = (),
    known: Tensor | None = None,
    most_played: int = MOST_PLAYED,
    **about: Any,
) -> View:
    """What events are shown as. A new kind of data has its place here, and nowhere else.

    Args:
        x: Events (N, *event).
        spec: What they are.
        titles: Of each event, where something is said of it.
        known: Bool (*event), which values of a sound or of music were there before it was drawn;
            those of a sound are its first ones. None: none.
        most_played: Pieces of music that are heard.
        about: What else ``charts.samples`` draws by.
    """
    x = x.detach().cpu()
    if spec.alphabet is not None:
        text = spec.alphabet.joined(x.numpy())
        return View(text=text, files={".txt": text.encode()})
    if spec.waveform is not None:
        rate, some = spec.waveform.rate, x[:MOST_HEARD].numpy()
        each = spec.waveform.decoded(x.numpy())
        width = len(str(len(x) - 1))
        ends = [f"-{i:0{width}}" for i in range(len(x))] if len(x) > 1 else [""]
        first = 0 if known is None else int(known.sum())
        return View(
            picture=charts.sounds(each[:MOST_HEARD], rate, spec.name, titles, first),
            sound=Sound(spec.waveform.joined(some), rate),
            files={f"{end}.wav": wav(one, rate) for end, one in zip(ends, each, strict=True)},
        )
    if spec.notes is not None:
        buffer = io.BytesIO()
        write_midi(x.numpy(), spec.notes, buffer)
        heard = notes.played(x[:most_played].numpy(), spec.notes)
        return View(
            picture=pictures.rolls(x, spec, known=known),
            sound=Sound(heard, notes.RATE),
            files={".mid": buffer.getvalue(), ".wav": wav(heard, notes.RATE)},
        )
    return View(picture=charts.samples(x, spec, **about))


def tune(truth: Tensor, mask: Tensor, values: Tensor, spec: DataSpec) -> View:
    """Answers (A, *event) to be heard, and a roll of what is true, then of them.

    Args:
        truth: (*event).
        mask: True where a value is known, (*event).
        values: The answers.
        spec: What a datum is.
    """
    each = torch.cat([truth[None], values])
    known = mask.expand(each.shape).clone()
    known[0] = False
    shown = view(values, spec, known=mask, most_played=len(values))
    return replace(shown, picture=pictures.rolls(each, spec, known=known))


def titles(wanted: ContextSpec | None, context: Tensor | None) -> list[str]:
    """What is said of each event: its label, where it has one.

    Args:
        wanted: What the model is conditioned on; None: nothing.
        context: (N, *context.shape) of it; None: nothing.
    """
    if wanted is None or context is None or wanted.shape:
        return []
    return [f"{wanted.name} {label}" for label in context.tolist()]


def takes_time(spec: DataSpec) -> bool:
    """Whether drawing it takes longer than an epoch of a small model may: it is a chart."""
    return charts.is_table(spec) or spec.waveform is not None


def save(shown: View, stem: Path, *, together: bool = False) -> list[Path]:
    """Write the files of a view and its picture, each whole or not at all.

    Files that an earlier view of more events left under the same name are removed: beside the new
    ones they would be taken for them.

    Args:
        shown: The view.
        stem: Begins the name of each file.
        together: Write its text and its sound, in place of files of every event, and remove
            nothing.

    Returns:
        What was written.
    """
    if together:
        files = {} if shown.text is None else {".txt": shown.text.encode()}
        if shown.sound is not None:
            files[".wav"] = wav(shown.sound.samples, shown.sound.rate)
        return _write(files, shown.picture, stem)
    written = _write(shown.files, shown.picture, stem)
    _remove_others(stem, written)
    return written


def save_each(shown: Sequence[View], stem: Path) -> list[Path]:
    """Write several views, each under a number of its own, else as ``save`` does.

    Args:
        shown: The views.
        stem: Begins the name of each file.

    Returns:
        What was written.
    """
    width, written = len(str(len(shown) - 1)), []
    for i, one in enumerate(shown):
        numbered = stem.with_name(f"{stem.name}-{i:0{width}}")
        written += _write(one.files, one.picture, numbered)
    _remove_others(stem, written)
    return written


def _write(files: Mapping[str, bytes], picture: Tensor | None, stem: Path) -> list[Path]:
    written = []
    for end, contents in files.items():
        with atomic(path := stem.with_name(stem.name + end)) as file:
            file.write(contents)
        written.append(path)
    if picture is not None:
        with atomic(path := stem.with_name(f"{stem.name}.png")) as file:
            pictures.save(picture, file)
        written.append(path)
    return written


def _remove_others(stem: Path, written: Sequence[Path]) -> None:
    """Remove the files of this name, with or without a number, that were not just written."""
    ends = "|".join(sorted({path.suffix[1:] for path in written}))
    name = re.compile(rf"{re.escape(stem.name)}(-\d+)?\.({ends})")
    for path in list(stem.parent.iterdir()) if written else []:
        if path not in written and name.fullmatch(path.name) and path.is_file():
            path.unlink()


def tell(written: Sequence[Path]) -> None:
    """Say which files were written, a line for each kind of file."""
    for suffix in dict.fromkeys(path.suffix for path in written):
        same = [path for path in written if path.suffix == suffix]
        others = "" if len(same) == 1 else f" to {same[-1].name} ({len(same)} files)"
        show.say(f"wrote  {same[0]}{others}")
