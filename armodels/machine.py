"""This machine: its devices, and what a number depends on beside the code and its config."""

import contextlib
import functools
import getpass
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from armodels import __version__


def pick_device(name: str, key: str = "device") -> str:
    """``auto``: the accelerator if there is one, else the CPU; other names as torch has them.

    Args:
        name: Such as ``cpu``, ``cuda`` or ``cuda:1``.
        key: Of the config that names it, for sentences.

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


_held: FileLock | None = None
"""Of the device that this process took; the system frees it with the process, however it ends."""


def take_device() -> None:
    """Have this process see one CUDA device alone: of those it may see, one that fewest hold.

    Processes of one user know of each other by locks that they hold for life, as each keeps
    memory of its device for life. The choice comes too late where CUDA was used before.
    """
    global _held
    if _held is not None or torch.cuda.is_initialized():
        return
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        listed = ",".join(map(str, range(torch.cuda.device_count())))
    devices = [one.strip() for one in listed.split(",") if one.strip() not in ("", "-1")]
    if not devices:
        return
    folder = Path(tempfile.gettempdir(), f"armodels-devices-{getpass.getuser()}")
    with contextlib.suppress(OSError):  # a place that cannot be written deals nothing out
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "taking"):
            free = {one: _free_locks(folder, one) for one in devices}
            device = min(devices, key=lambda one: free[one][0])
            _held = free[device][1]
            _held.acquire(timeout=0)
            os.environ["CUDA_VISIBLE_DEVICES"] = device


def _free_locks(folder: Path, device: str) -> tuple[int, FileLock]:
    """How many processes hold a device, and the lock of one more."""
    name = re.sub("[^A-Za-z0-9-]", "_", device)
    held, free = 0, None
    for path in folder.glob(f"{name}.*"):
        lock = FileLock(path)
        try:
            with lock.acquire(timeout=0):
                free = lock
        except Timeout:
            held += 1
    return held, free or FileLock(folder / f"{name}.{held}")


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
        "processes": torch.distributed.get_world_size() if _is_shared() else 1,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "git_commit": _git_commit(),
    }


def _is_shared() -> bool:
    """Whether several processes share the work."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process held at most: of main memory, and of an accelerator that counts."""
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


@functools.cache  # of a process: what is edited while it runs is not what it runs
def _git_commit() -> str | None:
    """Commit of the source tree that this package runs from, with + if it was edited."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
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
