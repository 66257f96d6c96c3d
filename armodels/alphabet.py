"""What the levels of a text stand for: characters, or bytes of its UTF-8."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Unit = Literal["char", "byte"]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands in a text that is written for what the alphabet does not hold."""

LINE = "-" * 20
"""Stands between several texts in one file."""


@dataclass(frozen=True)
class Alphabet:
    """Level i of a text stands for ``symbols[i]``.

    Attributes:
        symbols: Code points, or bytes, ascending.
        unit: What a symbol is.
        unknown: Whether one more level stands for every symbol that is not here.
    """

    symbols: tuple[int, ...]
    unit: Unit = "char"
    unknown: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(self.symbols))
        if not self.symbols or any(a >= b for a, b in pairwise(self.symbols)):
            raise ValueError(f"an alphabet needs ascending symbols, got {self.symbols[:9]}...")
        if self.unit == "byte" and not 0 <= self.symbols[0] <= self.symbols[-1] < 256:
            raise ValueError("an alphabet of bytes has symbols from 0 to 255")
        if self.unit == "char" and not 0 <= self.symbols[0] <= self.symbols[-1] < 0x110000:
            raise ValueError("an alphabet of characters has code points below 0x110000")

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.symbols) + self.unknown

    @property
    def letter(self) -> str:
        """A symbol that a shell takes as it is, where there is one: a text may begin with it."""
        symbols = [chr(one) for one in self.symbols if one < 128 or self.unit == "char"]
        return next(filter(str.isalpha, symbols), symbols[0] if symbols else UNKNOWN)

    @classmethod
    def of(cls, text: np.ndarray, unit: Unit, *, unknown: bool = False) -> "Alphabet":
        """Every symbol of a text.

        Args:
            text: (T,) code points or bytes.
            unit: Which.
            unknown: Whether one more level stands for every other symbol.
        """
        return cls(tuple(np.unique(text).tolist()), unit, unknown)

    def encoded(self, text: np.ndarray, name: str) -> np.ndarray:
        """Levels of an array of code points or bytes.

        Args:
            text: (T,).
            name: Of the text, for the sentence about a symbol that is not here.

        Returns:
            (T,) of uint8 where 256 levels are enough, else int32.

        Raises:
            ValueError: A symbol is not here, and no level stands for it; says which, and where.
        """
        symbols = np.array(self.symbols)
        levels = np.searchsorted(symbols, text).clip(max=len(symbols) - 1)
        strange = symbols[levels] != text
        if strange.any():
            if not self.unknown:
                raise ValueError(self._stranger(text, int(strange.argmax()), name))
            levels[strange] = len(symbols)
        return levels.astype(np.uint8 if self.num_levels <= 256 else np.int32)

    def _stranger(self, text: np.ndarray, at: int, name: str) -> str:
        newlines = np.flatnonzero(text[:at] == ord("\n"))
        line, column = len(newlines) + 1, at - (int(newlines[-1]) + 1 if len(newlines) else 0) + 1
        what = f"byte 0x{text[at]:02x}"
        if self.unit == "char":
            what = f"character {chr(text[at])!r} (U+{text[at]:04X})"
        return (
            f"{name} has the {what} at line {line}, column {column}, which the training part "
            f"lacks; take it out, or give what is unknown a level with data.unknown=true"
        )

    def as_bytes(self, levels: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that levels (T,) of an alphabet of bytes stand for."""
        levels = np.asarray(levels)
        known = levels < len(self.symbols)
        found = np.array(self.symbols)[np.where(known, levels, 0)]
        return np.where(known, found, 0xFF).astype(np.uint8).tobytes()  # 0xFF: no byte of UTF-8

    def decoded(self, levels: Sequence[int] | np.ndarray) -> str:
        """The text of levels (T,)."""
        if self.unit == "byte":
            return self.as_bytes(levels).decode("utf-8", "replace")
        levels = np.asarray(levels)
        known = levels < len(self.symbols)
        found = np.array(self.symbols)[np.where(known, levels, 0)]
        return "".join(map(chr, np.where(known, found, ord(UNKNOWN)).tolist()))

    def joined(self, several: np.ndarray) -> str:
        """The texts of levels (N, T), with a line between them."""
        return f"\n{LINE}\n".join(map(self.decoded, several))


def code_points(text: str) -> np.ndarray:
    """Characters as an array (T,) of uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
