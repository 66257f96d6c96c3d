"""A run directory without its checkpoints: claims, its config, status and numbers. No torch here.

Whatever is read may be damaged, or a stranger's: it is small, plain, and refused in one sentence.
"""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, final

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from armodels import checks, disk, show


@final
class RunDirectory:
    """Paths and files of one run.

    Args:
        path: The directory; ``vacant`` for a new run, found by ``open``.
        option: What names it, for sentences: ``out`` of a command, ``directory`` of ``fit``.
    """

    def __init__(self, path: str | Path, option: Literal["out", "directory"] = "out") -> None:
        self.path = Path(path)
        self._option = option
        self._begun = False

    @classmethod
    def vacant(
        cls, path: str | Path, option: Literal["out", "directory"] = "out"
    ) -> "RunDirectory":
        """A place for a new run; nothing is made there yet.

        Args:
            path: The directory.
            option: What names it, for sentences.

        Raises:
            FileExistsError: It exists and holds something.
            ValueError: A file stands where it would be.
        """
        run = cls(path, option)
        run._require_vacant()
        return run

    def _require_vacant(self) -> None:
        """Raise an error where it holds more than a start leaves that was killed early.

        Raises:
            FileExistsError: It does.
            ValueError: A file stands where it would be.
        """
        disk.require_place(self.path, option=self._option)
        if self.path.is_dir() and not all(map(self._is_leftover, self.path.iterdir())):
            resume = show.override("resume", self.path)
            go_on = resume if self._option == "out" else "resume=True"
            raise FileExistsError(
                f"output directory {self.path} exists and is not empty; "
                f"choose another with {self._option}=, or continue it with {go_on}"
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
                disk.remove_parts(folder)
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
        """Who holds it, as far as its file names it."""
        who = "another process"
        for _ in range(50):  # who has just taken it says so in a moment
            with contextlib.suppress(OSError):
                pid, _, host = disk.read_text(self.path / ".owner")[:200].partition(" ")
                if pid.isdecimal():
                    there = "" if host == socket.gethostname() else f" on {host}"
                    who = f"process {pid}{there}"
                    break
            time.sleep(0.02)
        return (
            f"{self.path} is being trained by {who}; wait until it ends or stop it, or choose "
            f"another directory with {self._option}="
        )

    @classmethod
    def open(cls, path: str | Path, option: Literal["out", "directory"] = "out") -> "RunDirectory":
        """The directory of an earlier run.

        Args:
            path: The directory.
            option: What names it, for sentences.

        Raises:
            FileNotFoundError: It is none.
        """
        run = cls(path, option)
        if not (run.path / "config.yaml").is_file():
            raise FileNotFoundError(f"{run.path} is not a run directory: it has no config.yaml")
        return run

    def begin(self, config: Mapping) -> None:
        """Make the folders, state that the run is running, and save its resolved config."""
        for folder in (self.path / "checkpoints", self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        self.write_status("running")
        with disk.atomic(self.path / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
        self._begun = True

    def clear(self) -> None:
        """Remove the run, whose directory goes with it where it holds nothing else.

        What names the run goes last: one that was cleared in part is still known as failed.

        Raises:
            BlockingIOError: Another process trains there.
            ValueError: What a run writes would go elsewhere.
        """
        with self.claimed(new=False):
            for folder in (self.path / "checkpoints", self.samples, self.path / "wandb"):
                if folder.is_dir():
                    shutil.rmtree(folder)
            events = self.path.glob("events.out.tfevents.*")
            last = [self.path / name for name in ("status.json", "config.yaml")]
            names = (self.path / name for name in _FILES)
            for path in (*events, *(path for path in names if path not in last), *last):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where something of the user's lies there
            self.path.rmdir()

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
        content = disk.read_text(path)
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
            config: Any = OmegaConf.to_container(OmegaConf.create(content))
        except (yaml.YAMLError, OmegaConfBaseException, AssertionError, ValueError) as error:
            # Such as the YAML of a single number, or a number of 5,000 digits.
            raise ValueError(f"{path} is damaged: it is no YAML of a config") from error
        require_plain(config, path)
        return config

    def write_status(
        self, status: str, reason: str | None = None, warning: str | None = None
    ) -> None:
        """Say ``running``, ``done``, ``interrupted`` or ``failed``, why, and what is amiss.

        Args:
            status: One of these.
            reason: Why, for people; None: nothing to say.
            warning: What is amiss though it ended well; None: nothing.
        """
        content = {"status": status, "pid": os.getpid(), "host": socket.gethostname()}
        content |= {"reason": reason} if reason else {}
        disk.write_json(
            self.path / "status.json", content | ({"warning": warning} if warning else {})
        )

    def read_status(self) -> dict:
        """As written; ``{"status": "killed"}`` where the process that ran it is gone.

        Raises:
            ValueError: It is damaged.
        """
        path = self.path / "status.json"
        if not os.path.lexists(path):
            return {"status": "unknown"}
        status = disk.read_json(path)
        kinds = {"status": str, "pid": int, "host": str, "reason": str}
        for key, kind in kinds.items():
            if not isinstance(status.get(key, "" if key == "reason" else None), kind):
                raise ValueError(f"{path} is damaged: its {key} is {str(status.get(key))[:50]!r}")
        if status["status"] == "running" and status["host"] == socket.gethostname():
            if not disk.lives(status["pid"]):
                status["status"] = "killed"
        return status

    def write_metrics(self, metrics: Mapping) -> None:
        """Save the final numbers."""
        disk.write_json(self.path / "metrics.json", metrics)

    def read_metrics(self) -> dict | None:
        """The final numbers, or None where the run has none yet."""
        path = self.path / "metrics.json"
        return disk.read_json(path) if os.path.lexists(path) else None


_FILES = ("config.yaml", "metrics.csv", "metrics.json", "status.json", "train.log", "loggers.json",
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
    for folder in (run, run / "checkpoints", run / "samples", run / "wandb"):
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
"""Levels of nesting in a saved config."""

_SHAPE: dict[str, type] = dict.fromkeys(
    ("choices", *checks.PARTS, "trainer", "eval", "samples"), Mapping
)
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
    left: list[tuple[tuple, object]] = [((key,), value) for key, value in config.items()]
    count = 0
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
            if _is_huge(keys[-1], value):
                raise ValueError(f"{file} is refused: {name} is {value}, more than {MAX_SIZE}")
        elif not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"{file} is refused: {name} is a {type(value).__name__}")


def _is_huge(key: object, value: object) -> bool:
    """Whether a value of a config is a size that no saved one may have."""
    return isinstance(value, int) and abs(value) > MAX_SIZE and "seed" not in str(key)


def require_sizes(config: Mapping) -> None:
    """Raise ValueError where a size is one that a saved config may not have: none could be read.

    Args:
        config: Of a training.
    """
    for part in checks.PARTS:
        for key, value in (config.get(part) or {}).items():
            each = value if isinstance(value, (list, tuple)) else [value]
            if wrong := [one for one in each if _is_huge(key, one)]:
                raise ValueError(f"{part}.{key} is {wrong[0]}; it must be at most {MAX_SIZE}")
