"""Small natural images in colour: CIFAR-10 and street-view house numbers."""

import io
import pickle
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch

from armodels.checks import checked
from armodels.data.base import Source, Splits, data_root, read_files, split_rows
from armodels.data.images import Format, Levels, quantize
from armodels.spec import ContextSpec, DataSpec

NUM_VALID = 5_000
SPLIT_SEED = 0

Part = tuple[np.ndarray, np.ndarray]
"""Images (N, 3, 32, 32) uint8 and labels (N,) uint8."""


class _NaturalImages(Source):
    """32 x 32 images in RGB with labels of ten classes; a subclass says which."""

    name: ClassVar[str]
    checksums: ClassVar[dict[str, str]]
    """Of the files; the last one is the test split."""

    @checked
    def __init__(self, levels: Levels = 256, root: str | None = None, download: bool = True):
        self.format = Format((32, 32), 3, levels)
        self.root = data_root(root)
        self.download = download

    @property
    def spec(self) -> DataSpec:
        levels = self.format.levels
        name = self.name if levels == 256 else f"{self.name}-L{levels}"
        label = ContextSpec("label", (), 10)
        return DataSpec(name, "image", (3, 32, 32), levels, "probability", contexts=(label,))

    @property
    @abstractmethod
    def _folder(self) -> Path:
        """Where the files belong."""

    @abstractmethod
    def _parse(self, contents: bytes) -> Part:
        """One file."""

    @abstractmethod
    def _fetch(self) -> None:
        """Download the files."""

    def load(self) -> Splits:
        contents = read_files(
            self._folder,
            self.checksums,
            self._fetch if self.download else None,
            "data.download=false forbids fetching",
        )
        *files, (test, test_labels) = map(self._parse, contents)
        images, labels = (np.concatenate(arrays) for arrays in zip(*files, strict=True))
        parts = split_rows(len(images), (len(images) - NUM_VALID, NUM_VALID), SPLIT_SEED)
        read = [*(labels[rows] for rows in parts), test_labels]
        return Splits(
            self.spec,
            *(
                torch.from_numpy(quantize(values, self.format.levels))
                for values in (*(images[rows] for rows in parts), test)
            ),
            contexts={"label": lambda: [torch.from_numpy(part) for part in read]},
        )


@final
class CIFAR10(_NaturalImages):
    """Photographs of ten kinds of things: 50,000 (5,000 of them for valid) and 10,000.

    Args:
        levels: 2 to 256: a value v becomes floor(v L / 256).
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        download: Fetch missing files through torchvision. Files that are present never are.

    References:
        Learning multiple layers of features from tiny images (Krizhevsky, 2009)
        https://www.cs.toronto.edu/~kriz/cifar.html

    Differs from the paper: nothing known.
    """

    name = "cifar10"
    checksums = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }

    @property
    def _folder(self) -> Path:
        return self.root / "cifar-10-batches-py"

    def _parse(self, contents: bytes) -> Part:
        batch = pickle.loads(contents, encoding="latin1")  # Its md5 is right: nobody changed it.
        return batch["data"].reshape(-1, 3, 32, 32), np.array(batch["labels"], np.uint8)

    def _fetch(self) -> None:
        import torchvision  # slow to import

        torchvision.datasets.CIFAR10(self.root, download=True)


@final
class SVHN(_NaturalImages):
    """House numbers, cropped to a digit: 73,257 (5,000 of them for valid) and 26,032.

    Args:
        levels: 2 to 256: a value v becomes floor(v L / 256).
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The files are
            ``SVHN/{train,test}_32x32.mat``, or lie in the root itself.
        download: Fetch missing files through torchvision. Files that are present never are.

    References:
        Reading digits in natural images with unsupervised feature learning (Netzer et al., 2011)
        http://ufldl.stanford.edu/housenumbers

    Differs from the paper: the 531,131 extra images are not used.
    """

    name = "svhn"
    checksums = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }

    @property
    def _folder(self) -> Path:
        there = (self.root / "train_32x32.mat").exists()
        return self.root if there else self.root / "SVHN"

    def _parse(self, contents: bytes) -> Part:
        from scipy.io import loadmat  # slow to import

        arrays = loadmat(io.BytesIO(contents))
        images = np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1))
        return images, (arrays["y"][:, 0] % 10).astype(np.uint8)  # There, a zero is 10.

    def _fetch(self) -> None:
        import torchvision  # slow to import

        for split in ("train", "test"):
            torchvision.datasets.SVHN(self._folder, split, download=True)
