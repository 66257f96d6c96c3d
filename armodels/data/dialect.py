"""Tables of text as people have them: encoding, delimiter, numbers, header.

pandas reads the cells. How they are written is found out here on the first lines, because a wrong
guess gives other numbers: what can be read in two ways is refused with the keys that say which.
"""

import contextlib
import csv
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

from armodels import show
from armodels.data.marks import ALONE, DELIMITERS, MISSING, Numbers, Options, overrides

if TYPE_CHECKING:
    import pandas

SAMPLE = (200, 200_000)
"""The first so many lines, of so many characters in all, show how a text is written."""

FEW_ROWS = 10
"""What so many rows have in common is no chance."""


@functools.cache
def say_once(text: str) -> None:
    """Say what was found out about a file: a command may read it more than once."""
    show.say(text)


@functools.cache
def warn_once(text: str) -> None:
    """Warn of what was found out about a file."""
    show.warn(text)


class Layout(NamedTuple):
    """One way to split the first lines into cells; the largest fits best."""

    agrees: bool
    """Whether every line has as many cells."""
    share: float
    """Of the cells that are not missing, how many are numbers."""
    agreement: float
    """How many of the lines have as many cells as most."""
    delimiter: str
    rows: list[list[str]]
    ways: list[Numbers]
    """How the numbers may be written; of several it cannot be told."""
    width: int
    """Cells that most lines have."""


@final
class Text:
    """A table of text.

    Args:
        path: What messages call it.
        content: Its bytes.
        options: What the user says about it.

    Attributes:
        names: Of the columns; "" where the file gives none.
        numbers: How they are written.
        frame: A column each: numbers where pandas reads it so, else text.

    Raises:
        ValueError: It is no table, or can be read in two ways.
    """

    def __init__(self, path: Path, content: bytes, options: Options):
        self.path, self.options = path, options
        self._cut(self._stated(self._decoded(content)))
        layout = self._layout()
        self.delimiter, rows, self.numbers = layout.delimiter, layout.rows, layout.ways[0]
        commented = self._commented(rows)
        header = not commented and self._has_header(rows)
        self.names = commented or (_names(rows) if header else [""] * len(rows[0]))
        self._require_width(rows[header:])
        if header:
            self._refuse_second_header(rows)
        self.frame = self._read(header)
        self._tell(bool(commented))

    def _tell(self, commented: bool) -> None:
        if self.comments:
            use = "; the last of them names the columns" if commented else ""
            say_once(f"table {self.path}: comments (#) at its top are passed over{use}")
        if self.numbers != Numbers():
            marks = [] if self.delimiter == ALONE else [("delimiter", self.delimiter)]
            typed = overrides(*marks, *self.numbers.marks())
            say_once(f"table {self.path} is read with {typed}")

    # Its characters

    def _decoded(self, content: bytes) -> str:
        encoding = self.options.encoding
        if encoding is not None:
            try:
                return content.decode(encoding).removeprefix("\ufeff")
            except (LookupError, UnicodeError) as error:
                raise ValueError(
                    f"table {self.path} cannot be read with data.encoding={encoding}: {error}"
                ) from error
        marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        for name in ("utf-16",) if marked else ("utf-8-sig", "cp1252", "latin-1"):
            try:
                text = content.decode(name)
            except UnicodeError as error:
                why = error
                continue
            if "\0" in text:
                raise ValueError(
                    f"table {self.path} is no text: it holds NUL characters; if it is UTF-16, "
                    f"use data.encoding=utf-16-le"
                )
            if name != "utf-8-sig":
                say_once(f"table {self.path} is not UTF-8, and is read with data.encoding={name}")
            return text
        raise ValueError(f"table {self.path} cannot be read as text: {why}")

    def _stated(self, text: str) -> str:
        """What is below a first line such as ``sep=;``, by which Excel is told the delimiter."""
        stated = re.match(r'"?sep=([^\w"\r\n])"?[\t ,;]*(\r\n?|\n)', text, re.IGNORECASE)
        if not stated:
            return text
        if self.options.delimiter is None:
            self.options = replace(self.options, delimiter=stated[1])
        return text[stated.end() :]

    def _cut(self, text: str) -> None:
        """Lines end as in Unix; comments at the top; the body below them; its first lines."""
        text = io.StringIO(text, newline=None).getvalue()
        self.comments, start = [], 0
        for line in io.StringIO(text):
            if line.strip() and not line.startswith("#"):
                break
            self.comments += [line[1:].strip()] if line.strip() else []
            start += len(line)
        self.body = text[start:]
        if not self.body:
            raise ValueError(f"table {self.path} is empty")
        lines: list[str] = []
        length = 0
        for line in io.StringIO(self.body):
            length += len(line)
            if len(lines) == SAMPLE[0] or (length > SAMPLE[1] and len(lines) > 1):
                break
            lines.append(line)
        self.sample = "".join(lines)

    # Its cells

    def _split(self, lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
        """Rows of cells, without blank lines; takes no more lines than it needs."""
        rows: Iterator[list[str]]
        if delimiter == " ":
            rows = (
                [cell.strip('"') for cell in re.findall(r'"[^"]*"|\S+', line)] for line in lines
            )
        else:
            rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        try:
            for row in rows:
                if len(row) > 1 or (row and row[0].strip()):
                    yield row
        except csv.Error as error:
            raise ValueError(f"table {self.path} cannot be read as text: {error}") from error

    def _require_width(self, rows: Iterable[list[str]]) -> None:
        for i, row in enumerate(rows):
            if len(row) != len(self.names):
                raise ValueError(
                    f"table {self.path} has {len(self.names)} columns, but {len(row)} in row "
                    f"{i + 1} (split by {overrides(('delimiter', self.delimiter))}, which may be "
                    f"another)"
                )

    def _layout(self) -> Layout:
        """The one layout that fits best.

        Raises:
            ValueError: Another one fits as well.
        """
        stated = self.options.mark("delimiter", DELIMITERS)
        tried = [
            self._try(mark) for mark in ([stated] if stated else [*DELIMITERS.values(), ALONE])
        ]
        alone = None if stated else tried[-1]
        found = tried if stated else [one for one in tried[:-1] if one.width > 1]
        best = max(found or tried[-1:], key=lambda one: one[:3])  # The first of equals.
        if found and alone is not None and alone.share == 1 and alone[:3] >= best[:3]:
            best = self._column_or(best, alone, found)
        cells = [cell for row in best.rows for cell in row]
        for mark in best.ways[0]:
            # A mark of numbers that the user names is no delimiter, save of numbers in quotes.
            if not stated and mark == best.delimiter and not any(mark in cell for cell in cells):
                raise ValueError(
                    f"table {self.path} would be split at the mark of its numbers; name its "
                    f"delimiter, too, as in {overrides(('delimiter', ';'))}"
                )
        if len(best.ways) > 1:
            doubtful = next(c for c in cells if best.ways[0].reads(c) and not Numbers().reads(c))
            raise ValueError(
                f"table {self.path} holds {doubtful!r:.40}, whose mark may be of decimals or of "
                f"thousands; use " + " or ".join(overrides(way.marks()[-1]) for way in best.ways)
            )
        return best

    def _try(self, delimiter: str) -> Layout:
        rows = list(self._split(io.StringIO(self.sample), delimiter)) or [[""]]
        if len(rows) > 2 and len(self.sample) < len(self.body):
            rows.pop()  # A quoted cell may go on below.
        below = rows[1:] or rows
        width = Counter(map(len, below)).most_common(1)[0][0]
        agreement = sum(len(row) == width for row in below) / len(below)
        agrees = agreement == 1 and (len(rows[0]) == width or _is_short(rows))
        ways, share = self._ways([cell for row in below for cell in row])
        return Layout(agrees, share, agreement, delimiter, rows, ways, width)

    def _ways(self, cells: Sequence[str]) -> tuple[list[Numbers], float]:
        """Ways that read most of the cells, and how many of those that are not missing."""
        ways = self.options.ways()
        cells = [cell for cell in cells if not _is_missing(cell)]
        read = [sum(map(way.reads, cells)) for way in ways]
        best = [way for way, number in zip(ways, read, strict=True) if number == max(read)]
        if Numbers() in best:
            best = [Numbers()]
        values: dict[tuple, Numbers] = {}  # The first of ways that come to the same values.
        for way in best if len(best) > 1 else ():
            values.setdefault(tuple(way.read(c) if way.reads(c) else None for c in cells), way)
        return [*values.values()] or best, max(read) / max(1, len(cells))

    def _column_or(self, best: Layout, alone: Layout, found: Sequence[Layout]) -> Layout:
        """A single column of numbers with commas, or the columns that its commas would part."""
        if all(len(one.rows[0]) == 1 for one in found):  # One name stands above them.
            return alone
        if not any(
            way.reads(alone.rows[0][0]) for way in alone.ways
        ):  # Several names stand above them.
            return best
        if self.options.decimal or self.options.thousands:
            return alone
        raise ValueError(
            f"table {self.path} can be read in two ways: {alone.rows[-1][0]!r:.40} is "
            f"{best.width} numbers, or one; use {overrides(('delimiter', best.delimiter))}, or "
            + " or ".join(overrides(way.marks()[-1]) for way in alone.ways)
        )

    # Its header

    def _has_header(self, rows: list[list[str]]) -> bool:
        """Whether the first row holds names.

        Raises:
            ValueError: It cannot be told.
        """
        if self.options.header is not None:
            return self.options.header
        first, below = rows[0], rows[1:]
        names, numbers = {*self.options.names}, {str(i) for i in range(len(first))}
        # Columns without a name are called by their numbers.
        if names <= {cell.strip() for cell in first} and not names <= numbers:
            return True
        filled = {i: cell for i, cell in enumerate(first) if not _is_missing(cell)}
        read = [cell for cell in filled.values() if self.numbers.reads(cell)]
        if filled and not read:
            return True
        words = [
            cell
            for i, cell in filled.items()
            # A word that comes again below is a value; another one may be a name.
            if not self.numbers.reads(cell) and cell not in [row[i] for row in below if row[i:]]
        ]
        if words:
            doubt = f"it holds the number {read[0]!r} and the word {words[0]!r}"
        elif not filled:
            doubt = "its cells are empty"
        elif self._may_be_names(rows, list(filled)):
            doubt = f"its numbers, such as {read[0]!r}, are unlike those below it"
        else:
            return False
        raise ValueError(
            f"the first row of table {self.path} may hold names or values: {doubt}; use "
            f"data.header=true or data.header=false"
        )

    def _may_be_names(self, rows: list[list[str]], filled: list[int]) -> bool:
        """Whether a first row of numbers counts up, or is of another kind than what is below.

        Args:
            rows: The first ones.
            filled: Columns of its cells that are not missing, from 0.
        """
        columns = [[row[i].strip() for row in rows if row[i:]] for i in range(len(rows[0]))]
        first = [columns[i][0] for i in filled]
        if len(set(first)) < len(first) or not all(map(self.numbers.reads, first)):
            return False
        many = len(rows) > FEW_ROWS
        if many and any(_is_missing(c[0]) and not any(map(_is_missing, c[1:])) for c in columns):
            return True  # It is the name of an index.
        below = [[cell for cell in columns[i][1:] if self.numbers.reads(cell)] for i in filled]
        if not all(below):
            return False
        values = [self.numbers.read(cell) for cell in first]
        if all(map(is_whole, first)):
            if len(first) > 1 and all(b - a == 1 for a, b in pairwise(values)):
                return True  # Pandas numbers columns without names; or they are years.
            if not any(is_whole(cell) for cells in below for cell in cells):
                return True
        if not many:
            return False
        if first == ["0"] and "0" not in below[0]:
            return True
        for cell, cells in zip(first, below, strict=True):
            whole = [*map(is_whole, cells)]
            if (all(whole) or not any(whole)) and is_whole(cell) != whole[0]:
                return True
        for value, cells in zip(values, below, strict=True):
            low, *_, high = sorted(map(self.numbers.read, cells))
            if 1.5 * low - 0.5 * high <= value <= 1.5 * high - 0.5 * low:
                return False
        return True  # It is far from all others in every column.

    def _refuse_second_header(self, rows: list[list[str]]) -> None:
        """Raise ValueError where the line below the names has no number, and those below it do."""
        _, second, *below = rows if len(rows) > 2 else ([], [])
        filled = [i for i, cell in enumerate(second) if not _is_missing(cell)]
        columns = [[row[i] for row in below if not _is_missing(row[i])] for i in filled]
        if not filled or any(map(self.numbers.reads, second)) or not all(columns):
            return
        if all(self.numbers.reads(cell) for cells in columns for cell in cells):
            raise ValueError(
                f"table {self.path} holds words below its names, such as "
                f"{second[filled[0]]!r:.40}, and numbers from there on; if they are units, "
                f"delete that line"
            )

    def _commented(self, rows: list[list[str]]) -> list[str]:
        """Names in the last comment, where ``numpy.savetxt`` writes them; none."""
        if self.options.header is not None or not self.comments:
            return []
        names = next(self._split([self.comments[-1]], self.delimiter), [])
        fit = len(names) == len(rows[0]) and not any(map(self.numbers.reads, names))
        return names if fit and all(map(self.numbers.reads, rows[0])) else []

    # All of it

    def _read(self, header: bool) -> "pandas.DataFrame":
        import pandas

        width = len(self.names)
        # Where rows have one cell, an empty line is one whose cell is missing, but for the last.
        body = io.StringIO(self.body if width > 1 else self.body.rstrip() + "\n")
        if header:
            next(self._split(iter(body.readline, ""), self.delimiter))
        start = body.tell()
        cases = {case for word in MISSING for case in (word, word.upper(), word.capitalize())}
        exact = {}
        if tuple(map(int, pandas.__version__.split(".")[:2])) < (3, 1):
            exact["float_precision"] = "round_trip"  # Later versions have no other precision.
        try:
            frame = pandas.read_csv(
                body,
                sep=r"\s+" if self.delimiter == " " else self.delimiter,
                header=None,
                names=range(width),
                decimal=self.numbers.decimal,
                # pandas would read 1,2,3 as 123.
                dtype=None if self.numbers.thousands is None else str,
                na_values=sorted({*cases, "NaN", "NaT"}),
                keep_default_na=False,
                skipinitialspace=True,
                skip_blank_lines=width > 1,
                low_memory=False,
                **exact,
            )
        except pandas.errors.EmptyDataError:
            return pandas.DataFrame({i: [] for i in range(width)})
        except pandas.errors.ParserError as error:
            self._require_width(self._split(io.StringIO(self.body[start:]), self.delimiter))
            raise ValueError(
                f"table {self.path} cannot be read as text: {' '.join(str(error).split())}"
            ) from error
        # A row that is too short has been filled with missing cells.
        if width > 1 and frame[width - 1].isna().any():
            self._require_width(self._split(io.StringIO(self.body[start:]), self.delimiter))
        if self.numbers.thousands is not None:
            for i in range(width):
                with contextlib.suppress(ValueError):  # A column of words stays one.
                    frame[i] = [self.numbers.read(str(cell)) for cell in frame[i]]
        return frame


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def is_whole(cell: str) -> bool:
    """Whether a cell is digits alone, with or without a sign."""
    return cell.lstrip("+-").isdigit()


def _is_short(rows: list[list[str]]) -> bool:
    """Whether the first row lacks one cell: R leaves the row names without a name."""
    return len(rows) > 1 and len(rows[0]) > 1 and len(rows[0]) == len(rows[1]) - 1


def _names(rows: list[list[str]]) -> list[str]:
    """Names in the first row, "" where there is none."""
    first = [*rows[0]]
    if _is_short(rows):  # The name of the index is missing, or every line ends in a delimiter.
        ended = all(not row[-1].strip() for row in rows[1:])
        first = [*first, ""] if ended else ["", *first]
    # A name that pandas made up is none.
    return ["" if re.fullmatch(r"Unnamed: \d+", name.strip()) else name.strip() for name in first]
