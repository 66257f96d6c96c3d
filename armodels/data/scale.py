"""The mean and the spread of the columns of a table, as far as numbers can state them."""

from collections.abc import Callable, Sequence

import numpy as np

from armodels.spec import Standardization

LARGEST = np.finfo(float).max / 1000
"""Of a standard deviation: differences and samples must be numbers, too."""


def standardization(
    names: Sequence[str], train: np.ndarray, where: str, leave_out: Callable[[str], str]
) -> Standardization:
    """Mean and standard deviation of each column.

    Args:
        names: Of the columns.
        train: (N, D) float64, the training rows.
        where: What messages call the table.
        leave_out: A column's name -> the override by which it is left out.

    Raises:
        ValueError: A column is constant, or of a spread beyond what numbers can state.
    """
    for name, same in zip(names, (train == train[0]).all(0), strict=True):
        if same:
            raise ValueError(
                f"column {name!r} of {where} is constant over the training rows, so it has no "
                f"density; leave it out with {leave_out(name)}"
            )
    # Squares of huge or tiny numbers are no numbers. A power of two changes no digit.
    unit = np.exp2(np.frexp(abs(train).max(0))[1] - 1.0)
    mean, std = (train / unit).mean(0) * unit, (train / unit).std(0) * unit
    for name, one in zip(names, std, strict=True):
        if not np.finfo(float).tiny <= one < LARGEST:
            raise ValueError(
                f"column {name!r} of {where} has a spread beyond what numbers can state; bring "
                f"it to other units, or leave it out with {leave_out(name)}"
            )
    return Standardization(tuple(names), tuple(mean.tolist()), tuple(std.tolist()))


def merged(raw: np.ndarray, now: np.ndarray) -> float:
    """Share of values that are equal to other ones now, and were not to seven digits before.

    Args:
        raw: (N,) float64.
        now: The same in the same order of size, (N,) float32.
    """
    digits, exponent = np.frexp(raw)
    raw = np.sort(np.ldexp(np.rint(digits * 2**24), exponent - 24))  # To the digits of a float32.
    new = np.diff(np.sort(now)) > 0
    group = np.cumsum(np.append(False, new))
    mixed = np.bincount(group[1:], (np.diff(raw) > 0) & ~new, group[-1] + 1) > 0
    return float(mixed[group].mean())
