"""Jobs of a sweep beside each other: joblib, submitit, Ray; what of a machine each has."""

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from command import PRELOAD, TINY, armodels, done, process, start

from armodels import launchers, machine
from armodels.checkpoints import load_checkpoint
from armodels.run import RunDirectory

ARGS = ("train", "-m", *TINY, "data.dynamic=true", "trainer.max_steps=60", "out=sweep",
        "trainer.checkpoint_every=5", "trainer.log_every=10")  # fmt: skip
LONG = ("trainer.max_steps=1500", "trainer.max_epochs=null", "trainer.eval_every=null")
HERE = ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2")


def runs(folder: Path) -> dict[str, Path]:
    """Run directories by the seed that was typed for them."""
    found = {}
    for file in sorted(folder.rglob("config.yaml")):
        overrides = RunDirectory(file.parent).read_config()["overrides"]
        (seed,) = [item for item in overrides if item.startswith("seed=")]
        assert seed not in found, "two runs of one job"
        found[seed] = file.parent
    return found


def wait_for(what, seconds: float = 120.0):
    """The first answer that is one."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return answer


def assert_same(one: Path, two: Path) -> None:
    """The runs have the same weights, bit for bit, and the same numbers."""
    weights = [load_checkpoint(run / "checkpoints/last.pt")["model"] for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        assert torch.equal(values, weights[1][name]), name
    metrics = [RunDirectory(run).read_metrics() for run in (one, two)]
    assert metrics[0]["test"] == metrics[1]["test"]


# One device each


def hold(folder: Path, seconds: float, log: Path) -> None:
    """Hold a device of four, and note which and for how long."""
    tempfile.tempdir = str(folder)
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,GPU-3/a"
    machine.take_device()
    began, device = time.monotonic(), os.environ["CUDA_VISIBLE_DEVICES"]
    log.with_suffix(".part").write_text(json.dumps([device, began]))
    log.with_suffix(".part").rename(log)
    time.sleep(seconds)
    log.write_text(json.dumps([device, began, time.monotonic()]))


def holder(folder: Path, name: str, seconds: float = 60.0) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=hold, args=(folder, seconds, folder / f"{name}.log"))
    child.start()
    return child


def device(folder: Path, name: str) -> str:
    """The device that a holder has taken."""
    log = folder / f"{name}.log"
    wait_for(log.is_file)
    return json.loads(log.read_text())[0]


@pytest.mark.slow
def test_eight_jobs_over_four_devices_never_overlap(tmp_path):
    waiting, alive = [str(k) for k in range(8)], []
    while waiting or alive:
        alive = [child for child in alive if child.is_alive()]
        while waiting and len(alive) < 4:
            alive.append(holder(tmp_path, waiting.pop(), 0.3))
        time.sleep(0.01)
    held: dict[str, list] = {}
    for log in tmp_path.glob("*.log"):
        name, *times = json.loads(log.read_text())
        held.setdefault(name, []).append(times)
    assert held.keys() == {"0", "1", "2", "GPU-3/a"}
    for times in held.values():
        times.sort()
        assert all(a[1] < b[0] for a, b in zip(times, times[1:], strict=False))
    assert sum(map(len, held.values())) == 8


def test_more_jobs_than_devices_share_them_evenly(tmp_path):
    children = [holder(tmp_path, str(k)) for k in range(6)]
    taken = [device(tmp_path, str(k)) for k in range(6)]
    assert sorted(taken.count(one) for one in {*taken}) == [1, 1, 2, 2]
    # The device of a job that is killed is free, and the next one takes what fewest hold.
    alone = next(k for k in range(6) if taken.count(taken[k]) == 1)
    children[alone].kill()
    children[alone].join()
    children.append(holder(tmp_path, "next"))
    assert device(tmp_path, "next") == taken[alone]
    for child in children:
        child.kill()


def test_a_job_without_a_choice_sees_what_it_saw(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "_held", None)
    for listed in ("", "-1", "3"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        machine.take_device()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == listed
        monkeypatch.setattr(machine, "_held", None)
    if not torch.cuda.is_available():
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        machine.take_device()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    # A place that cannot be written deals nothing out, and ends no training.
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    machine.take_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_training_on_the_cpu_takes_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "_held", None)
    args = ("train", *TINY, "trainer.max_steps=1")
    visible = {"CUDA_VISIBLE_DEVICES": "0,1"}
    done(tmp_path, *args, "out=cpu", **visible)
    assert machine._held is None
    if torch.cuda.is_available():
        return
    done(tmp_path, *args, "out=auto", "trainer.accelerator=auto", **visible)
    metrics = RunDirectory(tmp_path / "auto").read_metrics()
    assert metrics["environment"]["visible_devices"] == "0"
    machine._held.release()


def devices_of(folder: Path) -> dict[int, set[str]]:
    """By process, the devices that it had for its jobs."""
    seen: dict[int, set[str]] = {}
    for run in runs(folder).values():
        environment = RunDirectory(run).read_metrics()["environment"]
        pid = RunDirectory(run).read_status()["pid"]
        seen.setdefault(pid, set()).add(environment["visible_devices"])
    return seen


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="names devices that are none")
def test_each_job_of_joblib_has_a_device_of_its_own(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    told = process(
        tmp_path, *ARGS, "seed=range(8)", "trainer.accelerator=auto", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=4", CUDA_VISIBLE_DEVICES="0,1,2,3", TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert told.code == 0, told.err
    seen = devices_of(tmp_path / "sweep")
    assert all(len(devices) == 1 for devices in seen.values())
    taken = [device for devices in seen.values() for device in devices]
    assert len({*taken}) == len(taken), seen
    assert {*taken} <= {"0", "1", "2", "3"}


# A job that is started again


@pytest.mark.slow
def test_a_job_that_comes_back_goes_on_in_its_own_run(tmp_path):
    args = (*ARGS, "seed=1", "hydra.sweep.subdir=mine")
    whole = done(tmp_path, *args, "out=whole")
    first = armodels(tmp_path, *args, ARMODELS_COMES_BACK="1", TINY_SIGNAL="SIGTERM 2")
    assert first.code == 143
    step = load_checkpoint(tmp_path / "sweep/mine/checkpoints/last.pt")["step"]
    assert 0 < step < 60
    told = done(tmp_path, *args, ARMODELS_COMES_BACK="1")
    assert told.startswith("job 0  seed=1: resumed: valid") or "job 0: resumed: valid" in told
    assert re.findall("valid .* nats", told)[0] == re.findall("valid .* nats", whole)[0]
    assert_same(tmp_path / "whole/mine", tmp_path / "sweep/mine")
    # One that is done, whose process could not say so, is not trained again.
    before = (tmp_path / "sweep/mine/train.log").read_bytes()
    again = done(tmp_path, *args, ARMODELS_COMES_BACK="1")
    assert re.findall("valid .* nats", again) == re.findall("valid .* nats", told)
    assert (tmp_path / "sweep/mine/train.log").read_bytes() == before
    # One whose process failed in the middle of it is trained from its start.
    RunDirectory(tmp_path / "sweep/mine").write_status("failed", "no luck")
    done(tmp_path, *args, ARMODELS_COMES_BACK="1")
    assert_same(tmp_path / "whole/mine", tmp_path / "sweep/mine")
    # A sweep that goes on finds its own run, and leaves it where it is.
    (tmp_path / "sweep/mine/metrics.json").unlink()
    RunDirectory(tmp_path / "sweep/mine").write_status("interrupted")
    told = done(tmp_path, *args, "skip_done=true", ARMODELS_COMES_BACK="1")
    assert "jobs: 1 resumed" in told
    assert_same(tmp_path / "whole/mine", tmp_path / "sweep/mine")


@pytest.mark.parametrize(
    ("said", "preempted"), [("RUNNING", True), ("COMPLETING", False), ("", False)]
)
def test_a_job_that_was_cancelled_is_not_queued_again(said, preempted, tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "-h -o %T -j 7" ] && echo {said}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launchers._preempted() is preempted
    squeue.unlink()
    assert not launchers._preempted()


def test_a_job_of_slurm_has_the_threads_of_its_cores(monkeypatch):
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    launchers._share(False, None)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    launchers._share(False, None)
    assert os.environ["OMP_NUM_THREADS"] == "3"  # what is said holds


# submitit on this machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three seeds that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done(folder, *ARGS, "seed=1,2,3")
    return runs(folder)


@pytest.mark.slow
def test_a_sweep_by_submitit(whole, tmp_path):
    all_threads = (
        "import os; del os.environ['OMP_NUM_THREADS']; from armodels import cli; cli.main()"
    )
    visible = {"CUDA_VISIBLE_DEVICES": "4,5", "TMPDIR": str(tmp_path)}
    args = (*ARGS, "seed=1,2,3", *HERE)
    result = process(tmp_path, *args, launcher=("-c", all_threads), **visible)
    assert result.code == 0, result.err
    assert result.err == ""
    assert len(re.findall(r"^job \d  seed=\d: valid .* nats", result.out, re.MULTILINE)) == 3
    assert "jobs: 3 done" in result.out
    found = runs(tmp_path)
    threads = max(launchers._cores() // 2, 1)
    for seed, run in whole.items():
        assert_same(run, found[seed])
        environment = RunDirectory(found[seed]).read_metrics()["environment"]
        assert environment["threads"] == threads
        assert environment["visible_devices"] == "4,5"  # submitit's own hides all
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        "tiny", ".submitit", "multirun.yaml",
    }  # fmt: skip


@pytest.mark.slow
def test_a_job_that_is_preempted_twice_goes_on_in_its_run(whole, tmp_path):
    result = process(tmp_path, *ARGS, "seed=1", *HERE, TINY_SIGNAL="SIGUSR1 4")
    assert result.code == 0, result.err
    assert "jobs: 1 resumed" in result.out
    (run,) = runs(tmp_path).values()
    assert (run / "train.log").read_text().count("going on from step") >= 2
    assert_same(whole["seed=1"], run)


def pid_of(folder: Path, seed: str) -> int | None:
    """The process that trains the run of a seed and has saved it."""
    run = runs(folder).get(seed)
    if run is None or not (run / "checkpoints/last.pt").is_file():
        return None
    status = RunDirectory(run).read_status()
    return status["pid"] if status["status"] == "running" else None


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_and_the_others_finish(tmp_path):
    args = (*ARGS, *LONG, "trainer.checkpoint_every=0.3", "seed=1,2,3", *HERE)
    with start(tmp_path, *args) as child:
        os.kill(wait_for(lambda: pid_of(tmp_path, "seed=2")), signal.SIGKILL)
        out, err = child.communicate(timeout=300)
    assert child.returncode == 1
    assert "jobs: 2 done, 1 failed" in out
    assert re.search(r"^job 1  seed=2: failed: its process was killed", out, re.MULTILINE)
    assert "Traceback" not in err
    (reason,) = re.findall("^armodels: error: (.*)$", err, re.MULTILINE)
    log = re.search(r"its words are in (\S+);", reason).group(1)
    assert (tmp_path / log).is_file()
    assert reason.endswith("the same command with skip_done=true goes on")
    result = process(tmp_path, *args, "skip_done=true")
    assert result.code == 0, result.err
    assert "jobs: 2 skipped, 1 resumed" in result.out
    alone = [word for word in args if not word.startswith(("seed=", "hydra", "out="))]
    done(tmp_path, *alone, "seed=2", "out=alone")
    assert_same(runs(tmp_path / "alone")["seed=2"], runs(tmp_path / "sweep")["seed=2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_sweep_that_is_stopped_has_its_jobs_save(name, tmp_path):
    args = (*ARGS, *LONG, "trainer.max_steps=100000", "seed=1,2,3", *HERE)
    program = "import os, sys; os.setsid(); from armodels import cli; cli.main()"
    with start(tmp_path, *args, launcher=("-c", program)) as child:
        first, second = (wait_for(lambda s=s: pid_of(tmp_path, s)) for s in ("seed=1", "seed=2"))
        number = signal.Signals[name]
        if name == "SIGINT":  # a terminal sends it to all
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        out, err = child.communicate(timeout=300)
    assert child.returncode == 128 + number
    assert out.count("stopped by SIGTERM") == 2
    assert err.rstrip().endswith("skip_done=true")
    found = runs(tmp_path)
    assert found.keys() == {"seed=1", "seed=2"}
    for run in found.values():
        status = RunDirectory(run).read_status()
        assert status["status"] == "interrupted"
        step = load_checkpoint(run / "checkpoints/last.pt")["step"]
        assert f"stopped at step {step};" in status["reason"]
    for pid in (first, second):
        assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves(tmp_path):
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30")
    args = (*ARGS, *LONG, "trainer.max_steps=1000000", "seed=1", *HERE, *limit)
    result = process(tmp_path, *args, "hydra.launcher.max_num_timeout=0")
    assert result.code == 1
    (reason,) = re.findall("^armodels: error: (.*)$", result.err, re.MULTILINE)
    assert reason.startswith("its time was over more often than hydra.launcher.max_num_timeout")
    (run,) = runs(tmp_path).values()
    assert RunDirectory(run).read_status()["status"] == "interrupted"
    assert load_checkpoint(run / "checkpoints/last.pt")["step"] > 0


# Ray


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'"
)
def test_a_sweep_by_ray(whole, tmp_path):
    result = process(tmp_path, *ARGS, "seed=1,2,3", "hydra/launcher=ray")
    assert result.code == 0, result.err
    assert "jobs: 3 done" in result.out
    found = runs(tmp_path)
    for seed, run in whole.items():
        assert_same(run, found[seed])


# Bad input

SWEEP = ("train", "-m", *TINY, "seed=1,2")
BAD = {
    "no such launcher": (
        (*SWEEP, "hydra/launcher=slurm"),
        "hydra/launcher=slurm is unknown; choose from "
        "basic, joblib, ray, submitit_local, submitit_slurm",
    ),
    "Slurm where there is none": (
        (*SWEEP, "hydra/launcher=submitit_slurm"),
        "hydra/launcher=submitit_slurm finds no sbatch here: type the command on a machine that "
        "hands jobs to Slurm, or take hydra/launcher=submitit_local",
    ),
    "no jobs at a time": (
        (*SWEEP, "hydra/launcher=submitit_local", "hydra.launcher.n_jobs=0"),
        "hydra.launcher.n_jobs is 0; it must be -1, or 1 or more",
    ),
    "a launcher without a sweep": (
        ("train", *TINY, "hydra/launcher=submitit_local"),
        "hydra/launcher=submitit_local is about the jobs of a sweep, which needs -m",
    ),
    "its key without a sweep": (
        ("train", *TINY, "hydra.launcher.n_jobs=2"),
        "hydra.launcher.n_jobs=2 is about the jobs of a sweep, which needs -m",
    ),
    "a launcher of a search": (
        ("tune", *TINY, "hydra/launcher=joblib", "seed=1,2"),
        "hydra/launcher=joblib is about the jobs of a sweep, which needs -m; several workers of a "
        "search are the same command in several shells",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, monkeypatch):
    args, told = BAD[name]
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    assert armodels(tmp_path, *args).error == told
    assert os.listdir(tmp_path) in ([], ["outputs"])


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [
        ("submitit_local", "slurm"),
        ("submitit_slurm", "slurm"),
        ("joblib", "sweep"),
        ("ray", "ray"),
    ],
)
def test_a_package_that_is_missing_is_named(launcher, extra, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "submitit" else found(name)
    )
    if launcher in ("joblib", "ray"):  # of plugins that Hydra has not found
        from hydra.core.config_store import ConfigStore

        known = ConfigStore.instance().repo["hydra"]["launcher"]
        monkeypatch.delitem(known, f"{launcher}.yaml", raising=False)
    told = armodels(tmp_path, *SWEEP, f"hydra/launcher={launcher}").error
    assert told.startswith(f"hydra/launcher={launcher} ")
    assert told.endswith(f"not installed: pip install 'armodels[{extra}]'")


def test_the_keys_of_a_launcher_are_shown(tmp_path):
    show = ("--cfg", "hydra", "-p", "hydra.launcher")
    told = done(tmp_path, "train", "hydra/launcher=submitit_slurm", *show)
    assert "max_num_timeout: 20" in told


def test_a_key_that_a_launcher_lacks_is_refused(tmp_path):
    told = armodels(tmp_path, *SWEEP, "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2")
    assert told.error == (
        "hydra.launcher.nodes is no key of hydra/launcher=submitit_slurm; see armodels train "
        "hydra/launcher=submitit_slurm --cfg hydra -p hydra.launcher"
    )
