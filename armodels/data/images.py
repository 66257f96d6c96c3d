"""What all sources of images share: decode, crop, resize, quantize, split by content, cache.

Pictures become uint8 arrays (C, H, W) once and for all. They lie in one file below the data root
and are read through a memory map, so that a set may be larger than memory.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from armodels import show

PARTS = ("train", "valid", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
SUFFIXES |= {".pgm", ".ppm", ".pbm"}
NEAR = 5
"""Near-duplicates differ in at most so many of the 64 bits of ``perceptual_hash``."""

_CACHE_VERSION = 1
_CHUNK = 256  # pictures in work at once
_UNDECODABLE = (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)
_UNDECODABLE += (zipfile.BadZipFile, RuntimeError, Image.DecompressionBombError)
# Pillow and zipfile raise all of these, the last but one where a password is wanted.


# Values


@dataclass(frozen=True)
class Format:
    """How a picture becomes values.

    Attributes:
        size: (H, W).
        channels: 1 (grey: the luminance, ITU-R BT.601) or 3 (R, G, B).
        levels: L in 2 .. 256: a value v of 256 becomes floor(v L / 256).
    """

    size: tuple[int, int]
    channels: int
    levels: int

    def __post_init__(self):
        size = tuple(self.size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"data.size is {list(size)}; give [height, width] in pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels is {self.channels}; choose 1 (grey) or 3 (RGB)")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"data.levels is {self.levels}; choose from 2 to 256")
        object.__setattr__(self, "size", size)

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


def as_grey_or_rgb(image: Image.Image) -> Image.Image:
    """A picture of any usual mode as L or RGB, turned upright.

    Transparent pictures are laid on white; 16-bit grey loses its lower 8 bits.

    Raises:
        ValueError: The mode has no agreed range (32-bit integers, floats) or is unusual.
    """
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if wide:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if mode in ("1", "L"):
        return image.convert("L")
    if mode in ("P", "RGB", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise ValueError(f"its mode is {mode}, which has no agreed range of values")


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

    # Of distance + 1 pieces of the bits, near ones agree in at least one: only those who do are
    # compared.
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

    def __post_init__(self):
        if self.valid <= 0 or self.test <= 0 or self.valid + self.test >= 1:
            raise ValueError(
                f"data.valid is {self.valid} and data.test is {self.test}; both must be "
                f"positive and leave something to train on"
            )

    def part(self, digest: bytes) -> int:
        """0, 1 or 2 for train, valid or test, of a SHA-256."""
        place = int.from_bytes(digest[:8], "big") / 2**64
        return 2 if place < self.test else 1 if place < self.test + self.valid else 0


# Collections of pictures


class Collection(ABC):
    """Pictures in files.

    Attributes:
        path: Where they are.
        names: Of the pictures, below ``path``, in a fixed order.
        classes: Of each picture, the name of its class, or "" where it has none.
        digest: Changes when anything in the files changes.
    """

    path: Path
    names: list[str]
    classes: list[str]
    digest: str

    @abstractmethod
    def contents(self, index: int) -> bytes:
        """What picture ``index`` is made of."""

    def picture(self, contents: bytes) -> Image.Image:
        """As L or RGB."""
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
            return as_grey_or_rgb(image)


class Tree(Collection):
    """A folder and all its sub-folders; a class is a folder at the top."""

    def __init__(self, path: Path):
        self.path = path
        found = sorted(
            file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
        )
        self.names = [name for name in found if _is_picture(name)]
        self.classes = _folders(self.names)
        stats = [(name, (path / name).stat()) for name in self.names]
        self.digest = _digest([(name, one.st_size, one.st_mtime_ns) for name, one in stats])

    def contents(self, index):
        return (self.path / self.names[index]).read_bytes()


class Zip(Collection):
    """A zip of pictures; a class is a folder at the top."""

    def __init__(self, path: Path):
        self.path = path
        self._file = _open_zip(path)
        infos = sorted(self._file.infolist(), key=lambda info: info.filename)
        infos = [info for info in infos if _is_picture(info.filename)]
        self.names = [info.filename for info in infos]
        self.classes = _folders(self.names)
        self.digest = _digest([(info.filename, info.file_size, info.CRC) for info in infos])

    def contents(self, index):
        return self._file.read(self.names[index])


class Npz(Collection):
    """An ``.npz``: one array of pictures, and perhaps an array ``labels`` of integers.

    The pictures are ``images`` or the only array besides: (N, H, W), (N, H, W, C) or (N, C, H, W)
    of 1, 3 or 4 channels; uint8, or uint16 without channels.
    """

    def __init__(self, path: Path):
        self.path = path
        with _open_zip(path) as file:
            infos = [(one.filename, one.file_size, one.CRC) for one in file.infolist()]
            self.digest = _digest(infos)
        try:
            with np.load(path) as arrays:
                others = [name for name in arrays.files if name != "labels"]
                name = "images" if "images" in others else others[0] if len(others) == 1 else None
                if name is None:
                    raise ValueError(f"it holds {', '.join(arrays.files)} but no array `images`")
                images = arrays[name]
                labels = arrays["labels"] if "labels" in arrays.files else None
        except (*_UNDECODABLE, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error
        channels = (1, 3, 4)
        if images.ndim == 4 and images.shape[1] in channels and images.shape[3] not in channels:
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        wide = images.dtype == np.uint16 and images.ndim == 3
        if not (wide or images.dtype == np.uint8) or (
            images.ndim != 3 and not (images.ndim == 4 and images.shape[3] in channels)
        ):
            raise ValueError(
                f"{path} holds {images.dtype} of shape {images.shape}; pictures are uint8 (N, H, "
                f"W), (N, H, W, C) or (N, C, H, W) of 1, 3 or 4 channels, or uint16 (N, H, W)"
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"{path} holds {len(images)} pictures, but labels {labels.shape}")
        self._images = np.ascontiguousarray(images)
        self.names = [f"[{i}]" for i in range(len(images))]
        self.classes = [""] * len(images)
        if labels is not None and len(labels):
            digits = len(str(labels.max()))  # names are sorted as text
            self.classes = [f"{one:0{digits}}" for one in labels.tolist()]

    def contents(self, index):
        return self._images[index].tobytes()

    def picture(self, contents):
        flat = np.frombuffer(contents, self._images.dtype)
        return as_grey_or_rgb(Image.fromarray(flat.reshape(self._images.shape[1:])))


def collect(path: Path) -> Collection:
    """The pictures in a folder, a zip or an npz.

    Raises:
        ValueError: It holds none, or is none of these.
    """
    if path.is_dir():
        made = Tree(path)
    elif path.suffix.lower() == ".npz":
        made = Npz(path)
    elif path.suffix.lower() == ".zip":
        made = Zip(path)
    else:
        raise ValueError(f"{path} is no folder, zip or npz of images")
    if not made.names:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(f"{path} holds no image; looked for files of {kinds}")
    return made


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _folders(names: Sequence[str]) -> list[str]:
    """The first folder of each name below the folders that all names share."""
    parts = [PurePosixPath(name).parts[:-1] for name in names]
    shared = 0
    while parts and all(len(one) > shared + 1 for one in parts):
        if len({one[shared] for one in parts}) > 1:
            break
        shared += 1
    return [one[shared] if len(one) > shared else "" for one in parts]


def _digest(facts: Sequence[tuple]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); copy it again") from error


def _first_line(error: BaseException) -> str:
    if type(error) is UnidentifiedImageError:  # whose own words name a place in memory
        return "it is no image of a known kind"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _One(NamedTuple):
    values: np.ndarray | None
    digest: bytes
    perceptual: int
    trouble: str


@dataclass(frozen=True)
class Decoded:
    """A collection, decoded.

    Attributes:
        values: (N, C, H, W) uint8, of which the first ``len(indices)`` are filled.
        indices: Which picture of the collection each is.
        digests: SHA-256 of what each was made of.
        perceptual: ``perceptual_hash`` of each; 0 where not asked for.
        troubles: Of those left out: what was the matter.
    """

    values: np.ndarray
    indices: list[int]
    digests: list[bytes]
    perceptual: list[int]
    troubles: list[str]


def decode(
    cache: "Cache", collection: Collection, form: Format, *, near: bool, skip_corrupt: bool
) -> Decoded:
    """Decode all pictures, by several threads, onto the disk.

    Args:
        cache: Open for writing.
        collection: The pictures.
        form: What they become.
        near: Take perceptual hashes.
        skip_corrupt: Leave out, and report, what cannot be decoded.

    Raises:
        ValueError: A picture cannot be decoded, or none can.
    """

    def one(index: int) -> _One:
        try:
            contents = collection.contents(index)
            image = collection.picture(contents)
            values = form.values(image)
        except _UNDECODABLE as error:
            return _One(None, b"", 0, f"{collection.names[index]}: {_first_line(error)}")
        digest = hashlib.sha256(contents).digest()
        return _One(values, digest, perceptual_hash(image) if near else 0, "")

    num = len(collection.names)
    done = Decoded(cache.scratch((num, *form.shape)), [], [], [], [])
    bar = tqdm(total=num, desc=f"decoding {collection.path.name}", unit="img", disable=None)
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow lets go of the lock
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
    cache: "Cache",
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
    # By hash, not by name: the first rows, by which models are initialized, are like all others.
    order = np.array(sorted(range(len(done.digests)), key=done.digests.__getitem__))
    keys, num_near = done.digests, 0
    if near:
        groups = near_groups(np.array(done.perceptual, np.uint64)).tolist()
        least: dict[int, bytes] = {}
        for group, digest in zip(groups, keys, strict=True):
            least[group] = min(digest, least.get(group, digest))
        num_near = len(keys) - len(least)
        # Hashed again: the least of several is small, which would favour test.
        keys = [hashlib.sha256(least[group]).digest() for group in groups]
    parts = np.array([shares.part(key) for key in keys])
    for i, part in enumerate(PARTS):
        rows = order[parts[order] == i]
        if not len(rows):
            raise ValueError(
                f"the hashes of the {len(order)} images of {collection.path} leave none for "
                f"{part}; add images, or change data.valid or data.test"
            )
        cache.write(part, done.values, rows)
        if labels is not None:
            number = {name: i for i, name in enumerate(labels)}
            known = [number[collection.classes[index]] for index in done.indices]
            cache.write(f"labels-{part}", np.array(known, np.int32), rows)
    cache.meta = {"skipped": done.troubles, "num_near": num_near}


# Caches


class Cache:
    """A cache while it is made: ``write`` its arrays, set ``meta``."""

    def __init__(self, file: zipfile.ZipFile, folder: Path):
        self._file = file
        self._folder = folder
        self._scratch: list[BinaryIO] = []
        self.shapes: dict[str, tuple[str, list[int]]] = {}
        self.meta: dict[str, Any] = {}

    def scratch(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array on disk that vanishes with the cache's making."""
        file = TemporaryFile(dir=self._folder)
        self._scratch.append(file)
        return np.memmap(file, np.uint8, "w+", shape=shape)

    def write(self, name: str, array: np.ndarray, rows: np.ndarray) -> None:
        """Append the given rows of an array as member ``name``."""
        with self._file.open(name, "w", force_zip64=True) as member:
            for start in range(0, len(rows), 1024):
                member.write(np.ascontiguousarray(array[rows[start : start + 1024]]).data)
        self.shapes[name] = (array.dtype.str, [len(rows), *array.shape[1:]])

    def close(self) -> None:
        """Let go of the scratch files."""
        for file in self._scratch:
            file.close()


class Loaded(NamedTuple):
    """A cache as read: arrays over a memory map of the file, and what was noted beside them."""

    arrays: Mapping[str, Tensor]
    meta: Mapping[str, Any]


def cached(root: Path, name: str, make: Callable[[Cache], None]) -> Loaded:
    """Read the cache ``root/cache/NAME-v1.zip``; make it first where there is none.

    Where ``root`` cannot be written, ~/.cache/armodels/cache takes its place. Of several processes
    that need the same cache, one makes it and the others wait.

    Raises:
        ValueError: The file is corrupted.
        OSError: It cannot be written.
    """
    fallback = Path("~/.cache/armodels/cache").expanduser()
    file = f"{name}-v{_CACHE_VERSION}.zip"
    for folder in (root / "cache", fallback):
        if (folder / file).is_file():
            return _read_cache(folder / file)
    folder = root / "cache"
    if not _writable(folder):
        folder = fallback
        show.say(f"{root} cannot be written; what is decoded goes to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    with _only_one(path) as part:
        if part is not None:
            with zipfile.ZipFile(part, "w") as archive:
                cache = Cache(archive, folder)
                with contextlib.closing(cache):
                    make(cache)
                about = {"shapes": cache.shapes, "meta": cache.meta}
                archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(about))  # undated
    return _read_cache(path)


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    # The mode counts for root too: who took away every right to write did not mean a cache.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[BinaryIO | None]:
    """A file that becomes ``path`` when all went well; None if another process has made it."""
    part = path.with_name(f".{path.name}.part")
    while True:
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                if _is(file, part):  # made anew by opening it, after the other's became path
                    part.unlink()
                yield None
                return
            if not _is(file, part):  # whoever held the lock gave up and took its file along
                continue
            try:
                file.truncate()
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return


def _is(file: BinaryIO, path: Path) -> bool:
    """Is the open file the one at ``path``?"""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _read_cache(path: Path) -> Loaded:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{bad} does not have its checksum")
            about = json.loads(archive.read("about.json"))
            for name, (dtype, shape) in about["shapes"].items():
                start = archive.getinfo(name).header_offset
                raw.seek(start + 26)
                start += 30 + sum(struct.unpack("<HH", raw.read(4)))  # name, extra field
                # Copy on write: torch wants arrays that may be written, and the file stays.
                arrays[name] = torch.from_numpy(
                    np.memmap(path, dtype, "c", offset=start, shape=tuple(shape))
                )
    except (zipfile.BadZipFile, KeyError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(
            f"cache {path} is corrupted ({_first_line(error)}); delete it and it is made anew"
        ) from error
    return Loaded(arrays, about["meta"])
