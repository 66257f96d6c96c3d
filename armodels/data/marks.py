"""How a text marks what its cells and numbers are: as found out, and as a user says."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from armodels import show

DELIMITERS = {"tab": "\t", "semicolon": ";", "bar": "|", "comma": ",", "blanks": " "}
"""Words for what may stand between cells; of two that fit as well, the earlier is taken."""

MARKS = {"point": ".", "comma": ",", "blank": " ", "apostrophe": "'"}
"""Words for what may stand inside a number."""

ALONE = "\x1f"
"""The delimiter of a single column: a control character that no table holds."""

MISSING = {"", "?", "na", "n/a", "#n/a", "nan", "nat", "null", "none", "<na>"}
"""Cells of text, in small letters, that stand for no value."""

_EXPONENT = re.compile(r"(?<=[\d.])[dD](?=[-+]?\d+$)")
"""Fortran's, for double precision."""

_TYPESET = str.maketrans("\u2212\u2019\u00a0\u202f", "-'  ")
"""Minus, apostrophe and blanks as they are printed, and as they are typed."""


class Numbers(NamedTuple):
    """How cells of text write numbers."""

    decimal: str = "."
    thousands: str | None = None

    def read(self, cell: str) -> float:
        """What a cell says; NaN where it is missing.

        Raises:
            ValueError: It is no number so written.
        """
        text = cell.strip().translate(_TYPESET)
        if text.lower() in MISSING:
            return math.nan
        if self.thousands is not None and self.thousands in text:
            mark = re.escape(self.thousands)
            if not re.fullmatch(rf"[-+]?\d{{1,3}}({mark}\d{{3}})+([^\d{mark}].*)?", text):
                raise ValueError(cell)
            text = text.replace(self.thousands, "")
        if self.decimal == ",":
            if "." in text or not re.fullmatch(r"[^,]*|[-+]?\d*,\d+(\D.*)?", text):
                raise ValueError(cell)
            text = text.replace(",", ".")
        if "_" in text:  # Python would read 2020_01 as 202001.
            raise ValueError(cell)
        return float(_EXPONENT.sub("e", text))

    def marks(self) -> list[tuple[str, str]]:
        """What it is by key, the most telling last."""
        marks = [("decimal", self.decimal)]
        return marks if self.thousands is None else [*marks, ("thousands", self.thousands)]

    def reads(self, cell: str) -> bool:
        """Whether a cell is a number so written, and not missing."""
        try:
            return not math.isnan(self.read(cell))
        except ValueError:
            return False


WAYS: tuple[Numbers, ...] = (Numbers(), Numbers(","), Numbers(".", ","), Numbers(",", "."))
WAYS += (Numbers(".", "'"), Numbers(",", "'"))
"""How numbers are found to be written where nobody says it."""

BLANKS = (Numbers(".", " "), Numbers(",", " "))
"""How they are not found to be written, because blanks may stand between cells."""


@dataclass(frozen=True)
class Options:
    """What the user says about a text; None is found out.

    Attributes:
        names: Of columns that there must be; a first line that holds them is a header.
        header: Whether the first line holds names.
        delimiter: A word of ``DELIMITERS``, or the character itself.
        decimal: ``"point"`` or ``"comma"``, or the character itself.
        thousands: A word of ``MARKS``, or the character itself.
        encoding: As Python names it.

    Raises:
        ValueError: An option stands for no mark, or two of them for the same.
    """

    names: Sequence[str] = ()
    header: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        decimal, thousands = self.mark("decimal", MARKS), self.mark("thousands", MARKS)
        if decimal not in (None, ".", ","):
            raise ValueError(f"data.decimal is {self.decimal!r}; choose point or comma")
        if thousands is not None and thousands == decimal:
            raise ValueError(f"data.decimal and data.thousands are both {decimal!r}")
        self.mark("delimiter", DELIMITERS)

    def mark(self, key: str, words: dict[str, str]) -> str | None:
        """The one character that an option stands for.

        Raises:
            ValueError: It stands for none.
        """
        word = getattr(self, key)
        if word is None:
            return None
        mark = words.get(word, word).translate(_TYPESET)
        if len(mark) != 1 or mark.isalnum() or mark in '"\n\r':
            raise ValueError(
                f"data.{key} is {word!r}; choose from {', '.join(words)}, or give one character"
            )
        return mark

    def ways(self) -> Sequence[Numbers]:
        """How numbers may be written."""
        decimal, thousands = self.mark("decimal", MARKS), self.mark("thousands", MARKS)
        if thousands is not None:
            return [Numbers(decimal or ("," if thousands == "." else "."), thousands)]
        return [way for way in WAYS if decimal in (None, way.decimal)]


def overrides(*marks: tuple[str, str]) -> str:
    """What to type for marks by key, such as ``data.decimal=comma``."""
    typed = []
    for key, mark in marks:
        words = DELIMITERS if key == "delimiter" else MARKS
        word = next((word for word, one in words.items() if one == mark), mark)
        typed.append(show.override(f"data.{key}", word))
    return " ".join(typed)
