"""What every source of data gives, and the few helpers that several sources share."""

import gzip
import hashlib
import http.client
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armodels import contexts as derived
from armodels.kernels import binarize as kernels
from armodels.spec import ContextSpec, DataSpec

TRAIN_SEED = 0
"""Of the one transform by which ``Splits.split("train")`` freezes the training rows."""

Box = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Splits:
    """One data set in memory, as compact tensors.

    Attributes:
        spec: What a datum is.
        train: (N, *event) raw rows; values in the support unless ``transform`` makes them so.
        valid: (N, *event) values in the support, the same for ever.
        test: (N, *event) values in the support, the same for ever.
        transform: Raw training rows (B, *event) and a generator on their device -> fresh values
            in the support, on that device; called for every batch. None: rows are values.
        true_log_prob: Where the distribution is known: (B, *event) -> (B,), nats, float64, in
            the units of a model's ``log_prob + spec.log_det``.
        contexts: What ``spec.contexts`` promises: name -> a function that reads the rows of
            (train, valid, test). Called when first asked for: most runs need no labels.
        box: ((x0, x1), (y0, y1)) that holds nearly all of a density on the plane, for drawing.

    Raises:
        ValueError: A split is empty, or values lie outside the support that the spec states.
    """

    spec: DataSpec
    train: Tensor
    valid: Tensor
    test: Tensor
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None
    true_log_prob: Callable[[Tensor], Tensor] | None = None
    contexts: Mapping[str, Callable[[], Sequence[Tensor]]] = field(default_factory=dict)
    box: Box | None = None
    _read: dict[tuple, Sequence[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        for name in ("train", "valid", "test"):
            if not len(getattr(self, name)):
                raise ValueError(f"split {name} of data {self.spec.name!r} is empty")
        self.spec.check(self._values(self.train[:1000]))
        if self.transform is None:
            self.spec.check(self.train)
        self.spec.check(self.valid)
        self.spec.check(self.test)

    def _values(self, rows: Tensor) -> Tensor:
        if self.transform is None:
            return rows
        return self.transform(rows, torch.Generator(rows.device).manual_seed(TRAIN_SEED))

    def split(self, name: str) -> Tensor:
        """The frozen values of a split (N, *event); train is transformed once, by a fixed seed.

        Raises:
            ValueError: There is no split of that name.
        """
        if name == "train":
            return self._values(self.train)
        if name not in ("valid", "test"):
            raise ValueError(f"split {name!r} is unknown; choose from train, valid, test")
        return getattr(self, name)

    def context(
        self, wanted: ContextSpec | None, split: str, x: Tensor, rows: Tensor | slice
    ) -> Tensor | None:
        """What a model is conditioned on where it models ``x``, on the device of ``x``.

        Args:
            wanted: The model's context; None: it has none.
            split: ``"train"``, ``"valid"`` or ``"test"``.
            x: (B, *event) values of the split.
            rows: Where they stand in it.
        """
        if wanted is None:
            return None
        name = wanted.name
        if name not in self.contexts:
            return derived.derive(name, x, self.spec)
        if (name, x.device) not in self._read:
            read = self.contexts[name]()
            for part, values in zip((self.train, self.valid, self.test), read, strict=True):
                wanted.check(values, len(part))
            self._read[name, x.device] = [values.to(x.device) for values in read]
        return self._read[name, x.device][("train", "valid", "test").index(split)][rows]


class Source(ABC):
    """Where data comes from: what a data config names."""

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Known before any download, so that a model that cannot take the data fails at once.

        Known without touching a file, save where the file is the user's own (``Table``).
        """

    @abstractmethod
    def load(self) -> Splits:
        """Read, and where allowed fetch, the data.

        Raises:
            FileNotFoundError: Files are missing; names them, their checksums and their folder.
            ValueError: A file is corrupted.
        """

    def whole(self, *, missing: bool = False) -> tuple[DataSpec, Tensor]:
        """Every row in the order of the user's own file, without splits: what ``all`` names.

        The rows need not be fit to train on: one is enough.

        Args:
            missing: Take rows that lack values, which are NaN.

        Raises:
            ValueError: The data is no such file.
        """
        raise ValueError(
            f"split all is every row of a table, but the data is {self.spec.name}; "
            f"choose from train, valid, test"
        )


def data_root(root: str | None) -> Path:
    """``root``, else $ARMODELS_DATA, else ~/.cache/armodels.

    Raises:
        ValueError: It lies below a home, and there is none.
    """
    path = root or os.environ.get("ARMODELS_DATA") or "~/.cache/armodels"
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"data is looked for in {path}, but there is no home directory; say where it is with "
            f"data.root, or for good with the environment variable ARMODELS_DATA"
        ) from error


def read_files(
    folder: Path,
    checksums: Mapping[str, str | None],
    fetch: Callable[[], object] | None,
    unfetched: str,
    *,
    of_packed: bool = False,
) -> list[bytes]:
    """Contents of files, each present as such or packed as ``.gz``, checked by md5.

    Args:
        folder: Where the files belong.
        checksums: File name -> md5 of the unpacked contents; None where it is not known.
        fetch: Downloads into ``folder``; called only if a file is missing. None: not allowed.
        unfetched: Why there is no ``fetch``, for the error message.
        of_packed: The md5 are those of the ``.gz``, which then goes before the unpacked file.

    Returns:
        Unpacked contents, in the order of ``checksums``.

    Raises:
        FileNotFoundError: Files are missing and were not fetched.
        ValueError: A file does not have its checksum.
    """

    def missing() -> list[str]:
        return [
            name
            for name in checksums
            if not (folder / name).exists() and not (folder / f"{name}.gz").exists()
        ]

    cause = None
    if missing() and fetch is not None:
        try:
            fetch()
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            cause = error
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            unfetched = f"the download failed ({first_line.rstrip(':')})"
    if absent := missing():
        kind = "md5 of the .gz" if of_packed else "md5"
        names = ", ".join(
            f"{name} ({kind} {checksums[name]})" if checksums[name] else name for name in absent
        )
        raise FileNotFoundError(
            f"{names} not found, unpacked or as .gz: {unfetched}; put them into {folder}"
        ) from cause
    return [_read_file(folder / name, md5, of_packed) for name, md5 in checksums.items()]


def _read_file(path: Path, md5: str | None, of_packed: bool) -> bytes:
    """The unpacked contents of ``path`` or ``path.gz``, checked by md5 where that is known."""
    gz = path.with_name(path.name + ".gz")
    packed = gz.exists() if of_packed else not path.exists()
    source = gz if packed else path
    contents = source.read_bytes()
    kind = "md5" if of_packed else "unpacked md5"
    known = md5 is not None and (packed or not of_packed)
    try:
        found = hashlib.md5(contents, usedforsecurity=False).hexdigest()
        contents = gzip.decompress(contents) if packed else contents
        if packed and not of_packed:
            found = hashlib.md5(contents, usedforsecurity=False).hexdigest()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        found, known = f"no readable gzip stream, {error}", True
    if known and found != md5:
        should = f"its {kind} should be {md5}, " if md5 else ""
        raise ValueError(
            f"{source} is truncated or corrupted ({should}it has {found}); "
            f"delete it and fetch or copy it again"
        )
    return contents


def split_rows(num_rows: int, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Disjoint random sets of row numbers, of the given sizes; sum(sizes) <= num_rows."""
    # RandomState: its stream is frozen by NumPy's policy, so a seed is a split for ever.
    rows = np.random.RandomState(seed).permutation(num_rows)
    return np.split(rows, np.cumsum(sizes))[: len(sizes)]


def binarize(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel from Bernoulli(grey / 255), on its device: uint8 -> uint8 of 0 and 1."""
    if grey.device.type == "cpu":
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return kernels.draw(grey, seed).view(torch.uint8)
    noise = torch.randint(
        255, grey.shape, dtype=torch.uint8, generator=generator, device=grey.device
    )
    # Of the 255 equally likely integers, exactly `grey` lie below it: no rounding at all.
    return (noise < grey).view(torch.uint8)


def binarize_frozen(grey: Tensor, seed: int) -> Tensor:
    """``binarize`` once and for all: the same values under every version of torch."""
    noise = np.random.RandomState(seed).randint(255, size=tuple(grey.shape), dtype=np.uint8)
    return (torch.from_numpy(noise) < grey).to(torch.uint8)
