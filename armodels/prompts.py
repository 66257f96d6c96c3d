"""A text, a sound or music that goes on: what a model that reads writes after a prompt."""

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from armodels import contexts, disk, roads, show, views
from armodels.alphabet import Alphabet, code_points
from armodels.checkpoints import Restored
from armodels.checks import LARGEST
from armodels.data.midi import read_midi
from armodels.data.sound import read_clip
from armodels.data.text import read_symbols
from armodels.density.samplers import Draws, take
from armodels.density.stream import after_prompt, reads, with_length
from armodels.density.walk import check_draw, draw_noise, require_some, sampling
from armodels.notes import Notes
from armodels.spec import ContextSpec, DataSpec

LENGTH = 500
"""Symbols that follow a prompt, where nothing is said of it."""

LONGEST_SHOWN = 1000
"""Symbols of a prompt that are shown before what follows it: its last ones."""


def read_prompt(
    config: Mapping[str, Any], spec: DataSpec, notes: Notes | None = None
) -> np.ndarray | None:
    """Levels (t,) of the prompt that a verb's config names; None: it names none.

    Args:
        config: Of the verb.
        spec: What the model is of. The prompt of a text is typed or lies in a file; that of a
            sound or of music is a file, read as those of its training were.
        notes: What a frame of a file of music is; None: what it is to the model.

    Raises:
        ValueError: It names two, or what cannot be read, or what the model does not know.
        FileNotFoundError: There is no such file.
    """
    typed, file = config["prompt"], config["prompt_file"]
    if typed is not None and file is not None:
        raise ValueError("prompt and prompt_file both say what comes first; leave one out")
    if typed is None and file is None:
        return None
    if typed is not None and spec.alphabet is not None:
        return encoded(str(typed), spec.alphabet, "the prompt")
    path, key = (file, "prompt_file") if typed is None else (typed, "prompt")
    return levels_of(path, spec, key, notes)


def levels_of(path: object, spec: DataSpec, key: str, notes: Notes | None = None) -> np.ndarray:
    """A file of a text, a sound or music as levels (t,) that a model knows.

    Args:
        path: Of the file.
        spec: What the model is of.
        key: What named the file.
        notes: What a frame of a file of music is; None: what it is to the model.

    Raises:
        ValueError: It cannot be read, the model does not know a symbol, or is of something else.
        FileNotFoundError: There is no such file.
    """
    if spec.alphabet is None and spec.waveform is None and spec.notes is None:
        raise ValueError(
            f"{key} names a text, a sound or music, but the model is of {spec.name}, which is "
            f"none of them"
        )
    found = Path(str(path)).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"{key} {found} {disk.trouble(found)}")
    if spec.alphabet is not None:
        name = "the prompt" if key == "prompt_file" else str(found)
        symbols = read_symbols(found, spec.alphabet.unit, f"{key} ")
        if not len(symbols):
            raise ValueError(f"{key} {found} is empty")
        return spec.alphabet.encoded(symbols, name)
    if spec.notes is not None:
        return read_frames(found, notes or spec.notes, spec, key).flatten()
    assert spec.waveform is not None
    return spec.waveform.encoded(read_clip(found, spec.waveform.rate))


def read_frames(path: Path, notes: Notes, spec: DataSpec, key: str) -> np.ndarray:
    """A MIDI file as frames (T, size) that a model knows.

    Args:
        path: Of the file.
        notes: What a frame is.
        spec: What the model is of.
        key: What named the file.

    Raises:
        ValueError: It is no MIDI file, has no notes, or other voices than the model's.
    """
    highest = notes.lowest + spec.num_levels - 2 if notes.voices else None
    every = () if spec.notes is None else spec.notes.voices
    try:
        frames, outside = read_midi(path.read_bytes(), notes, highest=highest, every=every)
        if outside and notes.voices:
            raise ValueError(
                f"{outside} of its notes are none of the keys {notes.lowest} to {highest} that "
                f"the model's voices sing"
            )
    except ValueError as error:
        raise ValueError(f"{key} {path} cannot be read as music: {error}") from None
    if outside:
        show.warn(f"{outside} notes of {path} lie beyond a piano's keys and are left out")
    return frames


def num_values(length: int | str | None, spec: DataSpec) -> int:
    """Values of a ``length`` as it was typed: a number of units, or seconds of a sound (``2.5s``).

    A unit is a value, or a frame of music.

    Where nothing was typed, those of ``LENGTH``, of a second, or of music of a window.

    Raises:
        ValueError: The model is of no sound, or the time is less than a sample.
    """
    if length is None and spec.notes is not None:
        return spec.num_dims
    if length is None:
        length = LENGTH if spec.waveform is None else spec.waveform.rate
    if isinstance(length, int):
        return length * spec.unit_size
    if spec.waveform is None:
        raise ValueError(
            f"length={length} is of a sound, but the model is of {spec.name}; give a number of "
            f"its {spec.unit}s"
        )
    found = round(float(length[:-1]) * spec.waveform.rate)
    if found < 1:
        raise ValueError(f"length={length} is less than a sample; give more of a second")
    if found > LARGEST:
        raise ValueError(f"length={length} is {found:,} samples; it must be at most {LARGEST:,}")
    return found


def encoded(text: str, alphabet: Alphabet, name: str) -> np.ndarray:
    """Levels (t,) of a text.

    Args:
        text: The text.
        alphabet: Of the model.
        name: Of the text, for the sentence about a symbol that the model does not know.

    Raises:
        ValueError: It holds a symbol that the model does not know.
    """
    if alphabet.unit == "byte":
        return alphabet.encoded(np.frombuffer(text.encode(), np.uint8), name)
    return alphabet.encoded(code_points(text), name)


@final
class Shown:
    """Prints the symbols of a text as they are written.

    A character of several bytes is printed when its last one is there.

    Args:
        alphabet: What the levels stand for.
    """

    def __init__(self, alphabet: Alphabet):
        self._alphabet = alphabet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, values: Tensor) -> None:
        """Print levels (t, 1)."""
        levels = values[:, 0].tolist()
        if self._alphabet.unit == "byte":
            show.write(self._decoder.decode(self._alphabet.as_bytes(levels)))
        else:
            show.write(self._alphabet.decoded(levels))

    def end(self) -> None:
        """Print what is left of a character that the end has cut off."""
        show.write(self._decoder.decode(b"", final=True))


def go_on(restored: Restored, prompt: np.ndarray, config: Mapping[str, Any]) -> None:
    """Draw what follows a prompt; write it as its kind of data is shown, a text as it is drawn.

    Args:
        restored: A model that reads.
        prompt: Levels (t,) by which it begins.
        config: Of the verb.

    Raises:
        ValueError: The model is no such model, or what is asked for does not go with it.
    """
    model, spec, answers = restored.model, restored.spec, config["num_completions"] or 1
    if not reads(model):
        raise ValueError(
            f"model {model.description} takes events of one length alone, so that nothing goes "
            f"on; train one that reads, such as model=rnn"
        )
    context = given_label(model.context, config["label"], answers, "prompt")
    check_draw(config["temperature"])
    length = num_values(config["length"], spec)
    levels = torch.from_numpy(prompt).to(spec.dtype)
    longer = with_length(model, len(levels) + length)
    sampler = roads.sampler_of(config, restored)
    top_k, top_p, temperature = config["top_k"], config["top_p"], config["temperature"]
    require_some(top_k, top_p)
    generator = torch.Generator().manual_seed(config["seed"])
    shape = (answers, length, sampler.noise_per_step(longer.head, longer.net.order.width))
    noise = draw_noise(shape, generator, restored.device)
    draws = Draws(longer.head, noise, temperature, top_k=top_k, top_p=top_p)
    show.say(f"from   {restored.origin}")
    shown: Shown | None = None
    if spec.alphabet is not None:
        show.say()
        if len(prompt) > LONGEST_SHOWN:
            show.say(f"(of {len(prompt):,} {spec.unit}s the last {LONGEST_SHOWN} follow)")
        show.write(spec.alphabet.decoded(prompt[-LONGEST_SHOWN:]))
        shown = Shown(spec.alphabet)
    steps = after_prompt(longer, levels.to(restored.device), length)
    try:
        with sampling(longer):
            drawn, _ = take(
                steps,
                longer,
                draws,
                sampler,
                context=None if context is None else context.to(restored.device),
                progress=spec.alphabet is None,
                watch=shown,
            )
    finally:
        if shown is not None:  # what is said next begins a line of its own
            shown.end()
            show.write("\n")
    if shown is not None:
        show.say()
        if answers > 1:
            show.say(f"shown  the first of {answers} texts; the file has all of them")
    roads.tell(sampler)
    written = torch.cat([levels.expand(answers, -1), drawn[..., 0].cpu().to(levels.dtype)], 1)
    known = torch.arange(longer.spec.num_dims) < len(levels)
    view = views.view(written, longer.spec, known=known, most_played=answers)
    folder = restored.folder_for(config["out"])
    views.tell(views.save(view, folder / name_of(config, spec, ["prompt"])))


def name_of(config: Mapping[str, Any], spec: DataSpec, parts: Sequence[str]) -> str:
    """The name, without a suffix, of files that hold what follows a prompt.

    Args:
        config: Of the verb: the beginning of the prompt, and all that changes what follows it.
        spec: What the model is of.
        parts: Words that come first.
    """
    typed, file = config["prompt"], config["prompt_file"]
    if file is not None or spec.alphabet is None:
        typed = Path(str(typed if file is None else file)).stem
    begin = re.sub(r"[^A-Za-z0-9._]+", "-", str(typed or ""))[:20].strip("-.")
    found = [*parts, *([begin] if begin else []), f"seed{config['seed']}"]
    found.append(f"t{config['temperature']:g}")
    found += ["speculative"] * (config["sampler"] == "speculative")  # other draws of the same
    keys = ("label", "length", "top_k", "top_p")
    found += [f"{key}{config[key]}" for key in keys if config[key] is not None]
    return "-".join(found)


def given_label(
    wanted: ContextSpec | None, label: int | None, num: int, what: str
) -> Tensor | None:
    """What sequences of the user's own are conditioned on: one class for all of them.

    Args:
        wanted: The context of the model; None: it has none.
        label: The class that the user names, if any.
        num: Of the sequences.
        what: They are.

    Returns:
        (num,); None: nothing.

    Raises:
        ValueError: The model is conditioned on a label and none is named, or on something else.
    """
    if label is not None:
        return torch.full((num,), contexts.label(wanted, label))
    if wanted is None:
        return None
    if wanted.shape:
        raise ValueError(
            f"a {what} goes with a model of a label or of none, but this one is conditioned on "
            f"{wanted.name}"
        )
    raise ValueError(
        f"the model is conditioned on {wanted.name}; give the {what}'s: label=0 to "
        f"label={wanted.num_classes - 1}"
    )
