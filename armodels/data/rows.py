"""Rows of a data set, in memory or on disk, and batches of them with their contexts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from armodels.data.mapped import MappedRows, map_of, simple

Index = slice | Tensor
"""Rows of a split: a slice, or an int64 tensor (B,) of row numbers."""

MAX_COPIED = 2**30
"""Bytes of a memory map that are copied to a GPU at once; of a larger one, each batch."""


@runtime_checkable
class Rows(Protocol):
    """What a split is made of: (N, *event), read a few rows at a time. A ``Tensor`` is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, *event)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Index, /) -> Tensor:
        """Values (B, *event) of a slice, or of an int64 tensor of row numbers."""


@final
class CheckedRows:
    """Rows that are checked when they are read, because reading all of them first takes too long.

    Args:
        rows: (N, *event).
        check: Raises ValueError for values (B, *event) that lie outside the support.
        name: Of the rows, such as ``"train"``; stands in the message.
    """

    def __init__(self, rows: Rows, check: Callable[[Tensor], None], name: str):
        self._rows, self._check, self._name = rows, check, name
        self.shape, self.dtype = rows.shape, rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Index) -> Tensor:
        """Values of the rows.

        Raises:
            ValueError: A value lies outside the support; names the first such row.
        """
        values = read_rows(self._rows, rows, self._name)
        numbers = rows.tolist() if isinstance(rows, Tensor) else range(len(self))[rows]
        check_rows(values, self._check, numbers, self._name)
        return values


@final
class ChosenRows:
    """Some rows of others, which stay where they are.

    Args:
        rows: (N, *event).
        numbers: (M,) int64: which of them, in this order.
    """

    def __init__(self, rows: Rows, numbers: Tensor):
        self._rows, self._numbers = rows, numbers
        self.shape, self.dtype = (len(numbers), *rows.shape[1:]), rows.dtype

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Index) -> Tensor:
        return self._rows[self._numbers[rows]]


@final
class FrozenRows:
    """Rows transformed at random, the same for ever, a block at a time.

    Args:
        rows: (N, *raw).
        transform: Raw rows and a generator -> values.
        seed: Of the generators, one a block.
    """

    BLOCK = 1000

    def __init__(
        self, rows: Rows, transform: Callable[[Tensor, torch.Generator], Tensor], seed: int
    ):
        self._rows, self._transform, self._seed = rows, transform, seed
        first = self._block(0)
        self.shape, self.dtype = (len(rows), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Index) -> Tensor:
        numbers = rows.cpu() if isinstance(rows, Tensor) else _numbers(rows, len(self))
        values = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        blocks = numbers.div(self.BLOCK, rounding_mode="floor")
        for block in blocks.unique().tolist():
            inside = blocks == block
            values[inside] = self._block(block)[numbers[inside] - block * self.BLOCK]
        return values

    def _block(self, number: int) -> Tensor:
        raw = self._rows[number * self.BLOCK : (number + 1) * self.BLOCK]
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1, np.uint64)[0])
        return self._transform(raw, torch.Generator(raw.device).manual_seed(seed >> 1))


@final
class Windows:
    """Equally long windows of one sequence: views, of which a read copies its own.

    Args:
        values: (T,).
        length: Of a window.
        stride: From the beginning of one to that of the next; None: as long as a window.
    """

    def __init__(self, values: Rows, length: int, stride: int | None = None):
        self._values, self._stride = values, stride or length
        self.shape = (max(0, (len(values) - length) // self._stride + 1), length)
        self.dtype = values.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Index) -> Tensor:
        numbers = rows if isinstance(rows, Tensor) else _numbers(rows, len(self))
        places = torch.arange(self.shape[1], device=numbers.device)
        index = (numbers * self._stride)[:, None] + places
        return take(self._values, index.flatten()).view(index.shape)


def _numbers(rows: slice, num_rows: int) -> Tensor:
    """The row numbers of a slice: (B,), without a list of all N."""
    return torch.arange(*rows.indices(num_rows))


def read_rows(rows: Rows, index: Index, name: str) -> Tensor:
    """Values (B, *event) of some rows of a class that may be a user's own.

    Args:
        rows: (N, *event).
        index: Which of them.
        name: Of the rows, such as ``"train"``; stands in the message.

    Raises:
        TypeError: What is read is no tensor.
        ValueError: It has not as many rows as were asked for.
    """
    values: object = rows[index]
    num = len(index) if isinstance(index, Tensor) else len(range(len(rows))[index])
    if isinstance(values, Tensor) and values.shape[:1] == (num,):
        return values
    kind = type(rows).__name__
    if not isinstance(values, Tensor):
        raise TypeError(
            f"rows of {name} ({kind}) are read as {type(values).__name__}; they must be read as "
            f"a tensor, such as torch.from_numpy(...)"
        )
    raise ValueError(
        f"{num} rows of {name} ({kind}) are read as values of shape {tuple(values.shape)}; the "
        f"first number must be {num}"
    )


def check_rows(
    values: Tensor, check: Callable[[Tensor], None], numbers: Sequence[int], name: str
) -> None:
    """Check values, and name the first row that is wrong.

    Args:
        values: (B, *event).
        check: Raises ValueError for values (B, *event) that lie outside the support.
        numbers: Of the rows, B of them.
        name: Of the rows, such as ``"train"``; stands in the message.

    Raises:
        ValueError: A value lies outside the support; names the first such row.
    """
    try:
        check(values)
    except ValueError:
        check(values[:0])  # What is wrong without any row is wrong of no row.
        first, end = 0, len(values)
        while end - first > 1:
            middle = (first + end) // 2
            try:
                check(values[first:middle])
            except ValueError:
                end = middle
            else:
                first = middle
        try:
            check(values[first:end])
        except ValueError as error:
            raise ValueError(f"row {numbers[first]} of {name}: {error}") from None
        raise


NUMBERS = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
"""Types of values that torch computes with."""

WIDE = {torch.uint16, torch.uint32, torch.uint64}
"""Types that torch only stores."""


def as_rows(values: Rows | np.ndarray) -> Rows:
    """Values as rows: an array in memory becomes a tensor, a memory map is left on its disk.

    Raises:
        TypeError: They cannot be read by slices and tensors of row numbers, or are no numbers.
        ValueError: An array has masked values, or integers beyond those of 64 bits.
    """
    if isinstance(values, Tensor):
        return _computable(values)
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError(
                f"{np.ma.count_masked(values)} values of the array are masked, so it is not known "
                f"what they are: leave their rows out, or fill them with x.filled(...)"
            )
        values = values.data
    if isinstance(values, np.ndarray):
        if map_of(values) is not None:
            return MappedRows(values)
        return torch.from_numpy(np.require(simple(values), requirements=("C", "W")))
    if isinstance(values, Rows):
        if not isinstance(values.dtype, torch.dtype):
            raise TypeError(
                f"rows of type {type(values).__name__} have the dtype {values.dtype!r}; it must "
                f"be one of torch, such as torch.uint8, and what is read of them a tensor"
            )
        return values
    raise TypeError(
        f"rows of data are a tensor, an array, or an object with shape, dtype, len and indexing "
        f"by slices and tensors, not {type(values).__name__}"
    )


def _computable(values: Tensor) -> Tensor:
    """A dense tensor of a type that torch computes with.

    Raises:
        TypeError: It is none.
        ValueError: It has integers beyond those of 64 bits.
    """
    if values.layout != torch.strided or values.is_nested or values.is_meta:
        raise TypeError(
            "a tensor that is sparse, nested or without storage has no rows to be read"
        )
    if values.dtype not in NUMBERS | WIDE:
        raise TypeError(f"values of {values.dtype} are no numbers of a data set")
    if values.dtype in WIDE:
        return torch.from_numpy(simple(values.cpu().numpy()))
    return values


def num_bytes(rows: Rows) -> int:
    """Memory that all of them would take."""
    return math.prod(rows.shape) * rows.dtype.itemsize


def take(rows: Rows, index: Index) -> Tensor:
    """Values (B, *event) of some rows; of a tensor by ``index_select``, the faster way."""
    if isinstance(rows, Tensor) and isinstance(index, Tensor):
        return rows.index_select(0, index)
    return rows[index]


def on_device(rows: Rows, device: torch.device) -> Rows:
    """Rows on a GPU if they leave half of its free memory free, else where they are.

    A memory map of more than ``MAX_COPIED`` bytes stays on its disk, too. What stays is brought
    over batch by batch.
    """
    if device.type == "cpu":
        return rows
    size = num_bytes(rows)
    if not isinstance(rows, Tensor) and size > MAX_COPIED:
        return rows
    if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:
        return rows
    return rows[:].to(device)


class Batch(NamedTuple):
    """Events and what a model is conditioned on where it models them.

    Attributes:
        x: (B, *event).
        context: (B, *context); None: nothing.
    """

    x: Tensor
    context: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device."""
        return self._each(lambda values: values.to(device))

    def repeat_interleave(self, times: int) -> "Batch":
        """Each example ``times`` times in a row."""
        return self._each(lambda values: values.repeat_interleave(times, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(change(self.x), None if self.context is None else change(self.context))


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """A split with its contexts: ``examples[rows]`` is a ``Batch``.

    Attributes:
        x: (N, *event).
        context: (N, *context), what is stored beside the values; None: nothing.
        pieces: The sequences (T,) whose windows the rows are; none: each row stands by itself.
        derive: Values (B, *event) -> contexts (B, *context), where they follow from the values.
        piece_context: (M, *context), what is stored beside each of the M pieces; None: nothing.

    Raises:
        ValueError: There are not as many contexts as events, or as pieces.
    """

    x: Rows
    context: Rows | None = None
    derive: Callable[[Tensor], Tensor] | None = None
    pieces: Sequence[Rows] = ()
    piece_context: Rows | None = None

    def __post_init__(self) -> None:
        if self.piece_context is not None and len(self.piece_context) != len(self.pieces):
            raise ValueError(f"{len(self.pieces)} pieces have {len(self.piece_context)} contexts")
        if self.context is not None and len(self.context) != len(self.x):
            raise ValueError(f"{len(self.x)} events have {len(self.context)} contexts")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Index) -> Batch:
        return self.beside(take(self.x, rows), rows)

    def beside(self, x: Tensor, rows: Index) -> Batch:
        """Values that were made of some rows, with the contexts of these rows.

        Args:
            x: (B, *event).
            rows: The rows, B of them.

        Returns:
            The batch, on the device of ``x``.
        """
        if self.derive is not None:
            return Batch(x, self.derive(x))
        if self.context is None:
            return Batch(x)
        return Batch(x, take(self.context, _there(rows, self.context)).to(x.device))

    def batches(self, size: int) -> Iterator[Batch]:
        """All examples in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def _there(index: Index, rows: Rows) -> Index:
    """An index on the device of the rows that it reads."""
    if isinstance(index, Tensor) and isinstance(rows, Tensor):
        return index.to(rows.device)
    return index
