"""Columns of numbers from users' own files: text of any dialect, npy, npz and parquet."""

import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from armodels import disk
from armodels.data.base import PARTS
from armodels.data.dialect import FEW_ROWS, Text, is_whole, say_once, warn_once
from armodels.data.marks import BLANKS, MISSING, WAYS, Numbers, Options, overrides

TEXT = (".csv", ".tsv", ".txt", ".data", ".dat")
ENDINGS = (*TEXT, ".npy", ".npz", ".parquet")

BOMB = (1 << 30, 100)
"""A file that would unpack to so many bytes, and so many times its own, is not unpacked."""

EXACT = 2**53
"""Whole numbers below it are themselves as floats."""

_DATE = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4}|\d\d?:\d\d")
_UNREADABLE: tuple[type[Exception], ...]
_UNREADABLE = (ValueError, TypeError, OSError, EOFError, RuntimeError, NotImplementedError)
_UNREADABLE += (KeyError, zlib.error, zipfile.BadZipFile)


class Columns(NamedTuple):
    """The columns of one table."""

    cells: dict[str, Sequence | np.ndarray]
    """Name -> cells, as the file has them: numbers, text or None."""
    numbers: Numbers
    """How cells of text write numbers."""
    aside: dict[str, str]
    """Names of columns that are no data, and why."""


def read_columns(path: Path, array: str | None, options: Options) -> dict[str, Columns]:
    """The columns of a file: by ``"train"``, ``"valid"`` and ``"test"`` where it says, else by "".

    Args:
        path: Its ending says what it is: one of ``ENDINGS``; text may be packed as gz or zip.
        array: Which array of a npz file; None: train, valid and test, or the only one.
        options: What the user says about a text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read as columns, or in more than one way.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packed = bool(endings) and endings[-1] in (".gz", ".zip")
    kind = ("", *endings)[-2 if packed and endings[-1] == ".gz" else -1]
    if kind not in (*(TEXT if packed else ENDINGS), *([".zip"] if packed else [])):
        raise ValueError(
            f"data.path is {path}; its ending must be {', '.join(e[1:] for e in ENDINGS[:-1])} or "
            f"{ENDINGS[-1][1:]}; text may be packed as gz or zip"
        )
    if not path.is_file():
        raise FileNotFoundError(f"table {path} {disk.trouble(path)}; name a file with data.path")
    if kind == ".parquet":
        return {"": _read_parquet(path)}
    if kind in (".npy", ".npz"):
        return _read_arrays(path, kind, array)
    if array is not None:
        raise ValueError(f"data.array is {array!r}; {path} holds no arrays, only columns")
    content = _unpacked(path) if packed else path.read_bytes()
    if kind == ".tsv" and options.delimiter is None:
        options = Options(**{**vars(options), "delimiter": "tab"})
    text = Text(path, content, options)
    columns = [text.frame[i] for i in range(len(text.names))]
    return {"": _named(text.names, columns, path, text.numbers)}


def to_numbers(columns: Columns, name: str, where: str, *, leave_out: str) -> np.ndarray:
    """Cells of a column as float64, (N,); NaN where they are missing.

    Args:
        columns: Of one table.
        name: Of the column.
        where: What messages call the table.
        leave_out: The override by which the column is left out.

    Raises:
        ValueError: A cell is infinite or no number; names the first one.
    """
    cells, what = np.asarray(columns.cells[name]), f"column {name!r} of {where}"
    if cells.ndim != 1:
        raise ValueError(
            f"{what} is not numeric: its cells are arrays of shape {cells.shape[1:]}; leave it "
            f"out with {leave_out}"
        )
    if cells.dtype.kind == "S":
        cells = np.char.decode(cells, "latin-1")
    if cells.dtype.kind in "fiub":
        values = cells.astype(np.float64)
    else:
        # Some dates would become whole numbers in a list of the array's own.
        texts = map(str, cells if cells.dtype.kind in "mM" else cells.tolist())
        values = _read_texts([*texts], what, columns.numbers, leave_out)
    lost = _first_rounded(cells, values)
    if lost is not None:
        warn_once(
            f"{what} holds whole numbers of too many digits, such as {cells[lost]} in row "
            f"{lost + 1}, which is read as {values[lost]:.0f}; {leave_out} leaves it out"
        )
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(
            f"{what} cannot be used: {infinite.sum()} of its values are infinite, the first in "
            f"row {infinite.argmax() + 1}; mend such rows, or leave it out with {leave_out}"
        )
    return values


def _first_rounded(cells: np.ndarray, values: np.ndarray) -> int | None:
    """Index of the first whole number that is another one as a float64; None: there is none."""
    if cells.dtype.kind != "f":
        for i in np.flatnonzero((abs(values) >= EXACT) & np.isfinite(values)):
            text = str(cells[i]).strip()
            if is_whole(text) and int(text) != int(values[i]):
                return int(i)
    return None


def _read_texts(cells: list[str], what: str, numbers: Numbers, leave_out: str) -> np.ndarray:
    words = [cell.strip().lower() for cell in cells]
    if {"true", "false"} & set(words) and {*words} <= {"true", "false", *MISSING}:
        switch = {"true": 1.0, "false": 0.0}
        return np.array([switch.get(word, np.nan) for word in words])
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            values[i] = numbers.read(cell)
        except ValueError as error:
            if _DATE.match(cell.strip()):
                raise ValueError(
                    f"{what} holds dates or times, such as {cell!r:.40} in row {i + 1}; turn them "
                    f"into numbers, such as days since the first, or leave it out with {leave_out}"
                ) from error
            way = next((way for way in (*WAYS, *BLANKS) if way.reads(cell)), None)
            other = f"is it a number with {overrides(*way.marks())}? Else " if way else ""
            raise ValueError(
                f"{what} is not numeric: row {i + 1} holds {cell!r:.40}; {other}leave it out with "
                f"{leave_out}, or encode it as numbers"
            ) from error
    return values


def _named(
    names: Iterable[str],
    columns: Sequence[Sequence | np.ndarray],
    path: Path,
    numbers: Numbers = WAYS[0],
) -> Columns:
    """Columns by name; one without a name is called by its number, from 0."""
    written = [str(name).strip() for name in names]
    names = [name or str(i) for i, name in enumerate(written)]
    name, times = Counter(names).most_common(1)[0] if names else ("", 1)
    if times > 1:
        raise ValueError(f"table {path} has two columns called {name!r}; rename one")
    aside = {}
    if len(names) > 1 and not written[0] and _numbers_rows(np.asarray(columns[0]), any(written)):
        aside[names[0]] = "it has no name and numbers the rows"
    if len(names) > 1 and not written[-1] and any(written) and _is_empty(np.asarray(columns[-1])):
        aside[names[-1]] = "it has neither a name nor a value"
    return Columns(dict(zip(names, columns, strict=True)), numbers, aside)


def counts_rows(cells: np.ndarray) -> bool:
    """Whether cells are whole and go up by 1, as rows are numbered."""
    if cells.dtype.kind not in "iuf" or not len(cells) or cells[0] % 1:
        return False
    return bool((cells == np.arange(len(cells)) + cells[0]).all())


def _numbers_rows(cells: np.ndarray, named: bool) -> bool:
    """Whether cells without a name are an index: others have names, or they plainly count."""
    if not named:
        return len(cells) >= FEW_ROWS and counts_rows(cells) and cells[0] in (0, 1)
    whole = cells.dtype.kind in "iu" or (cells.dtype.kind == "f" and bool((cells % 1 == 0).all()))
    return whole and len(np.unique(cells)) == len(cells)


def _is_empty(cells: np.ndarray) -> bool:
    return all(str(cell).strip().lower() in MISSING for cell in cells.tolist())


# What is packed


def _refuse_bomb(path: Path, stated: int, packed: int) -> None:
    if stated > max(BOMB[0], BOMB[1] * packed):
        raise ValueError(
            f"table {path} of {packed:,} bytes would unpack to {stated:,} or more, so it is not "
            f"read; unpack it yourself if that is meant"
        )


def _unpacked(path: Path) -> bytes:
    """The text in a gz, or in a zip of one file."""
    packed = path.stat().st_size
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
                if len(infos) == 1:
                    _refuse_bomb(path, infos[0].file_size, packed)
                    return archive.read(infos[0])
        else:
            with gzip.open(path) as file:  # The size that a gz states may be wrong.
                content = file.read(max(BOMB[0], BOMB[1] * packed) + 1)
            _refuse_bomb(path, len(content), packed)
            return content
    except _UNREADABLE as error:
        raise _unreadable(path, "cannot be unpacked", error) from error
    raise ValueError(f"table {path} holds {len(infos)} files; unpack it, and name one of them")


def _is_zip(path: Path) -> bool:
    """Whether a file begins as a zip; what tells ``zipfile`` so is its end."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unreadable(path: Path, what: str, error: Exception) -> ValueError:
    """One sentence; our own stays as it is."""
    if isinstance(error, EOFError) or (_is_zip(path) and not zipfile.is_zipfile(path)):
        return ValueError(f"table {path} is cut short: its end is missing; fetch it again")
    text = " ".join(str(error).split()) or type(error).__name__
    ours = isinstance(error, ValueError) and text.startswith((f"table {path} ", "data."))
    return ValueError(text if ours else f"table {path} {what}: {text}")


# Parquet and arrays


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"table {path} is read by pyarrow, which is not installed: "
            f"pip install 'armodels[parquet]'"
        ) from error
    import pandas

    try:
        stated = pyarrow.parquet.ParquetFile(path).metadata
        _refuse_bomb(path, 8 * stated.num_rows * stated.num_columns, path.stat().st_size)
        frame = pandas.read_parquet(path)
    except (*_UNREADABLE, pyarrow.ArrowException) as error:
        raise _unreadable(path, "cannot be read as parquet", error) from error
    if not isinstance(frame.index, pandas.RangeIndex):
        say_once(f"table {path}: its index {str(frame.index.name)!r} is left out")
    return _named(frame.columns, [frame.iloc[:, i] for i in range(frame.shape[1])], path)


def _read_arrays(path: Path, kind: str, name: str | None) -> dict[str, Columns]:
    def choose(names: list[str]) -> dict[str, str]:
        listed = ", ".join(names) or "none"
        if name is not None:
            if name in names:
                return {"": name}
            raise ValueError(f"data.array is {name!r}; {path} holds {listed}")
        if set(PARTS) <= set(names):
            return {part: part for part in PARTS}
        if len(names) == 1:
            return {"": names[0]}
        raise ValueError(
            f"table {path} holds the arrays {listed}; choose one with data.array=NAME, or name "
            f"three of them {', '.join(PARTS)}"
        )

    with open(path, "rb") as file:
        if _is_zip(path) != (kind == ".npz"):
            raise ValueError(f"table {path} is no {kind[1:]} file by its contents")
        arrays = load_npz(path, file, choose) if kind == ".npz" else _load_npy(path, file, name)
    return {part: _array_columns(array, path) for part, array in arrays.items()}


def _load_npy(path: Path, file: BinaryIO, name: str | None) -> dict[str, np.ndarray]:
    if name is not None:
        raise ValueError(f"data.array is {name!r}; {path} holds a single array without a name")
    try:
        _require_size(file, path.stat().st_size)
        file.seek(0)
        return {"": np.load(file)}
    except _UNREADABLE as error:
        raise _unreadable(path, "cannot be read as an array", error) from error


def load_npz(
    path: Path, file: BinaryIO, choose: Callable[[list[str]], dict[str, str]]
) -> dict[str, np.ndarray]:
    """Arrays of a npz file, by new names.

    Args:
        path: What messages call it.
        file: It, open.
        choose: The names that there are -> the names of those to load, by their new ones.

    Raises:
        ValueError: It cannot be read, or states more than it holds.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {i.filename.removesuffix(".npy"): i.file_size for i in archive.infolist()}
            chosen = choose(list(sizes))
            packed = file.seek(0, io.SEEK_END)
            _refuse_bomb(path, sum(sizes[name] for name in chosen.values()), packed)
            for name in chosen.values():
                with archive.open(f"{name}.npy") as member:
                    _require_size(member, sizes[name])
        file.seek(0)
        with np.load(file) as arrays:
            return {new: arrays[name] for new, name in chosen.items()}
    except _UNREADABLE as error:
        raise _unreadable(path, "cannot be read as arrays", error) from error


def _require_size(file: IO[bytes], size: int) -> None:
    """Raise ValueError where an array states more than is there: NumPy would make room for it."""
    version = np.lib.format.read_magic(file)
    old = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    stated, held = int(np.prod(shape, dtype=object)) * dtype.itemsize, size - file.tell()
    if not dtype.hasobject and stated != held:
        raise ValueError(
            f"an array of shape {shape} takes {stated:,} bytes, and {held:,} are there; the file "
            f"is cut or forged"
        )


def _array_columns(array: np.ndarray, path: Path) -> Columns:
    if array.dtype.names and array.ndim == 1:
        return _named(array.dtype.names, [array[name] for name in array.dtype.names], path)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"table {path} has an array of shape {array.shape}; it must be (N, D)")
    return _named([""] * array.shape[1], list(array.T), path)
