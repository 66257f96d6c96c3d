"""What a user reads: lines that are whole wherever they go, and commands that run as pasted.

Nothing here raises because a line could not be printed: a closed pipe must not end a training.
``lost`` says what went wrong, and the command line makes an exit code of it.
"""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, final

lost: OSError | None = None
"""The first error that kept a line from being printed; None: every line was."""

concluded = ""
"""Why the program ends without success, where that has been said."""

muted = False
"""Whether this process prints nothing, as all but the first of several do."""

_quiet = False
_log: "Log | None" = None
_worded: Callable[[str], str] = str
"""What a line becomes before anybody reads it."""

_PLAIN = str.maketrans({"±": "+-", "≤": "<=", "≥": ">=", "×": "x", "…": "...", "–": "-", "−": "-"})
"""Signs of ours that a terminal may lack, and what stands for them."""


def say(text: object = "") -> None:
    """Print a line on standard output, and keep it in the log of the run where one is open."""
    line = _worded(str(text))
    _note(line)
    if not _quiet:
        _print(line, sys.stdout)


def write(text: str) -> None:
    """Print part of a line on standard output at once; the log of a run does not get it."""
    if not _quiet:
        _print(text, sys.stdout, end="")


def warn(text: object) -> None:
    """Print a warning on standard error, and keep it in the log of the run where one is open."""
    tell(f"warning: {text}")


def tell(text: object) -> None:
    """Print ``armodels: text`` on standard error, and keep it in the log, too."""
    line = f"armodels: {_worded(str(text))}"
    _note(line)
    _print(line, sys.stderr)


def conclude(text: str) -> None:
    """Tell why the program ends without success."""
    global concluded
    tell(text)
    concluded = text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, what is said goes into the log alone; warnings are printed still."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


@contextlib.contextmanager
def in_python(keys: Iterable[str]) -> Iterator[None]:
    """Inside the block, lines and errors name arguments of Python in the place of config keys.

    ``trainer.max_epochs=null`` becomes ``max_epochs=None``. Works as a decorator, too.

    Args:
        keys: Of configs, dotted; what is below each last dot is the argument.
    """
    global _worded
    names = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    named = re.compile(rf"(?<![\w./])(?:{names})(?![\w.(])")
    values = {"true": "True", "false": "False", "null": "None"}

    def worded(text: str) -> str:
        text = named.sub(lambda found: found.group().rpartition(".")[2], text)
        text = text.replace("true or false", "True or False")
        return re.sub(
            r"(?<=\w=)(?:true|false|null)\b|(?<= )null\b", lambda v: values[v.group()], text
        )

    before, _worded = _worded, worded
    try:
        yield
    except Exception as error:
        error.args = tuple(worded(one) if isinstance(one, str) else one for one in error.args)
        raise
    finally:
        _worded = before


def flushed() -> OSError | None:
    """What kept something from being printed, after whatever still waits to be."""
    global lost
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        lost = lost or error
        _let_go(sys.stdout)
    return lost


def clean(text: str) -> str:
    """``text`` without control characters: names and reasons may come from strangers.

    Line breaks stay. Bytes of a file name that are no text, and whatever else cannot be seen, are
    written as Python escapes them.
    """
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    global lost
    if muted or stream is None:
        return
    text = clean(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    try:
        if "tqdm" in sys.modules:  # bars step aside for the line
            sys.modules["tqdm"].tqdm.write(text, file=stream, end=end)
        else:
            stream.write(f"{text}{end}")
        stream.flush()
    except OSError as error:
        if stream is sys.stdout:
            lost = lost or error
        _let_go(stream)


def _let_go(stream: TextIO) -> None:
    """Whatever is written from here on is dropped: Python flushes again as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _note(text: str) -> None:
    if _log is not None:
        _log.add(text)


@final
class Log:
    """The log of a run: lines with their time, kept until it is known where they go."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._file: TextIO | None = None

    def add(self, text: str) -> None:
        """Take in one line, or several."""
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ")
        self._kept += [f"{stamp}{line}\n" for line in clean(text).split("\n")]
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk stops the run where it saves
                self._file.writelines(self._kept)
                self._file.flush()
                self._kept.clear()

    def open(self, path: Path) -> None:
        """From here on the lines, also those that are kept, are appended to a file.

        Raises:
            OSError: It cannot be opened.
        """
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Inside the block, what is printed goes into a log, too."""
    global _log
    _log = Log()
    try:
        yield _log
    finally:
        _log.close()
        _log = None


# Commands


def command(verb: str, *paths: str | Path, **overrides: Any) -> str:
    """A command line of this program, as a shell must be given it.

    Args:
        verb: Such as ``"eval"``; more words may follow it.
        paths: Bare paths.
        overrides: Values by key; ``data__path`` stands for ``data.path``.
    """
    words = [shell(_bare(str(path))) for path in paths]
    words += [override(key.replace("__", "."), value) for key, value in overrides.items()]
    return " ".join(["armodels", verb, *words])


def in_processes(command: str, num: int) -> str:
    """A command line of this program, as several processes.

    Args:
        command: As ``command`` makes it.
        num: Processes.
    """
    launched = f"torchrun --nproc-per-node={num} -m armodels"
    return command if num == 1 else f"{launched}{command.removeprefix('armodels')}"


def _bare(path: str) -> str:
    """A path that is no flag and no ``key=value``."""
    return f"./{path}" if path[:1] in ("-", "~") or "=" in path.split("/")[0] else path


def override(key: str, value: Any) -> str:
    """``key=value`` as it is typed into a shell: quoted for Hydra and for the shell.

    Args:
        key: Dotted.
        value: Text, a number, a switch, None, or a list of them.
    """
    return shell(f"{key}={hydra(value)}")


def hydra(value: Any, *, references: bool = False) -> str:
    """A value as Hydra's command line has it: text that it would not take as typed is quoted.

    Args:
        value: Text, a number, a switch, None, or a list of them.
        references: Whether ``${key}`` in a text stands for the value of that key.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(hydra(one, references=references) for one in value)}]"
    if isinstance(value, (int, float)):
        return str(value)
    text = str(value)
    number = re.fullmatch(
        r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)", text, re.I
    )
    word = number or text.lower() in ("true", "false", "null", "")
    if not word and re.fullmatch(r"[\w./@%+:?|-]+", text, re.ASCII) and ":" not in text[:1]:
        return text
    # A backslash is itself, save before a quote, where it must be doubled; ${ would be replaced.
    text = re.sub(r"(\\*)'", lambda m: 2 * m.group(1) + r"\'", text)
    text = re.sub(r"\\+$", lambda m: 2 * m.group(), text)
    if not references:
        text = re.sub(r"(\\*)\$\{", lambda m: 2 * m.group(1) + r"\${", text)
    return f"'{text}'"


def shell(word: str) -> str:
    """A word as a POSIX shell must be given it, also where it holds what cannot be typed."""
    if not word.isprintable():
        quoted = {"'": r"\'", "\\": r"\\"}
        return f"$'{''.join(quoted.get(c, c) if c.isprintable() else _escaped(c) for c in word)}'"
    key, sign, value = word.partition("=")
    if not sign or not value or shlex.quote(key) != key:
        key, sign, value = "", "", word
    if "'" in value and not set(value) & set('"$`\\!'):
        return f'{key}{sign}"{value}"'
    return f"{key}{sign}{shlex.quote(value)}"
