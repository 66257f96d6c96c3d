"""MNIST and Fashion-MNIST: 28 x 28 grey images, as such or binarized in a stated way."""

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from armodels.data.base import (
    Source,
    Splits,
    binarize,
    binarize_frozen,
    data_root,
    read_files,
    split_rows,
)
from armodels.spec import ContextSpec, DataSpec

NUM_VALID = 10_000
SPLIT_SEED = 0
VALID_SEED, TEST_SEED = 1, 2
"""Of the one binarization that valid and test keep under ``binarization=dynamic``."""

FIXED_CHECKSUMS = {
    "binarized_mnist_train.amat": "db28b1a6ae0fe70cbd3da91acf46e477",
    "binarized_mnist_valid.amat": "bf37822a04e94123630de6a7dfd9c9ef",
    "binarized_mnist_test.amat": "14e41ae11040adba6ab8cb291eda0dd8",
}


def _parse_idx(contents: bytes) -> Tensor:
    """Images of an IDX file, after its header of four 32-bit numbers: (N, 1, 28, 28)."""
    return torch.from_numpy(np.frombuffer(contents, np.uint8, offset=16).copy()).view(
        -1, 1, 28, 28
    )


def _parse_idx_labels(contents: bytes) -> Tensor:
    """Labels of an IDX file, after its header of two 32-bit numbers: (N,)."""
    return torch.from_numpy(np.frombuffer(contents, np.uint8, offset=8).copy())


def _parse_amat(contents: bytes) -> Tensor:
    """Lines of 784 values 0 or 1, each followed by one space or newline: (N, 1, 28, 28)."""
    characters = np.frombuffer(contents, np.uint8)[::2]
    return torch.from_numpy(characters - ord("0")).view(-1, 1, 28, 28)


class _GreyImages(Source):
    """Grey images in torchvision's files; a subclass says which."""

    name: ClassVar[str]
    dataset: ClassVar[str]
    """Torchvision's class, and the folder that it uses under its root."""
    checksums: ClassVar[dict[str, str]]
    """Of the unpacked files of training and test images."""
    label_checksums: ClassVar[dict[str, str]]
    """Of the unpacked files of training and test labels; read only where they condition."""
    binarizations: ClassVar[tuple[str, ...]] = ("dynamic", "threshold", "none")

    def __init__(
        self, binarization: str = "dynamic", root: str | None = None, download: bool = True
    ):
        if binarization not in self.binarizations:
            raise ValueError(
                f"binarization {binarization!r} of {self.name} is unknown; "
                f"choose from {', '.join(self.binarizations)}"
            )
        self.binarization = binarization
        self.root = data_root(root)
        self.download = download

    @property
    def spec(self):
        labels = (ContextSpec("label", (), 10),)
        if self.binarization == "none":
            return DataSpec(self.name, "image", (1, 28, 28), 256, "probability", contexts=labels)
        name = f"{self.name}-{self.binarization}"
        return DataSpec(name, "image", (1, 28, 28), 2, "probability", contexts=labels)

    def load(self):
        train, test = map(_parse_idx, self._read(self.checksums))
        rows = split_rows(len(train), (len(train) - NUM_VALID, NUM_VALID), SPLIT_SEED)
        train, valid = (train[r] for r in rows)

        def labels() -> list[Tensor]:
            train, test = map(_parse_idx_labels, self._read(self.label_checksums))
            return [*(train[r] for r in rows), test]

        transform = None
        if self.binarization == "threshold":
            train, valid, test = ((grey >= 128).to(torch.uint8) for grey in (train, valid, test))
        elif self.binarization == "dynamic":
            transform = binarize
            valid = binarize_frozen(valid, VALID_SEED)
            test = binarize_frozen(test, TEST_SEED)
        return Splits(self.spec, train, valid, test, transform, contexts={"label": labels})

    def _read(self, checksums: dict[str, str]) -> list[bytes]:
        return read_files(
            self.root / self.dataset / "raw",
            checksums,
            self._fetch if self.download else None,
            "data.download=false forbids fetching",
        )

    def _fetch(self) -> None:
        import torchvision  # slow to import

        getattr(torchvision.datasets, self.dataset)(self.root, download=True)


class MNIST(_GreyImages):
    """Handwritten digits: 60,000 (10,000 of them cut off by a fixed seed for valid) and 10,000.

    Args:
        binarization: ``"dynamic"``: each pixel drawn from Bernoulli(grey / 255), anew in every
            batch of train, once and for all in valid and test. ``"fixed"``: the drawing that the
            literature shares (50,000 / 10,000 / 10,000), from the files
            ``binarized_mnist/binarized_mnist_{train,valid,test}.amat`` or ``.amat.gz``.
            ``"threshold"``: 1 where grey is at least 128. ``"none"``: 256 grey levels.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        download: Fetch missing files through torchvision. Files that are present never are.

    References:
        Gradient-based learning applied to document recognition (LeCun et al., 1998)
        http://yann.lecun.com/exdb/mnist
        On the quantitative analysis of deep belief networks (Salakhutdinov & Murray, 2008;
        the fixed binarization) https://doi.org/10.1145/1390156.1390266

    Differs from the paper: nothing known.
    """

    name = "mnist"
    dataset = "MNIST"
    checksums = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    }
    label_checksums = {
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    binarizations = ("dynamic", "fixed", "threshold", "none")

    @property
    def spec(self):
        # The shared drawing came without labels.
        spec = super().spec
        return dataclasses.replace(spec, contexts=()) if self.binarization == "fixed" else spec

    def load(self):
        if self.binarization != "fixed":
            return super().load()
        contents = read_files(
            self.root / "binarized_mnist",
            FIXED_CHECKSUMS,
            None,
            "they cannot be downloaded any more (those of data.binarization=dynamic can)",
        )
        return Splits(self.spec, *map(_parse_amat, contents))


class FashionMNIST(_GreyImages):
    """Pictures of clothes in MNIST's format: 60,000 (10,000 of them for valid) and 10,000.

    Args:
        binarization: ``"dynamic"``, ``"threshold"`` or ``"none"``, as for ``MNIST``.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        download: Fetch missing files through torchvision. Files that are present never are.

    References:
        Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms
        (Xiao et al., 2017) https://arxiv.org/abs/1708.07747

    Differs from the paper: nothing known.
    """

    name = "fashion_mnist"
    dataset = "FashionMNIST"
    checksums = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    }
    label_checksums = {
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
