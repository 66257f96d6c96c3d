"""What every source of data gives, and the few helpers that several sources share."""

import gzip
import hashlib
import http.client
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from armodels import contexts as derived
from armodels.checks import Seed, Share, require_class, require_types
from armodels.data.arrays import Kind, Levels, described
from armodels.data.rows import (
    CheckedRows,
    ChosenRows,
    Examples,
    FrozenRows,
    Rows,
    as_rows,
    check_rows,
    num_bytes,
    on_device,
    read_rows,
)
from armodels.kernels import binarize as kernels
from armodels.spec import ContextSpec, DataSpec

PARTS = ("train", "valid", "test")

TRAIN_SEED = 0
"""Of the one transform by which ``Splits.split("train")`` freezes the training rows."""

FIRST_BYTES = 2**24
"""Bytes of a split on disk that are checked at the start, of its first 1000 rows at most."""

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""Raw rows (B, *event) and a generator on their device -> fresh values on that device."""

_STATED = {"name": str | None, "kind": Kind | None, "shares": tuple[Share, Share], "seed": Seed}
"""What a user may say of values of their own, beside their levels."""

Box = tuple[tuple[float, float], tuple[float, float]]


@final
@dataclass(frozen=True, eq=False)
class Splits:
    """One data set: three splits of rows, in memory or on disk.

    Rows in memory (tensors and arrays) are checked at once. Of others, memory maps above all, the
    first ones are; then each batch when it is read, so that no start waits for gigabytes.

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
        pieces: Of a text or the like: name of a split -> the sequences (T,) whose windows its rows
            are, each of any length. A model that reads is evaluated on these.
        piece_contexts: The same as ``contexts``, of the pieces instead of the rows.
        box: ((x0, x1), (y0, y1)) that holds nearly all of a density on the plane, for drawing.

    Raises:
        ValueError: A split is empty, or values lie outside the support that the spec states.
        TypeError: A split cannot be read by slices and tensors of row numbers.
    """

    spec: DataSpec
    train: Rows
    valid: Rows
    test: Rows
    _: KW_ONLY
    transform: Transform | None = None
    true_log_prob: Callable[[Tensor], Tensor] | None = None
    contexts: Mapping[str, Callable[[], Sequence[Rows]]] = field(default_factory=dict)
    pieces: Mapping[str, Sequence[Rows]] = field(default_factory=dict)
    piece_contexts: Mapping[str, Callable[[], Sequence[Rows]]] = field(default_factory=dict)
    box: Box | None = None
    _stored: dict[str, dict[str, Rows]] = field(default_factory=dict, init=False, repr=False)
    _on_device: dict[torch.device, Rows] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in PARTS:
            rows = as_rows(getattr(self, name))
            if not len(rows):
                raise ValueError(f"split {name} of data {self.spec.name!r} is empty")
            object.__setattr__(self, name, self._checked(rows, name))

    def _checked(self, rows: Rows, name: str) -> Rows:
        transform = self.transform if name == "train" else None
        if isinstance(rows, Tensor) and transform is None:
            check_rows(rows, self.spec.check, range(len(rows)), name)
            return rows
        num = max(1, min(1000, FIRST_BYTES * len(rows) // max(num_bytes(rows), 1)))
        first = read_rows(rows, slice(0, num), name)
        self.spec.check(first if transform is None else _frozen(first, transform))
        return rows if transform else CheckedRows(rows, self.spec.check, name)

    @classmethod
    def of(
        cls,
        train: Any,
        valid: Any = None,
        test: Any = None,
        *,
        name: str | None = None,
        kind: Kind | None = None,
        levels: Levels = "auto",
        shares: tuple[Share, Share] = (0.1, 0.1),
        seed: Seed = 0,
    ) -> "Splits":
        """A user's own values as a data set.

        Args:
            train: (N, *event): a tensor, an array, a memory map, a table of pandas, or ``Rows``.
            valid: The same to select by; None: a share of train, drawn by the seed.
            test: The same to test on; None: a share of train, drawn by the seed.
            name: Of the data: numbers under two names are never ranked; None: ``own-`` and a
                checksum of all values.
            kind: None: a vector of (D,), an image of (C, H, W).
            levels: L for integers in {0 .. L-1}, None for real values; ``"auto"``: real values
                where they are floats, else one more than the largest integer.
            shares: Of the rows of train that become valid and test, where these are None.
            seed: Of the draw; another one makes another data set, and another name if it is None.

        Raises:
            ValueError: It cannot be inferred what the values are, they are too few to split, or
                what is said of them is no such thing.
            TypeError: They are no such values.

        Examples:
            >>> import armodels
            >>> import numpy as np
            >>> bits = np.array([[0, 1, 1], [1, 0, 0]] * 50)
            >>> splits = armodels.Splits.of(bits)
            >>> splits.spec.kind, splits.spec.shape, splits.spec.levels
            ('vector', (3,), 2)
            >>> [len(splits.split(name)) for name in ("train", "valid", "test")]
            [80, 10, 10]
            >>> import pandas as pd
            >>> table = pd.DataFrame({"height": [1.7, 1.8, 1.6], "weight": [65.0, 80.0, 51.0]})
            >>> armodels.Splits.of(table, name="people").spec.measure
            'density'
        """
        stated_as = {"name": name, "kind": kind, "shares": shares, "seed": seed}
        require_types(stated_as, _STATED)
        shares, seed = (shares[0], shares[1]), int(seed)
        others = {"valid": valid, "test": test}
        stated = {"train": train}
        stated |= {part: values for part, values in others.items() if values is not None}
        cut = [part for part in PARTS if part not in stated]
        spec, rows = described(
            stated,
            name=name,
            kind=kind,
            levels=levels,
            drawn=(cut, shares, seed) if cut else None,
        )
        parts = dict(zip(stated, rows, strict=True))
        if cut:
            num = len(rows[0])
            if isinstance(rows[0], Tensor):
                check_rows(rows[0], spec.check, range(num), "the rows to be split")
            sizes = [max(1, round(shares[PARTS[1:].index(part)] * num)) for part in cut]
            if num <= sum(sizes):
                raise ValueError(f"{num} rows are too few to cut {' and '.join(cut)} off them")
            numbers = split_rows(num, (num - sum(sizes), *sizes), seed)
            for part, chosen in zip(("train", *cut), numbers, strict=True):
                parts[part] = _chosen(rows[0], torch.from_numpy(chosen), spec)
        return cls(spec, parts["train"], parts["valid"], parts["test"])

    def split(self, name: str) -> Rows:
        """The frozen values of a split (N, *event); train is transformed once, by a fixed seed.

        Raises:
            ValueError: There is no split of that name.
        """
        if name not in PARTS:
            raise ValueError(f"split {name!r} is unknown; choose from {', '.join(PARTS)}")
        rows = getattr(self, name)
        if name != "train" or self.transform is None:
            return rows
        if isinstance(rows, Tensor):
            return _frozen(rows, self.transform)
        return FrozenRows(rows, self.transform, TRAIN_SEED)

    def examples(self, name: str, context: ContextSpec | None = None) -> Examples:
        """The frozen values of a split with what a model is conditioned on.

        Args:
            name: ``"train"``, ``"valid"`` or ``"test"``.
            context: The model's; None: it has none.

        Raises:
            ValueError: There is no split of that name, or contexts are not what the spec promises.
            TypeError: The context is of another class.
        """
        if context is not None:
            example = "such as model.context, or one of splits.spec.contexts"
            require_class("context", context, ContextSpec, example)
        found = self._examples(self.split(name), name, context)
        pieces = self.pieces.get(name, ())
        if context is None or context.name not in self.piece_contexts:
            return replace(found, pieces=pieces)
        beside = as_rows(self.piece_contexts[context.name]()[PARTS.index(name)])
        context.check(beside[:], len(pieces))
        return replace(found, pieces=pieces, piece_context=beside)

    def to_train(self, context: ContextSpec | None, device: torch.device) -> Examples:
        """Raw training rows with what a model is conditioned on, on a device where they fit.

        Values are what ``transform`` makes of the rows, and ``Examples.beside`` adds contexts.

        Args:
            context: The model's; None: it has none.
            device: That of the model.

        Raises:
            ValueError: Contexts are not what the spec promises.
        """
        if device not in self._on_device:
            self._on_device[device] = on_device(self.train, device)
        found = self._examples(self._on_device[device], "train", context)
        stored = None if found.context is None else on_device(found.context, device)
        return replace(found, context=stored)

    def _examples(self, rows: Rows, name: str, context: ContextSpec | None) -> Examples:
        if context is None:
            return Examples(rows)
        if context.name not in self.contexts:
            return Examples(rows, derive=partial(derived.derive, context.name, spec=self.spec))
        if context.name not in self._stored:
            read = self.contexts[context.name]()
            if not isinstance(read, Sequence) or len(read) != len(PARTS):
                found = f"{len(read)} parts" if isinstance(read, Sequence) else type(read).__name__
                raise ValueError(
                    f"contexts[{context.name!r}] of data {self.spec.name!r} gives {found}; it "
                    f"must give three, the rows of train, valid and test"
                )
            self._stored[context.name] = {
                part: self._checked_context(as_rows(values), part, context)
                for part, values in zip(PARTS, read, strict=True)
            }
        return Examples(rows, self._stored[context.name][name])

    def _checked_context(self, stored: Rows, name: str, context: ContextSpec) -> Rows:
        num = len(getattr(self, name))
        if isinstance(stored, Tensor):
            context.check(stored, num)
            return stored
        context.check_shape(stored.shape, num)
        return CheckedRows(stored, lambda values: context.check(values, len(values)), name)


def _frozen(rows: Tensor, transform: Transform) -> Tensor:
    return transform(rows, torch.Generator(rows.device).manual_seed(TRAIN_SEED))


def _chosen(rows: Rows, numbers: Tensor, spec: DataSpec) -> Rows:
    if isinstance(rows, Tensor):
        return rows[numbers]
    return ChosenRows(CheckedRows(rows, spec.check, "the rows to be split"), numbers)


class Source(ABC):
    """Where data comes from: what a data config names."""

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Known before any download, so that a model that cannot take the data fails at once.

        Known without touching a file, save where the file is the user's own (``Table``).

        Raises:
            ValueError: The user's own file cannot be read, or is not fit to train on.
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
    """Disjoint random sets of row numbers, of the given sizes; sum(sizes) <= num_rows.

    Args:
        num_rows: Rows in all.
        sizes: Rows in each set.
        seed: Of the split.
    """
    # RandomState's stream is frozen by NumPy's policy, so a seed is a split for ever.
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
    # Exactly `grey` of the 255 equally likely integers lie below it: nothing is rounded.
    return (noise < grey).view(torch.uint8)


def binarize_frozen(grey: Tensor, seed: int) -> Tensor:
    """``binarize`` once and for all: the same values under every version of torch."""
    noise = np.random.RandomState(seed).randint(255, size=tuple(grey.shape), dtype=np.uint8)
    return (torch.from_numpy(noise) < grey).to(torch.uint8)
