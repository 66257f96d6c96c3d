"""MNIST and its kin: 28 x 28 grey images, as such or binarized in a stated way."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from armodels.checks import checked
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

Binarization = Literal["dynamic", "threshold", "none"]
"""Of grey images; MNIST has a fourth one, which the literature shares."""

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


def _parse_whole_idx(contents: bytes, name: str, num: int, shape: tuple[int, ...]) -> Tensor:
    """An IDX file whose md5 is not known, so its header and length are checked."""
    sizes = (num, *shape)
    header = np.array([0x800 | len(sizes), *sizes], ">i4").tobytes()
    if contents[: len(header)] != header or len(contents) != len(header) + math.prod(sizes):
        raise ValueError(
            f"{name} is truncated or corrupted (it should hold {' x '.join(map(str, sizes))} "
            f"bytes behind its header); delete it and fetch or copy it again"
        )
    return (_parse_idx if shape else _parse_idx_labels)(contents)


def _parse_amat(contents: bytes) -> Tensor:
    """Lines of 784 values 0 or 1, each followed by one space or newline: (N, 1, 28, 28)."""
    characters = np.frombuffer(contents, np.uint8)[::2]
    return torch.from_numpy(characters - ord("0")).view(-1, 1, 28, 28)


class _GreyImages(Source):
    """Grey images in torchvision's files; a subclass says which."""

    name: str
    dataset: ClassVar[str]
    """Torchvision's class, and the folder that it uses under its root."""
    checksums: Mapping[str, str | None]
    """Of the files of training and test images."""
    label_checksums: Mapping[str, str | None]
    """Of the files of training and test labels; read only where they condition."""
    num_classes = 10
    choice: Mapping[str, str] = {}
    """Further arguments of torchvision's class."""

    def __init__(self, binarization: str, root: str | None, download: bool):
        self.binarization = binarization
        self.root = data_root(root)
        self.download = download

    @abstractmethod
    def images(self) -> list[Tensor]:
        """Of the training and the test split, (N, 1, 28, 28) uint8."""

    @abstractmethod
    def labels(self) -> list[Tensor]:
        """Of the training and the test split, (N,) uint8."""

    def read(self, checksums: Mapping[str, str | None], *, of_packed: bool = False) -> list[bytes]:
        """Contents of torchvision's files; ``of_packed`` as in ``read_files``."""
        return read_files(
            self.root / self.dataset / "raw",
            checksums,
            self.fetch if self.download else None,
            "data.download=false forbids fetching",
            of_packed=of_packed,
        )

    def fetch(self) -> None:
        """Download the files."""
        import torchvision  # slow to import

        getattr(torchvision.datasets, self.dataset)(self.root, **self.choice, download=True)


def _spec(source: _GreyImages) -> DataSpec:
    labels = (ContextSpec("label", (), source.num_classes),)
    if source.binarization == "none":
        return DataSpec(source.name, "image", (1, 28, 28), 256, "probability", contexts=labels)
    name = f"{source.name}-{source.binarization}"
    return DataSpec(name, "image", (1, 28, 28), 2, "probability", contexts=labels)


def _load(source: _GreyImages) -> Splits:
    """Splits of which valid is cut off the training images by a fixed seed."""
    train, test = source.images()
    rows = split_rows(len(train), (len(train) - NUM_VALID, NUM_VALID), SPLIT_SEED)
    train, valid = (train[r] for r in rows)

    def labels() -> list[Tensor]:
        train, test = source.labels()
        return [*(train[r] for r in rows), test]

    transform = None
    if source.binarization == "threshold":
        train, valid, test = ((grey >= 128).to(torch.uint8) for grey in (train, valid, test))
    elif source.binarization == "dynamic":
        transform = binarize
        valid = binarize_frozen(valid, VALID_SEED)
        test = binarize_frozen(test, TEST_SEED)
    return Splits(source.spec, train, valid, test, transform=transform, contexts={"label": labels})


def _unverified(
    source: _GreyImages,
    checksums: Mapping[str, str | None],
    sizes: tuple[int, int],
    shape: tuple[int, ...],
) -> list[Tensor]:
    """Files of which the md5 of the ``.gz`` is known, or none; header and length are checked.

    Args:
        source: Says where they lie.
        checksums: File name -> md5 of its ``.gz``, of the training and the test split.
        sizes: Images of the training and the test split.
        shape: Of one image, or of one label.
    """
    files = source.read(checksums, of_packed=True)
    folder = source.root / source.dataset / "raw"
    return [
        _parse_whole_idx(contents, str(folder / name), size, shape)
        for contents, name, size in zip(files, checksums, sizes, strict=True)
    ]


@final
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

    @checked
    def __init__(
        self,
        binarization: Literal["dynamic", "fixed", "threshold", "none"] = "dynamic",
        root: str | None = None,
        download: bool = True,
    ):
        super().__init__(binarization, root, download)

    @property
    def spec(self) -> DataSpec:
        # The shared drawing came without labels.
        spec = _spec(self)
        return dataclasses.replace(spec, contexts=()) if self.binarization == "fixed" else spec

    def load(self) -> Splits:
        if self.binarization != "fixed":
            return _load(self)
        contents = read_files(
            self.root / "binarized_mnist",
            FIXED_CHECKSUMS,
            None,
            "they cannot be downloaded any more (those of data.binarization=dynamic can)",
        )
        return Splits(self.spec, *map(_parse_amat, contents))

    def images(self) -> list[Tensor]:
        return list(map(_parse_idx, self.read(self.checksums)))

    def labels(self) -> list[Tensor]:
        return list(map(_parse_idx_labels, self.read(self.label_checksums)))


@final
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

    @checked
    def __init__(
        self,
        binarization: Binarization = "dynamic",
        root: str | None = None,
        download: bool = True,
    ):
        super().__init__(binarization, root, download)

    @property
    def spec(self) -> DataSpec:
        return _spec(self)

    def load(self) -> Splits:
        return _load(self)

    def images(self) -> list[Tensor]:
        return list(map(_parse_idx, self.read(self.checksums)))

    def labels(self) -> list[Tensor]:
        return list(map(_parse_idx_labels, self.read(self.label_checksums)))


@final
class KMNIST(_GreyImages):
    """Cursive Japanese characters of ten classes: 60,000 (10,000 of them for valid) and 10,000.

    Args:
        binarization: ``"dynamic"``, ``"threshold"`` or ``"none"``, as for ``MNIST``.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        download: Fetch missing files through torchvision. Files that are present never are.

    References:
        Deep learning for classical Japanese literature (Clanuwat et al., 2018)
        https://arxiv.org/abs/1812.01718

    Differs from the paper: nothing known.
    """

    name = "kmnist"
    dataset = "KMNIST"
    sizes = (60_000, 10_000)
    checksums = {
        "train-images-idx3-ubyte": "bdb82020997e1d708af4cf47b453dcf7",
        "t10k-images-idx3-ubyte": "5c965bf0a639b31b8f53240b1b52f4d7",
    }
    label_checksums = {
        "train-labels-idx1-ubyte": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-labels-idx1-ubyte": "7320c461ea6c1c855c0b718fb2a4b134",
    }

    @checked
    def __init__(
        self,
        binarization: Binarization = "dynamic",
        root: str | None = None,
        download: bool = True,
    ):
        super().__init__(binarization, root, download)

    @property
    def spec(self) -> DataSpec:
        return _spec(self)

    def load(self) -> Splits:
        return _load(self)

    def images(self) -> list[Tensor]:
        return _unverified(self, self.checksums, self.sizes, (28, 28))

    def labels(self) -> list[Tensor]:
        return _unverified(self, self.label_checksums, self.sizes, ())


Part = Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"]
"""Of EMNIST."""

EMNIST_SIZES: dict[str, tuple[int, int, int]] = {
    "balanced": (112_800, 18_800, 47),
    "byclass": (697_932, 116_323, 62),
    "bymerge": (697_932, 116_323, 47),
    "digits": (240_000, 40_000, 10),
    "letters": (124_800, 20_800, 26),
    "mnist": (60_000, 10_000, 10),
}
"""Training and test images, and classes, of each split of EMNIST."""


@final
class EMNIST(_GreyImages):
    """Handwritten letters and digits, upright; 10,000 of the training images are valid.

    Args:
        split: ``"balanced"`` (112,800 and 18,800 images of 47 classes), ``"byclass"`` (697,932
            and 116,323 of 62), ``"bymerge"`` (the same of 47), ``"digits"`` (240,000 and 40,000 of
            10), ``"letters"`` (124,800 and 20,800 of 26) or ``"mnist"`` (60,000 and 10,000 of 10).
        binarization: ``"dynamic"``, ``"threshold"`` or ``"none"``, as for ``MNIST``.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        download: Fetch missing files (560 MB for all splits) through torchvision. Files that are
            present never are.

    Raises:
        ValueError: There is no such split.

    References:
        EMNIST: an extension of MNIST to handwritten letters (Cohen et al., 2017)
        https://arxiv.org/abs/1702.05373

    Differs from the paper: images are turned upright, where the files hold columns for rows.
    """

    dataset = "EMNIST"

    @checked
    def __init__(
        self,
        split: Literal[
            "balanced", "byclass", "bymerge", "digits", "letters", "mnist"
        ] = "balanced",
        binarization: Binarization = "dynamic",
        root: str | None = None,
        download: bool = True,
    ):
        self.split, self.choice = split, {"split": split}
        self.name = f"emnist-{split}"
        num_train, num_test, self.num_classes = EMNIST_SIZES[split]
        self.sizes = (num_train, num_test)
        names = [f"emnist-{split}-{part}" for part in ("train", "test")]
        self.checksums = {f"{name}-images-idx3-ubyte": None for name in names}
        self.label_checksums = {f"{name}-labels-idx1-ubyte": None for name in names}
        super().__init__(binarization, root, download)

    @property
    def spec(self) -> DataSpec:
        return _spec(self)

    def load(self) -> Splits:
        return _load(self)

    def images(self) -> list[Tensor]:
        turned = _unverified(self, self.checksums, self.sizes, (28, 28))
        return [images.transpose(2, 3).contiguous() for images in turned]

    def labels(self) -> list[Tensor]:
        first = 1 if self.split == "letters" else 0  # There, a is 1.
        read = _unverified(self, self.label_checksums, self.sizes, ())
        return [labels - first for labels in read]
