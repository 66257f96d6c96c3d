"""Files of ours: written whole or not at all, read small and plain. No torch here.

Whatever is read may be damaged, or a stranger's: it is refused in one sentence.
"""

import contextlib
import csv
import errno
import glob
import io
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

LARGEST = 2**24
"""Bytes of a checkpoint without its tensors, and of a config or a JSON file, at most."""

LARGEST_TABLE = 2**28
"""Bytes of a table that grows with the steps of a run, at most."""

LONGEST_NAME = 255
"""Bytes of a file's or a folder's name at most, on any usual file system."""

ENDINGS = frozenset(
    ".arm .csv .gif .jpg .json .md .mid .npy .npz .pdf .png .pt .safetensors .svg .txt .wav .yaml "
    ".zip".split()
)
"""Of files that verbs write, and of some that people may expect: no new folder is called so."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, or a quota, answers."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of ``path`` only when it is wholly on disk.

    A device or a pipe has no place to take: it is written to.

    Raises:
        OSError: It could not be written; where the disk is full, says what it takes.
    """
    if path.exists() and not path.is_file():
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            raise OSError(f"{path} could not be written: {error.strerror}") from error
        return
    remove_parts(path.parent, path.name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    written = 0
    try:
        with open(part, "xb") as file:  # never through a link that a stranger put there
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            finally:
                written = os.fstat(file.fileno()).st_size
        os.replace(part, path)
    except OSError as error:
        _tell_if_full(error, path, written)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` only when all its files are on disk.

    Args:
        path: Nothing, or an empty folder.

    Raises:
        FileExistsError: Something has been put there meanwhile.
        OSError: It could not be written; where the disk is full, says what it takes.
    """
    made = [one for one in path.parents if not one.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path.parent, path.name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        part.mkdir()
        try:
            yield part
            for file in filter(Path.is_file, part.rglob("*")):
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        finally:
            written = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        try:
            if path.is_dir():
                path.rmdir()  # where it is empty: Windows renames onto none
            os.rename(part, path)
        except OSError as error:
            if os.path.lexists(path):
                raise FileExistsError(
                    f"{path} has been made by another program meanwhile; name another folder"
                ) from error
            raise
    except OSError as error:
        _tell_if_full(error, path, written)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for one in made if not path.exists() else []:
            with contextlib.suppress(OSError):  # where another has put something there
                one.rmdir()


def _tell_if_full(error: OSError, path: Path, written: int) -> None:
    """Raise, where an error in writing is that of a full disk, one that says what it takes.

    Raises:
        OSError: The disk is full.
    """
    if error.errno in _FULL:
        sentence = f"{path} could not be written: {no_room(path, written)}"
        raise OSError(error.errno, sentence) from error


def as_path(named: str | os.PathLike, option: str) -> Path:
    """A path as a user named it, below their home where it begins with ``~``.

    Args:
        named: What the user named.
        option: By which it was named, for sentences.

    Raises:
        TypeError: It is neither text nor a path.
        ValueError: No file can be called so, or there is no such home.
    """
    if not isinstance(named, (str, os.PathLike)):
        raise TypeError(f"{option} is {named!r}; it must be text or a path")
    path = Path(named)
    try:
        longest = max(map(len, map(os.fsencode, path.parts)), default=0)
    except UnicodeEncodeError:
        longest = 0
    if "\0" in str(path) or (path.parts and not longest):
        raise ValueError(f"{option} is {str(path)!r}, which holds a character that no path can")
    if longest > LONGEST_NAME:
        raise ValueError(
            f"{option} is {str(path)[:50]}..., with a name of {longest} bytes; none may have more "
            f"than {LONGEST_NAME}"
        )
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{option} is {path}, but no home directory is known of {path.parts[0]}; write the "
            f"folder in full"
        ) from error


def _require_writable(folder: Path, out: Path, option: str) -> None:
    """Raise ValueError unless a file can be made in a folder: only a try tells it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} is {out}, but no file can be made in {folder} ({error.strerror}); name "
            f"another place"
        ) from error


def require_place(out: str | Path | None, *, mark: str | None = None, option: str = "out") -> None:
    """Raise ValueError where ``out`` cannot be written, before any work for it is done.

    Args:
        out: What the user named; None: nothing.
        mark: What stands near the beginning of the verb's own files, the only ones that are
            written over; None: the verb wants a folder.
        option: By which it was named, for sentences.
    """
    if out is None:
        return
    path = Path(out or ".")
    if as_path(out, option) != path:
        raise ValueError(
            f"{option} is {path}, and no shell has put a home directory in place of "
            f"{path.parts[0]}; write the folder in full"
        )
    if mark is None:
        if path.suffix.lower() in ENDINGS and not os.path.lexists(path):
            raise ValueError(
                f"{option} is {path}, which has a file's ending, but several files go into a "
                f"folder of that name; name one without the ending: "
                f"{option}={path.with_suffix('')}"
            )
        for folder in (path, *path.parents):
            if os.path.lexists(folder) and not folder.is_dir():
                which = "which" if folder == path else f"but {folder}"
                raise ValueError(
                    f"{option} is {path}, {which} is no folder; name one for the files"
                )
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        _require_writable(there, path, option)
        return
    if path.is_dir() or str(out).endswith(("/", os.sep)):
        raise ValueError(f"out is {out}, which is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"out is {path}, but there is no folder {path.parent}; make it first")
    if not os.path.lexists(path) or path.is_file():  # beside it, as ``atomic`` writes
        _require_writable(path.parent, path, option)
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            if mark.encode() not in file.read(1000):
                raise ValueError(
                    f"out is {path}, a file that this command has not written; name another, or "
                    f"remove it first"
                )


def no_room(path: Path, needed: int) -> str:
    """Why a file could not be written, where the disk is full."""
    free = shutil.disk_usage(path.parent).free
    takes = f", more than {size_of(needed)} needed" if needed else ""
    return f"the disk is full or limited ({size_of(free)} free{takes})"


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what processes that are gone were writing when they were killed."""
    for part in folder.glob(f".{glob.escape(name) if name != '*' else name}.*.part"):
        pid = part.name.split(".")[-2]
        if not pid.isdecimal() or lives(int(pid)):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    return 0 < pid < 2**31 and psutil.pid_exists(pid)


def write_json(path: Path, content: Mapping) -> None:
    """Write ``content`` atomically, indented; what is no number is null."""
    with atomic(path) as file:
        text = json.dumps(_as_json(content), indent=2, allow_nan=False)
        file.write(f"{text}\n".encode())


def _as_json(value: Any) -> Any:
    """The same in what JSON has: null for NaN and infinity, plain numbers for those of arrays."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(child) for child in value]
    if hasattr(value, "tolist"):  # an array, of NumPy or torch
        return _as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """What ``write_json`` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
        raise ValueError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no keys")
    return content


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file of a run, by the names of their columns; ``[]`` where there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    if not os.path.lexists(path):
        return []
    rows = csv.DictReader(io.StringIO(read_text(path, LARGEST_TABLE), newline=""))
    try:
        found = list(rows)
    except csv.Error as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for i, row in enumerate(found):
        if None in row:
            raise ValueError(f"{path} is damaged: row {i + 1} has more cells than columns")
    return found


def write_csv(path: Path, names: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write rows under the names of their columns, atomically; numbers are not rounded.

    Args:
        path: The file.
        names: Of the columns.
        rows: Their cells.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(names)
    table.writerows(rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


_NO_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def trouble(path: Path) -> str | None:
    """Why no file can be read at a path, in words that follow its name; None: one can.

    Nothing is opened: a pipe would never end.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and path.is_symlink():
            return f"is a broken link: it leads to {os.readlink(path)}, which does not exist"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "does not exist"
        return f"cannot be read ({error.strerror})"
    for is_kind, kind in _NO_FILES:
        if is_kind(mode):
            return f"is {kind}, no file"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def require_files(paths: Iterable[Path], what: str) -> None:
    """Raise ValueError unless each path leads to a file that can be read.

    Args:
        paths: Of the user's own files.
        what: One of them is, for the sentence.
    """
    for path in paths:
        if (why := trouble(path)) is not None:
            raise ValueError(f"{what} {path} {why}; mend or remove it")


def read_text(path: Path, most: int = LARGEST) -> str:
    """A small text file of a run.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, no text, or too large.
    """
    if not path.is_file():  # such as a pipe, which would never end
        raise FileNotFoundError(f"{path} is missing, or is no file")
    if path.stat().st_size > most:
        raise ValueError(f"{path} is refused: it is larger than any that armodels writes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror})") from error


def size_of(num_bytes: float) -> str:
    """A number of bytes, for people."""
    power = min(int(math.log(max(num_bytes, 1), 1000)), 4)
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"
