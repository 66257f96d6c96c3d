"""A run directory: what a training leaves behind, and how a model comes back from it."""

import contextlib
import csv
import errno
import glob
import io
import json
import math
import os
import pickletools
import platform
import re
import shutil
import socket
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from armodels import __version__, build, checks, show
from armodels.density import DensityModel
from armodels.spec import DataSpec

FORMAT = 2
"""Version of the checkpoint format; another one is refused."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, or a quota, answers."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of ``path`` only when it is wholly on disk.

    Raises:
        OSError: It could not be written; where the disk is full, says what it takes.
    """
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
                error.errno, f"{path} could not be written: {_no_room(path, written)}"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _no_room(path: Path, needed: int) -> str:
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
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return _as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """What ``write_json`` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    try:
        content = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no keys")
    return content


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
            refuse_links(self.path)
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
                said = (self.path / ".owner").read_text()[:200].partition(" ")
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
                if depth > _MAX_DEPTH:
                    raise yaml.YAMLError
            config = OmegaConf.to_container(OmegaConf.create(content))
        except (yaml.YAMLError, OmegaConfBaseException, AssertionError) as error:  # such as: 5
            raise ValueError(f"{path} is damaged: it is no YAML of a config") from error
        require_plain(config, path)
        return config

    def save(self, name: str, state: Mapping) -> None:
        """Save a checkpoint atomically: where the disk is full, the one before survives.

        Raises:
            OSError: It could not be written.
        """
        content = {"format": FORMAT, "version": __version__, **state}
        path = self.checkpoint(name)
        try:
            with atomic(path) as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into the latter
            kept = "the one before is untouched" if path.exists() else "there is none before it"
            why = str(error).strip().splitlines()[0]
            if shutil.disk_usage(path.parent).free < (needed := _size(content)):
                why = _no_room(path, needed)
            raise OSError(f"checkpoint {path} could not be written ({why}); {kept}") from error

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
        if not path.exists():
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
        return read_json(path) if path.exists() else None


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


def _size(content: object) -> int:
    """Bytes that the tensors of a checkpoint take."""
    return sum(t.numel() * t.element_size() for t in _tensors(content))


# A stranger's file: what it states is checked before it is unpacked, copied or built

MAX_SIZE = 2**24
"""No size in a saved config is larger: units, layers, rows, values of an example."""

MAX_VALUES = 20_000
"""Values in a saved config, nested ones included."""

_MAX_DEPTH = 20
_MAX_STRUCTURE = 2**24
"""Bytes of a checkpoint without its tensors, and of a config or a JSON file."""

_BUILDERS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
_BUILDERS |= {"torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"}
_STORAGE = re.compile(
    r"torch(\.cuda|\.storage)? \w+Storage|torch u?(int|float|bfloat)\d+|torch bool"
)


_SHAPE = dict.fromkeys(("choices", *checks.PARTS, "trainer", "eval", "samples"), Mapping)
_SHAPE |= {"overrides": list, "seed": int}


def require_shape(config: Mapping, file: Path) -> None:
    """Raise ValueError unless a run can go on by a saved config: nothing that it needs is gone."""
    for key, kind in _SHAPE.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{file} is damaged: {key} is not as armodels wrote it")
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
        if count > MAX_VALUES or len(keys) > _MAX_DEPTH:
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


def _require_honest(path: Path) -> None:
    """Raise ValueError where an archive would unpack to more than it is, or make no tensors.

    Torch stores entries as they are. Flipped bytes are found, too: torch takes them for numbers.

    Raises:
        BadZipFile: It is none, or damaged.
    """
    foreign = (
        f"checkpoint {path} is refused: it holds more than tensors and plain values "
        f"(it may run code), so it was not saved by armodels"
    )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        stated = sum(entry.file_size for entry in entries)
        if stated > path.stat().st_size or any(e.compress_type for e in entries):
            raise ValueError(
                f"checkpoint {path} is refused: it would unpack to {size_of(stated)}, and "
                f"armodels does not pack its checkpoints"
            )
        if archive.testzip() is not None:
            raise zipfile.BadZipFile
        names = [entry.filename for entry in entries]
        structures = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(structures) != 1 or len(names) != len(set(names)):
            raise zipfile.BadZipFile
        if structures[0].file_size > _MAX_STRUCTURE:
            raise ValueError(f"checkpoint {path} is refused: it is not one of armodels")
        for code, said, _ in pickletools.genops(archive.read(structures[0])):
            if code.name == "GLOBAL":
                if said not in _BUILDERS and not _STORAGE.fullmatch(said):
                    raise ValueError(foreign)
            elif code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
                raise ValueError(foreign)


def _tensors(state: object, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in a checkpoint."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping) and depth < _MAX_DEPTH:
        for child in state.values():
            yield from _tensors(child, depth + 1)


def _read(path: Path) -> str:
    """A small text file of a run.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, no text, or too large.
    """
    if not path.is_file():  # such as a pipe, which would never end
        raise FileNotFoundError(f"{path} is missing, or is no file")
    if path.stat().st_size > _MAX_STRUCTURE:
        raise ValueError(f"{path} is refused: it is larger than any that armodels writes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror})") from error


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint as plain tensors and builtins, on the CPU; code in it is never executed.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is truncated, holds code, states sizes that it does not have, or is of
            another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        start = file.read(4)
    strange = f"checkpoint {path} is not a checkpoint of armodels"
    if start and not b"PK\x03\x04".startswith(start):  # no archive: not even given to torch
        raise ValueError(strange)
    damaged = (
        f"checkpoint {path} is truncated or corrupted; use another, such as last.pt beside it"
    )
    try:
        _require_honest(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(damaged) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that torch itself cannot take
        raise ValueError(damaged) from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(strange)
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {state['format']} (armodels {state.get('version')}), "
            f"but this armodels {__version__} reads format {FORMAT}"
        )
    kinds = {"config": dict, "spec": dict, "model": Mapping, "step": int}
    kinds["ema"] = (Mapping, type(None))
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(strange)
    require_plain(state["config"], path)
    if any(t.numel() * t.element_size() > t.untyped_storage().nbytes() for t in _tensors(state)):
        raise ValueError(f"checkpoint {path} is refused: its tensors state more than it holds")
    return state


def spec_of(state: Mapping, path: Path) -> DataSpec:
    """What a datum is, as a checkpoint says."""
    try:
        spec = DataSpec(**state["spec"])
        if not 0 < spec.num_dims <= MAX_SIZE:
            raise ValueError(f"examples of {spec.num_dims} values")
        return spec
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} is refused: its spec is wrong ({error})") from error


class Frugal(TorchDispatchMode):
    """Refuses what a model of these weights does not need, before it is allocated.

    Each operation is first tried without memory, on torch's meta device.

    Args:
        weights: Of the checkpoint.
        path: Of the checkpoint.
    """

    def __init__(self, weights: Mapping[str, Tensor], path: Path):
        super().__init__()
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in weights.values()}
        # Models make up to 2.4 times their weights: masks, and weights that are drawn anew.
        self.bytes = 2**26 + 10 * sum(storage.nbytes() for storage in stored.values())
        self.operations = 10_000 + 50 * len(weights)
        self.path = path

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(given.alias_info for given in function._schema.returns):
            where = {"device": "meta"} if "device" in kwargs or not args else {}
            small, named = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
            try:
                made = function(*small, **{**named, **where})
            except Exception:  # its size follows from values; it is no larger than what is there
                made = None
            for one in tree_iter(made):
                if isinstance(one, Tensor):
                    self.bytes -= one.numel() * one.element_size()
        self.operations -= 1
        if self.bytes < 0 or self.operations < 0:
            raise ValueError(
                f"checkpoint {self.path} is refused: its config describes a far larger model than "
                f"the weights that it holds"
            )
        return function(*args, **kwargs)


def size_of(num_bytes: float) -> str:
    """A number of bytes, for people."""
    power = min(int(math.log(max(num_bytes, 1), 1000)), 4)
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"


def guard(config: Mapping, state: Mapping, path: Path) -> contextlib.AbstractContextManager:
    """Inside which a model of the config is built: no larger than a checkpoint's weights need."""
    if not all(isinstance(t, Tensor) for t in state["model"].values()):
        raise ValueError(f"checkpoint {path} is refused: its weights are no tensors")
    if build.foreign({key: config.get(key) for key in ("model", "head")}):
        return contextlib.nullcontext()  # of the user's own class, which they vouch for
    return Frugal(state["model"], path)


def rebuild(state: Mapping, path: Path, trust: build.Trust) -> tuple[DataSpec, DensityModel]:
    """The model that a checkpoint describes, with the weights that it was trained to.

    Raises:
        ValueError: It names a class that is not trusted, or its parts do not fit each other.
    """
    spec, config = spec_of(state, path), state["config"]
    with guard(config, state, path):
        model = build.model(config.get("model"), config.get("head"), spec, trust)
    return spec, model


def find_checkpoint(path: str | Path, name: str = "best") -> Path:
    """The checkpoint file of a run directory, or ``path`` itself if it is a file."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"run {path} does not exist; name a run directory or checkpoint")
    file = RunDirectory.open(path).checkpoint(name)
    if not file.is_file():
        raise FileNotFoundError(f"run {path} has no checkpoint {name}.pt yet")
    return file


@dataclass(frozen=True)
class Restored:
    """A model that came back from a checkpoint.

    Attributes:
        model: In evaluation mode, on the device asked for.
        config: The resolved config of its run.
        spec: What a datum of its training data is.
        weights: ``"ema"`` or ``"raw"``: the weights that it holds.
        step: Training steps behind it.
        path: The checkpoint file.
        trust: Which of the user's own classes its config may have built.
    """

    model: DensityModel
    config: dict
    spec: DataSpec
    weights: str
    step: int
    path: Path
    trust: build.Trust

    @property
    def origin(self) -> str:
        """Which weights these are, for people."""
        return f"{self.path} ({self.weights} weights, step {self.step})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((t.device for t in self.model.state_dict().values()), torch.device("cpu"))

    def folder_for(self, out: str | None) -> Path:
        """Folder for files about this model: ``out``, samples/ of its run, else the shell's."""
        if out:
            folder = Path(out)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        samples = self.path.parent.parent / "samples"
        if self.path.parent.name == "checkpoints":
            refuse_links(self.path.parent.parent)
        return samples if self.path.parent.name == "checkpoints" and samples.is_dir() else Path()


def check_weights(name: str) -> None:
    """Raise ValueError unless ``name`` says which weights are evaluated."""
    if name not in ("ema", "raw"):
        raise ValueError(f"eval.weights is {name!r}; choose ema or raw")


def restore(
    path: str | Path,
    *,
    checkpoint: str = "best",
    weights: str = "ema",
    device: str = "cpu",
    num_orders: int | None = None,
    trust: str | Iterable[str] | None = None,
) -> Restored:
    """Rebuild the model of a run from its checkpoint alone.

    Args:
        path: A run directory or a checkpoint file.
        checkpoint: ``best`` or ``last``, where ``path`` is a directory.
        weights: ``ema`` (raw where the run kept no average) or ``raw``.
        device: Where the model goes.
        num_orders: Orders of the mixture that it becomes; None: as it was trained.
        trust: Dotted names of your own classes that the run may name; code of others never runs.

    Raises:
        FileNotFoundError: There is no such run or checkpoint.
        ValueError: It is damaged, or names a class that is neither this package's nor trusted.
    """
    check_weights(weights)
    file = find_checkpoint(path, checkpoint)
    state = load_checkpoint(file)
    allowed = build.Trust.of(trust, file)
    spec, model = rebuild(state, file, allowed)
    floats = {t.dtype for t in state["model"].values() if t.is_floating_point()}
    if len(floats) == 1:
        model.to(floats.pop())  # a run in float64 is evaluated in float64
    load_weights(model, state["model"], file)
    average = state["ema"] if weights == "ema" else None
    if average:
        model.load_state_dict(average, strict=False)
    if num_orders is not None:
        model = build.over_orders(model, state["config"]["model"], num_orders)
    model.eval().requires_grad_(False).to(device)
    used = "ema" if average else "raw"
    return Restored(model, state["config"], spec, used, state["step"], file, allowed)


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into the model that was built from its config.

    Raises:
        ValueError: They are those of another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"checkpoint {path} does not fit the model that its config describes: {first}"
        ) from error


def from_config(config: Mapping) -> Restored:
    """The model that a verb's config asks for, by run, checkpoint, eval, device and data.

    Its data lies where the config says, if it says it.
    """
    restored = restore(
        config["run"],
        checkpoint=config["checkpoint"],
        weights=config["eval"]["weights"],
        num_orders=config["eval"].get("num_orders"),  # of verbs that report a likelihood
        trust=config["trust"],
        device=pick_device(config["device"]),
    )
    if "_target_" in config["data"]:  # other data
        return restored
    data = build.moved(restored.config["data"], config["data"])
    return replace(restored, config={**restored.config, "data": data})


def load_model(path: str | Path, **options) -> DensityModel:
    """The model of a run directory or checkpoint, ready to use; options as in ``restore``."""
    return restore(path, **options).model


def pick_device(name: str, key: str = "device") -> str:
    """``auto``: the accelerator if there is one, else the CPU; other names as torch has them.

    Args:
        name: Such as ``cpu``, ``cuda`` or ``cuda:1``.
        key: In which it was given, for sentences.

    Raises:
        ValueError: There is no such device here.
    """
    kind, _, index = name.partition(":")
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((one for one, there in found.items() if there), "cpu")
    if kind not in ("cpu", *found) or not (index or "0").isdigit():
        raise ValueError(f"{key} is {name!r}; choose auto, cpu, cuda or mps")
    if not found.get(kind, True):
        raise ValueError(f"{key}={name}: torch finds no such device here; use {key}=cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{key}={name}: there are {torch.cuda.device_count()}, from cuda:0 on")
    return name


def environment() -> dict:
    """Versions, hardware and commit that a number depends on."""
    return {
        "armodels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process held at most: of main memory, and of an accelerator that counts."""
    import sys

    if sys.platform == "win32":
        import psutil

        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"peak_memory_bytes": peak}
    if device.type == "cuda":
        memory["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return memory


def processor() -> str:
    """The accelerator or processor, as the system names it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the source tree that this package runs from, with + if it was edited."""
    root = Path(__file__).resolve().parent.parent
    head = root / ".git"
    if not head.exists():
        return None
    import subprocess

    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()
