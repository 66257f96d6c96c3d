"""Collections of pictures as people have them: folders, zips and npz files.

A folder and a zip may also be asked for files of another kind, such as sound.
"""

import hashlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, final

import numpy as np
import psutil
from PIL import Image, ImageOps, UnidentifiedImageError

from armodels import disk

UNDECODABLE: tuple[type[Exception], ...]
UNDECODABLE = (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)
UNDECODABLE += (zipfile.BadZipFile, RuntimeError, EOFError, Image.DecompressionBombError)
"""What Pillow and zipfile raise for a file that they cannot read, or should not: Pillow refuses a
picture that states more than 179 million pixels."""

MAX_BYTES = 2**30
"""A file that states more bytes is not read: a few packed bytes may state any number of them."""

MAX_SHOWN = 5
"""So many of a kind are named in a message."""

_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "FITS", "MPEG", "IPTC", "PALM", "PDF", "EPS", "WMF"}
"""Formats that Pillow registers, but only writes, or leaves to another program."""

_LAYERED = {"MPO", "PSD"}
"""Formats in which the other frames are no pictures of their own: previews and layers."""

# Large photographs are read; Pillow raises an error for what is too large, beside this warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# One picture


@cache
def suffixes() -> frozenset[str]:
    """Endings of the files that are taken for pictures: all that this Pillow reads by itself."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name not in _NO_PICTURES)


def open_picture(file: BinaryIO | Path) -> Image.Image:
    """A picture, of which nothing is decoded yet, whatever its name ends in.

    Raises:
        OSError: It is none; the others of ``UNDECODABLE`` where it is damaged or too large.
    """
    suffixes()  # Pillow learns its formats.
    return Image.open(file, formats=[name for name in Image.OPEN if name not in _NO_PICTURES])


def is_animated(image: Image.Image) -> bool:
    """Has it further frames, which are left out?"""
    return image.format not in _LAYERED and getattr(image, "is_animated", False)


def as_grey_or_rgb(image: Image.Image) -> Image.Image:
    """A picture of any usual mode as L or RGB, turned upright.

    Transparent pictures are laid on white; 16-bit grey loses its lower 8 bits.

    Raises:
        ValueError: The mode has no agreed range (32-bit integers, floats) or is unusual.
    """
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
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
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise ValueError(f"its mode is {mode}, which has no agreed range of values")


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    if type(error) is UnidentifiedImageError:  # Its own words name an address in memory.
        return "it is no image of a known kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Many


@dataclass(frozen=True)
class Wanted:
    """Which files of a folder or zip are read.

    Attributes:
        words: What they are, as in "files that are no ...".
        suffixes: Their endings, of small letters.
    """

    words: str
    suffixes: Callable[[], frozenset[str]]

    def takes(self, name: str) -> bool:
        """Whether the file is one of them, and not hidden."""
        return not is_hidden(name) and PurePosixPath(name).suffix.lower() in self.suffixes()

    def left_out(self, names: Sequence[str]) -> list[str]:
        """What there is to say about the files that are neither wanted nor hidden."""
        others = [name for name in names if not is_hidden(name) and not self.takes(name)]
        if not others:
            return []
        kinds = Counter(PurePosixPath(name).suffix.lower() or "(no ending)" for name in others)
        most = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = some([f"{count} {kind}" for kind, count in most])
        return [f"files that are no {self.words}: {shown}"]


PICTURES = Wanted("pictures of a known kind", suffixes)


class Collection(ABC):
    """Pictures in files.

    Attributes:
        path: Where they are.
        names: Of the pictures, below ``path``, in a fixed order.
        classes: Of each picture, the name of its class, or "" where it has none.
        digest: Changes when anything in the files changes.
        left_out: Sentences about what lies there and is not read.
    """

    path: Path
    names: list[str]
    classes: list[str]
    digest: str
    left_out: list[str]

    @property
    def class_names(self) -> list[str]:
        """Of the classes that there are, in the order of their labels."""
        return sorted(set(self.classes))

    @abstractmethod
    def contents(self, index: int) -> bytes:
        """What picture ``index`` is made of."""

    def open(self, contents: bytes) -> Image.Image:
        """The picture, of which nothing is decoded yet."""
        return open_picture(io.BytesIO(contents))

    def picture(self, image: Image.Image) -> Image.Image:
        """Its first frame as L or RGB."""
        image.load()
        return as_grey_or_rgb(image)


def walk(path: Path) -> tuple[list[str], list[str]]:
    """All that lies in a folder and in its folders, linked ones too, and is no folder.

    Pipes, and links that lead nowhere, are named as files are: whoever reads one says what it is.

    Args:
        path: The folder.

    Returns:
        Names below it, in order, and those of links to a folder that they lie in, which are not
        followed.

    Raises:
        ValueError: A folder cannot be read.
    """
    loops: list[str] = []
    return sorted(_walked(path, PurePosixPath(), (), loops)), loops


def _walked(
    folder: Path, below: PurePosixPath, above: tuple[tuple[int, int], ...], loops: list[str]
) -> Iterator[str]:
    """Names of all that is no folder; ``above``: the folders gone through.

    Raises:
        ValueError: A folder cannot be read.
    """
    try:
        about = folder.stat()
        entries = [*os.scandir(folder)]
    except OSError as error:
        raise ValueError(
            f"folder {folder} cannot be read ({error.strerror}); change its permissions, or move "
            f"it elsewhere"
        ) from error
    here = (about.st_dev, about.st_ino)
    if here in above:
        loops.append(str(below))
        return
    for entry in entries:
        if _leads_to_a_folder(entry):
            yield from _walked(folder / entry.name, below / entry.name, (*above, here), loops)
        else:
            yield str(below / entry.name)


def _leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads back to itself
        return False


@final
class Tree(Collection):
    """A folder and all its sub-folders, linked ones too; a class is a folder at the top.

    Args:
        path: The folder.
        wanted: Which of its files are read.
    """

    def __init__(self, path: Path, wanted: Wanted = PICTURES):
        self.path = path
        found, loops = walk(path)
        self.names = [name for name in found if wanted.takes(name)]
        self.classes = _folders(self.names)
        self.left_out = wanted.left_out(found)
        if loops:
            shown = some(loops)
            self.left_out.append(f"links to a folder that they lie in, not followed: {shown}")
        # A link that leads nowhere counts as itself; decoding names it.
        stats = [
            (name, os.stat if os.path.exists(path / name) else os.lstat) for name in self.names
        ]
        facts = [(name, stat_of(path / name)) for name, stat_of in stats]
        self.digest = _digest([(name, one.st_size, one.st_mtime_ns) for name, one in facts])

    def contents(self, index: int) -> bytes:
        path = self.path / self.names[index]
        _require_file(path)
        _require_small(path.stat().st_size)
        return path.read_bytes()


@final
class Zip(Collection):
    """A zip of pictures; a class is a folder at the top.

    Args:
        path: The zip.
        wanted: Which of its members are read.

    Raises:
        ValueError: It is truncated or corrupted.
    """

    def __init__(self, path: Path, wanted: Wanted = PICTURES):
        self.path = path
        self._file = _open_zip(path)
        # Some programs of Windows write the backslash that the format forbids.
        found = [
            (info.filename.replace("\\", "/"), info)
            for info in self._file.infolist()
            if not info.filename.endswith(("/", "\\"))
        ]
        found.sort(key=lambda pair: pair[0])
        links = [name for name, info in found if stat.S_ISLNK(info.external_attr >> 16)]
        found = [pair for pair in found if pair[0] not in links]
        self.left_out = wanted.left_out([name for name, _ in found])
        if links:
            self.left_out.append(f"links, which lead nowhere from a zip: {some(links)}")
        found = [pair for pair in found if wanted.takes(pair[0])]
        self.names = [name for name, _ in found]
        self._infos = [info for _, info in found]  # Two of one name are two pictures.
        self.classes = _folders(self.names)
        self.digest = _digest([(name, info.file_size, info.CRC) for name, info in found])

    def contents(self, index: int) -> bytes:
        _require_small(self._infos[index].file_size)
        return self._file.read(self._infos[index])


@final
class Npz(Collection):
    """An ``.npz``: one array of pictures, and perhaps an array ``labels`` of integers or words.

    The pictures are ``images`` or the only array besides: (N, H, W), (N, H, W, C) or (N, C, H, W)
    of 1, 3 or 4 channels; uint8, or uint16 without channels.

    Raises:
        ValueError: The file cannot be read, or its arrays are no pictures and labels.
    """

    def __init__(self, path: Path):
        self.path = path
        self.left_out = []
        try:
            with _open_zip(path) as file:
                infos = [(one.filename, one.file_size, one.CRC) for one in file.infolist()]
                self.digest = _digest(infos)
                sizes = {one.filename.removesuffix(".npy"): one for one in file.infolist()}
                others = [name for name in sizes if name != "labels"]
                name = "images" if "images" in others else others[0] if len(others) == 1 else None
                if name is None:
                    raise ValueError(f"it holds {', '.join(sizes)} but no array `images`")
                for one in {name, "labels"} & set(sizes):
                    _require_memory(file, sizes[one])
            with np.load(path) as arrays:
                images = arrays[name]
                labels = arrays["labels"] if "labels" in arrays.files else None
        except UNDECODABLE as error:
            raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
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
        if labels is not None and labels.dtype.kind not in "biuUS":
            raise ValueError(f"{path} holds labels of {labels.dtype}; give integers or words")
        self._images = np.ascontiguousarray(images)
        self.names = [f"[{i}]" for i in range(len(images))]
        self.classes, self._class_names = [""] * len(images), [""]
        if labels is not None:
            if labels.dtype.kind == "S":
                labels = np.char.decode(labels, "utf-8", "backslashreplace")
            self.classes = [str(one) for one in labels.tolist()]
            self._class_names = [str(one) for one in np.unique(labels).tolist()]

    @property
    def class_names(self) -> list[str]:
        return self._class_names  # Integers are in order: 10 after 9.

    def contents(self, index: int) -> bytes:
        return self._images[index].tobytes()

    def open(self, contents: bytes) -> Image.Image:
        flat = np.frombuffer(contents, self._images.dtype)
        return Image.fromarray(flat.reshape(self._images.shape[1:]))


def collect(path: Path) -> Collection:
    """The pictures in a folder, a zip or an npz.

    Raises:
        ValueError: It holds none, is none of these, or a folder cannot be read.
    """
    made: Collection
    if not path.is_dir():
        disk.require_files([path], "file")
    if path.is_dir():
        made = Tree(path)
    elif path.suffix.lower() == ".npz":
        made = Npz(path)
    elif path.suffix.lower() == ".zip":
        made = Zip(path)
    else:
        raise ValueError(f"{path} is no folder, zip or npz of images")
    if not made.names:
        about = f" ({'; '.join(made.left_out)})" if made.left_out else ""
        kinds = " ".join(sorted(suffixes()))
        raise ValueError(f"{path} holds no image{about}; looked for files of {kinds}")
    return made


def is_hidden(name: str) -> bool:
    """Whether a file below a folder is none that people see, such as ``.DS_Store``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def some(names: Sequence[str]) -> str:
    """The first names, for a sentence."""
    return ", ".join(names[:MAX_SHOWN]) + (" ..." if len(names) > MAX_SHOWN else "")


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


def _require_file(path: Path) -> None:
    if (why := disk.trouble(path)) is not None:
        raise ValueError(f"it {why}")


def _require_small(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise ValueError(f"it states {num_bytes:,} bytes, more than {MAX_BYTES:,}")


def _require_memory(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raise ValueError where an array is larger than the free memory, by its own statement."""
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
            member
        )
    stated = max(info.file_size, int(np.prod(shape, dtype=object)) * dtype.itemsize)
    if stated > (free := psutil.virtual_memory().available):
        raise ValueError(
            f"its array {info.filename.removesuffix('.npy')} states {stated:,} bytes, more than "
            f"the {free:,} of memory that are free; give the pictures as files in a folder or zip"
        )
