"""Columns of numbers from users' own files: csv, tsv, npy, npz and parquet."""

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

PARTS = ("train", "valid", "test")
DELIMITERS = ",;\t|"
MISSING = {"", "?", "na", "n/a", "nan", "null", "none"}
"""Cells of text, in small letters, that stand for no value."""

Columns = dict[str, Sequence]
"""Name -> cells, as the file has them: numbers, text or None."""


def read_columns(
    path: Path, *, array: str | None, header: bool | None, delimiter: str | None
) -> dict[str, Columns]:
    """The columns of a file: by ``"train"``, ``"valid"`` and ``"test"`` where it says, else by "".

    Args:
        path: Its ending says what it is.
        array: Which array of a npz file; None: train, valid and test, or the only one.
        header: Whether the first line of text holds names; None: it does if no cell is a number.
        delimiter: Between cells of text; None: found out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read as columns.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".npy", ".npz", ".parquet"):
        raise ValueError(f"data.path is {path}; its ending must be csv, tsv, npy, npz or parquet")
    if not path.is_file():
        raise FileNotFoundError(f"table {path} does not exist; name a file with data.path")
    if kind in (".csv", ".tsv"):
        return {"": _read_text(path, header, "\t" if kind == ".tsv" else delimiter)}
    if kind == ".parquet":
        return {"": _read_parquet(path)}
    return _read_arrays(path, array)


def to_numbers(cells: Sequence, column: str) -> np.ndarray:
    """Cells as float64, (N,).

    Args:
        cells: Of one column.
        column: What messages call it, the file included.

    Raises:
        ValueError: A cell is missing, infinite or no number; names the first one.
    """
    cells = np.asarray(cells)
    if cells.dtype.kind in "fiub":
        values = cells.astype(np.float64)
    else:
        values = np.empty(len(cells))
        for i, cell in enumerate(cells.tolist()):
            try:
                values[i] = _number(str(cell))
            except ValueError as error:
                raise ValueError(
                    f"{column} is not numeric: row {i + 1} holds {str(cell)!r:.40}; leave it out "
                    f"with data.drop, or encode it as numbers"
                ) from error
    for what, bad in (("missing", np.isnan(values)), ("infinite", np.isinf(values))):
        if bad.any():
            values_are = "1 value is" if bad.sum() == 1 else f"{bad.sum()} values are"
            raise ValueError(
                f"{column} cannot be used: {values_are} {what}, the first in row "
                f"{bad.argmax() + 1}; fill or remove such rows, or leave it out with data.drop"
            )
    return values


def _number(cell: str) -> float:
    """What a cell of text says; NaN where it is missing."""
    if cell.strip().lower() in MISSING:
        return np.nan
    if "_" in cell:  # Python reads 2020_01 as 202001
        raise ValueError(cell)
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        return not np.isnan(_number(cell))
    except ValueError:
        return False


def _named(names: Iterable[str], columns: Iterable[Sequence], path: Path) -> Columns:
    """Columns by name; one without a name is called by its place, from 0."""
    names = [name.strip() or str(i) for i, name in enumerate(names)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"table {path} has two columns called {twice[0]!r}; rename one")
    return dict(zip(names, columns, strict=True))


def _read_text(path: Path, header: bool | None, delimiter: str | None) -> Columns:
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = delimiter or _sniff(text)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error, TypeError) as error:  # the last: of the delimiter
        raise ValueError(f"table {path} cannot be read as text: {error}") from error
    rows = [row for row in rows if row]  # without blank lines
    if not rows:
        raise ValueError(f"table {path} is empty")
    if header is None:
        header = not any(map(_is_number, rows[0]))
    names = rows.pop(0) if header else [""] * len(rows[0])
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"table {path} has {len(names)} columns, but {len(row)} in row {i + 1} "
                f"(delimiter {delimiter!r}; another is set by data.delimiter)"
            )
    # Objects: an array of strings gives each the room of the longest.
    cells = np.array(rows, dtype=object).reshape(len(rows), len(names))
    return _named(names, cells.T, path)


def _sniff(text: str) -> str:
    """The delimiter of the first lines; a comma where there is none, as in a single column."""
    sample = "\n".join(text[:100_000].splitlines()[:20])
    try:
        return csv.Sniffer().sniff(sample, DELIMITERS).delimiter
    except csv.Error:
        return ","


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"table {path} is read by pyarrow, which is not installed: "
            f"pip install 'armodels[parquet]'"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"table {path} cannot be read as parquet: {_line(error)}") from error
    return _named(table.column_names, (column.to_numpy() for column in table.columns), path)


def _read_arrays(path: Path, name: str | None) -> dict[str, Columns]:
    try:
        with open(path, "rb") as file:
            content = np.load(file)
            # An archive is read while it is open.
            arrays = dict(content) if path.suffix.lower() == ".npz" else {"": content}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"table {path} cannot be read as arrays: {_line(error)}") from error
    if name is not None:
        if name not in arrays:
            raise ValueError(f"data.array is {name!r}; {path} holds {', '.join(arrays) or 'none'}")
        arrays = {"": arrays[name]}
    elif set(PARTS) <= set(arrays):
        arrays = {part: arrays[part] for part in PARTS}
    elif len(arrays) == 1:
        arrays = {"": next(iter(arrays.values()))}
    else:
        raise ValueError(
            f"table {path} holds the arrays {', '.join(arrays) or 'none'}; choose one with "
            f"data.array=NAME, or name three of them {', '.join(PARTS)}"
        )
    return {part: _array_columns(array, path) for part, array in arrays.items()}


def _array_columns(array: np.ndarray, path: Path) -> Columns:
    if array.dtype.names and array.ndim == 1:
        return _named(array.dtype.names, (array[name] for name in array.dtype.names), path)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"table {path} has an array of shape {array.shape}; it must be (N, D)")
    return _named([""] * array.shape[1], array.T, path)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
