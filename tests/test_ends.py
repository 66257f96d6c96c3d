"""How a command ends: what it printed, what stopped it, and what its exit code says."""

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import psutil
import pytest
from command import HERE, TINY, armodels, done, process, start

from armodels import cli, limits
from armodels.run import RunDirectory
from armodels.training.processes import LostProcess, together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds one finished run called ``run``."""
    folder = tmp_path_factory.mktemp("ends")
    done(folder, "train", *TINY, "trainer.max_steps=1", "out=run")
    return folder


# What cannot be printed


def printed(folder: Path, args: list[str], device: str, **env: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output goes to a device."""
    if device == "closed":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(device, os.O_WRONLY)
    result = subprocess.run(
        [sys.executable, "-m", "armodels", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", **env},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    os.close(write)
    return result.returncode, result.stderr


COMMANDS = {
    "usage": ["--help"],
    "version": ["--version"],
    "list": ["list"],
    "config": ["train", "--cfg", "job"],
}
FULL = "armodels: error: not everything could be printed: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_pipe_is_silent_and_a_full_device_is_said(name, unbuffered, tmp_path):
    env = {"PYTHONUNBUFFERED": unbuffered}
    assert printed(tmp_path, COMMANDS[name], "closed", **env) == (141, "")
    code, told = printed(tmp_path, COMMANDS[name], "/dev/full", **env)
    assert code == 1
    assert told == FULL or (told.startswith("armodels: error: ") and "No space left" in told)
    assert told.count("\n") == 1


def test_a_terminal_without_plus_minus_gets_the_table(folder):
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "armodels", "compare", "run"]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"+-" in result.stdout
    assert result.stdout.isascii()


def test_a_directory_that_is_gone_is_said(tmp_path):
    (tmp_path / "gone").mkdir()
    # By the program itself: python -c searches the directory, where Python 3.13.0 itself fails.
    script = f"cd gone; rmdir ../gone; {Path(sys.executable).with_name('armodels')} list"
    result = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = "armodels: error: the shell's directory is gone; change to one that exists\n"
    assert (result.returncode, result.stderr) == (1, told)


# Signals

ENDS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    "verb", ["eval", "sample", "complete", "score", "query", "features", "compare"]
)
def test_a_signal_ends_a_verb_with_a_word_and_the_way_to_go_on(verb, name, folder, monkeypatch):
    task = importlib.import_module(f"armodels.tasks.{cli.VERBS[verb].module}")

    def main(config):
        os.kill(os.getpid(), signal.Signals[name])
        raise AssertionError("the signal came to nothing")

    monkeypatch.setattr(task, "main", main)
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, ENDS)}
    result = armodels(folder, verb, "run", "out=my file")
    assert result.code == ENDS[name]
    assert result.err == (
        f"armodels: {verb} was stopped by {name}; no file is left half-written; run it again: "
        f"armodels {verb} run out='my file'\n"
    )
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_is_ignored_stays_so(folder, monkeypatch):
    """As under nohup."""
    task = importlib.import_module("armodels.tasks.list")
    monkeypatch.setattr(task, "main", lambda config: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert armodels(folder, "list").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_system_without_hangups(tmp_path):
    """Such as Windows, which has no fcntl either."""
    program = (
        "import signal, sys\ndel signal.SIGHUP\nsys.modules['fcntl'] = None\n"
        "import armodels.cli as cli\nsys.argv = ['armodels', 'list', 'group=head']\ncli.main()\n"
    )
    result = process(tmp_path, launcher=("-c", program))
    assert result.code == 0, result.err
    assert "bernoulli" in result.out


# TensorBoard


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_tensorboard_ends_with_all_that_it_started(name, folder):
    with start(folder, "tensorboard", "run", "port=0") as child:
        told = child.stdout.readline()
        url = re.search(r"http://\S+", told).group()
        with urllib.request.urlopen(url, timeout=60) as page:
            assert page.status == 200
        others = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.Signals[name])
        _, err = child.communicate(timeout=60)
        assert child.returncode == ENDS[name]
    assert f"armodels: tensorboard was stopped by {name}" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not alive


def test_a_port_in_use_is_refused_before_anything_starts(folder):
    with contextlib.closing(socket.create_server(("localhost", 0))) as taken:
        port = taken.getsockname()[1]
        told = armodels(folder, "tensorboard", "run", f"port={port}").error
    assert told.startswith(
        f"port {port} cannot be opened, perhaps because another TensorBoard has"
    )
    assert told.endswith(f"choose another, such as port={port + 1}")


# Sweeps


def test_a_sweep_ends_with_a_table(tmp_path):
    result = armodels(
        tmp_path, "train", "-m", *TINY, "trainer.max_steps=1", "seed=1,2", "out=my sweep"
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    for number, line in enumerate(lines[:2]):
        told = rf"job {number}  seed={number + 1}: valid [\d.]+, test [\d.]+ nats, \d+ s"
        assert re.fullmatch(told, line)
    assert lines[2] == ""
    assert lines[3].startswith("data")
    assert "1,2" in result.out
    assert lines[-1].startswith("Next: armodels tensorboard logdir=")
    assert len(lines) <= 9
    logs = list((tmp_path / "my sweep").rglob("train.log"))
    assert len(logs) == 2
    assert all("Next:" in log.read_text() for log in logs)
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_lists_what_failed(tmp_path):
    result = armodels(
        tmp_path, "train", "-m", *TINY, "trainer.max_steps=1", "head=auto,gaussian_mixture"
    )
    assert result.code == 1
    first, second, *_ = result.out.splitlines()
    assert first.startswith("job 0  head=auto: valid ")
    assert second.startswith("job 1  head=gaussian_mixture: failed: head gaussian_mixture needs")
    assert "failed: head" in result.out.partition("\n\n")[2]
    assert "armodels: error: head gaussian_mixture needs" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("out", ["a,b", "2024_11_26,1e5"])
def test_a_sweep_over_out_uses_it(out, tmp_path):
    done(tmp_path, "train", "-m", *TINY, "trainer.max_steps=1", f"out={out}")
    for name in out.split(","):
        (status,) = (tmp_path / name).rglob("status.json")
        assert RunDirectory(status.parent).read_status()["status"] == "done"


@pytest.mark.slow
def test_runs_are_resumed_by_a_sweep(folder, tmp_path):
    for name in ("a", "1"):
        done(tmp_path, "train", *TINY, "trainer.max_steps=1", f"out={name}")
    told = done(tmp_path, "train", "-m", "resume=a,1", "trainer.max_steps=2")
    assert told.startswith("job 0  resume=a: valid ")
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["multirun.yaml"]
    for name in ("a", "1"):
        assert RunDirectory(tmp_path / name).read_metrics()["steps"] == 2


@pytest.mark.parametrize("hidden", [KeyboardInterrupt(), limits.OutOfTime()])
def test_a_request_to_stop_is_not_hidden_by_what_it_broke(hidden):
    def broken():
        try:
            raise hidden
        finally:
            {}["what a library was about to restore"]

    with pytest.raises(type(hidden)), limits.unhidden():
        broken()
    with pytest.raises(KeyError), limits.unhidden():
        {}["no request"]
    try:
        raise hidden
    except type(hidden):  # whoever goes on after a request meets another error
        with pytest.raises(KeyError), limits.unhidden():
            {}["no request within the block"]


def test_a_signal_within_a_destructor_is_not_lost():
    """Python swallows what is raised there: it comes again, also to a thread that waits."""

    class Late:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            sum(range(1000))

    def waiting():
        late = Late()
        del late
        threading.Event().wait(60)

    began = time.monotonic()
    with pytest.raises(limits.Stopped) as stop, limits.raising():
        waiting()
    assert stop.value.number == signal.SIGTERM
    assert time.monotonic() - began < 30, "it came when the wait was over"


def test_a_signal_that_announces_what_is_being_told_changes_nothing():
    """torchrun's SIGTERM comes before or after a process has noticed that another one is gone."""
    pair = types.SimpleNamespace(world_size=2, global_rank=0)
    with limits.raising():
        with pytest.raises(LostProcess), together(pair):
            raise RuntimeError("gloo: connection closed by peer")
        broken = []
        try:
            signal.raise_signal(signal.SIGTERM)
        except limits.Stopped as stop:  # which would end pytest
            broken.append(stop)
        assert not broken
        with pytest.raises(limits.Stopped):
            signal.raise_signal(signal.SIGINT)
    with limits.raising(), pytest.raises(limits.Stopped):
        signal.raise_signal(signal.SIGTERM)
