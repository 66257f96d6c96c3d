"""Parts of an example: by a word for where they lie, by names, or by a mask in a file."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from armodels import disk, show
from armodels.data.collections import (
    UNDECODABLE,
    as_grey_or_rgb,
    first_line,
    is_animated,
    open_picture,
)
from armodels.spec import DataSpec

KNOWN = ("top", "bottom", "left", "right", "border", "random")


def known_part(
    known: str | list, keep: float, spec: DataSpec, seed: int, *, key: str = "known"
) -> Tensor:
    """Boolean mask (*event), True = known.

    Args:
        known: A word of ``KNOWN``: where about ``keep`` of an example lies. Vectors and sequences
            count as one column for top and bottom (the first or last values), and as one row for
            the others. Or names of a table's columns, or of a chorale's voices.
        keep: Between 0 and 1.
        spec: What a datum is.
        seed: Of ``random``.
        key: What was typed before it, for sentences.

    Raises:
        ValueError: There is no such part, column or voice of the data, or ``keep`` is no share.
    """
    if not isinstance(known, str):
        return known_names(known, spec, key)
    if known not in KNOWN:
        raise ValueError(
            f"{key} is {known!r}; choose from {', '.join(KNOWN)}"
            + (f", or names: {show.override(key, [spec.names[0]])}" if spec.names else "")
        )
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; it must lie between 0 and 1")
    if spec.kind == "image":
        _, height, width = spec.shape
    else:
        tall = known in ("top", "bottom")
        height, width = (spec.num_dims, 1) if tall else (1, spec.num_dims)
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    if known == "top":
        mask = (row < round(keep * height)).expand(height, width)
    elif known == "bottom":
        mask = (row >= height - round(keep * height)).expand(height, width)
    elif known == "left":
        mask = (column < round(keep * width)).expand(height, width)
    elif known == "right":
        mask = (column >= width - round(keep * width)).expand(height, width)
    elif known == "border":
        side = (1 - keep) ** 0.5 / 2  # of the unknown rectangle in the middle
        inside_rows = (row + 0.5 - height / 2).abs() <= side * height
        inside_columns = (column + 0.5 - width / 2).abs() <= side * width
        mask = ~(inside_rows & inside_columns)
    else:
        draws = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
        mask = draws < keep
    return mask.expand(spec.shape[0], -1, -1) if spec.kind == "image" else mask.reshape(spec.shape)


def require_word(overrides: Iterable[str], named: Iterable[object]) -> None:
    """Raise ValueError where ``keep`` was typed, but no part is named by a word that has a size.

    Args:
        overrides: What was typed.
        named: The parts: words, names, or files.
    """
    typed = [one for one in overrides if one.partition("=")[0].lstrip("+") == "keep"]
    if typed and not any(isinstance(one, str) and one in KNOWN for one in named):
        raise ValueError(
            f"{typed[0]} says how much a word stands for ({', '.join(KNOWN)}), and none is named; "
            f"leave it out"
        )


def known_names(known: list, spec: DataSpec, key: str = "known") -> Tensor:
    """Boolean mask (*event) of columns of a table, or of voices of a chorale, True = known.

    Args:
        known: Their names; columns without names are counted from 0.
        spec: What a datum is.
        key: What was typed before them, for sentences.

    Raises:
        ValueError: There is none of such a name.
    """
    if not spec.names and spec.kind != "vector":
        raise ValueError(
            f"{key} is {known}, but {spec.name} has no named columns"
            + (" or voices; train on data.voices=true" if spec.notes else "")
            + f"; name a part by a mask (png or npy), or by {', '.join(KNOWN)}"
        )
    what = "voices" if spec.notes else "columns"
    there = spec.names or [str(i) for i in range(spec.num_dims)]
    names = [str(name) for name in known]
    if not names:
        raise ValueError(f"{key} is []; name one or more of the {what} {', '.join(there)}")
    for name in names:
        if name not in there:
            raise ValueError(f"{key} names {name!r}; the {what} are {', '.join(there)}")
    return torch.tensor([name in names for name in there]).expand(spec.shape)


def read_mask(path: Path, spec: DataSpec) -> Tensor:
    """A file as a boolean mask (*event), True = known.

    A picture's light pixels are known, whatever its size; an npy holds booleans, or 0 and 1, of
    the event's shape or, for all channels at once, of its height and width.

    Raises:
        ValueError: It cannot be read, or does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"mask {path} {disk.trouble(path)}")
    if path.suffix != ".npy":
        if spec.kind != "image":
            raise ValueError(f"mask {path} is no .npy file, and {spec.name} is no image data")
        *_, height, width = spec.shape
        light = np.array(_read_picture(path, "mask", "L", (width, height)))
        return torch.from_numpy(light > 127).expand(spec.shape)
    try:
        values = np.load(path, mmap_mode="r")  # nothing is read before its shape is known
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"mask {path} cannot be read: {error}") from error
    if not isinstance(values, np.ndarray):
        raise ValueError(f"mask {path} cannot be read: it holds several arrays")
    if values.shape not in (spec.shape, spec.shape[1:]):
        raise ValueError(f"mask {path} has shape {values.shape}, the events {spec.shape}")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"mask {path} holds other values than True and False")
    return torch.from_numpy(np.array(values, bool)).expand(spec.shape)


def _read_picture(path: Path, what: str, mode: str, size: tuple[int, int]) -> Image.Image:
    try:
        with open_picture(path) as opened:
            animated = is_animated(opened)
            opened.load()
            image = as_grey_or_rgb(opened).convert(mode)
    except UNDECODABLE as error:
        raise ValueError(f"{what} {path} cannot be read: {first_line(error)}") from error
    if animated:
        raise ValueError(f"{what} {path} has several frames; save the one that is meant")
    if image.size == size:
        return image
    before, after = ("x".join(map(str, one)) for one in (image.size, size))
    show.say(f"{what} {path} is resized from {before} to {after}")
    return image.resize(size, Image.Resampling.BOX)


def read_image(path: Path, spec: DataSpec) -> Tensor:
    """An image file as one event: (1, C, H, W), resized and quantized to what the model knows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or the model is of no images with levels.
    """
    if spec.kind != "image" or spec.levels is None:
        raise ValueError(f"the model was trained on {spec.name}, which is no image with levels")
    if not path.is_file():
        raise FileNotFoundError(f"image {path} {disk.trouble(path)}")
    channels, height, width = spec.shape
    image = _read_picture(path, "image", "L" if channels == 1 else "RGB", (width, height))
    values = torch.from_numpy(np.array(image)).view(height, width, -1).permute(2, 0, 1)
    levels = (values.double() * (spec.levels / 256)).floor().to(spec.dtype)
    return levels[None].contiguous()
