"""Kill, damage, misconfigure and attack the real command line, and count what survives.

    python scripts/torture.py [--kills N] [--races N] [--disk N] [--damage N] [--hostile N]
                              [--configs N] [--seed 0] [--jobs 2] [--only kills/17] [--keep FOLDER]

Each trial is a function of the seed and of its name, works in a folder of its own and runs
commands in processes of their own, forked from one that has imported torch. What it expects
stands in the class of its kind. Exit code 1 where anything did not survive.
"""

import argparse
import contextlib
import csv
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from armodels import checkpoints, cli

HERE = Path(__file__).resolve().parent
TIMEOUT = 120
"""Seconds after which a command counts as one that hangs."""
BEGINS = 0.2
"""Seconds after its first line in which a command has begun to listen to signals."""
PEAK = 1200
"""Megabytes that no command on such small data may need."""
QUICK = ("trainer.progress=false", "trainer.accelerator=cpu", "samples.num=4")
# A limit of minutes makes the learning rate a matter of the clock: no two runs would be equal.
EXACT = (*QUICK, "trainer.max_minutes=null")
TABLE = ("data=table", "data.path=rows.csv", "model.hidden_sizes=[6]", "trainer.batch_size=20",
         *EXACT)  # fmt: skip
PICTURES = ("data=folder", "data.path=pictures", "data.size=[6,6]", "data.levels=4",
            "data.valid=0.3", "data.test=0.3", "model=made", "head=auto",
            "model.hidden_sizes=[6]", "trainer.batch_size=20", *EXACT)  # fmt: skip
PRELOAD = ["torch", "hydra", "lightning_fabric", "torchvision", "torch.utils.tensorboard",
           "pandas", "matplotlib.figure", "sklearn.mixture", "armodels.cli", "torture",
           *(f"armodels.tasks.{verb.module}" for verb in cli.VERBS.values())]  # fmt: skip


class Lost(Exception):
    """A trial that did not survive, and why."""


def require(good: object, why: str) -> None:
    """Raise Lost unless it is good."""
    if not good:
        raise Lost(why)


# Commands in processes of their own


@dataclass(frozen=True)
class Blow:
    """What ends a command before its end.

    Attributes:
        number: The signal.
        seconds: After its start; None: at a write to the disk.
        write: Counted from 1: the signal comes just before it.
        delay: Seconds from there, in which the write may be under way.
    """

    number: signal.Signals
    seconds: float | None = None
    write: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.number.name} after {self.seconds:.3f} s"
        later = f" and {1000 * self.delay:.1f} ms" if self.delay else ""
        return f"{self.number.name} at write {self.write}{later}"


@dataclass(frozen=True)
class Told:
    """What a command left behind.

    Attributes:
        code: Exit code; negative: minus the signal that ended it.
        out: Standard output.
        err: Standard error, without progress bars.
        seconds: It took so many.
        begun: Of them, those before its first line; infinite where it never came so far.
        peak: Megabytes that it needed; 0 where it was killed.
        writes: Files that it opened for writing, renamed, made or removed.
    """

    args: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    begun: float
    peak: float
    writes: int

    def __str__(self) -> str:
        shown = " ".join(self.err.strip().splitlines()[-3:]) or "silent"
        return f"`armodels {shlex.join(self.args)}` ended with {self.code}: {shown[-300:]}"

    def civil(self) -> "Told":
        """Lost if it crashed, hung or is not clean."""
        require(self.code != -signal.SIGALRM, f"hangs: {self}")
        require(self.code >= 0, f"crashes: {self}")
        return self.clean()

    def clean(self) -> "Told":
        """Lost if it took too much memory or showed what no user should see."""
        require("Traceback" not in self.out + self.err, f"traceback: {self}")
        require(self.peak < PEAK, f"needs {self.peak:.0f} MB: {self}")
        odd = {c for c in self.out + self.err if not (c.isprintable() or c in "\n\r\t")}
        require(not odd, f"prints control characters {sorted(map(ascii, odd))}: {self}")
        return self

    def refused(self) -> "Told":
        """Lost unless it failed with one sentence."""
        self.civil()
        require(self.code != 0, f"is not refused: {self}")
        lines = self.err.strip().splitlines()
        lines = [line for line in lines if not line.startswith("armodels: warning: ")]
        if "-m" in self.args:  # each job that failed is named, too
            lines = [line for line in lines if not line.startswith("armodels: failed: ")][-1:]
        require(len(lines) == 1, f"is refused with {len(lines)} lines: {self}")
        require(lines[0].startswith("armodels: error: "), f"is refused without a word: {self}")
        require("HYDRA_FULL_ERROR" not in lines[0], f"nobody foresaw it: {self}")
        return self

    def well(self) -> "Told":
        """Lost unless all went well."""
        self.civil()
        require(self.code == 0, f"fails: {self}")
        return self

    def either(self) -> "Told":
        """Lost unless all went well or it failed with one sentence."""
        return self.well() if self.code == 0 else self.refused()

    def stopped(self, blow: Blow) -> "Told":
        """Lost unless it had ended, or the signal ended it: with a word where it can be caught."""
        self.clean()
        number = int(blow.number)
        if blow.number == signal.SIGKILL:
            require(self.code in (0, -number), f"{blow} of {self}")
            return self
        if self.begun == math.inf:  # no line of the program had run
            return self
        # While Python starts and ends, a signal ends the process without a word, as any other.
        early = blow.seconds is not None and blow.seconds < self.begun + BEGINS
        codes = (0, 128 + number, *([-number] if early or self.peak else []))
        require(self.code in codes, f"{blow} of {self}")
        if self.code == 128 + number:
            lines = [
                one for one in self.err.splitlines() if re.match("armodels: (?!warning)", one)
            ]
            require(len(lines) == 1, f"{blow} is taken with {len(lines)} lines: {self}")
        return self


_WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def _watch(folder: str, blow: Blow | None, counted: list[int]) -> None:
    """Count writes below the folder; strike where the blow says so."""

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in _WRITES:
            path = args[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(folder):
            return
        counted[0] += 1
        if blow is None or blow.seconds is not None or counted[0] != blow.write:
            return
        if blow.delay:  # an alarm that nobody takes ends the process, wherever it is by then
            signal.setitimer(signal.ITIMER_REAL, blow.delay)
        else:
            os.kill(os.getpid(), blow.number)

    sys.addaudithook(hook)


def _child(folder: str, args: tuple, env: dict, pipes: dict, blow: Blow | None, limit: int | None):
    """The body of a process: a command, as the console script runs it."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(pipes["out"].fileno(), 1)
    os.dup2(pipes["err"].fileno(), 2)
    for name in ("out", "err"):
        pipes[name].close()
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    counted = [0]
    _watch(folder, blow, counted)
    sys.argv = ["armodels", *args]
    pipes["numbers"].send(time.monotonic())
    try:
        cli.main()
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with contextlib.suppress(OSError):
            pipes["numbers"].send((peak, counted[0]))


class Command:
    """One command under way.

    Args:
        folder: The shell's folder; what is shared by the commands of a trial lies in it.
        args: As typed behind ``armodels``.
        blow: What is to end it.
        limit: Bytes that a file may have at most: a disk that is full.
    """

    def __init__(
        self, folder: Path, *args: str, blow: Blow | None = None, limit: int | None = None, **env
    ):
        self.args, self.blow = args, blow
        # The home of a trial lies in its folder, so that caches are made anew in each.
        home = str(folder / "home")
        env = {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "ARMODELS_DATA": home,
               "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **env}  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        pairs = {name: context.Pipe(duplex=False) for name in ("out", "err", "numbers")}
        self._read = {name: reader for name, (reader, _) in pairs.items()}
        pipes = {name: writer for name, (_, writer) in pairs.items()}
        started = (str(folder), args, env, pipes, blow, limit)
        self._process = context.Process(target=_child, args=started)
        self._began = time.monotonic()
        self._process.start()
        for pipe in pipes.values():
            pipe.close()
        self._told = {"out": b"", "err": b""}
        self._listeners = [
            threading.Thread(target=self._listen, args=(name,)) for name in self._told
        ]
        for listener in self._listeners:
            listener.start()

    def _listen(self, name: str) -> None:
        """Take in what is said, so that the process never waits for a reader."""
        while part := os.read(self._read[name].fileno(), 1 << 16):
            self._told[name] += part

    def wait(self) -> Told:
        """Wait for its end, and see that it left no process behind."""
        blow, process = self.blow, self._process
        if blow is not None and blow.seconds is not None:
            process.join(max(0, self._began + blow.seconds - time.monotonic()))
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, blow.number)
        process.join(TIMEOUT)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            code = -signal.SIGALRM
        elif code == -signal.SIGALRM:  # the delayed blow
            code = -signal.SIGKILL
        seconds = time.monotonic() - self._began
        left, patience = True, time.monotonic() + 2  # a child may take a moment to follow
        while left and time.monotonic() < patience:
            try:
                os.killpg(process.pid, 0)
                time.sleep(0.02)
            except ProcessLookupError:
                left = False
        if left:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for listener in self._listeners:
            listener.join()
        begun, peak, writes = math.inf, 0, 0  # of one that is killed
        try:
            begun = self._read["numbers"].recv() - self._began
            peak, writes = self._read["numbers"].recv()
        except EOFError:
            pass
        for pipe in self._read.values():
            pipe.close()
        out, err = (self._told[name].decode(errors="replace") for name in ("out", "err"))
        lines = err.replace("\r", "\n").splitlines()
        err = "\n".join(line for line in lines if "%|" not in line and line.strip())
        told = Told(self.args, code, out, err, seconds, begun, peak, writes)
        killed = blow is not None and code == -signal.SIGKILL
        require(not left or killed, f"leaves a process behind: {told}")
        return told


def armodels(folder: Path, *args: str, **options) -> Told:
    """``armodels args`` in the folder."""
    return Command(folder, *args, **options).wait()


# What lies in a folder


def files_of(folder: Path) -> Iterator[Path]:
    """Regular files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_of(folder)}


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


def read_whole(path: Path) -> object:
    """The contents of a file, all of which is read; ValueError or OSError where it is cut."""
    if path.suffix == ".json":
        return json.loads(path.read_text(), parse_constant=_no_constant)
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    if path.suffix == ".pt":
        return checkpoints.load_checkpoint(path)
    if path.suffix == ".npz":
        with open(path, "rb") as file:
            return dict(np.load(file))
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.tobytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if path.suffix == ".csv":
        text = path.read_text()
        widths = {len(row) for row in csv.reader(text.splitlines())}
        if not text.endswith("\n") or len(widths) != 1:
            raise ValueError("its last line is cut")
        return text
    return path.read_bytes()


def require_whole(folder: Path) -> None:
    """Lost if a file under its final name is half-written."""
    for path in files_of(folder):
        if not path.name.endswith(".part"):
            try:
                read_whole(path)
            except Exception as error:
                raise Lost(f"{path.relative_to(folder)} is half-written: {error}") from error


_KEPT = {"nats", "nats_ci95", "bits_per_dim", "num_examples", "best_step", "steps", "parameters",
         "valid", "test", "status", "data", "split"}  # fmt: skip
_STATE = ("model", "ema", "optimizer", "step", "state")


def essence(path: Path) -> object:
    """What of a file must be the same wherever and however fast it was written."""
    content = read_whole(path)
    if path.suffix == ".json" and isinstance(content, dict):
        return {key: value for key, value in content.items() if key in _KEPT}
    if path.suffix == ".yaml":
        return sorted(content)
    if path.suffix == ".pt":
        state = {key: content[key] for key in _STATE if key in content}
        aside = ("seconds", "spent", "began")
        return state | {"state": {k: v for k, v in state["state"].items() if k not in aside}}
    if path.name == "metrics.csv":
        head, *rows = (line.split(",") for line in content.splitlines())
        kept = [i for i, name in enumerate(head) if "second" not in name and "per_s" not in name]
        return [[row[i] for i in kept if i < len(row)] for row in (head, *rows)]
    return content


def same(a: object, b: object) -> bool:
    """Are two values equal bit for bit?"""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def essences(folder: Path) -> dict[str, object]:
    """Of every file; the runs of a sweep, whose names are random, by their seed."""
    names = {}
    for config in folder.glob("outputs/**/config.yaml"):
        names[config.parent] = f"sweep-{yaml.safe_load(config.read_text())['seed']}"
    found = {}
    for path in files_of(folder):
        # Charts of a training are drawn when there is time for them.
        if re.match(r"events\.out|(train\.log|multirun\.yaml|step-\d+\.png)$", path.name):
            continue
        owner = next((names[one] for one in path.parents if one in names), None)
        inside = next((one for one in path.parents if one in names), folder)
        found[f"{owner or ''}/{path.relative_to(inside)}"] = essence(path)
    return found


def require_same(folder: Path, expected: Mapping[str, object]) -> None:
    """Lost unless the folder holds what an undisturbed command leaves, and nothing else."""
    found = essences(folder)
    require(not (gone := expected.keys() - found.keys()), f"lost {', '.join(sorted(gone))}")
    require(not (more := found.keys() - expected.keys()), f"litter {', '.join(sorted(more))}")
    for name, content in expected.items():
        require(same(content, found[name]), f"{name} is not what an undisturbed command writes")


# The stage: data and finished runs, made once


class Stage:
    """A folder with data and runs, of which every trial gets a copy.

    Args:
        folder: A new one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        draws = np.random.RandomState(0)
        rows = draws.randn(120, 3) @ np.array([[1, 0.5, 0], [0, 1, 0.3], [0, 0, 1]])
        lines = ["a,b,c", *(",".join(f"{value:.4f}" for value in row) for row in rows)]
        (folder / "rows.csv").write_text("\n".join(lines) + "\n")
        for i in range(60):
            path = folder / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.randint(0, 256, (7, 9, 3)).astype(np.uint8)).save(path)
        for args in (
            (*TABLE, "trainer.max_steps=10", "trainer.ema=0.9", "out=runs/table"),
            (*TABLE[:2], *QUICK, "model=gmm", "model.num_components=2", "out=runs/gmm"),
            (*PICTURES, "model.context=label", "data.labels=true", "trainer.max_steps=4",
             "out=runs/pictures"),
        ):  # fmt: skip
            armodels(folder, "train", *args).well()

    def copy(self, folder: Path) -> Path:
        """A copy of the stage at ``folder``, which does not exist yet."""
        return Path(shutil.copytree(self.folder, folder, symlinks=True))


# Kills


@dataclass(frozen=True)
class Scene:
    """A command that is struck, and how its user goes on.

    Attributes:
        args: The command.
        owns: A run directory that it writes, to be resumed; "outputs": those of a sweep.
        endless: It ends by a signal alone.
    """

    args: tuple[str, ...]
    owns: str | None = None
    endless: bool = False


LONG = ("trainer.max_steps=25", "trainer.eval_every=0.8", "trainer.checkpoint_every=0.02",
        "trainer.log_every=3", "eval.batch_size=4")  # fmt: skip
SCENES = {
    "train": (Scene(("train", *TABLE, *LONG, "trainer.ema=0.9", "out=new"), "new"), 5),
    "cache": (Scene(("train", *PICTURES, *LONG, "out=new"), "new"), 4),
    "baseline": (Scene(("train", *TABLE[:2], *QUICK, "model=gmm", "out=new"), "new"), 2),
    "resume": (
        Scene(("train", "resume=runs/table", "trainer.max_steps=30", *LONG[1:-1]), "runs/table"),
        3,
    ),
    "sweep": (
        Scene(("train", "-m", "seed=1,2,3", *TABLE, "trainer.max_steps=12", *LONG[1:]), "outputs"),
        2,
    ),
    "eval": (
        Scene(("eval", "runs/table", "split=train", "eval.batch_size=1", "out=eval.json")),
        2,
    ),
    "score": (Scene(("score", "runs/table", "split=train", "eval.batch_size=1")), 2),
    "sample": (Scene(("sample", "runs/pictures", "num=8", "num_neighbours=1")), 2),
    "complete": (Scene(("complete", "runs/pictures", "num=3", "num_completions=3")), 2),
    "table": (Scene(("compare", "runs", "--csv", "out=table.csv")), 1),
    "list": (Scene(("list",)), 0.3),
    "tensorboard": (Scene(("tensorboard", "runs"), endless=True), 0.5),
}
"""Commands to be struck, and how often one is among all."""

BLOWS = [signal.SIGKILL] * 5 + [signal.SIGTERM] * 2 + [signal.SIGHUP] * 2 + [signal.SIGINT]


class Kills:
    """A signal at a random moment, or at a random write to the disk, of a random command.

    Afterwards no file is half-written, the run goes on (struck again, perhaps) and ends with the
    weights and numbers of an undisturbed one, bit for bit, and nothing is left lying about.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self._undisturbed: dict[str, tuple[Told, dict]] = {}
        self._lock = threading.Lock()

    def undisturbed(self, name: str) -> tuple[Told, dict]:
        """What a scene tells and leaves without a blow."""
        with self._lock:
            if name not in self._undisturbed:
                with tempfile.TemporaryDirectory(dir=self.stage.folder.parent) as folder:
                    here = self.stage.copy(Path(folder) / "0")
                    told = armodels(here, *SCENES[name][0].args).well()
                    self._undisturbed[name] = told, essences(here)
            return self._undisturbed[name]

    def _blow(self, draw: random.Random, told: Told) -> Blow:
        number = draw.choice(BLOWS)
        if told.writes and draw.random() < 0.5:
            delay = draw.choice((0, 10 ** draw.uniform(-4.5, -1.5)))
            return Blow(
                number,
                write=draw.randint(1, told.writes),
                delay=delay if number == signal.SIGKILL else 0,
            )
        return Blow(number, seconds=draw.uniform(0.02, told.seconds))

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        name = draw.choices([*SCENES], [often for _, often in SCENES.values()])[0]
        scene = SCENES[name][0]
        if scene.endless:
            return self._strike_endless(draw, folder, scene)
        undisturbed, expected = self.undisturbed(name)
        blow = self._blow(draw, undisturbed)
        for attempt in range(9):  # one that came too late comes earlier
            here = self.stage.copy(folder / f"{attempt}")
            told = armodels(here, *scene.args, blow=blow).stopped(blow)
            if told.code != 0:
                break
            blow = Blow(blow.number, seconds=0.7**attempt * undisturbed.seconds * 0.9)
        require_whole(here)
        if draw.random() < 0.3:
            armodels(here, "compare", "runs", "--csv").well()
        if scene.owns == "outputs":
            self._go_on_with_sweep(here, expected)
        else:
            again = self._go_on(here, scene)
            if draw.random() < 0.25:
                second = self._blow(draw, undisturbed)
                armodels(here, *again, blow=second).stopped(second)
                require_whole(here)
                again = self._go_on(here, scene)
                blow = f"{blow}, then {second}"
            armodels(here, *again).well()
            require_same(here, expected)
        return f"{name}, {blow}"

    def _strike_endless(self, draw: random.Random, folder: Path, scene: Scene) -> str:
        blow = Blow(draw.choice(BLOWS), seconds=draw.uniform(0.1, 8))
        here = self.stage.copy(folder / "0")
        before = snapshot(here)
        port = f"port={draw.randint(20_000, 60_000)}"
        armodels(here, *scene.args, port, blow=blow).stopped(blow)
        require(snapshot(here) == before, f"{scene.args[0]} has changed runs")
        return f"{scene.args[0]}, {blow}"

    def _go_on(self, here: Path, scene: Scene) -> tuple[str, ...]:
        """The next command of the user: a run that has begun is resumed."""
        if scene.owns is None or not (here / scene.owns / "config.yaml").is_file():
            return scene.args
        aside = ("data", "model", "out", "resume", "samples", "eval")
        settings = [a for a in scene.args[1:] if a.partition("=")[0].split(".")[0] not in aside]
        changed = settings if "resume=runs/table" in scene.args else []
        return ("train", f"resume={scene.owns}", *changed)

    def _go_on_with_sweep(self, here: Path, expected: Mapping[str, object]) -> None:
        for config in sorted(here.glob("outputs/**/config.yaml")):
            place = str(config.parent.relative_to(here))
            armodels(here, "train", f"resume={place}").well()
        found = essences(here)
        for name, content in found.items():
            if name.startswith("sweep-"):
                require(same(content, expected.get(name)), f"{name} differs")
        for name, content in expected.items():
            if not name.startswith("sweep-"):
                require(same(content, found.get(name)), f"{name} differs")


class Races(Kills):
    """Two starts of one command at (nearly) the same time.

    One does it, undisturbed; the other is refused, or does the very same.
    """

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        name = draw.choice(("train", "cache", "baseline", "resume", "eval", "score", "sample"))
        scene, (undisturbed, expected) = SCENES[name][0], self.undisturbed(name)
        here = self.stage.copy(folder / "0")
        lag = draw.choice((0, draw.uniform(0, undisturbed.seconds)))
        first = Command(here, *scene.args)
        time.sleep(lag)
        both = [first, Command(here, *scene.args)]
        told = [one.wait().either() for one in both]
        require(any(one.code == 0 for one in told), f"neither works: {told[0]}; {told[1]}")
        if scene.owns is not None and name != "resume":
            require(any(one.code for one in told), f"both write {scene.owns}")
        require_same(here, expected)
        return f"{name} twice, {lag:.3f} s apart"


class Disk(Kills):
    """No file may grow beyond a random size: a disk that is full.

    One sentence says so, nothing is half-written, and with space again it goes on.
    """

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        name = draw.choice(
            [name for name in SCENES if name not in ("sweep", "list", "tensorboard")]
        )
        scene, (_, expected) = SCENES[name][0], self.undisturbed(name)
        here = self.stage.copy(folder / "0")
        limit = int(10 ** draw.uniform(0, 4.5))
        told = armodels(here, *scene.args, limit=limit).either()
        require_whole(here)
        if told.code:
            armodels(here, *self._go_on(here, scene)).well()
        require_same(here, expected)
        return f"{name}, files of {limit} bytes at most"


# Damage

DEEP = "[" * 100_000
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _keys(node: object, place: tuple = ()) -> Iterator[tuple]:
    """The places of all values of nested dicts and lists."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*place, key)
        yield from _keys(value, (*place, key))


ODD = [
    None, True, False, -1, 0, 10**30, 1e308, math.nan, math.inf, "", "word", [], {}, [1, [2]],
    "\x1b[31mred\x1b]0;title\x07", "two\nlines", "x" * 100_000, {"a": {"b": None}}, "../../..",
]  # fmt: skip
"""Values that take the place of others."""


def _edit(draw: random.Random, path: Path) -> str:
    """Remove one value of a JSON or YAML file, or replace it by an odd one."""
    load, dump = (
        (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    )
    content = load(path.read_text())
    place = draw.choice(list(_keys(content)))
    node = content
    for key in place[:-1]:
        node = node[key]
    value = draw.choice([*ODD, "gone"])
    if value == "gone":
        del node[place[-1]]
    else:
        node[place[-1]] = value
    path.write_text(dump(content))
    return f"{'.'.join(map(str, place))} is {ascii(value)[:40]}"


def _damage(draw: random.Random, path: Path, others: Sequence[Path]) -> str:
    """Damage one file (or folder); says how."""
    ways = ["gone", "folder", "loop", "dangling", "fifo"]
    if path.is_file():
        ways += ["empty", "cut", "cut", "flipped", "noise", "zeros", "longer", "another", "null"]
        if path.suffix in (".json", ".yaml"):
            ways += ["edit"] * 12 + ["deep", "bomb", "list", "utf-16", "number", "control"]
    way = draw.choice(ways)
    if way == "edit":
        return _edit(draw, path)
    old = path.read_bytes() if path.is_file() else b""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "dangling":
        path.symlink_to("/nowhere/at/all")
    elif way == "fifo":
        os.mkfifo(path)
    elif way != "gone":
        flips = bytearray(old)
        for _ in range(draw.randint(1, 5) if old else 0):
            flips[draw.randrange(len(flips))] ^= 1 << draw.randrange(8)
        path.write_bytes(
            {
                "empty": lambda: b"",
                "cut": lambda: old[: draw.randrange(len(old) or 1)],
                "flipped": lambda: bytes(flips),
                "noise": lambda: draw.randbytes(max(len(old), 10)),
                "zeros": lambda: bytes(len(old)),
                "longer": lambda: old + draw.randbytes(100),
                "another": lambda: draw.choice(others).read_bytes(),
                "null": lambda: b"null",
                "deep": DEEP.encode,
                "bomb": BOMB.encode,
                "list": lambda: b"[1, 2]",
                "utf-16": lambda: old.decode().encode("utf-16"),
                "number": lambda: b'{"status": ' + b"9" * 5000 + b"}",
                "control": lambda: b"\x00\x1b[2J\x07" + old,
            }[way]()
        )
    return way


class Damage:
    """A random file of a run is cut, changed, replaced or gone; then every verb meets it.

    Each ends well or with one sentence, no number is wrong, other runs are as they were and stand
    in the table, and a run that cannot be resumed is left alone.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        with tempfile.TemporaryDirectory(dir=stage.folder.parent) as folder:
            whole = stage.copy(Path(folder) / "0")
            self.nats = {victim: self._eval(whole, victim) for victim in ("table", "pictures")}
            armodels(whole, "compare", "runs", "--csv", "out=table.csv").well()
            self.row = self._row(whole)

    def _eval(self, here: Path, victim: str) -> dict:
        armodels(here, "eval", f"runs/{victim}", "out=eval.json").well()
        return essence(here / "eval.json")

    def _row(self, here: Path) -> str:
        lines = (here / "table.csv").read_text().splitlines()
        return "\n".join(line for line in lines if "runs/gmm" in line)

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        victim = draw.choice(("table", "table", "pictures"))
        here = self.stage.copy(folder / "0")
        target = here / "runs" / victim
        paths = sorted(p for p in target.rglob("*") if not p.name.startswith("events.out"))
        likely = [p for p in paths if p.suffix in (".json", ".yaml", ".pt")]
        path = draw.choice(draw.choice((paths, likely)))
        others = [p for p in files_of(self.stage.folder / "runs") if p != path]
        done = f"{path.relative_to(here)}: {_damage(draw, path, others)}"
        good = {one: snapshot(here / "runs" / one) for one in ("gmm",)}
        try:
            self._meet(draw, here, victim, path.suffix == ".pt")
        except Lost as lost:
            raise Lost(f"{done}; {lost}") from lost
        for one, before in good.items():
            require(snapshot(here / "runs" / one) == before, f"{done}; runs/{one} was touched")
        return done

    def _meet(self, draw: random.Random, here: Path, victim: str, swapped: bool) -> None:
        place = f"runs/{victim}"
        armodels(here, "compare", "runs", "--csv", "out=table.csv").well()
        require(self._row(here) == self.row, "the row of another run has changed")
        armodels(here, "compare", "runs").well()
        told = armodels(here, "eval", place, "out=eval.json").either()
        if told.code == 0 and not swapped:
            require(essence(here / "eval.json") == self.nats[victim], "eval says another number")
        verbs = [
            ("sample", place, "num=4"),
            ("score", place),
            ("complete", place, "num=2", "num_completions=2", "keep=0.4"),
            ("eval", place, "checkpoint=last"),
        ]
        armodels(here, *draw.choice(verbs)).either()
        before = snapshot(here / place)
        told = armodels(here, "train", f"resume={place}", "trainer.max_steps=12").either()
        if told.code:
            after = snapshot(here / place)
            kept = [name for name in before if name.startswith("checkpoints")]
            require(all(before[name] == after.get(name) for name in kept),
                    "a resume that failed has changed checkpoints")  # fmt: skip


# Bad configs


def read_configs() -> list[tuple[str, ...]]:
    """The commands of ``bad_configs.txt``, which says how they are written."""
    short: dict[str, str] = {}
    commands = []
    for line in (HERE / "bad_configs.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if found := re.match(r"(\$\w+) = (.*)", line):
            short[found[1]] = found[2]
            continue
        for name, text in short.items():
            line = line.replace(name, text)
        start, several, ends = line.partition(" : ")
        *words, last = shlex.split(start)
        endings = shlex.split(ends) if several else [""]
        commands += [(*words, last + ending) for ending in endings]
    return commands


class Configs:
    """A command of ``bad_configs.txt``: one sentence, an exit code, nothing written."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.plan = read_configs()
        here = stage.folder
        (here / "words.txt").write_text("no picture\n")
        (here / "empty").mkdir(exist_ok=True)
        # What is read on the way, such as the cache of pictures, is there before.
        armodels(here, "train", *PICTURES, "trainer.max_steps=0", "out=runs/warm").well()

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        args = self.plan[draw.index]
        here = self.stage.copy(folder / "0")
        before = snapshot(here)
        armodels(here, *args).refused()
        after = snapshot(here)
        new = sorted(k for k in {*after, *before} if after.get(k) != before.get(k))
        require(not new, f"`armodels {shlex.join(args)}` leaves {', '.join(new)[:200]}")
        return shlex.join(args)


# Hostile runs


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def payloads(here: Path) -> dict[str, dict]:
    """Configs of objects whose making leaves a folder PWNED; the files that they name are made."""
    import pickle

    made = str(here / "PWNED")
    torch.save({"x": Trap(here / "PWNED")}, here / "evil.pt")
    (here / "evil.pkl").write_bytes(pickle.dumps(Trap(here / "PWNED")))
    code = f"import os\nos.path.exists({made!r}) or os.mkdir({made!r})\nclass X: pass\n"
    (here / "evilmod.py").write_text(code)
    (here / "hub").mkdir()
    (here / "hub/hubconf.py").write_text(code + "def evil(*a, **k): pass\n")
    return {
        "torch.load": {"f": str(here / "evil.pt"), "weights_only": False},
        "joblib.load": {"filename": str(here / "evil.pkl")},
        "numpy.load": {"file": str(here / "evil.pkl"), "allow_pickle": True},
        "torch.hub.load": {"repo_or_dir": str(here / "hub"), "model": "evil", "source": "local"},
        "evilmod.X": {},
        "os.system": {"command": f"mkdir {made}"},
        "os.mkdir": {"path": made},
        "subprocess.check_output": {"args": ["mkdir", made]},
        "builtins.exec": {"_args_": [f"import os; os.mkdir({made!r})"]},
        "builtins.eval": {"_args_": [f"__import__('os').mkdir({made!r})"]},
        "pathlib.Path.mkdir": {"_args_": [{"_target_": "pathlib.Path", "_args_": [made]}]},
        "numpy.savetxt": {"fname": made, "X": [1]},
        "armodels.disk.write_json": {"path": made, "content": {}},
        "hydra.utils.call": {"config": {"_target_": "os.mkdir", "path": made}},
        "torch.optim.lr_scheduler.os.mkdir": {"path": made},
    }


PLACES = ("model", "model.extra", "model.hidden_sizes", "head", "head.extra", "data", "data.extra",
          "optimizer", "optimizer.extra", "schedule", "schedule.extra", "trainer.extra",
          "extra")  # fmt: skip
MEET = {
    "eval": ("eval", "runs/table"),
    "sample": ("sample", "runs/table", "num=4", "num_neighbours=1"),
    "complete": ("complete", "runs/table", "num=2", "num_completions=2"),
    "score": ("score", "runs/table"),
    "resume": ("train", "resume=runs/table", "trainer.max_steps=12"),
    "compare": ("compare", "runs"),
}


def _replant(target: Path, change: Callable[[dict], object]) -> None:
    """Change the config of a run wherever it is saved."""
    for name in ("best", "last"):
        path = target / "checkpoints" / f"{name}.pt"
        state = torch.load(path, weights_only=True)
        change(state["config"])
        torch.save(state, path)
    config = yaml.safe_load((target / "config.yaml").read_text())
    change(config)
    (target / "config.yaml").write_text(yaml.safe_dump(config))


def _plant_target(place: str, name: str, rest: dict) -> Callable[[dict], None]:
    node = {"_target_": name, **rest}

    def change(config: dict) -> None:
        group, _, key = place.partition(".")
        if group == "extra":
            config["extra"] = node
        elif not key:
            config[group] = {**config[group], **node}
        elif key == "hidden_sizes":
            config[group][key] = [node]
        else:
            config[group][key] = node

    return change


LINKS = ("samples", "train.log", "metrics.csv", "metrics.json", "status.json", "config.yaml",
         "checkpoints/last.pt", "checkpoints/best.pt", "checkpoints",
         "samples/sample-seed0-t1.npz", "samples/sample-seed0-t1.png",
         "scores-table-rows-test.csv")  # fmt: skip
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202egnp"


def _link(here: Path, name: str) -> None:
    """A name inside the run becomes a link to a file or folder outside."""
    path, outside = here / "runs/table" / name, here / "outside"
    outside.mkdir()
    goal = outside / path.name
    if path.exists():
        path.rename(goal)
    else:
        goal.write_text("precious\n")
    path.symlink_to(goal)


def _bomb_checkpoint(here: Path) -> None:
    """Half a gigabyte for each megabyte: a storage of zeros, packed."""
    path = here / "runs/table/checkpoints/best.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        with archive.open(f"{name.split('/')[0]}/data/999", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(1 << 23))


def _specials(here: Path) -> dict[str, Callable[[], object]]:
    """Attacks that are no ``_target_``."""
    target = here / "runs/table"

    def escapes(config):
        config["choices"]["model"] = config["choices"]["data"] = f"made{ESCAPES}"
        config["overrides"] = [f"model.order={ESCAPES}"]

    def status():
        content = {"status": "failed", "pid": 1, "host": "x", "reason": f"no{ESCAPES}"}
        (target / "status.json").write_text(json.dumps(content))

    def tags():
        made = str(here / "PWNED")
        text = (target / "config.yaml").read_text()
        text += f"evil: !!python/object/apply:os.mkdir [{made!r}]\n"
        (target / "config.yaml").write_text(text)

    def pickled():
        path = target / "checkpoints/best.pt"
        torch.save({"format": checkpoints.FORMAT, "x": Trap(here / "PWNED")}, path)

    def interpolated(config):
        config["model"]["order"] = "${oc.env:HOME}"
        config["data"]["path"] = "${oc.decode:${oc.env:HOME}}"

    named = {f"link {name}": (lambda name=name: _link(here, name)) for name in LINKS}
    return named | {
        "escapes in names": lambda: _replant(target, escapes),
        "escapes in a reason": status,
        "a tag of Python in YAML": tags,
        "a pickle": pickled,
        "interpolations": lambda: _replant(target, interpolated),
        "a bomb of 2.5 GB": lambda: _bomb_checkpoint(here),
    }


class Hostile:
    """A run planted by a stranger: no code runs, nothing outside of it is written.

    Every verb ends well or with one sentence, within bounds of memory and time.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        targets = [(place, name) for place in PLACES for name in payloads(self._probe())]
        specials = [(None, name) for name in _specials(stage.folder)]
        planted = [(verb, *one) for one in targets for verb in MEET if verb != "compare"]
        random.Random(0).shuffle(planted)
        # Attacks that are each of one kind come first, then targets as many as asked for.
        self.plan = [(verb, *one) for one in specials for verb in MEET] + planted

    def _probe(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="torture-probe-", dir=self.stage.folder.parent))

    def trial(self, draw: random.Random, folder: Path) -> str:
        """One trial in an empty folder; says what was done."""
        verb, place, name = self.plan[draw.index]
        here = self.stage.copy(folder / "0")
        done = f"{verb} meets {name}" + (f" as {place}" if place else "")
        if place is None:
            _specials(here)[name]()
        else:
            _replant(here / "runs/table", _plant_target(place, name, payloads(here)[name]))
        outside = snapshot(here / "outside")
        told = armodels(here, *MEET[verb])
        require(not (here / "PWNED").exists(), f"{done}: code ran: {told}")
        require(snapshot(here / "outside") == outside, f"{done}: wrote through a link: {told}")
        try:
            told.either()
        except Lost as lost:
            raise Lost(f"{done}; {lost}") from lost
        return done


# All of them

KINDS = {"kills": (Kills, 220), "races": (Races, 30), "disk": (Disk, 40), "damage": (Damage, 150),
         "hostile": (Hostile, 250), "configs": (Configs, 10_000)}  # fmt: skip
"""Kinds of trials, and how many of each are tried if nothing is said."""


class Draws(random.Random):
    """The random draws of one trial.

    Args:
        seed: Of all trials.
        kind: Its kind.
        index: Its number.
    """

    def __new__(cls, seed: int, kind: str, index: int):
        return super().__new__(cls)

    def __init__(self, seed: int, kind: str, index: int):
        super().__init__(f"{seed} {kind} {index}")
        self.index = index


@dataclass(frozen=True)
class Result:
    """What became of one trial."""

    name: str
    done: str
    lost: str | None


def torture(
    counts: Mapping[str, int],
    seed: int = 0,
    jobs: int = 1,
    only: str | None = None,
    keep: str | None = None,
) -> list[Result]:
    """Try so many of each kind; prints a line a kind and what did not survive.

    Args:
        counts: Trials by kind.
        seed: Of all draws.
        jobs: Trials at a time.
        only: The name of a single trial, such as ``kills/17``.
        keep: A new folder to work in, where what did not survive is left; None: a temporary one.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        root = Path(keep or name).resolve()
        stage = Stage(root / "stage")
        for kind, count in counts.items():
            indices = range(count)
            if only is not None:
                if only.split("/")[0] != kind:
                    continue
                indices = [int(only.split("/")[1])]
            results += try_some(kind, stage, indices, root / kind, seed, jobs, bool(keep))
    return results


def try_some(
    name: str, stage: Stage, indices: Sequence[int], root: Path, seed: int, jobs: int, keep: bool
) -> list[Result]:
    """All trials of a kind."""
    began = time.monotonic()
    made = KINDS[name][0](stage)
    if (plan := getattr(made, "plan", None)) is not None:  # no trials by chance, but a list
        indices = [i for i in indices if i < len(plan)]

    def one(index: int) -> Result:
        folder = root / str(index)
        folder.mkdir(parents=True)
        try:
            result = Result(f"{name}/{index}", made.trial(Draws(seed, name, index), folder), None)
        except Lost as lost:
            result = Result(f"{name}/{index}", "", str(lost))
        except Exception as error:  # of this script: what it cannot check has not survived
            result = Result(f"{name}/{index}", "", f"cannot be checked: {error!r}")
        if result.lost:
            print(f"lost {result.name}: {result.lost}", file=sys.stderr, flush=True)
        if not (result.lost and keep):
            shutil.rmtree(folder, ignore_errors=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(one, indices))
    lost = [result for result in results if result.lost]
    seconds = time.monotonic() - began
    survived = len(results) - len(lost)
    print(f"{name:<8} {len(results):5} tried {survived:5} survived {seconds:6.0f} s")
    if name in ("kills", "races", "disk"):
        words = Counter(re.match(r"\w+", one.done).group() for one in results if one.done)
        print("         " + ", ".join(f"{key} {count}" for key, count in words.most_common()))
    sys.stdout.flush()
    return results


def main() -> int:
    """Parse, torture, print the failures; 1 where there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, (made, count) in KINDS.items():
        first = made.__doc__.splitlines()[0]
        parser.add_argument(f"--{kind}", type=int, help=f"{first} ({count})")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time")
    parser.add_argument("--only", help="one trial, such as kills/17")
    parser.add_argument("--keep", help="a new folder to work in, which keeps what was lost")
    given = parser.parse_args()
    said = {kind: getattr(given, kind) for kind in KINDS if getattr(given, kind) is not None}
    counts = said or {kind: count for kind, (_, count) in KINDS.items()}
    results = torture(counts, given.seed, given.jobs, given.only, given.keep)
    lost = [result for result in results if result.lost]
    for result in lost:
        repeat = f"python scripts/torture.py --seed {given.seed} --only {result.name}"
        print(f"{result.lost}\n    repeat: {repeat}")
    print(f"{len(results)} tried, {len(lost)} lost")
    return bool(lost)


if __name__ == "__main__":
    # A process that was killed gives back no lock of its progress bars, which Python then says.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    sys.path.insert(0, str(HERE))
    import torture as itself  # processes find their body by this name, not by __main__

    sys.exit(itself.main())
