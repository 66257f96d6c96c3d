"""What a datum is, and what a number about it means."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from armodels.alphabet import Alphabet
from armodels.notes import Notes
from armodels.waveform import Waveform

KINDS = ("vector", "image", "sequence")
MEASURES = ("probability", "density", "bound")


def _check_values(what: str, x: Tensor, levels: int | None) -> None:
    """Raise ValueError unless all values are integers in {0 .. L-1}, or real and finite."""
    if levels is None:
        if not x.is_floating_point():
            raise ValueError(f"{what} is real-valued, got {x.dtype}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{what} holds NaN or infinite values")
        return
    if x.is_floating_point():
        raise ValueError(f"{what} has {levels} levels, given as integers, got {x.dtype}")
    if x.numel() and not (x.dtype == torch.uint8 and levels >= 256):
        low, high = (int(v) for v in torch.aminmax(x))
        if low < 0 or high >= levels:
            raise ValueError(f"{what} has levels 0..{levels - 1}, got values in {low}..{high}")


@dataclass(frozen=True)
class ContextSpec:
    """What a model may be conditioned on, beside the values that it models.

    Attributes:
        name: Such as ``"label"``; what ``model.context`` names.
        shape: ``()`` for a class label, ``(V,)`` for a vector, ``(C, H, W)`` for an image.
        levels: L for integers in {0 .. L-1} (of a label: the number of classes); ``None`` for
            real values.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if len(self.shape) not in (0, 1, 3) or min(self.shape, default=1) < 1:
            raise ValueError(f"context {self.name!r} has shape {self.shape}")
        if not self.shape and self.levels is None:
            raise ValueError(
                f"context {self.name!r} is a label, so it needs its number of classes"
            )

    @property
    def num_features(self) -> int:
        """Numbers by which a network reads one context: a label's classes, else its values."""
        return math.prod(self.shape) if self.shape else self.num_classes

    @property
    def num_classes(self) -> int:
        """Of a label.

        Raises:
            ValueError: It has no number of them, so it is no label.
        """
        if self.levels is None:
            raise ValueError(f"context {self.name!r} is real-valued, so it has no classes")
        return self.levels

    def check_shape(self, shape: Sequence[int], batch_size: int) -> None:
        """Raise ValueError unless the shape is that of one context an event."""
        if tuple(shape) != (batch_size, *self.shape):
            raise ValueError(
                f"context {self.name!r} of {batch_size} events must have shape "
                f"{(batch_size, *self.shape)}, got {tuple(shape)}"
            )

    def check(self, context: Tensor, batch_size: int) -> None:
        """Raise ValueError unless ``context`` (B, *shape) has one valid context an event."""
        self.check_shape(context.shape, batch_size)
        _check_values(f"context {self.name!r}", context, self.levels)


@dataclass(frozen=True)
class Standardization:
    """z = (x - mean) / std for each value of a vector.

    Attributes:
        columns: Names of the values.
        mean: In the original units.
        std: In the original units, above 0.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("columns", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.columns) == len(self.mean) == len(self.std):
            raise ValueError("a standardization needs a name, a mean and a std for each column")
        for name, std in zip(self.columns, self.std, strict=True):
            if not 0 < std < math.inf:
                raise ValueError(f"the std of column {name!r} is {std}; it must be above 0")

    @property
    def log_det(self) -> float:
        """log|dz/dx|, nats."""
        return -math.fsum(map(math.log, self.std))


@dataclass(frozen=True)
class Coding:
    """Level i of every value of a vector stands for ``values[i]``, so that nothing is lost.

    Attributes:
        columns: Names of the values.
        values: Whole numbers in the original units, ascending.
    """

    columns: tuple[str, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("columns", "values"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.values) < 2 or any(a >= b for a, b in pairwise(self.values)):
            raise ValueError(f"a coding needs ascending values, got {list(self.values)}")

    def levels_of(self, x: Tensor) -> Tensor:
        """Level of each value of ``x`` (N, D), in the original units; int64.

        Raises:
            ValueError: One has none; names it and its column.
        """
        values = torch.tensor(self.values, dtype=torch.double, device=x.device)
        x = x.double().contiguous()
        levels = torch.searchsorted(values, x).clamp(max=len(values) - 1)
        wrong = (values[levels] != x).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            listed = ", ".join(map(str, self.values[:10])) + ", ..." * (len(self.values) > 10)
            raise ValueError(
                f"column {self.columns[column]!r} holds {float(x[row, column]):g}, which is none "
                f"of the levels {listed}"
            )
        return levels


@dataclass(frozen=True)
class DataSpec:
    """Facts about the values of one data set; every model is built from it.

    Examples:
        >>> import armodels
        >>> spec = armodels.DataSpec("mine", "image", (3, 32, 32), 256, "probability")
        >>> spec.num_dims
        3072

    Attributes:
        name: Names the data *and* its preprocessing; numbers under two names are never ranked.
        kind: ``"vector"``, ``"image"`` or ``"sequence"``.
        shape: ``(D,)``, ``(C, H, W)`` or ``(T,)``.
        levels: L for integers in {0 .. L-1}; ``None`` for real values.
        measure: ``"probability"`` (exact, discrete), ``"density"`` (real values) or ``"bound"``
            (on a probability: dequantized data, or a model that has no closed form for levels).
        log_det: log|dz/dx| of the preprocessing x -> z, per example, nats; added to log p(z).
        contexts: What is stored beside the values, to condition a model on.
        standardization: By which the values were made of the user's, ``log_det`` included; None:
            they are in their original units.
        coding: What the levels stand for; None: themselves.
        alphabet: Of a text: what its levels stand for.
        notes: Of music: what its values stand for, and how many of them are a frame.
        waveform: Of a sound: what its levels stand for, and how many of them are a second.
        checksum: Of all values, of data that are files of the user's own: says that two are the
            same, whatever their names; empty where the name alone says it.
        pieces: Of windows: names the whole sequences that they are cut from, and all that changes
            these; numbers of whole sequences are ranked under it, whatever a window is; empty:
            there are none. Two specs that differ in it alone are equal.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    levels: int | None
    measure: str
    log_det: float = 0.0
    contexts: tuple[ContextSpec, ...] = ()
    standardization: Standardization | None = None
    coding: Coding | None = None
    checksum: str = ""
    alphabet: Alphabet | None = None
    notes: Notes | None = None
    waveform: Waveform | None = None
    pieces: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        contexts = (c if isinstance(c, ContextSpec) else ContextSpec(**c) for c in self.contexts)
        object.__setattr__(self, "contexts", tuple(contexts))
        if isinstance(self.standardization, dict):
            object.__setattr__(self, "standardization", Standardization(**self.standardization))
        if isinstance(self.coding, dict):
            object.__setattr__(self, "coding", Coding(**self.coding))
        if isinstance(self.alphabet, dict):
            object.__setattr__(self, "alphabet", Alphabet(**self.alphabet))
        if isinstance(self.notes, dict):
            object.__setattr__(self, "notes", Notes(**self.notes))
        if isinstance(self.waveform, dict):
            object.__setattr__(self, "waveform", Waveform(**self.waveform))
        for what, meaning in (("alphabet", self.alphabet), ("waveform", self.waveform)):
            if meaning is not None and meaning.num_levels != self.levels:
                raise ValueError(f"data {self.name!r} has {self.levels} levels, its {what} others")
        if self.notes is not None and self.notes.voices and self.shape[-1] != self.notes.size:
            raise ValueError(
                f"data {self.name!r} has {self.notes.size} voices a frame, but shape {self.shape}"
            )
        if self.coding is not None and len(self.coding.values) != self.levels:
            raise ValueError(f"data {self.name!r} has {self.levels} levels, its coding others")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} of data {self.name!r} is not one of {KINDS}")
        if self.measure not in MEASURES:
            raise ValueError(
                f"measure {self.measure!r} of data {self.name!r} is not one of {MEASURES}"
            )
        if len(self.shape) != (3 if self.kind == "image" else 1) or min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} of data {self.name!r} is no {self.kind}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"data {self.name!r} needs at least 2 levels, not {self.levels}")
        impossible = "probability" if self.levels is None else "density"
        if self.measure == impossible:
            raise ValueError(
                f"data {self.name!r} with levels={self.levels} cannot have measure {self.measure}"
            )

    @property
    def num_dims(self) -> int:
        """D, the number of values of one example."""
        return math.prod(self.shape)

    @property
    def unit(self) -> str:
        """What a number is for: char, byte, frame, sample, symbol of others, or dim."""
        if self.alphabet is not None:
            return self.alphabet.unit
        if self.notes is not None:
            return "frame"
        if self.waveform is not None:
            return "sample"
        return "symbol" if self.kind == "sequence" else "dim"

    @property
    def unit_size(self) -> int:
        """Values of a unit: those of a frame of music, else one."""
        return 1 if self.notes is None else self.notes.size

    @property
    def num_units(self) -> float:
        """Units of an example, for which its numbers are given, too; 0 where it has none."""
        has_units = self.kind == "sequence" or self.notes is not None
        return self.num_dims / self.unit_size if has_units else 0

    @property
    def num_levels(self) -> int:
        """L.

        Raises:
            ValueError: The values are real, so they have no levels.
        """
        if self.levels is None:
            raise ValueError(f"data {self.name!r} is real-valued, so it has no levels")
        return self.levels

    @property
    def dtype(self) -> torch.dtype:
        """How values travel: the smallest integer type that holds L levels, or a float."""
        if self.levels is None:
            return torch.get_default_dtype()
        if self.levels <= 256:
            return torch.uint8
        return torch.int32 if self.levels <= 2**31 else torch.int64

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` (B, *shape) lies in the support."""
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"data {self.name!r} has examples of shape {self.shape}, got {tuple(x.shape[1:])}"
            )
        _check_values(f"data {self.name!r}", x, self.levels)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the values of a table; None: the data has none."""
        named = self.standardization or self.coding
        return None if named is None else named.columns

    @property
    def names(self) -> tuple[str, ...]:
        """What the values along the last dimension are called: columns, voices, or nothing."""
        return self.columns or (() if self.notes is None else self.notes.voices)

    def encoded(self, x: Tensor) -> Tensor:
        """Values (N, D) of the original units as a model knows them; ``x`` where they are.

        Raises:
            ValueError: A value is none of the levels, or no number once it is standardized; names
                the first one and its column.
        """
        if self.coding is not None:
            return self.coding.levels_of(x).to(self.dtype)
        if self.standardization is None:
            return x
        mean, std = _scale(self.standardization, x)
        z = ((x.double() - mean) / std).to(self.dtype)
        wrong = z.isinf().nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ValueError(
                f"column {self.standardization.columns[column]!r} holds "
                f"{float(x[row, column]):g}, too far from the training rows to be standardized "
                f"(mean {float(mean[column]):.4g}, standard deviation {float(std[column]):.4g})"
            )
        return z

    def original(self, x: Tensor) -> Tensor:
        """Values in their original units: float64 where they were standardized, int64 where coded.

        ``x`` itself where they are.
        """
        if self.coding is not None:
            return torch.tensor(self.coding.values, device=x.device)[x.long()]
        if self.standardization is None:
            return x
        mean, std = _scale(self.standardization, x)
        return x.double() * std + mean

    def log_det_of(self, part: Tensor) -> Tensor:
        """log|dz/dx| of some values (..., *shape) bool of an example, nats: (...).

        Raises:
            ValueError: It is known of whole examples alone.
        """
        each = torch.zeros(self.shape, dtype=torch.double, device=part.device)
        if self.standardization is not None:
            each -= _scale(self.standardization, part)[1].log()
        elif self.log_det:
            raise ValueError(f"the preprocessing of {self.name} is known for whole examples alone")
        return (part * each).flatten(part.ndim - len(self.shape)).sum(-1)

    def coded_like(self, other: "DataSpec") -> "DataSpec":
        """The same data in the values of another table with the same columns."""
        return replace(
            self,
            levels=other.levels,
            measure=other.measure,
            log_det=other.log_det,
            standardization=other.standardization,
            coding=other.coding,
        )

    def name_with(self, context: ContextSpec | None, *, whole: bool = False) -> str:
        """Name of numbers about p(x | context): never ranked with those about p(x).

        Args:
            context: What a model is conditioned on, if anything.
            whole: They are about the whole sequences that windows are cut from.
        """
        name = self.pieces if whole else self.name
        return name if context is None else f"{name}|{context.name}"

    def to_dict(self) -> dict:
        """Builtins only, for checkpoints."""
        return asdict(self)


def _scale(scale: Standardization, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on the device of x."""
    mean, std = (
        torch.tensor(values, dtype=torch.double, device=x.device)
        for values in (scale.mean, scale.std)
    )
    return mean, std


Number = TypeVar("Number", float, Tensor)


def nats(log_prob: Number, spec: DataSpec) -> Number:
    """Negative log-likelihood in nats per example, in the original units of the data."""
    return -(log_prob + spec.log_det)


def bits_per_dim(log_prob: Number, spec: DataSpec) -> Number:
    """-(log_prob + log_det) / (D ln 2): bits per dimension, the one formula in the one place.

    Examples:
        >>> import armodels
        >>> spec = armodels.DataSpec("bits", "vector", (2,), 2, "probability")
        >>> armodels.bits_per_dim(-1.3862943611198906, spec)  # both values are anybody's guess
        1.0
    """
    return nats(log_prob, spec) / (spec.num_dims * math.log(2))


def described(log_prob: float, spec: DataSpec) -> str:
    """A mean log-probability of an example in words: nats and bits/dim, or both of a symbol."""
    found, bits = nats(log_prob, spec), bits_per_dim(log_prob, spec)
    if not spec.num_units:
        return f"{found:.4f} nats, {bits:.4f} bits/dim"
    each, unit = found / spec.num_units, spec.unit
    return f"{each:.4f} nats/{unit}, {bits * spec.unit_size:.4f} bits/{unit}"
