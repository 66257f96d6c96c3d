"""What takes long to decode or record, kept in one file that is read through a memory map."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
from filelock import FileLock, Timeout

from armodels import show
from armodels.data.mapped import MappedRows

MAX_VERIFIED = 2**30
"""Bytes of a cache that are read at the start for their checksums; of a larger one, which would
take minutes, each batch is checked for the support alone."""

_VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, of a user's full share, and of a file at its limit."""


@final
class Cache:
    """A cache while it is made: ``write`` its arrays, set ``meta``.

    Args:
        path: What it will be called.
    """

    def __init__(self, path: Path):
        self._path = path
        self._archive: zipfile.ZipFile
        self._scratch: list[BinaryIO] = []
        self._copied = 0  # Bytes of the scratch arrays: all may be written once more.
        self._needed = 0
        self._shapes: dict[str, tuple[str, list[int]]] = {}
        self.meta: dict[str, Any] = {}

    def fill(self, file: BinaryIO, make: Callable[["Cache"], None]) -> None:
        """Write into ``file`` what ``make`` gives."""
        try:
            with zipfile.ZipFile(file, "w") as self._archive:
                make(self)
                about = {"shapes": self._shapes, "meta": self.meta}
                # A ZipInfo has no date, so that equal contents are equal bytes.
                self._archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(about))
        finally:
            for one in self._scratch:
                one.close()

    def scratch(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array on disk that vanishes with the cache's making.

        Raises:
            OSError: The disk has no room for it and for its copy in the cache.
        """
        num_bytes = math.prod(shape)
        self._copied += num_bytes
        self.require_room(num_bytes + self._copied)
        file = TemporaryFile(dir=self._path.parent)
        self._scratch.append(file)
        # A memory map of a file with holes kills the process where the disk is full.
        _reserve(file, num_bytes)
        return np.memmap(file, np.uint8, "r+", shape=shape)

    def write(self, name: str, array: np.ndarray, rows: np.ndarray) -> None:
        """Append the given rows of an array as member ``name``.

        Args:
            name: Of the member.
            array: (N, ...).
            rows: Indices (M,) into the array, in the order in which they are written.

        Raises:
            OSError: The disk has no room for them.
        """
        self.require_room(len(rows) * math.prod(array.shape[1:]) * array.dtype.itemsize)
        with self._archive.open(name, "w", force_zip64=True) as member:
            for start in range(0, len(rows), 1024):
                member.write(np.ascontiguousarray(array[rows[start : start + 1024]]).data)
        self._shapes[name] = (array.dtype.str, [len(rows), *array.shape[1:]])

    def require_room(self, num_bytes: int) -> None:
        """Raise OSError where fewer bytes are free."""
        self._needed = num_bytes
        if num_bytes > shutil.disk_usage(self._path.parent).free:
            raise self.full("no space left")

    def full(self, reason: str) -> OSError:
        """What to raise where the disk is full."""
        free = shutil.disk_usage(self._path.parent).free
        return OSError(
            f"cache {self._path} cannot be written ({reason}): {_size(self._needed)} more are "
            f"needed, {_size(free)} are free there; make room, or name a folder elsewhere with "
            f"data.cache"
        )


def _reserve(file: BinaryIO, num_bytes: int) -> None:
    """Make a file so long, with a place on the disk for every byte."""
    if num_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    zeros = bytes(2**20)
    for start in range(0, num_bytes, len(zeros)):
        file.write(zeros[: num_bytes - start])
    file.flush()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"


class Loaded(NamedTuple):
    """A cache as read: arrays over a memory map of the file, and what was noted beside them."""

    arrays: Mapping[str, MappedRows]
    meta: Mapping[str, Any]
    checksum: str
    """Of the arrays, whatever they were made from, and wherever it lay."""


def cached(root: Path, only: str | None, name: str, make: Callable[[Cache], None]) -> Loaded:
    """Read the cache ``NAME-v1.zip``; make it first where there is none.

    One that lies in any of the places is read: ``only``, the user's cache, ``root/cache``. Of
    several processes that need the same cache, one makes it and the others wait.

    Args:
        root: Folder of the data, where a cache goes if the user's cannot be written.
        only: ``data.cache``, the folder in which alone a cache is made; None: the user's, which
            is $ARMODELS_CACHE, else $XDG_CACHE_HOME/armodels/cache, else ~/.cache/armodels/cache.
        name: Says all that the contents depend on.
        make: Fills it.

    Raises:
        ValueError: The file is corrupted.
        OSError: It cannot be written.
    """
    file_name = f"{name}-v{_VERSION}.zip"
    users = _users_cache()
    chosen = [Path(os.path.expanduser(only))] if only else [one for one in [users] if one]
    places = [*chosen, *([users] if only and users else []), root / "cache"]
    for place in places:
        if (place / file_name).is_file():
            return _read(place / file_name)
    allowed = chosen if only else places
    folder = next(filter(_writable, allowed), None)
    if folder is None:
        raise OSError(
            f"what is decoded cannot be kept in {' or '.join(map(str, allowed))}, which cannot be "
            f"written; name another folder with data.cache"
        )
    if folder != allowed[0]:
        show.say(f"{allowed[0]} cannot be written; what is decoded goes to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    cache = Cache(path)
    try:
        with _only_one(path) as file:
            if file is not None:
                cache.fill(file, make)
    except OSError as error:
        if error.errno in _FULL:
            raise cache.full(error.strerror or "no space left") from error
        raise
    return _read(path)


def _users_cache() -> Path | None:
    """The user's own place for caches; None where they have neither named one nor a home."""
    if own := os.environ.get("ARMODELS_CACHE"):
        return Path(os.path.expanduser(own))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "armodels", "cache") if os.path.isabs(base) else None


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    # The mode counts for root, too: a folder that nobody may write is not meant for a cache.
    may = os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)
    return folder.is_dir() and may


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[BinaryIO | None]:
    """A file that becomes ``path`` when all went well; None if another process has made it."""
    part = path.with_name(f".{path.name}.part")
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        show.say(f"waiting for another process, which makes {path}")
        lock.acquire()
    try:
        if path.exists():
            yield None
            return
        _remove_left_parts(path.parent)
        try:
            with open(part, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    finally:
        lock.release()


def _remove_left_parts(folder: Path) -> None:
    """What processes that were killed had made of caches, which nobody works on."""
    for part in folder.glob(".*.zip.part"):
        with contextlib.suppress(Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
            part.unlink(missing_ok=True)


def _read(path: Path) -> Loaded:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
            whole = path.stat().st_size <= MAX_VERIFIED
            if whole and (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{bad} does not have its checksum")
            about = json.loads(archive.read("about.json"))
            sums = sorted((name, archive.getinfo(name).CRC) for name in about["shapes"])
            for name, (dtype, shape) in about["shapes"].items():
                start = archive.getinfo(name).header_offset
                raw.seek(start + 26)
                start += 30 + sum(struct.unpack("<HH", raw.read(4)))  # The name, the extra field.
                mapped = np.memmap(path, dtype, "r", offset=start, shape=tuple(shape))
                arrays[name] = MappedRows(mapped)
    except (zipfile.BadZipFile, KeyError, ValueError, struct.error, zlib.error) as error:
        what = str(error) or type(error).__name__
        raise ValueError(
            f"cache {path} is corrupted ({what}); delete it and it is made anew"
        ) from error
    facts = repr([sums, sorted(about["shapes"].items())])
    return Loaded(arrays, about["meta"], hashlib.sha256(facts.encode()).hexdigest())
