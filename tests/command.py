"""Run the real command line: in this process (an import of torch costs seconds), or in its own."""

import contextlib
import functools
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import omegaconf.base
import yaml
from hydra._internal.hydra import Hydra

from armodels import cli, configs

HERE = Path(__file__).parent
CONFIGS = Path(configs.__path__[0])
"""Of the package, also of one that is installed from its wheel."""
QUICK = ("trainer.progress=false", "samples.num=0", "trainer.accelerator=cpu")
TINY = ("data=tiny", "model.hidden_sizes=[6]", "trainer.batch_size=8", *QUICK)
"""A training of milliseconds; add trainer.max_steps and out."""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a failure."""
        assert self.code != 0, self.out
        assert "Traceback" not in self.err, self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("armodels: error: "), self.err
        return lines[0].removeprefix("armodels: error: ")


_load = yaml.load
_contents: dict[tuple[str, str | bytes], bytes] = {}


def _load_once(stream, Loader):
    """``yaml.load``, which reads a text once: it says the same each time."""
    text = stream
    if not isinstance(stream, str | bytes):
        text = stream.read()
        stream.seek(0)  # the stream itself is read, for its name stands in what yaml refuses
    key = Loader.__qualname__, text
    if key not in _contents:
        _contents[key] = pickle.dumps(_load(stream, Loader))
    return pickle.loads(_contents[key])


_parse_once = functools.cache(omegaconf.base.parse)  # the tree of an interpolation is only read


def armodels(folder: Path, *args: str, **env: str) -> Result:
    """``armodels args`` with ``folder`` as the shell's directory."""
    out, err = io.StringIO(), io.StringIO()
    env = {"ARMODELS_CONFIG_PATH": str(HERE / "configs"), **env}
    path = list(sys.path)
    code = 0
    with (
        _chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["armodels", *args]),
        mock.patch.dict(os.environ, env),
        # Composing a config is half of the time of a command. It reads the same files each time,
        mock.patch.object(yaml, "load", _load_once),
        mock.patch.object(omegaconf.base, "parse", _parse_once),
        # and Hydra composes it twice, the first time for hydra.mode alone, which is null.
        mock.patch.object(Hydra, "get_mode", return_value=None, create=True),
        # A test reads its files before the machine can lose power: it need not wait for the disk.
        mock.patch.object(os, "fsync"),
    ):
        if "HYDRA_FULL_ERROR" not in env:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.path[:] = path
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _chdir(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def done(folder: Path, *args: str, **env: str) -> str:
    """As ``armodels``, for a command that must succeed; its output."""
    result = armodels(folder, *args, **env)
    assert result.code == 0, result.err + result.out
    return result.out


def start(
    folder: Path,
    *args: str,
    launcher: tuple[str, ...] = ("-m", "armodels"),
    start_new_session: bool = False,
    **env: str,
):
    """``armodels args`` in a process of its own."""
    env = {
        **os.environ,
        "ARMODELS_CONFIG_PATH": str(HERE / "configs"),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    return subprocess.Popen(
        [sys.executable, *launcher, *args],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def process(folder: Path, *args: str, **options) -> Result:
    """As ``start``, waited for."""
    with start(folder, *args, **options) as child:
        out, err = child.communicate(timeout=300)
        return Result(child.returncode, out, err)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
            "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")  # fmt: skip
"""Starts two processes at a free port; what they run follows."""


OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
"""Events of Python that change, or may change, what lies on the disk."""


def _kill_at(run: str, operation: int) -> None:
    """Kill this process just before an operation on the files of a run that has begun.

    Each operation adds a byte to the file ``operations``; 0: the process lives.
    """
    folder, count = os.path.abspath(run), 0
    file = os.open("operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, values: tuple) -> None:
        nonlocal count
        if event not in OPERATIONS or not isinstance(values[0], str | os.PathLike):
            return
        if not os.path.abspath(values[0]).startswith(folder + os.sep):
            return
        if os.path.isfile(f"{folder}/config.yaml"):
            count += 1
            os.write(file, b".")
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _child(folder: str, args: tuple[str, ...], env: dict[str, str], log: str) -> None:
    os.environ.update({"ARMODELS_CONFIG_PATH": str(HERE / "configs"), **env})
    os.chdir(folder)
    if "KILL_AT" in env:
        run, _, operation = env["KILL_AT"].rpartition(" ")
        _kill_at(run, int(operation))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["armodels", *args]
    cli.main()


PRELOAD = ["torch", "hydra", "armodels.tasks.train", "armodels.tasks.sample", "torchvision.utils",
           "armodels.kernels.compiled", "cases", "tiny", "command"]  # fmt: skip
"""What the children of ``fork`` use, imported once."""


def fork(folder: Path, *args: str, **env: str) -> multiprocessing.Process:
    """``armodels args`` in a process of its own, forked from one that has imported torch.

    For tests that kill it: as real as ``start`` and seconds faster. It says what it has to say
    in the file ``told`` of the folder. ``KILL_AT="run 7"`` kills it just before its seventh
    operation on the files of ``run``, see ``_kill_at``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=_child, args=(str(folder), args, env, str(folder / "told")))
    child.start()
    return child


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
