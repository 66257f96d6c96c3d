"""A run directory: what a training leaves behind, and how a model comes back from it."""

import contextlib
import csv
import io
import json
import os
import pickle
import platform
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from armodels import __version__, build
from armodels.density import DensityModel
from armodels.spec import DataSpec

FORMAT = 2
"""Version of the checkpoint format; another one is refused."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of ``path`` only when it is wholly on disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping) -> None:
    """Write ``content`` atomically, indented."""
    with atomic(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


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

    @classmethod
    def vacant(cls, path: str | Path) -> "RunDirectory":
        """A place for a new run; nothing is made there yet.

        Raises:
            FileExistsError: It exists and holds something.
        """
        run = cls(path)
        if run.path.is_dir() and any(run.path.iterdir()):
            raise FileExistsError(
                f"output directory {run.path} exists and is not empty; "
                f"choose another with out=, or continue it with resume={run.path}"
            )
        return run

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

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint called ``last`` or ``best``."""
        return self.path / "checkpoints" / f"{name}.pt"

    @property
    def samples(self) -> Path:
        """Folder of sample files."""
        return self.path / "samples"

    def read_config(self) -> dict:
        """The resolved config of the run."""
        return OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"))

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
            raise OSError(f"checkpoint {path} could not be written ({error}); {kept}") from error

    def write_status(self, status: str, reason: str | None = None) -> None:
        """Say ``running``, ``done``, ``interrupted`` or ``failed``, and why."""
        content = {"status": status, "pid": os.getpid(), "host": socket.gethostname()}
        write_json(self.path / "status.json", content | ({"reason": reason} if reason else {}))

    def read_status(self) -> dict:
        """As written; ``{"status": "killed"}`` where the process that ran it is gone."""
        path = self.path / "status.json"
        if not path.is_file():
            return {"status": "unknown"}
        status = json.loads(path.read_text())
        if status["status"] == "running" and status["host"] == socket.gethostname():
            try:
                os.kill(status["pid"], 0)
            except ProcessLookupError:
                status["status"] = "killed"
            except PermissionError:
                pass  # it lives, under another user
        return status

    def write_metrics(self, metrics: Mapping) -> None:
        """Save the final numbers."""
        write_json(self.path / "metrics.json", metrics)

    def read_metrics(self) -> dict | None:
        """The final numbers, or None where the run has none yet."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else None


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint as plain tensors and builtins, on the CPU; code in it is never executed.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is truncated, holds code, or is of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        start = file.read(4)
    if start and not b"PK\x03\x04".startswith(start):  # no archive: not even given to torch
        raise ValueError(f"checkpoint {path} is not a checkpoint of armodels")
    damaged = (
        f"checkpoint {path} is truncated or corrupted; use another, such as last.pt beside it"
    )
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch reads flipped bytes as numbers
        if bad is not None:
            raise ValueError(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} is refused: it holds more than tensors and plain values "
            f"(it may run code), so it was not saved by armodels"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError) as error:
        raise ValueError(damaged) from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"checkpoint {path} is not a checkpoint of armodels")
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {state['format']} (armodels {state.get('version')}), "
            f"but this armodels {__version__} reads format {FORMAT}"
        )
    return state


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
    """

    model: DensityModel
    config: dict
    spec: DataSpec
    weights: str
    step: int
    path: Path

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
) -> Restored:
    """Rebuild the model of a run from its checkpoint alone.

    Args:
        path: A run directory or a checkpoint file.
        checkpoint: ``best`` or ``last``, where ``path`` is a directory.
        weights: ``ema`` (raw where the run kept no average) or ``raw``.
        device: Where the model goes.
        num_orders: Orders of the mixture that it becomes; None: as it was trained.
    """
    check_weights(weights)
    file = find_checkpoint(path, checkpoint)
    state = load_checkpoint(file)
    spec = DataSpec(**state["spec"])
    model = build.model(state["config"]["model"], state["config"]["head"], spec)
    floats = {t.dtype for t in state["model"].values() if t.is_floating_point()}
    if len(floats) == 1:
        model.to(floats.pop())  # a run in float64 is evaluated in float64
    model.load_state_dict(state["model"])
    average = state["ema"] if weights == "ema" else None
    if average:
        model.load_state_dict(average, strict=False)
    if num_orders is not None:
        model = build.over_orders(model, state["config"]["model"], num_orders)
    model.eval().requires_grad_(False).to(device)
    used = "ema" if average else "raw"
    return Restored(model, state["config"], spec, used, state["step"], file)


def from_config(config: Mapping) -> Restored:
    """The model that a verb's config asks for, by run, checkpoint, eval and device."""
    return restore(
        config["run"],
        checkpoint=config["checkpoint"],
        weights=config["eval"]["weights"],
        num_orders=config["eval"].get("num_orders"),  # of verbs that report a likelihood
        device=pick_device(config["device"]),
    )


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
