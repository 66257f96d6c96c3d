"""A user's own values in tensors, arrays and memory maps: what they are, as far as they say."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from armodels.data.mapped import MappedRows
from armodels.data.rows import Rows, as_rows
from armodels.spec import DataSpec

Kind = Literal["vector", "image", "sequence"]
Levels = int | None | Literal["auto"]

MAX_LEVELS = 256
"""More levels are never inferred."""


class Own(NamedTuple):
    """A user's values, and what they are."""

    spec: DataSpec
    parts: list[Rows]


def described(
    parts: Mapping[str, Any],
    *,
    name: str | None,
    kind: Kind | None,
    levels: Levels,
    drawn: object = None,
) -> Own:
    """Values as rows of the type in which they travel, with their spec.

    Args:
        parts: Split -> (N, *event): tensors, arrays, memory maps, tables of pandas, or ``Rows``.
        name: Of the data; None: ``own-`` and a checksum of all values.
        kind: None: a vector of (D,), an image of (C, H, W).
        levels: L for integers in {0 .. L-1}, None for real values; ``"auto"``: real values where
            they are floats, else one more than the largest integer.
        drawn: By what splits are drawn from the values; part of the checksum.

    Raises:
        ValueError: What they are cannot be inferred: says what to state.
        TypeError: They are no such values.
    """
    levels = _stated(levels)
    _require_same_columns(parts)
    rows = [as_numbers(part) for part in parts.values()]
    shape = tuple(rows[0].shape[1:])
    for other in rows[1:]:
        if tuple(other.shape[1:]) != shape:
            raise ValueError(f"splits hold events of shapes {shape} and {tuple(other.shape[1:])}")
    kind = kind or _kind(shape)
    tensors = [one for one in rows if isinstance(one, Tensor)]
    in_memory = len(tensors) == len(rows)
    if levels == "auto" and not in_memory:
        _require_real(rows)
        levels = None
    elif levels == "auto":
        levels = _levels(tensors)
    if not name and not in_memory:
        raise ValueError(
            "data on disk is not read at the start, so no checksum tells it from other data: "
            "give it a name, name=..."
        )
    measure = "density" if levels is None else "probability"
    spec = DataSpec(name or "own", kind, shape, levels, measure)
    if not in_memory:
        return Own(spec, [_of_type(one, levels, spec.dtype) for one in rows])
    tensors = [_of_type(_cast(one, levels), levels, spec.dtype) for one in tensors]
    checksum = _checksum(repr((kind, shape, levels, drawn)), tensors)
    return Own(replace(spec, name=name or f"own-{checksum[:8]}", checksum=checksum), [*tensors])


def _stated(levels: object) -> Levels:
    """Levels as they may be stated.

    Raises:
        ValueError: They are no such.
    """
    if levels is None or levels == "auto":
        return "auto" if levels else None
    try:
        if isinstance(levels, bool):
            raise TypeError
        return operator.index(levels)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            f"levels is {levels!r}; it must be a whole number, None for real values, or 'auto'"
        ) from None


def _require_same_columns(parts: Mapping[str, Any]) -> None:
    """Raise ValueError unless tables have the same columns in the same order."""
    tables = {part: list(one.columns) for part, one in parts.items() if _is_table(one)}
    first = next(iter(tables), "")
    for part, columns in tables.items():
        if columns != tables[first]:
            raise ValueError(
                f"the columns of {part} are not those of {first}: {_listed(columns)} instead of "
                f"{_listed(tables[first])}"
            )


def _is_table(values: object) -> bool:
    return hasattr(values, "to_numpy") and hasattr(values, "columns")


def _of_table(table: Any) -> np.ndarray:
    """The numbers of a table (N, D), whatever the types in which its columns hold them.

    Raises:
        TypeError: A column holds no numbers.
        ValueError: The table is empty, or values are missing where their type has no NaN.
    """
    if not len(table.columns) or not len(table):
        lacks = "rows" if len(table.columns) else "columns"
        raise ValueError(f"the table has no {lacks}, and so no values")
    if not hasattr(table, "iloc"):  # not of pandas
        return table.to_numpy()
    kinds = [getattr(kind, "kind", "O") for kind in table.dtypes]
    named = zip(table.columns, kinds, strict=True)
    if wrong := [name for name, kind in named if kind not in "biuf"]:
        raise TypeError(f"columns of the table are no numbers: {_listed(wrong)}; leave them out")
    own = all(isinstance(kind, np.dtype) for kind in table.dtypes)
    if own and ("b" not in kinds or {*kinds} == {"b"}):
        return table.to_numpy()
    columns = [table.iloc[:, i] for i in range(len(kinds))]
    for name, column in zip(table.columns, columns, strict=True):
        # NumPy's own floats have NaN, of which the check of values speaks.
        if not isinstance(column.dtype, np.dtype) and column.isna().any():
            raise ValueError(
                f"column {name} of the table lacks {int(column.isna().sum())} values: leave their "
                f"rows out with table.dropna(), or fill them"
            )
    # A type of pandas says which of NumPy's holds the same numbers; booleans are 0 and 1.
    return np.column_stack(
        [column.to_numpy(getattr(column.dtype, "numpy_dtype", None)) for column in columns]
    )


def _listed(columns: Sequence[object]) -> str:
    return ", ".join(map(str, columns[:10])) + ", ..." * (len(columns) > 10)


def _checksum(about: str, tensors: Sequence[Tensor]) -> str:
    digest = hashlib.md5(about.encode(), usedforsecurity=False)
    for one in tensors:
        digest.update(f"{len(one)} rows".encode() + one.contiguous().numpy().tobytes())
    return digest.hexdigest()


def as_numbers(values: Any) -> Rows:
    """Values as rows, in memory as integers, booleans or floats that torch computes with.

    Raises:
        TypeError: They are no such values.
        ValueError: Values are masked or missing, a table is empty, or integers are beyond those
            of 64 bits.
    """
    if _is_table(values):
        values = _of_table(values)
    elif hasattr(values, "to_frame"):
        raise TypeError(
            f"values are a {type(values).__name__}, one column, and rows are those of a table; "
            f"give values.to_frame()"
        )
    if isinstance(values, np.ndarray) and (
        values.dtype.kind not in "biuf" or values.dtype.itemsize > 8
    ):
        raise TypeError(f"values of {values.dtype} are no numbers of a data set")
    rows = as_rows(values)
    if not isinstance(rows, Tensor):
        return rows
    return rows.detach().cpu()


def _kind(shape: tuple[int, ...]) -> Kind:
    if len(shape) == 1:
        return "vector"
    if len(shape) != 3:
        also = "; images without channels get an axis by x[:, None]" if len(shape) == 2 else ""
        raise ValueError(
            f"events of shape {shape} are neither vectors (D,) nor images (C, H, W){also}"
        )
    channels, *_, last = shape
    if channels not in (1, 3) and last in (1, 3):
        raise ValueError(
            f"events of shape {shape} look like images (H, W, C), but images are (C, H, W): move "
            f"the axis with numpy.moveaxis(x, -1, 1), or say kind='image' if they are"
        )
    return "image"


def _require_real(rows: Sequence[Rows]) -> None:
    """Raise ValueError unless values are real by their type."""
    if not all(one.dtype.is_floating_point for one in rows):
        raise ValueError(
            "data on disk is not read at the start, so its levels are not found: say "
            "levels=256, or how many there are"
        )


def _levels(tensors: Sequence[Tensor]) -> int | None:
    """How many levels values have; None: they are real."""
    if not any(one.numel() for one in tensors):
        raise ValueError("there are no rows")
    if any(one.is_floating_point() for one in tensors):
        if all(bool(torch.all(one % 1 == 0)) for one in tensors):
            raise ValueError(
                "all values are whole numbers, but of a floating-point type: say levels=None if "
                "they are real values, or levels=2 (or more) if they are the levels 0, 1, ..."
            )
        return None
    if any(one.dtype == torch.bool for one in tensors):
        return 2
    filled = [one for one in tensors if one.numel()]
    low = min((int(one.min()) for one in filled), default=0)
    high = max((int(one.max()) for one in filled), default=0)
    if low < 0:
        raise ValueError(
            f"integers are levels 0, 1, ..., but the least is {low}: add {-low} to all of them, "
            f"or give real values as floats"
        )
    if high >= MAX_LEVELS:
        raise ValueError(
            f"the largest integer is {high}: say levels={high + 1} if they are levels, or give "
            f"real values as floats"
        )
    if 128 <= high < 255:
        raise ValueError(
            f"the largest integer is {high}: say levels=256 if 255 is possible, or "
            f"levels={high + 1} if it is not"
        )
    return max(2, high + 1)


def _cast(values: Tensor, levels: int | None) -> Tensor:
    """Values in memory, whole numbers of a floating-point type as integers where they are levels.

    Raises:
        ValueError: Such a value is no whole number; names its row.
    """
    if levels is None or not values.is_floating_point():
        return values
    wrong = (values % 1 != 0).flatten(1).any(1).nonzero()
    if len(wrong):
        raise ValueError(f"levels={levels} takes whole numbers; row {int(wrong[0])} has others")
    return values.long()


@overload
def _of_type(rows: Tensor, levels: int | None, dtype: torch.dtype) -> Tensor: ...
@overload
def _of_type(rows: Rows, levels: int | None, dtype: torch.dtype) -> Rows: ...
def _of_type(rows: Rows, levels: int | None, dtype: torch.dtype) -> Rows:
    """Rows in the type in which they travel, save where it would hide values out of range."""
    if isinstance(rows, Tensor):
        fits = levels is None or not rows.numel() or 0 <= rows.min() <= rows.max() < levels
        return rows.to(dtype) if fits else rows
    return rows.to(dtype) if isinstance(rows, MappedRows) and levels is None else rows
