"""A user's own files as a model's examples, and examples as files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from armodels import archive, disk
from armodels.data.collections import (
    PICTURES,
    UNDECODABLE,
    Tree,
    as_grey_or_rgb,
    first_line,
    is_animated,
    is_hidden,
    open_picture,
    some,
    walk,
)
from armodels.data.images import quantize
from armodels.data.midi import MIDIS
from armodels.data.sound import CLIPS, is_same
from armodels.data.text import files_of, read_symbols
from armodels.prompts import levels_of
from armodels.spec import DataSpec
from armodels.views import view


@final
@dataclass(frozen=True)
class Originals:
    """A user's files as a model knows them.

    Attributes:
        names: Of the files that will be written back, below one folder.
        events: Of each file.
        num_bytes: Of all files.
        notes: What people should know, a sentence each: what is left out, or lost.
    """

    names: tuple[str, ...]
    events: list[Tensor]
    num_bytes: int
    notes: tuple[str, ...]


def read(path: Path, spec: DataSpec, *, resize: bool = False) -> Originals:
    """Files as examples of a model.

    Args:
        path: A file, or a folder of files: pictures, texts, sounds or music.
        spec: What the model is of.
        resize: Change the size of pictures that have another than the model's.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file cannot be read, is not what the model is of, or would not come back.
    """
    if not path.exists():
        raise FileNotFoundError(f"path {path} {disk.trouble(path)}")
    suffix = _suffix(spec)
    if suffix is None:
        raise ValueError(
            f"path={path} is of pictures, texts, sounds or music, but the model is of "
            f"{spec.name}; compress a split of it: split=test"
        )
    files, left_out = _files(path, spec)
    if not files:
        raise ValueError(f"{path} holds no file that the model could code")
    disk.require_files(files, "file")
    parent = path if path.is_dir() else path.parent
    below = [PurePosixPath(one.relative_to(parent).as_posix()) for one in files]
    names = _renamed(below, suffix)
    notes = [f"in {path}, left out are {one}" for one in left_out]
    for name in names:
        if not archive.safe_name(name):
            raise ValueError(
                f"file {name} has a name that not every system can write; rename it first"
            )
    events: list[Tensor] = []
    changed = 0
    for file in files:
        event, same = _read_one(file, spec, resize)
        events.append(event)
        changed += not same
    if changed:
        what, knows = _known_of(spec)
        notes.append(
            f"{changed} of {len(files)} {what} were changed to what the model knows ({knows}), "
            f"and come back so"
        )
    size = sum(one.stat().st_size for one in files)
    return Originals(names, events, size, tuple(notes))


def _known_of(spec: DataSpec) -> tuple[str, str]:
    """What files are, and what a model knows of them."""
    if spec.waveform is not None:
        return "sounds", f"one channel of {spec.waveform.rate:,} Hz, {spec.levels} levels"
    if spec.notes is not None:
        return "files of music", "which notes sound in each frame"
    return "pictures", f"size, colours, {spec.levels} levels"


def _suffix(spec: DataSpec) -> str | None:
    """The ending of files that examples are written to; "": as it was; None: they are no files."""
    if spec.alphabet is not None:
        return ""
    if spec.waveform is not None:
        return ".wav"
    if spec.notes is not None:
        return ".mid"
    return ".png" if spec.kind == "image" and spec.shape[0] in (1, 3) else None


def _files(path: Path, spec: DataSpec) -> tuple[list[Path], list[str]]:
    """The files that are read, and what is said of the others."""
    if not path.is_dir():
        return [path], []
    hidden = [name for name in walk(path)[0] if is_hidden(name)]
    left_out = [f"hidden files: {some(hidden)}"] if hidden else []
    if spec.alphabet is not None:
        return files_of(path), left_out
    wanted = CLIPS if spec.waveform is not None else PICTURES if spec.notes is None else MIDIS
    tree = Tree(path, wanted)
    return [path / name for name in tree.names], [*tree.left_out, *left_out]


def _renamed(names: Sequence[PurePosixPath], suffix: str) -> tuple[str, ...]:
    """Names with the ending of what is written, each another than the others."""
    found = [str(one.with_suffix(suffix)) if suffix else str(one) for one in names]
    return tuple(
        one if found.count(one) == 1 else f"{name}{suffix}"
        for one, name in zip(found, names, strict=True)
    )


def _read_one(file: Path, spec: DataSpec, resize: bool) -> tuple[Tensor, bool]:
    """An example, and whether what is written back has all that was read."""
    if spec.alphabet is not None:
        return _text(file, spec), True
    if spec.waveform is None and spec.notes is None:
        return _picture(file, spec, resize)
    event = torch.from_numpy(levels_of(file, spec, "path")).to(spec.dtype)
    original, back = file.read_bytes(), contents(event, spec)
    return event, original == back or (spec.waveform is not None and is_same(original, back))


def _text(file: Path, spec: DataSpec) -> Tensor:
    """Levels (T,) of a text, all of whose bytes come back.

    Raises:
        ValueError: They would not.
    """
    assert spec.alphabet is not None
    symbols = read_symbols(file, spec.alphabet.unit)
    try:
        levels = (
            spec.alphabet.encoded(symbols, f"file {file}") if len(symbols) else np.zeros(0, int)
        )
    except ValueError as error:
        raise ValueError(
            f"{str(error).partition(';')[0]}; compress by a model of bytes, which knows all "
            f"(data.unit=byte)"
        ) from error
    event = torch.from_numpy(levels).to(spec.dtype)
    if file.suffix == ".gz":
        raise ValueError(f"file {file} is packed already; unpack it first")
    if contents(event, spec) != file.read_bytes():
        raise ValueError(
            f"file {file} would not come back byte for byte: it begins with a byte-order mark, or "
            f"has symbols that the model does not know; take them out, or train on "
            f"data.unit=byte"
        )
    return event


def _picture(file: Path, spec: DataSpec, resize: bool) -> tuple[Tensor, bool]:
    """A picture as an event, and whether its pixels come back as they were.

    Raises:
        ValueError: It cannot be read, or has another size.
    """
    channels, height, width = spec.shape
    try:
        with open_picture(file) as opened:
            animated = is_animated(opened)
            opened.load()
            plain = opened.mode in ("1", "L", "P", "RGB") and "transparency" not in opened.info
            whole = as_grey_or_rgb(opened)
    except UNDECODABLE as error:
        raise ValueError(f"picture {file} cannot be read: {first_line(error)}") from error
    if animated:
        raise ValueError(f"picture {file} has several frames; save the one that is meant")
    if whole.size != (width, height) and not resize:
        raise ValueError(
            f"picture {file} has {whole.width}x{whole.height} pixels, but the model is of "
            f"{width}x{height}; resize=true changes it, and the change is not undone"
        )
    image = whole.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    event = torch.from_numpy(quantize(pixels, spec.num_levels)).to(spec.dtype)
    back = Image.open(io.BytesIO(contents(event, spec))).convert("RGB")
    return event, plain and back.tobytes() == whole.convert("RGB").tobytes()


def contents(event: Tensor, spec: DataSpec) -> bytes:
    """An example as the contents of a file.

    Args:
        event: Of the model's shape, or (T,) of a model that reads.
        spec: What the model is of.
    """
    if spec.alphabet is not None:
        levels = event.numpy()
        if spec.alphabet.unit == "byte":
            return spec.alphabet.as_bytes(levels)
        return spec.alphabet.decoded(levels).encode("utf-8", "surrogatepass")
    if spec.kind != "image" or spec.notes is not None:
        return view(event[None], spec).files[".wav" if spec.waveform is not None else ".mid"]
    levels = event.numpy().astype(np.int64)
    # The least of the 256 values that become this level again.
    pixels = (-(-levels * 256 // spec.num_levels)).astype(np.uint8)
    if spec.num_levels < 256:  # white is white
        pixels = np.where(levels == spec.num_levels - 1, 255, pixels).astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(event) == 1 else pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def ending(spec: DataSpec) -> str | None:
    """The ending of files that sequences of a split are written to; None: they are no files.

    Args:
        spec: What the model is of.
    """
    return _suffix(spec) or (".txt" if spec.alphabet is not None else None)
