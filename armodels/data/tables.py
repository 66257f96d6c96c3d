"""Tables of rows without an order in space or time: binary UCI data and red wine."""

import io

import numpy as np
import torch

from armodels.data.base import Source, Splits, data_root, read_files, split_rows
from armodels.spec import DataSpec

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
