"""A run directory without its checkpoints: claims, whole files, readers. No torch here.

Whatever is read may be damaged, or a stranger's: it is small, plain, and refused in one sentence.
"""

import contextlib
import csv
import errno
import glob
import io
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from armodels import checks, show

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, or a quota, answers."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of ``path`` only when it is wholly on disk.

    A device or a pipe has no place to take: it is written to.

    Raises:
        OSError: It could not be written; where the disk is full, says what it takes.
    """
    if path.exists() and not path.is_file():
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            raise OSError(f"{path} could not be written: {error.strerror}") from error
        return
    remove_parts(path.parent, path.name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    written = 0
    try:
        with open(part, "xb") as file:  # never through a link that a stranger put there
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            finally:
                written = os.fstat(file.fileno()).st_size
        os.replace(part, path)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(
                error.errno, f"{path} could not be written: {no_room(path, written)}"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def require_place(out: str | None, *, mark: str | None = None) -> None:
    """Raise ValueError where ``out`` cannot be written, before any work for it is done.

    Args:
        out: What the user named; None: nothing.
        mark: What stands near the beginning of the verb's own files, the only ones that are
            written over; None: the verb wants a folder.
    """
    path = Path(out or ".")
    if out is None:
        return
    if mark is None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out is {path}, which is no folder; name one for the files")
        return
    if path.is_dir():
        raise ValueError(f"out is {path}, which is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"out is {path}, but there is no folder {path.parent}; make it first")
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            if mark.encode() not in file.read(1000):
                raise ValueError(
                    f"out is {path}, a file that this command has not written; name another, or "
                    f"remove it first"
                )


def no_room(path: Path, needed: int) -> str:
    """Why a file could not be written, where the disk is full."""
    free = shutil.disk_usage(path.parent).free
    return (
        f"the disk is full or limited ({size_of(free)} free, more than {size_of(needed)} needed)"
    )


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what processes that are gone were writing when they were killed."""
    for part in folder.glob(f".{glob.escape(name) if name != '*' else name}.*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdecimal() and not _lives(int(pid)):
            part.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    return 0 < pid < 2**31 and psutil.pid_exists(pid)


def write_json(path: Path, content: Mapping) -> None:
    """Write ``content`` atomically, indented; what is no number is null."""
    with atomic(path) as file:
        text = json.dumps(_as_json(content), indent=2, allow_nan=False)
        file.write(f"{text}\n".encode())


def _as_json(value: Any) -> Any:
    """The same in what JSON has: null for NaN and infinity, plain numbers for those of arrays."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(child) for child in value]
    if hasattr(value, "tolist"):  # an array, of NumPy or torch
        return _as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """What ``write_json`` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    text = _read(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
        raise ValueError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no keys")
    return content


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file of a run, by the names of their columns; ``[]`` where there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    if not os.path.lexists(path):
        return []
    rows = csv.DictReader(io.StringIO(_read(path, MAX_ROWS), newline=""))
    try:
        found = list(rows)
    except csv.Error as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for i, row in enumerate(found):
        if None in row:
            raise ValueError(f"{path} is damaged: row {i + 1} has more cells than columns")
    return found


def write_csv(path: Path, names: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write rows under the names of their columns, atomically; numbers are not rounded."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(names)
    table.writerows(rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: The directory; ``vacant`` for a new run, found by ``open``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._begun = False

    @classmethod
    def vacant(cls, path: str | Path) -> "RunDirectory":
        """A place for a new run; nothing is made there yet.

        Raises:
            FileExistsError: It exists and holds something.
        """
        run = cls(path)
        run._require_vacant()
        return run

    def _require_vacant(self) -> None:
        """Raise FileExistsError where it holds more than a start leaves that was killed early."""
        if self.path.is_dir() and not all(map(self._is_leftover, self.path.iterdir())):
            go_on = show.override("resume", self.path)
            raise FileExistsError(
                f"output directory {self.path} exists and is not empty; "
                f"choose another with out=, or continue it with {go_on}"
            )

    @staticmethod
    def _is_leftover(path: Path) -> bool:
        """Whether a run has it before its config is written, and nobody would miss it."""
        if path.name in ("checkpoints", "samples"):
            return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        return path.name in (".lock", ".owner", "status.json") or path.suffix == ".part"

    @contextlib.contextmanager
    def claimed(self, *, new: bool) -> Iterator[None]:
        """Hold the directory inside the block: no other process trains there.

        The lock of a process that is killed is gone with it. A run that is refused before it
        began leaves nothing behind.

        Args:
            new: Whether it must hold no run yet.

        Raises:
            FileExistsError: It holds something else.
            BlockingIOError: Another process holds it.
            ValueError: What a run writes would go elsewhere, or nowhere.
        """
        lock_file, owner = self.path / ".lock", self.path / ".owner"
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        had, lock = lock_file.exists(), FileLock(lock_file)
        for attempt in range(10):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                refuse_links(self.path)
                lock.acquire(timeout=0)
                owner.unlink(missing_ok=True)  # it might be a link
                owner.write_text(f"{os.getpid()} {socket.gethostname()}")
                break
            except Timeout:
                raise BlockingIOError(self._holder()) from None
            except FileNotFoundError:  # who was refused has just taken the folder away
                lock.release()
                if attempt == 9:
                    raise
        try:
            if new:
                self._require_vacant()
            refuse_what_is_no_file(self.path)
            for folder in (self.path, self.path / "checkpoints", self.samples):
                remove_parts(folder)
            yield
        finally:
            owner.unlink(missing_ok=True)
            if not (self.path / "config.yaml").exists():  # refused before it began
                (self.path / "status.json").unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # where something else lies there
                    for folder in (self.path / "checkpoints", self.samples, *made):
                        if folder.exists():
                            folder.rmdir()
            elif not had and not self._begun:
                lock_file.unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        """Who holds it, as far as that is said."""
        who = "another process"
        for _ in range(50):  # who has just taken it says so in a moment
            with contextlib.suppress(OSError):
                said = _read(self.path / ".owner")[:200].partition(" ")
                if said[0].isdecimal():
                    host = "" if said[2] == socket.gethostname() else f" on {said[2]}"
                    who = f"process {said[0]}{host}"
                    break
            time.sleep(0.02)
        return (
            f"{self.path} is being trained by {who}; wait until it ends or stop it, or choose "
            f"another directory with out="
        )

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """The directory of an earlier run.

        Raises:
            FileNotFoundError: It is none.
        """
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise FileNotFoundError(f"{run.path} is not a run directory: it has no config.yaml")
        return run

    def begin(self, config: Mapping) -> None:
        """Make the folders, state that the run is running, and save its resolved config."""
        for folder in (self.path / "checkpoints", self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        self.write_status("running")
        with atomic(self.path / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
        self._begun = True

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint called ``last`` or ``best``."""
        return self.path / "checkpoints" / f"{name}.pt"

    @property
    def samples(self) -> Path:
        """Folder of sample files."""
        return self.path / "samples"

    def read_config(self) -> dict:
        """The resolved config of the run.

        Raises:
            OSError: It cannot be read.
            ValueError: It is damaged, or no config that armodels would save.
        """
        path = self.path / "config.yaml"
        content = _read(path)
        try:
            depth = 0
            for event in yaml.parse(content):
                # A name for a part that stands elsewhere makes a huge tree of a small file.
                if isinstance(event, yaml.AliasEvent):
                    raise ValueError(
                        f"{path} is refused: it has aliases, which armodels never writes"
                    )
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    raise yaml.YAMLError
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is damaged: it is no YAML") from error
        try:
            config = OmegaConf.to_container(OmegaConf.create(content))
        except (yaml.YAMLError, OmegaConfBaseException, AssertionError, ValueError) as error:
            # Such as the YAML of a single number, or a number of 5,000 digits.
            raise ValueError(f"{path} is damaged: it is no YAML of a config") from error
        require_plain(config, path)
        return config

    def write_status(
        self, status: str, reason: str | None = None, warning: str | None = None
    ) -> None:
        """Say ``running``, ``done``, ``interrupted`` or ``failed``, why, and what is amiss."""
        content = {"status": status, "pid": os.getpid(), "host": socket.gethostname()}
        content |= {"reason": reason} if reason else {}
        write_json(self.path / "status.json", content | ({"warning": warning} if warning else {}))

    def read_status(self) -> dict:
        """As written; ``{"status": "killed"}`` where the process that ran it is gone."""
        path = self.path / "status.json"
        if not os.path.lexists(path):
            return {"status": "unknown"}
        status = read_json(path)
        kinds = {"status": str, "pid": int, "host": str, "reason": str}
        for key, kind in kinds.items():
            if not isinstance(status.get(key, "" if key == "reason" else None), kind):
                raise ValueError(f"{path} is damaged: its {key} is {str(status.get(key))[:50]!r}")
        if status["status"] == "running" and status["host"] == socket.gethostname():
            if not _lives(status["pid"]):
                status["status"] = "killed"
        return status

    def write_metrics(self, metrics: Mapping) -> None:
        """Save the final numbers."""
        write_json(self.path / "metrics.json", metrics)

    def read_metrics(self) -> dict | None:
        """The final numbers, or None where the run has none yet."""
        path = self.path / "metrics.json"
        return read_json(path) if os.path.lexists(path) else None


_FILES = ("config.yaml", "metrics.csv", "metrics.json", "status.json", "train.log",
          "checkpoints/best.pt", "checkpoints/last.pt")  # fmt: skip


def refuse_what_is_no_file(run: Path) -> None:
    """Raise ValueError where something else lies at the place of a file or folder of a run."""
    for path in (run / name for name in _FILES):
        if os.path.lexists(path) and not path.is_file():
            raise ValueError(f"{path} is no file that can be read and written; remove it")
    for folder in (run / "checkpoints", run / "samples"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"{folder} is no folder; remove it")


def refuse_links(run: Path) -> None:
    """Raise ValueError where a run has a link out of it: files would be written through it."""
    root = run.resolve()
    for folder in (run, run / "checkpoints", run / "samples"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(
                    f"{path} is a link to {os.readlink(path)}, which is outside of the run, and "
                    f"nothing is written through it; put a file or folder in its place"
                )


# A stranger's file: what it states is checked before it is unpacked, copied or built

MAX_SIZE = 2**24
"""No size in a saved config is larger: units, layers, rows, values of an example."""

MAX_VALUES = 20_000
"""Values in a saved config, nested ones included."""

MAX_DEPTH = 20
"""Of what is nested in it."""

MAX_STRUCTURE = 2**24
"""Bytes of a checkpoint without its tensors, and of a config or a JSON file."""

MAX_ROWS = 2**28
"""Bytes of a table that grows with the steps of a run."""


_SHAPE = dict.fromkeys(("choices", *checks.PARTS, "trainer", "eval", "samples"), Mapping)
_SHAPE |= {"overrides": list, "seed": int}
_SECTIONS = {
    "choices": {"model", "data", "experiment"},
    "eval": {"weights", "batch_size"},
    "samples": {"num", "temperature"},
}


def require_shape(config: Mapping, file: Path) -> None:
    """Raise ValueError unless a run can go on by a config, as far as no signature says it."""
    for key, kind in _SHAPE.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{file} is damaged: {key} is not as armodels wrote it")
    for section, keys in _SECTIONS.items():
        if wrong := sorted(map(str, keys ^ {*config[section]})):
            missing = wrong[0] in keys
            raise ValueError(
                f"{file} is damaged: it {'lacks' if missing else 'has'} the key "
                f"{section}.{wrong[0]}{'' if missing else ', which no run has'}"
            )
    if not all(isinstance(one, str) for one in config["overrides"]):
        raise ValueError(f"{file} is damaged: overrides is not as armodels wrote it")


def require_plain(config: object, file: Path) -> None:
    """Raise ValueError unless a saved config is a small tree of plain values with no huge size."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{file} is damaged: it holds no config")
    count, left = 0, [((key,), value) for key, value in config.items()]
    while left:
        keys, value = left.pop()
        count += 1
        name = ".".join(map(str, keys))[:200]
        if count > MAX_VALUES or len(keys) > MAX_DEPTH:
            raise ValueError(f"{file} is refused: its config is larger than any of armodels")
        if isinstance(value, Mapping):
            left += [((*keys, key), child) for key, child in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(keys, child) for child in value]
        elif isinstance(value, str) and "${" in value and keys[0] != "overrides":
            raise ValueError(f"{file} is refused: {name} is to be replaced: {value[:200]}")
        elif isinstance(value, int) and keys[0] in checks.PARTS:
            if abs(value) > MAX_SIZE and "seed" not in str(keys[-1]):
                raise ValueError(f"{file} is refused: {name} is {value}, more than {MAX_SIZE}")
        elif not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"{file} is refused: {name} is a {type(value).__name__}")


def _read(path: Path, most: int = MAX_STRUCTURE) -> str:
    """A small text file of a run.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, no text, or too large.
    """
    if not path.is_file():  # such as a pipe, which would never end
        raise FileNotFoundError(f"{path} is missing, or is no file")
    if path.stat().st_size > most:
        raise ValueError(f"{path} is refused: it is larger than any that armodels writes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror})") from error


def size_of(num_bytes: float) -> str:
    """A number of bytes, for people."""
    power = min(int(math.log(max(num_bytes, 1), 1000)), 4)
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"
