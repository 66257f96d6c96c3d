"""Tables of rows without an order in space or time: binary UCI data, red wine, users' own."""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import torch

from armodels import show
from armodels.checks import Between, Range, Seed, checked
from armodels.data import files
from armodels.data.base import PARTS, Source, Splits, data_root, read_files, split_rows
from armodels.data.dialect import FEW_ROWS, say_once, warn_once
from armodels.data.marks import Options
from armodels.data.scale import merged, standardization
from armodels.spec import Coding, DataSpec, Standardization

Names = Sequence[str | int]
"""Of columns: words, or numbers where there are none."""

NO_DOWNLOAD = "armodels has no place to download them from"

UCI_SIZES = {"connect4": 126, "dna": 180, "mushrooms": 112, "nips": 500}
"""D of each binary data set."""

UCI_CHECKSUMS = {
    "connect4.npz": "5a3672159542a62b6d09081e07e8ac6e",
    "dna.npz": "c323616a83bbde26f96d1c305a82c54b",
    "mushrooms.npz": "3e1b571de4e8d9b99672ddff0e8e953d",
    "nips.npz": "66a87b796a1fc6fe3f1df0a99b4f7e64",
}

WINE_CHECKSUMS = {"red_wine.hdf5": "6e557a7621658e24b18b1eee72b52947"}
WINE_DIMS = 11
NUM_FOLDS = 10
SPLIT_SEED = 0

FEW_VALUES = 0.05
"""Distinct values per row below which a column of a user's own table looks discrete."""

MAX_LEVELS = 256

OFTEN = 10
"""Whole numbers that each stand so often in a table, on average, look like levels."""

MERGED = (0.5, 10_000)
"""A column of which more than this share is told apart no longer once it is standardized is
refused; so many rows, evenly chosen, show it."""


@final
class BinaryUCI(Source):
    """Binary attributes of UCI data sets, with the splits of the NADE and MADE papers.

    Args:
        name: ``"connect4"`` (16,000 / 4,000 / 47,557 rows of 126 values), ``"dna"``
            (1,400 / 600 / 1,186 of 180), ``"mushrooms"`` (2,000 / 500 / 5,624 of 112),
            ``"nips"`` (400 / 100 / 1,240 of 500), or that of any file of the same layout, which
            is then read for its width, and named by its checksum.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The files are
            ``binary_uci/NAME.npz`` with arrays ``train``, ``valid`` and ``test`` of 0 and 1.

    Raises:
        ValueError: The name cannot be that of a file.

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        https://proceedings.mlr.press/v15/larochelle11a.html

    Differs from the paper: nothing known.
    """

    @checked
    def __init__(self, name: str = "mushrooms", root: str | None = None):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"data.name is {name!r}; it names a file binary_uci/NAME.npz, by letters, digits, "
                f"dots, dashes and underscores"
            )
        self.name = name
        self.root = data_root(root)

    @property
    def spec(self) -> DataSpec:
        if self.name in UCI_SIZES:
            width, name = UCI_SIZES[self.name], f"binary_uci-{self.name}"
        else:
            contents, parts = self._read
            width = parts[0].shape[1]
            digest = hashlib.md5(contents, usedforsecurity=False).hexdigest()
            name = f"binary_uci-{self.name}-{digest[:8]}"
        return DataSpec(name, "vector", (width,), 2, "probability")

    @cached_property
    def _read(self) -> tuple[bytes, list[np.ndarray]]:
        """The contents of the file, and the arrays in it."""
        file, folder = f"{self.name}.npz", self.root / "binary_uci"
        checksums = {file: UCI_CHECKSUMS.get(file)}
        known = "" if self.name in UCI_SIZES else f" (known are {', '.join(UCI_SIZES)})"
        (contents,) = read_files(folder, checksums, None, NO_DOWNLOAD + known)
        arrays = files.load_npz(
            folder / file,
            io.BytesIO(contents),
            lambda names: {part: part for part in PARTS if part in names},
        )
        parts = list(arrays.values())
        if len(parts) < len(PARTS) or any(part.ndim != 2 for part in parts):
            raise ValueError(f"{folder / file} must hold train, valid and test, each (N, D)")
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(f"the arrays of {folder / file} have different numbers of columns")
        for part, rows in zip(PARTS, parts, strict=True):
            good = np.isin(rows, (0, 1))
            if not good.all():
                row, column = np.argwhere(~good)[0]
                raise ValueError(
                    f"{part} of {folder / file} must be 0 and 1, but holds {rows[row, column]} in "
                    f"row {row + 1}, column {column}"
                )
        return contents, [part.astype(np.uint8) for part in parts]

    def load(self) -> Splits:
        return Splits(self.spec, *map(torch.from_numpy, self._read[1]))


@final
class RedWine(Source):
    """Eleven physicochemical features of 1,599 red wines, standardized, in ten folds.

    The fold is the test set, 159 rows (168 for the last). Of the other rows, nine tenths are train
    and one tenth, drawn by a fixed seed, is valid. Each feature has the mean and standard
    deviation of train and valid together taken out, as in the paper, and that is the datum: nats
    are those of standardized features (``log_det`` is 0), and the mean over the ten folds
    is what the literature reports.

    240 rows repeat another one and many features have few distinct values, so a density
    without a floor on its scales has no bound.

    Args:
        fold: 0 to 9. Each is a data set of its own: numbers of two folds are not ranked.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The file is
            ``tabular/red_wine.hdf5``.

    Raises:
        ValueError: There is no such fold.

    References:
        Modeling wine preferences by data mining from physicochemical properties (Cortez et al.,
        2009) https://archive.ics.uci.edu/dataset/186
        RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013; the
        folds) https://arxiv.org/abs/1306.0186

    Differs from the paper: which rows are valid is not known, and ours are never trained on.
    """

    @checked
    def __init__(self, fold: Annotated[int, Range(0, NUM_FOLDS - 1)] = 0, root: str | None = None):
        self.fold = fold
        self.root = data_root(root)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(f"red_wine-fold{self.fold}", "vector", (WINE_DIMS,), None, "density")

    def load(self) -> Splits:
        (contents,) = read_files(self.root / "tabular", WINE_CHECKSUMS, None, NO_DOWNLOAD)
        rows = _wine_rows(contents).astype(np.float64)
        size = len(rows) // NUM_FOLDS
        last = self.fold == NUM_FOLDS - 1
        fold = slice(self.fold * size, None if last else (self.fold + 1) * size)
        test, rest = rows[fold], np.delete(rows, np.arange(len(rows))[fold], axis=0)
        mean, std = rest.mean(0), rest.std(0)
        num_valid = len(rest) // 10
        sizes = (len(rest) - num_valid, num_valid)
        train, valid = (rest[chosen] for chosen in split_rows(len(rest), sizes, SPLIT_SEED))
        spec = self.spec
        return Splits(
            spec,
            *(
                torch.from_numpy((part - mean) / std).to(spec.dtype)
                for part in (train, valid, test)
            ),
        )


def _wine_rows(contents: bytes) -> np.ndarray:
    """The data set ``all/data`` of the HDF5 file: (N, 11) float32.

    It lies in one piece, and the ten folds of the file are its tenths; with the md5 of the file
    known, so is the place, and the project needs no HDF5 library to read one array.
    """
    start, num_rows = 2144, 1599
    values = np.frombuffer(contents, "<f4", count=num_rows * WINE_DIMS, offset=start)
    return values.reshape(num_rows, WINE_DIMS)


@final
class Table(Source):
    """A user's own table: text, npy, npz or parquet.

    A table of 0 and 1 alone has two levels, and so its nats are of probabilities. Of any other
    table each column has the mean and standard deviation of its training rows taken out. Both
    travel in the spec, so also in every checkpoint; nats are those of the original units, and
    samples are written in them.

    Rows are counted from 1, without the header. The data is named by the file and a checksum of
    names, values and splits, so that no two tables share a ranking.

    Args:
        path: The file, relative to the shell's directory; its ending says what it is.
        columns: Names of those to keep, in this order; None: all. Where the file has no names,
            columns are called 0, 1, ... .
        drop: Names of those to leave out.
        array: Which array of a npz file; None: ``train``, ``valid`` and ``test`` where it has
            all three, which then are the splits, else its only one.
        header: Whether the first line of a text holds names; None: found out, or asked for.
        delimiter: Of a text: ``"comma"``, ``"semicolon"``, ``"tab"``, ``"bar"``, ``"blanks"`` or a
            character; None: found out.
        decimal: Mark in numbers of a text, ``"point"`` or ``"comma"``; None: found out.
        thousands: Mark in numbers of a text, such as ``"comma"`` or ``"blank"``; None: found out.
        encoding: Of a text, such as ``"latin-1"``; None: found out.
        levels: ``"binary"``: 2 where all values are 0 or 1, else None. ``"auto"``: as many as
            there are different values where all are whole and at most 256 differ, else None. L,
            of 2 to 256: all values are of {0 .. L-1}. None: real values.
        missing: ``"refuse"`` a table that lacks cells, or ``"drop"`` the rows that lack one.
        valid: Fraction of the rows.
        test: Fraction of the rows.
        split_seed: Draws which rows are train, valid and test.

    Raises:
        ValueError: The fractions leave no rows to train on, or ``levels`` or ``missing`` is no
            choice.
    """

    @checked
    def __init__(
        self,
        path: str | os.PathLike,
        columns: Names | None = None,
        drop: Names = (),
        array: str | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        thousands: str | None = None,
        encoding: str | None = None,
        levels: Literal["binary", "auto"] | Annotated[int, Range(2, MAX_LEVELS)] | None = None,
        missing: Literal["refuse", "drop"] = "refuse",
        valid: Between = 0.1,
        test: Between = 0.1,
        split_seed: Seed = 0,
    ):
        if valid + test >= 1:
            raise ValueError(
                f"data.valid is {valid} and data.test {test}; together they must leave rows to "
                f"train on"
            )
        self.path = Path(path).expanduser()
        self.columns = None if columns is None else [str(name) for name in columns]
        self.drop = [str(name) for name in drop]
        self.array = array
        names = self.columns or ()
        self.options = Options(names, header, delimiter, decimal, thousands, encoding)
        self.levels, self.missing = levels, missing
        self.valid, self.test, self.split_seed = valid, test, split_seed

    # The number of columns and log_det stand in the file alone. Unlike a download it is here, so
    # it is read, once, as soon as the spec is asked for.
    @cached_property
    def _arrays(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """Names of the columns; the raw rows, (N, D) float64, by split where the file has them.

        Missing cells are NaN.
        """
        tables = files.read_columns(self.path, self.array, self.options)
        names: list[str] = []
        arrays: dict[str, np.ndarray] = {}
        for part, table in tables.items():
            found = self._choose(table)
            if arrays and names != found:
                raise ValueError(
                    f"the arrays of table {self.path} have {len(names)} and {len(found)} columns"
                )
            names = found
            where = f"{part} of {self.path}" if part else str(self.path)
            arrays[part] = np.stack(
                [
                    files.to_numbers(table, name, where, leave_out=self._leaving_out(name))
                    for name in names
                ],
                axis=1,
            )
        return names, arrays

    def _leaving_out(self, name: str) -> str:
        return show.override("data.drop", [*self.drop, name])

    def _choose(self, table: files.Columns) -> list[str]:
        names = list(table.cells)
        for name in [*(self.columns or ()), *self.drop]:
            if name not in names:
                out = "data.drop, or leave it away"
                if name not in self.drop:
                    out = "data.columns, or add it, with empty cells where nothing is known of it"
                raise ValueError(
                    f"column {name!r} is not in {self.path}; it has {', '.join(names)}. Name some "
                    f"of these in {out}"
                )
        kept = names if self.columns is None else self.columns
        chosen = [n for n in kept if n not in self.drop]
        if self.columns is None:
            for name in [name for name in chosen if name in table.aside]:
                chosen.remove(name)
                say_once(
                    f"column {name!r} of {self.path} is left out: {table.aside[name]} "
                    f"({show.override('data.columns', names)} keeps it)"
                )
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"data.columns and data.drop keep the columns {chosen} of {self.path}; name at "
                f"least one, and none twice"
            )
        return chosen

    def _without_missing(self, part: str, rows: np.ndarray, names: list[str]) -> np.ndarray:
        """The rows that are whole; all of them, where not told otherwise."""
        lacking = np.isnan(rows)
        if not lacking.any():
            return rows
        if self.missing == "drop":
            whole = ~lacking.any(1)
            where = f"{part} of {self.path}" if part else self.path
            say_once(f"{(~whole).sum()} of {len(rows)} rows of {where} lack a cell, left out")
            return rows[whole]
        raise self._lacking(part, lacking, names)

    def _lacking(self, part: str, lacking: np.ndarray, names: list[str]) -> ValueError:
        column = int(lacking.any(0).argmax())
        number, name = lacking[:, column].sum(), names[column]
        where = f"{part} of {self.path}" if part else self.path
        fill = show.command("complete", "RUN", table=self.path, num_completions=1)
        return ValueError(
            f"column {name!r} of {where} lacks {number} {'value' if number == 1 else 'values'}, "
            f"the first in row {lacking[:, column].argmax() + 1}; train on the whole rows with "
            f"data.missing=drop, and then {fill} fills the others; or leave the column out with "
            f"{self._leaving_out(name)}"
        )

    @cached_property
    def _parts(self) -> tuple[list[str], list[np.ndarray]]:
        """Names of the columns; the raw rows of train, valid and test, (N, D) float64."""
        names, arrays = self._arrays
        arrays = {part: self._without_missing(part, rows, names) for part, rows in arrays.items()}
        if "" not in arrays:
            return names, [arrays[part] for part in PARTS]
        rows = arrays[""]
        num_valid, num_test = (max(1, round(f * len(rows))) for f in (self.valid, self.test))
        sizes = (len(rows) - num_valid - num_test, num_valid, num_test)
        if sizes[0] < 1:
            raise ValueError(f"table {self.path} has {len(rows)} rows, too few for three splits")
        return names, [rows[chosen] for chosen in split_rows(len(rows), sizes, self.split_seed)]

    @cached_property
    def spec(self) -> DataSpec:
        names, parts = self._parts
        if not len(parts[0]):
            raise ValueError(f"table {self.path} has no rows to train on")
        values = self._values(names, parts)
        if values is not None:
            return self._named(names, parts, coding=Coding(tuple(names), tuple(values)))
        scale = standardization(names, parts[0], str(self.path), self._leaving_out)
        spec = self._named(names, parts, standardization=scale)
        self._require_distinct(spec, parts[0])
        return spec

    def _values(self, names: list[str], parts: Sequence[np.ndarray]) -> list[int] | None:
        """What the levels stand for; None: the table has none."""
        if self.levels is None:
            return None
        found = np.unique(np.concatenate([np.unique(part) for part in parts]))
        whole = bool((found % 1 == 0).all() and (abs(found) < files.EXACT).all())
        binary = bool(np.isin(found, (0, 1)).all())
        if isinstance(self.levels, int):
            if whole and 0 <= found[0] and found[-1] < self.levels:
                return list(range(self.levels))
            good = np.isin(np.concatenate(parts), np.arange(self.levels))
            row, column = np.argwhere(~good)[0]
            raise ValueError(
                f"data.levels={self.levels} takes whole numbers from 0 to {self.levels - 1}, but "
                f"column {names[column]!r} of {self.path} holds "
                f"{np.concatenate(parts)[row, column]:g}; use data.levels=auto or null"
            )
        if binary:
            say_once(f"table {self.path} is of 0 and 1 alone: 2 levels (data.levels=null: real)")
            return [0, 1]
        if self.levels == "auto" and whole and 1 < len(found) <= MAX_LEVELS:
            say_once(
                f"table {self.path} has {len(found)} levels: {found[0]:g} to {found[-1]:g} "
                f"(data.levels=null: real)"
            )
            return found.astype(int).tolist()
        if self.levels == "auto":
            why = f"{len(found)} different numbers" if whole else "numbers that are not whole"
            say_once(f"table {self.path} is real-valued, for it holds {why}")
        elif whole and 1 < len(found) <= min(MAX_LEVELS, sum(map(np.size, parts)) // OFTEN):
            say_once(
                f"table {self.path} is read as real numbers, but holds {len(found)} different "
                f"whole ones: data.levels=auto models them exactly"
            )
        return None

    def _require_distinct(self, spec: DataSpec, train: np.ndarray) -> None:
        """Raise ValueError where standardized values no longer say which is which."""
        some = train[:: -(-len(train) // MERGED[1])]
        standardized = self._encoded(spec, some).numpy()
        for name, raw, now, column in zip(
            spec.columns or (), some.T, standardized.T, train.T, strict=True
        ):
            if merged(raw, now) > MERGED[0]:
                raise ValueError(
                    f"column {name!r} of {self.path} cannot be standardized: it goes from "
                    f"{column.min():g} to {column.max():g}, and most of its values would become "
                    f"equal; mend what is too large, take a logarithm, or leave it out with "
                    f"{self._leaving_out(name)}"
                )

    def _encoded(self, spec: DataSpec, rows: np.ndarray) -> torch.Tensor:
        try:
            return spec.encoded(torch.from_numpy(rows))
        except ValueError as error:
            raise ValueError(f"table {self.path}: {error}") from error

    def _named(self, names: Sequence[str], parts: Sequence[np.ndarray], **units: Any) -> DataSpec:
        digest = hashlib.md5(repr(list(names)).encode(), usedforsecurity=False)
        for part in parts:
            digest.update(f"{len(part)} rows".encode() + part.tobytes())
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem)
        checksum = digest.hexdigest()
        name, scale = f"table-{stem}-{checksum[:8]}", units.get("standardization")
        units["checksum"] = checksum
        if scale is not None:
            return DataSpec(
                name, "vector", (len(names),), None, "density", log_det=scale.log_det, **units
            )
        levels = len(units["coding"].values)
        name += f"-L{levels}"
        return DataSpec(name, "vector", (len(names),), levels, "probability", **units)

    def load(self) -> Splits:
        spec, (names, parts) = self.spec, self._parts
        if spec.levels is None:
            self._warn(names, parts)
        return Splits(spec, *(self._encoded(spec, part) for part in parts))

    def _warn(self, names: list[str], parts: Sequence[np.ndarray]) -> None:
        """Of columns that have no density, or should have none."""
        for name, column in zip(names, self._arrays[1].get("", np.empty((0, 0))).T, strict=False):
            if len(names) > 1 and len(column) >= FEW_ROWS and files.counts_rows(column):
                show.warn(
                    f"column {name!r} numbers the rows of {self.path}; "
                    f"{self._leaving_out(name)} leaves it out"
                )
        counts = [len(np.unique(column)) for column in parts[0].T]
        limit = FEW_VALUES * len(parts[0])
        few = [f"{n} ({c})" for n, c in zip(names, counts, strict=True) if c < limit]
        if few:
            warn_once(
                f"columns of few distinct values in {self.path}: {', '.join(few)}; a density on "
                f"such a column has no bound, and nats then say how narrow the model may get"
            )

    def whole(self, *, missing: bool = False) -> tuple[DataSpec, torch.Tensor]:
        names, arrays = self._arrays
        for part, rows in arrays.items():
            if not missing and np.isnan(rows).any():
                raise self._lacking(part, np.isnan(rows), names)
        rows = np.concatenate(list(arrays.values()))
        if not len(rows):
            raise ValueError(f"table {self.path} has no rows")
        raw = Standardization(tuple(names), (0.0,) * len(names), (1.0,) * len(names))
        return self._named(names, [rows], standardization=raw), torch.from_numpy(rows)
