"""Clips of sound: how a collection of them is read, and how they are cut into windows.

A source of sound gives whole clips (its method ``clips``). Each is cut into windows of equal
length that do not overlap, and what is left at the end of a clip is in no window. Models that read
are evaluated on the clips themselves.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from armodels import show
from armodels.checks import Range
from armodels.data.base import PARTS, Splits, split_rows
from armodels.data.collections import UNDECODABLE, Collection, first_line
from armodels.data.sound import read_clip, require_soundfile
from armodels.spec import ContextSpec, DataSpec
from armodels.waveform import HIGHEST_RATE, Waveform

Clips = dict[str, list[Tensor]]
"""Split -> clips (T,) of levels, each of its own length."""

Rate = Annotated[int, Range(1, HIGHEST_RATE)]
"""Samples a second."""

ORDER_SEED = 0
"""Of the order of the windows of a split: the first ones, which initialize models, are like all
others."""

_AT_ONCE = 64
"""Files in work at once."""


def windows(clip: Tensor, length: int) -> Tensor:
    """A clip (T,) in pieces that do not overlap: (T // length, length); the rest is left out."""
    num = len(clip) // length
    return clip[: num * length].view(num, length)


def in_windows(
    spec: DataSpec,
    clips: Clips,
    labels: Mapping[str, Mapping[str, Sequence[int]]],
    true_log_prob: Callable[[Tensor], Tensor] | None = None,
) -> Splits:
    """Splits of all windows of the clips.

    Args:
        spec: What a window is.
        clips: Split -> clips.
        labels: Context -> split -> label of each clip, which all of its windows have.
        true_log_prob: As of ``Splits``.

    Raises:
        ValueError: No clip of a split is as long as a window.
    """
    (length,) = spec.shape
    rows: dict[str, Tensor] = {}
    contexts: dict[str, list[Tensor]] = {name: [] for name in labels}
    of_clips: dict[str, list[Tensor]] = {name: [] for name in labels}
    short = 0
    for part in PARTS:
        cut = [windows(clip, length) for clip in clips[part]]
        counts = torch.tensor([len(one) for one in cut])
        short += int((counts == 0).sum())
        num = int(counts.sum())
        if not num:
            raise ValueError(
                f"no clip of {part} is as long as data.length={length} samples, the longest has "
                f"{max(map(len, clips[part]))}; choose a smaller data.length"
            )
        order = torch.from_numpy(split_rows(num, (num,), ORDER_SEED)[0])
        rows[part] = torch.cat(cut)[order]
        for name, of_parts in labels.items():
            each = torch.tensor(of_parts[part], dtype=torch.uint8)
            of_clips[name].append(each)
            contexts[name].append(each.repeat_interleave(counts)[order])
    if short:
        whole = sum(map(len, clips.values()))
        are = "is" if short == 1 else "are"
        show.say(f"{short} of {whole} clips {are} shorter than data.length={length} and left out")
    return Splits(
        spec,
        *(rows[part] for part in PARTS),
        true_log_prob=true_log_prob,
        contexts={name: partial(contexts.__getitem__, name) for name in labels},
        pieces=clips,
        piece_contexts={name: partial(of_clips.__getitem__, name) for name in labels},
    )


def with_checksum(spec: DataSpec, clips: Clips) -> DataSpec:
    """The spec of clips from files, which says by their levels whether two are the same."""
    digest = hashlib.sha256()
    for part in PARTS:
        for clip in clips[part]:
            digest.update(f"{part} {len(clip)} ".encode() + clip.numpy().tobytes())
    return replace(spec, checksum=digest.hexdigest())


class Read(NamedTuple):
    """What became of a file.

    Attributes:
        clip: Its levels (T,); None: it could not be read.
        digest: SHA-256 of its contents.
        trouble: Why it could not be read, after its name.
    """

    clip: Tensor | None
    digest: bytes
    trouble: str


def read_all(
    collection: Collection, waveform: Waveform, advice: str, *, skip: bool = False
) -> list[Read]:
    """All clips of a collection as levels, in its order, by several threads.

    Args:
        collection: Of files of sound.
        waveform: The rate that they are brought to, and what a level stands for.
        advice: What to do about a file that cannot be read.
        skip: Go on after one.

    Raises:
        ValueError: A file cannot be read, or none can.
        ModuleNotFoundError: soundfile is not installed.
    """

    def one(index: int) -> Read:
        try:
            contents = collection.contents(index)
            clip = torch.from_numpy(waveform.encoded(read_clip(contents, waveform.rate)))
        except UNDECODABLE as error:
            return Read(None, b"", f"{collection.names[index]}: {first_line(error)}")
        return Read(clip, hashlib.sha256(contents).digest(), "")

    require_soundfile()
    num = len(collection.names)
    found: list[Read] = []
    bar = tqdm(
        total=num, desc=show.clean(f"reading {collection.path.name}"), unit="clip", disable=None
    )
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # A few are in work at once, so that the first trouble ends the reading.
        for start in range(0, num, _AT_ONCE):
            for done in pool.map(one, range(start, min(start + _AT_ONCE, num))):
                if done.clip is None and not skip:
                    raise ValueError(
                        f"a file of {collection.path} cannot be used ({done.trouble}); {advice}"
                    )
                found.append(done)
                bar.update()
    if all(done.clip is None for done in found):
        raise ValueError(f"no file of {collection.path} can be read ({found[0].trouble})")
    return found


def window_spec(
    name: str,
    length: int,
    waveform: Waveform,
    contexts: tuple[ContextSpec, ...] = (),
    *,
    pieces: str = "",
) -> DataSpec:
    """What a window is: a sequence of levels.

    Args:
        name: Of the data.
        length: T, samples of a window.
        waveform: What a level stands for.
        contexts: What is stored beside the windows.
        pieces: Name of the clips that windows are cut from.
    """
    return DataSpec(
        name,
        "sequence",
        (length,),
        waveform.num_levels,
        "probability",
        contexts=contexts,
        waveform=waveform,
        pieces=pieces,
    )
