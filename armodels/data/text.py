"""Texts: files and folders of your own, the source of Python's library, tiny Shakespeare."""

import gzip
import hashlib
import platform
import sysconfig
import zlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import psutil
import torch
from torch import Tensor

from armodels import disk
from armodels.alphabet import Alphabet, Unit, code_points
from armodels.checks import Count, Share, checked
from armodels.data.base import PARTS, Source, Splits, data_root, read_files
from armodels.data.collections import is_hidden, walk
from armodels.data.rows import Rows, Windows, as_rows
from armodels.spec import DataSpec

Parts = Mapping[str, np.ndarray]
"""Name of a split -> its symbols (T,): code points or bytes, a memory map of bytes perhaps."""

BYTES_IN_MEMORY: Mapping[Unit, int] = {"char": 24, "byte": 4}
"""Memory that a byte of a text takes while it becomes levels."""

UNPACKED = 2**20
"""Bytes that are read at once: a stream of gzip may unpack to a thousand times its size."""

PRINTABLE = frozenset(map(chr, range(32, 127))) | {"\n"}


BYTES = Alphabet(tuple(range(256)), "byte")

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters of its train, whichever the split: known, as its file is, before it is read."""

VALID, TEST = 0.05, 0.05


class _Text(Source):
    """A text that is cut by position into train, valid and test, and each into windows.

    The alphabet is that of train. A model that reads (a recurrent network) is evaluated on the
    whole of valid and of test, each symbol given all before it; any other on windows, each by
    itself, and on what is left at the end not at all.
    """

    unit: Unit
    length: int
    unknown: bool

    def _set(self, unit: Unit, length: int, unknown: bool) -> None:
        if length < 1:
            raise ValueError(f"data.length is {length}; it must be at least 1")
        if unknown and unit == "byte":
            raise ValueError(
                "data.unknown=true is for data.unit=char: of bytes none is unknown; leave it out"
            )
        self.unit, self.length, self.unknown = unit, length, unknown

    @property
    @abstractmethod
    def _name(self) -> str:
        """Of the text."""

    @abstractmethod
    def _parts(self) -> Parts:
        """The symbols of each split.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It cannot be read.
        """

    def _checksum(self, parts: Parts) -> str:
        """Of files of the user's own; else empty."""
        return ""

    def _read(self) -> tuple[DataSpec, Parts]:
        """What a window is, by what train holds, and the symbols.

        Raises:
            ValueError: The text cannot be read, is too short, or is one symbol alone.
        """
        parts = self._parts()
        for part, symbols in parts.items():
            least = 2 * self.length - 1 if part == "train" else self.length
            if len(symbols) < least:
                raise ValueError(
                    f"{part} of text {self._name} has {len(symbols)} {self.unit}s, but windows of "
                    f"data.length={self.length} need {least} or more; choose a smaller length, or "
                    f"larger shares"
                )
        if self.unit == "byte":
            alphabet = BYTES
        else:
            alphabet = Alphabet.of(parts["train"], "char", unknown=self.unknown)
        if alphabet.num_levels < 2:
            raise ValueError(
                f"train of text {self._name} is one {self.unit} over and over, so there is "
                f"nothing to learn"
            )
        return self._spec(alphabet, self._checksum(parts)), parts

    def _spec(self, alphabet: Alphabet, checksum: str) -> DataSpec:
        pieces = f"{self._name}-{self.unit}{'-unknown' if self.unknown else ''}"
        return DataSpec(
            f"{pieces}-{self.length}",
            "sequence",
            (self.length,),
            alphabet.num_levels,
            "probability",
            alphabet=alphabet,
            checksum=checksum,
            pieces=pieces,
        )

    def load(self) -> Splits:
        spec, parts = self._read()
        assert spec.alphabet is not None
        rows: dict[str, Rows] = {}
        for part in PARTS:
            symbols = parts[part]
            if self.unit == "byte":
                rows[part] = as_rows(symbols)
            else:
                levels = spec.alphabet.encoded(symbols, f"{part} of text {self._name}")
                rows[part] = torch.from_numpy(levels)
        length = self.length
        return Splits(
            spec,
            Windows(rows["train"], 2 * length - 1, length),
            Windows(rows["valid"], length),
            Windows(rows["test"], length),
            transform=self._crop,
            pieces={part: [values] for part, values in rows.items()},
        )

    def _crop(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """A window that begins anywhere in the first half of a longer one: (B, 2 T - 1)."""
        size = (len(raw), 1)
        first = torch.randint(self.length, size, generator=generator, device=raw.device)
        return raw.gather(1, first + torch.arange(self.length, device=raw.device))


@final
class Text(_Text):
    """A text of your own, or the source of Python's own library.

    Args:
        path: A file of UTF-8, plain or ``.gz``, or a folder of such files, which are read in the
            order of their names and joined; None: the modules of this Python's standard library
            that are plain ASCII.
        name: Of the data in tables; None: text-<last part of path>.
        unit: What a symbol is: a character, or a byte of UTF-8. A plain file of bytes stays on its
            disk, however large.
        length: Symbols of a window.
        unknown: Give characters that train lacks a level of their own.
        valid: Share of the text to select by, after train.
        test: Share of the text to test on, the last.

    Raises:
        ValueError: A length or a share is out of range.
    """

    @checked
    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        unit: Unit = "char",
        length: Count = 128,
        unknown: bool = False,
        valid: Share = VALID,
        test: Share = TEST,
    ):
        self._set(unit, length, unknown)
        if not (valid > 0 and test > 0 and valid + test < 1):
            raise ValueError(
                f"data.valid is {valid} and data.test {test}; each must be above 0, and train "
                f"needs a share too"
            )
        self.path = None if path is None else Path(path).expanduser()
        self.shares = (valid, test)
        self._given_name = name

    @property
    def spec(self) -> DataSpec:
        return self._read()[0]

    @property
    def _name(self) -> str:
        name = self._given_name
        if name is None and self.path is None:
            name = f"python-{platform.python_version()}"
        elif name is None:
            assert self.path is not None
            name = f"text-{self.path.name.split('.')[0]}"
        if self.shares == (VALID, TEST):
            return name
        return f"{name}-split{self.shares[0]:g}-{self.shares[1]:g}"

    def _parts(self) -> Parts:
        symbols = self._symbols()
        if not len(symbols):
            raise ValueError(f"text {self.path} is empty")
        sizes = [round(share * len(symbols)) for share in self.shares]
        cuts = [len(symbols) - sum(sizes), len(symbols) - sizes[1]]
        return dict(zip(PARTS, np.split(symbols, cuts), strict=True))

    def _symbols(self) -> np.ndarray:
        if self.path is None:
            return _symbols_of(_library(), self.unit, "the standard library")
        if not self.path.exists():
            raise FileNotFoundError(
                f"text {self.path} {disk.trouble(self.path)}; name one with data.path"
            )
        if self.path.is_file() and self.path.suffix != ".gz" and self.unit == "byte":
            if not self.path.stat().st_size:
                raise ValueError(f"text {self.path} is empty")
            return np.memmap(self.path, np.uint8, "r")
        files = [self.path]
        if self.path.is_dir():
            files = files_of(self.path)
            if not files:
                raise ValueError(f"folder {self.path} holds no files of text")
        disk.require_files(files, "text")
        most, parts = most_bytes(self.unit), []
        for one in files:
            contents = _contents(one, most)
            most -= len(contents)
            parts.append(_symbols_of(contents, self.unit, f"text {one}"))
        return np.concatenate(parts)

    def _checksum(self, parts: Parts) -> str:
        if self.path is None or any(isinstance(part, np.memmap) for part in parts.values()):
            return ""  # A file that stays on its disk is not read whole for it.
        digest = hashlib.md5(usedforsecurity=False)
        for part in PARTS:
            digest.update(parts[part].tobytes())
        return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Those of a folder and its folders by name, hidden ones left out, such as ``.DS_Store``.

    Raises:
        ValueError: One of them is none that can be read, such as a broken link.
    """
    names, _ = walk(folder)
    found = sorted(folder / name for name in names if not is_hidden(name))
    disk.require_files(found, "file")
    return found


def read_symbols(path: Path, unit: Unit, what: str = "text ") -> np.ndarray:
    """A file of text, unpacked where it is a .gz, as code points or bytes (T,).

    Args:
        path: Of the file.
        unit: Of the text.
        what: It is, for sentences.

    Raises:
        ValueError: It cannot be unpacked, does not fit into memory, or is not UTF-8 where its
            characters are wanted.
    """
    return _symbols_of(_contents(path, most_bytes(unit)), unit, f"{what}{path}")


def most_bytes(unit: Unit) -> int:
    """Bytes of text that this machine has memory for."""
    return psutil.virtual_memory().available // BYTES_IN_MEMORY[unit]


def _symbols_of(contents: bytes, unit: Unit, name: str) -> np.ndarray:
    if unit == "byte":
        return np.frombuffer(contents, np.uint8)
    try:
        return code_points(contents.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} is 0x{contents[error.start]:02x} "
            f"({error.reason}); convert it, leave it out of its folder if it is no text, or read "
            f"bytes with data.unit=byte"
        ) from None


def _contents(path: Path, most: int) -> bytes:
    """A file, unpacked where it is a .gz.

    Args:
        path: Of the file.
        most: Bytes that fit into memory.

    Raises:
        ValueError: It cannot be unpacked, or does not fit.
    """
    contents = bytearray()
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            while piece := file.read(UNPACKED):
                contents += piece
                if len(contents) > most:
                    raise ValueError(
                        f"text {path} has more than the {most:,} bytes that this machine has "
                        f"memory for; give one plain file with data.unit=byte, which stays on its "
                        f"disk, or a smaller text"
                    )
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"text {path} is no readable gzip stream: {error}") from None
    return bytes(contents)


def _library() -> bytes:
    """Modules of Python's standard library, without packages, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = (path.read_bytes() for path in sorted(folder.glob("*.py")))
    return b"\n".join(text for text in texts if PRINTABLE.issuperset(text.decode("latin-1")))


@final
class TinyShakespeare(_Text):
    """A million characters of Shakespeare's plays: the first 90 % train, the rest valid.

    The field has no third part: the number that is compared is the one on valid, the usual tenth
    of 111,540 characters, and test is that same tenth. With ``test`` there is an honest one.

    Args:
        unit: What a symbol is: a character, or a byte.
        length: Symbols of a window.
        test: Cut 80 / 10 / 10 % instead, so that nothing was selected on test.
        root: Folder of the data, with ``text/tinyshakespeare.txt``; None: $ARMODELS_DATA, else
            ~/.cache/armodels.

    References:
        Karpathy, 2015, https://github.com/karpathy/char-rnn
    """

    @checked
    def __init__(
        self,
        unit: Unit = "char",
        length: Count = 128,
        test: bool = False,
        root: str | None = None,
    ):
        self._set(unit, length, False)
        self.test = test
        self.root = data_root(root)

    @property
    def spec(self) -> DataSpec:
        known = BYTES if self.unit == "byte" else Alphabet(tuple(map(ord, SHAKESPEARE)), "char")
        return self._spec(known, "")

    @property
    def _name(self) -> str:
        return "tinyshakespeare-80" if self.test else "tinyshakespeare"

    def _parts(self) -> Parts:
        (contents,) = read_files(
            self.root / "text",
            {"tinyshakespeare.txt": "6fb458f1232090904fb40fe944165e91"},
            None,
            "it is data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn, and is not "
            "fetched",
        )
        symbols = np.frombuffer(contents, np.uint8)
        if self.unit == "char":
            symbols = code_points(contents.decode())
        first, second = (len(symbols) * share // 10 for share in ((8, 9) if self.test else (9, 9)))
        last = symbols[second:]
        return {
            "train": symbols[:first],
            "valid": symbols[first:second] if self.test else last,
            "test": last,
        }
