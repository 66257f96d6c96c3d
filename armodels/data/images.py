"""What all sources of images share: crop, resize, quantize, decode, split by content.

Pictures become uint8 arrays (C, H, W) once and for all. They lie in one file, a cache, and are
read through a memory map, so that a set may be larger than memory.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from armodels import checks, show
from armodels.checks import Count, Range
from armodels.data.base import PARTS
from armodels.data.cache import Cache
from armodels.data.collections import UNDECODABLE, Collection, first_line, is_animated

NEAR = 5
"""Near-duplicates differ in at most so many of the 64 bits of ``perceptual_hash``."""

Size = tuple[Count, Count]
"""(H, W) in pixels."""

Channels = Literal[1, 3]
"""Grey, or red, green and blue."""

Levels = Annotated[int, Range(2, 256)]
"""What a pixel of a byte can show."""

_CHUNK = 256
"""Pictures in work at once."""


# Values


@dataclass(frozen=True)
class Format:
    """How a picture becomes values.

    Attributes:
        size: (H, W).
        channels: 1 (grey: the luminance, ITU-R BT.601) or 3 (R, G, B).
        levels: L in 2 .. 256: a value v of 256 becomes floor(v L / 256).
    """

    size: Size
    channels: Channels
    levels: Levels

    def __post_init__(self) -> None:
        checks.require_types(vars(self), get_type_hints(type(self), include_extras=True), "data.")
        object.__setattr__(self, "size", tuple(self.size))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def name(self) -> str:
        """Such as ``32x32-rgb-L8``: part of the data's name."""
        height, width = self.size
        return f"{height}x{width}-{'rgb' if self.channels == 3 else 'grey'}-L{self.levels}"

    def values(self, image: Image.Image, *, crop: bool = True) -> np.ndarray:
        """A picture of mode L or RGB as (C, H, W) uint8: cropped, area-resized, quantized.

        Args:
            image: The picture.
            crop: Cut its centre out, of the wanted proportions; else all of it is resized.
        """
        image = image.convert("RGB" if self.channels == 3 else "L")
        height, width = self.size
        box = (0, 0, image.width, image.height)
        if crop:
            # The largest centred box of the wanted proportions, in whole pixels.
            across = max(1, min(image.width, round(image.height * width / height)))
            down = max(1, min(image.height, round(image.width * height / width)))
            left, top = (image.width - across) // 2, (image.height - down) // 2
            box = (left, top, left + across, top + down)
        if (box[2] - box[0], box[3] - box[1]) != (width, height):
            image = image.resize((width, height), Image.Resampling.BOX, box)
        elif box != (0, 0, image.width, image.height):
            image = image.crop(box)
        pixels = np.asarray(image)
        pixels = pixels.transpose(2, 0, 1) if self.channels == 3 else pixels[None]
        return quantize(pixels, self.levels)


def quantize(values: np.ndarray, levels: int) -> np.ndarray:
    """Values of 256 levels to L equal bins: floor(v L / 256), uint8."""
    return (values.astype(np.uint16) * levels >> 8).astype(np.uint8)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: in an 8 x 9 miniature, is each pixel brighter than its left neighbour?

    Recompressed, resized or slightly retouched copies differ in few bits.
    """
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(small).astype(np.int64)
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1]).tobytes(), "big")


def near_groups(hashes: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """Groups of near-duplicates: (N,) uint64 -> (N,) number of each one's group.

    Two of a Hamming distance of at most ``distance`` are in one group, and so are the friends of
    friends.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    parent = list(range(len(unique)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    # Near hashes agree in at least one of distance + 1 pieces: only such are compared.
    for low, high in pairwise(np.linspace(0, 64, distance + 2).astype(int).tolist()):
        piece = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        piece, step, left = piece[order], 1, np.arange(len(order))
        while len(left := left[: np.searchsorted(left, len(order) - step)]):
            left = left[piece[left] == piece[left + step]]
            a, b = order[left], order[left + step]
            bits = np.unpackbits((unique[a] ^ unique[b]).view(np.uint8).reshape(-1, 8), axis=1)
            for i in np.flatnonzero(bits.sum(1) <= distance).tolist():
                parent[root(int(b[i]))] = root(int(a[i]))
            step += 1
    return np.array([root(i) for i in range(len(unique))], np.int64)[inverse.reshape(-1)]


# Splits


@dataclass(frozen=True)
class Shares:
    """Which shares of the pictures are valid and test: a picture's hash alone says where it is.

    So another picture beside it never moves it, and two equal ones are in one split.
    """

    valid: float
    test: float

    def __post_init__(self) -> None:
        if self.valid <= 0 or self.test <= 0 or self.valid + self.test >= 1:
            raise ValueError(
                f"data.valid is {self.valid} and data.test is {self.test}; both must be "
                f"positive and leave something to train on"
            )

    def part(self, digest: bytes) -> int:
        """0, 1 or 2 for train, valid or test, of a SHA-256."""
        share = int.from_bytes(digest[:8], "big") / 2**64
        return 2 if share < self.test else 1 if share < self.test + self.valid else 0


# Decoding


class _One(NamedTuple):
    values: np.ndarray | None
    digest: bytes
    perceptual: int
    animated: bool
    trouble: str


@dataclass(frozen=True)
class Decoded:
    """A collection, decoded.

    Attributes:
        values: (N, C, H, W) uint8, of which the first ``len(indices)`` are filled.
        indices: Which picture of the collection each is.
        digests: SHA-256 of what each was made of.
        perceptual: ``perceptual_hash`` of each; 0 where not asked for.
        animated: Names of those with further frames, which are left out.
        troubles: Of those left out: what was the matter.
    """

    values: np.ndarray
    indices: list[int]
    digests: list[bytes]
    perceptual: list[int]
    animated: list[str]
    troubles: list[str]


def decode(
    cache: Cache,
    collection: Collection,
    form: Format,
    *,
    near: bool,
    skip_corrupt: bool,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Decoded:
    """Decode all pictures, by several threads, onto the disk.

    Args:
        cache: Open for writing.
        collection: The pictures.
        form: What they become.
        near: Take perceptual hashes.
        skip_corrupt: Leave out, and report, what cannot be decoded.
        change: What is done to each picture, L or RGB, first.

    Raises:
        ValueError: A picture cannot be decoded, or none can.
    """

    def one(index: int) -> _One:
        try:
            contents = collection.contents(index)
            with collection.open(contents) as opened:
                animated = is_animated(opened)
                image = collection.picture(opened)
            image = image if change is None else change(image)
            values = form.values(image)
        except UNDECODABLE as error:
            return _One(None, b"", 0, False, f"{collection.names[index]}: {first_line(error)}")
        digest = hashlib.sha256(contents).digest()
        return _One(values, digest, perceptual_hash(image) if near else 0, animated, "")

    num = len(collection.names)
    done = Decoded(cache.scratch((num, *form.shape)), [], [], [], [], [])
    bar = tqdm(
        total=num, desc=show.clean(f"decoding {collection.path.name}"), unit="img", disable=None
    )
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow lets go of the lock.
        for start in range(0, num, _CHUNK):
            rows = range(start, min(start + _CHUNK, num))
            for index, found in zip(rows, pool.map(one, rows), strict=True):
                if found.values is None:
                    done.troubles.append(found.trouble)
                    continue
                done.values[len(done.indices)] = found.values
                done.indices.append(index)
                done.digests.append(found.digest)
                done.perceptual.append(found.perceptual)
                if found.animated:
                    done.animated.append(collection.names[index])
            if done.troubles and not skip_corrupt:
                raise ValueError(
                    f"an image of {collection.path} cannot be used ({done.troubles[0]}); mend or "
                    f"remove it, or leave such images out with data.skip_corrupt=true"
                )
            bar.update(len(rows))
    if not done.indices:
        raise ValueError(f"no image of {collection.path} can be decoded ({done.troubles[0]})")
    return done


def write_splits(
    cache: Cache,
    collection: Collection,
    done: Decoded,
    shares: Shares,
    *,
    near: bool,
    labels: Sequence[str] | None,
) -> None:
    """Fill a cache with train, valid and test, and with labels-* where wanted.

    Args:
        cache: Open for writing.
        collection: The pictures.
        done: The same, decoded.
        shares: Of valid and test.
        near: Keep near-duplicates in one split: that of the least hash among them.
        labels: Names of the classes, in the order of their labels; None: none are kept.

    Raises:
        ValueError: A split would be empty.
    """
    # Rows are ordered by hash: the first ones, which initialize models, are like all others.
    order = np.array(sorted(range(len(done.digests)), key=done.digests.__getitem__))
    keys, num_near = done.digests, 0
    if near:
        groups = near_groups(np.array(done.perceptual, np.uint64)).tolist()
        least: dict[int, bytes] = {}
        for group, digest in zip(groups, keys, strict=True):
            least[group] = min(digest, least.get(group, digest))
        num_near = len(keys) - len(least)
        # The least of several hashes is small, and would favour test: it is hashed again.
        keys = [hashlib.sha256(least[group]).digest() for group in groups]
    parts = np.array([shares.part(key) for key in keys])
    for i, part in enumerate(PARTS):
        rows = order[parts[order] == i]
        if not len(rows):
            raise ValueError(
                f"the hashes of the {len(order)} images of {collection.path} "
                f"({len(set(keys))} of them different) leave none for {part}; add images, or "
                f"change data.valid or data.test"
            )
        cache.write(part, done.values, rows)
        if labels is not None:
            number = {name: i for i, name in enumerate(labels)}
            known = [number[collection.classes[index]] for index in done.indices]
            cache.write(f"labels-{part}", np.array(known, np.int32), rows)
    cache.meta = {
        "skipped": done.troubles,
        "num_near": num_near,
        "animated": done.animated,
        "left_out": collection.left_out,
    }
