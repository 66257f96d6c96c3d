"""Tables of rows without an order in space or time: binary UCI data, red wine, users' own."""

import hashlib
import io
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from armodels import show
from armodels.checks import Seed
from armodels.data import files
from armodels.data.base import Source, Splits, data_root, read_files, split_rows
from armodels.spec import DataSpec, Standardization

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


class BinaryUCI(Source):
    """Binary attributes of UCI data sets, with the splits of the NADE and MADE papers.

    Args:
        name: ``"connect4"`` (16,000 / 4,000 / 47,557 rows of 126 values), ``"dna"``
            (1,400 / 600 / 1,186 of 180), ``"mushrooms"`` (2,000 / 500 / 5,624 of 112) or
            ``"nips"`` (400 / 100 / 1,240 of 500).
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The files are
            ``binary_uci/NAME.npz`` with arrays ``train``, ``valid`` and ``test`` of 0 and 1.

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        https://proceedings.mlr.press/v15/larochelle11a.html

    Differs from the paper: nothing known.
    """

    def __init__(self, name: str = "mushrooms", root: str | None = None):
        if name not in UCI_SIZES:
            raise ValueError(
                f"binary UCI data {name!r} is unknown; choose from {', '.join(UCI_SIZES)}"
            )
        self.name = name
        self.root = data_root(root)

    @property
    def spec(self):
        shape = (UCI_SIZES[self.name],)
        return DataSpec(f"binary_uci-{self.name}", "vector", shape, 2, "probability")

    def load(self):
        file = f"{self.name}.npz"
        checksums = {file: UCI_CHECKSUMS[file]}
        (contents,) = read_files(self.root / "binary_uci", checksums, None, NO_DOWNLOAD)
        with np.load(io.BytesIO(contents)) as arrays:
            parts = [torch.from_numpy(arrays[part]) for part in ("train", "valid", "test")]
        return Splits(self.spec, *parts)


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

    References:
        Modeling wine preferences by data mining from physicochemical properties (Cortez et al.,
        2009) https://archive.ics.uci.edu/dataset/186
        RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013; the
        folds) https://arxiv.org/abs/1306.0186

    Differs from the paper: which rows are valid is not known, and ours are never trained on.
    """

    def __init__(self, fold: int = 0, root: str | None = None):
        if fold not in range(NUM_FOLDS):
            raise ValueError(f"fold of red_wine is {fold}; choose from 0 to {NUM_FOLDS - 1}")
        self.fold = fold
        self.root = data_root(root)

    @property
    def spec(self):
        return DataSpec(f"red_wine-fold{self.fold}", "vector", (WINE_DIMS,), None, "density")

    def load(self):
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


class Table(Source):
    """A user's own table of real numbers: csv, tsv, npy, npz or parquet.

    Each column has the mean and standard deviation of its training rows taken out. Both travel in
    the spec, so also in every checkpoint; nats are those of the original units, and samples
    are written in them.

    Rows are counted from 1, without the header. The data is named by the file and a checksum of
    names, values and splits, so that no two tables share a ranking.

    Args:
        path: The file, relative to the shell's directory; its ending says what it is.
        columns: Names of those to keep, in this order; None: all. Where the file has no names,
            columns are called 0, 1, ... .
        drop: Names of those to leave out.
        array: Which array of a npz file; None: ``train``, ``valid`` and ``test`` where it has
            all three, which then are the splits, else its only one.
        header: Whether the first line of a csv or tsv file holds names; None: it does if no cell
            of it is a number.
        delimiter: Of a csv file; None: found out among comma, semicolon, tab and bar.
        valid: Fraction of the rows.
        test: Fraction of the rows.
        split_seed: Draws which rows are train, valid and test.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str | int] | None = None,
        drop: Sequence[str | int] = (),
        array: str | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: Seed = 0,
    ):
        if not (valid > 0 and test > 0 and valid + test < 1):
            raise ValueError(
                f"data.valid is {valid} and data.test {test}; both must be above 0, and leave "
                f"rows to train on"
            )
        self.path = Path(path).expanduser()
        self.columns = None if columns is None else _listed(columns)
        self.drop = _listed(drop)
        self.array, self.header, self.delimiter = array, header, delimiter
        self.valid, self.test, self.split_seed = valid, test, split_seed

    # The number of columns and log_det stand in the file alone. Unlike a download it is here, so
    # it is read, once, as soon as the spec is asked for.
    @cached_property
    def _arrays(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """Names of the columns; the raw rows, (N, D) float64, by split where the file has them."""
        tables = files.read_columns(
            self.path, array=self.array, header=self.header, delimiter=self.delimiter
        )
        names, arrays = None, {}
        for part, table in tables.items():
            found = self._choose(list(table))
            if names not in (None, found):
                raise ValueError(
                    f"the arrays of table {self.path} have {len(names)} and {len(found)} columns"
                )
            names = found
            inside = f"{part} of " if part else ""
            arrays[part] = np.stack(
                [
                    files.to_numbers(table[name], f"column {name!r} of {inside}{self.path}")
                    for name in names
                ],
                axis=1,
            )
        return names, arrays

    @cached_property
    def _parts(self) -> tuple[list[str], list[np.ndarray]]:
        """Names of the columns; the raw rows of train, valid and test, (N, D) float64."""
        names, arrays = self._arrays
        if "" not in arrays:
            return names, [arrays[part] for part in files.PARTS]
        rows = arrays[""]
        num_valid, num_test = (max(1, round(f * len(rows))) for f in (self.valid, self.test))
        sizes = (len(rows) - num_valid - num_test, num_valid, num_test)
        if sizes[0] < 1:
            raise ValueError(f"table {self.path} has {len(rows)} rows, too few for three splits")
        return names, [rows[chosen] for chosen in split_rows(len(rows), sizes, self.split_seed)]

    def _choose(self, names: list[str]) -> list[str]:
        for name in [*(self.columns or ()), *self.drop]:
            if name not in names:
                raise ValueError(
                    f"column {name!r} is not in {self.path}; it has {', '.join(names)}"
                )
        chosen = [n for n in (self.columns or names) if n not in self.drop]
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"data.columns and data.drop keep the columns {chosen} of {self.path}; name at "
                f"least one, and none twice"
            )
        return chosen

    @cached_property
    def spec(self):
        names, parts = self._parts
        train = parts[0]
        if not len(train):
            raise ValueError(f"table {self.path} has no rows to train on")
        for name, same in zip(names, (train == train[0]).all(0), strict=True):
            if same:
                raise ValueError(
                    f"column {name!r} of {self.path} is constant over the training rows, so it "
                    f"has no density; leave it out with data.drop=[{name}]"
                )
        scale = Standardization(names, train.mean(0).tolist(), train.std(0).tolist())
        return self._named(parts, scale)

    def _named(self, parts: Sequence[np.ndarray], scale: Standardization) -> DataSpec:
        checksum = hashlib.md5(repr(list(scale.columns)).encode(), usedforsecurity=False)
        for part in parts:
            checksum.update(f"{len(part)} rows".encode() + part.tobytes())
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem)
        return DataSpec(
            f"table-{stem}-{checksum.hexdigest()[:8]}",
            "vector",
            (len(scale.columns),),
            None,
            "density",
            log_det=scale.log_det,
            standardization=scale,
        )

    def load(self):
        spec, (names, parts) = self.spec, self._parts
        counts = [len(np.unique(column)) for column in parts[0].T]
        limit = FEW_VALUES * len(parts[0])
        few = [f"{n} ({c})" for n, c in zip(names, counts, strict=True) if c < limit]
        if few:
            show.warn(
                f"columns of few distinct values: {', '.join(few)}; a density on such a column "
                f"has no bound, and nats then say how narrow the model may get"
            )
        return Splits(spec, *(spec.standardized(torch.from_numpy(part)) for part in parts))

    def whole(self):
        names, arrays = self._arrays
        rows = np.concatenate(list(arrays.values()))
        if not len(rows):
            raise ValueError(f"table {self.path} has no rows")
        raw = Standardization(names, [0.0] * len(names), [1.0] * len(names))
        return self._named([rows], raw), torch.from_numpy(rows)


def _listed(names: Sequence[str | int] | str | int) -> list[str]:
    """Names as the command line gives them: several or one, words or numbers."""
    return [str(name) for name in ([names] if isinstance(names, str | int) else names)]
