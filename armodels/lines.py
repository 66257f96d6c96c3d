"""The lines of a training: one for each evaluation, under one header."""

import math
from collections.abc import Callable
from typing import final

MOST = 28
"""Lines at most where no terminal shows them, the last one apart."""

COLUMNS = {"epoch": 8, "step": 10, "train nats": 12, "valid nats": 24, "time": 9}
HEADER = "".join(name.rjust(width) for name, width in COLUMNS.items())


@final
class Lines:
    """Which evaluations get a line, and how it looks.

    Args:
        all_of_them: Whether each gets one, as on a terminal; else about ``MOST`` do.
        per: What the numbers are nats of, such as ``char``; empty: of an example.
        size: How many of these an example has.
    """

    def __init__(self, *, all_of_them: bool, per: str = "", size: float = 1):
        self._per, self._size = per, size
        self._all = all_of_them
        self._next = 0
        self._begun = False

    def due(self, share: float) -> bool:
        """Whether an evaluation gets a line, after a share of the training from 0 to 1."""
        part = int(share * MOST)
        if not self._all and part < self._next:
            return False
        self._next = part + 1
        return True

    def add(
        self, epoch: float, step: int, train: float | None, valid: tuple[float, float],
        seconds: float, *, best: bool,
    ) -> list[str]:  # fmt: skip
        """The next line, and before the first one the header.

        Args:
            epoch: Passes over the training split so far.
            step: Steps so far.
            train: Mean since the evaluation before, nats; None: there were no steps.
            valid: Mean and half-width of its 95 % interval, nats.
            seconds: So far.
            best: Whether no evaluation was better.
        """
        cells = (
            f"{epoch:.4g}",
            f"{step:,}",
            "" if train is None else number(train / self._size),
            interval(valid[0] / self._size, valid[1] / self._size, number),
            clock(seconds),
        )
        line = "".join(
            cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True)
        )
        of_what = f", all per {self._per}" if self._per else ""
        header = [] if self._begun else [f"{HEADER}  *: best so far{of_what}"]
        self._begun = True
        return [*header, f"{line}  *" if best else line]


def interval(mean: float, half: float, written: Callable[[float], str]) -> str:
    """``7.1 ± 0.2``; the mean alone where a single example has no interval.

    Args:
        mean: The number.
        half: Half of the width of its interval; NaN: none.
        written: How a number is written.
    """
    return written(mean) if math.isnan(half) else f"{written(mean)} ± {written(half)}"


def number(value: float) -> str:
    """Nats, with as many digits as a column holds."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
