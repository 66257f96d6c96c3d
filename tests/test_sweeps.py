"""Sweeps that go on: skip what is done, resume what was stopped, train anew what failed."""

import json
import math
import os
import re
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from command import TINY, armodels, done, process, start
from filelock import FileLock

from armodels import cli, errors, names, sweeps
from armodels.run import RunDirectory

ARGS = ("train", "-m", *TINY, "trainer.max_steps=2", "out=sweep")
GOES_ON = (*ARGS, "skip_done=true")


def runs(folder: Path) -> dict[str, Path]:
    """Run directories by what was typed for them, ``seed=1`` of it."""
    found = {}
    for file in sorted((folder / "sweep").rglob("config.yaml")):
        overrides = RunDirectory(file.parent).read_config()["overrides"]
        (seed,) = [item for item in overrides if item.startswith("seed=")]
        assert seed not in found, "two runs of one job"
        found[seed] = file.parent
    return found


def jobs(told: str) -> str:
    """How many jobs ended how."""
    (line,) = re.findall("^jobs: (.*)$", told, re.MULTILINE)
    return line


def job(*overrides: str, swept: tuple[str, ...] = ()) -> tuple:
    return sweeps.job_of(overrides, swept)


def test_a_job_is_known_by_what_was_typed_for_it():
    one = job("data=tiny", "seed=1", "optimizer.lr=0.001", "data.path='a b'")
    same = job("optimizer.lr=1e-3", "seed=1", 'data.path="a b"', "data=digits", "data=tiny")
    assert one == same
    # What changes nothing of what is trained counts only where the sweep varies it.
    shown = ("samples.num=3", "trainer.threads=2", "out=x", "name=n", "tags=[a]", "skip_done=true")
    assert job("seed=1", *shown) == job("seed=1")
    assert job("seed=1", *shown, swept=("samples.num",)) != job("seed=1")
    different = [
        "seed=2",
        "seed=10",
        "~schedule",
        "schedule=null",
        "+schedule.final=0",
        "optimizer.lr=null",
    ]
    assert len({job(item) for item in different} | {job()}) == len(different) + 1
    assert names.run_name(["skip_done=true"], 0).startswith("seed0-")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep over seeds: 1 is done, 2 was stopped, 3 failed, and 4 is new."""
    folder = tmp_path_factory.mktemp("sweeps")
    done(folder, *ARGS, "seed=1,2,3")
    found = runs(folder)
    before = {seed: (run / "metrics.json").read_bytes() for seed, run in found.items()}
    (found["seed=2"] / "metrics.json").unlink()
    RunDirectory(found["seed=2"]).write_status("interrupted")
    RunDirectory(found["seed=3"]).write_status("failed", "no luck")
    (found["seed=3"] / "samples/old.png").touch()
    told = done(folder, *GOES_ON, "seed=4,3,2,1", "trainer.threads=1")
    return folder, found, before, told


def test_a_sweep_goes_on(swept):
    folder, old, before, told = swept
    lines = told.splitlines()
    assert lines[0].startswith("job 0  seed=4: valid ")
    assert lines[1].startswith("job 1  seed=3: valid ")
    assert lines[2].startswith("job 2  seed=2: resumed: valid ")
    assert lines[3].startswith("job 3  seed=1: skipped: valid ")
    assert jobs(told) == "2 done, 1 skipped, 1 resumed"
    found = runs(folder)
    assert sorted(found) == [f"seed={k}" for k in (1, 2, 3, 4)]
    assert found["seed=1"] == old["seed=1"]
    assert found["seed=2"] == old["seed=2"]
    assert found["seed=3"] != old["seed=3"]
    assert not old["seed=3"].exists()
    assert (found["seed=1"] / "metrics.json").read_bytes() == before["seed=1"]
    for seed in ("seed=2", "seed=3"):
        metrics = json.loads((found[seed] / "metrics.json").read_text())
        assert metrics["test"] == json.loads(before[seed])["test"]
    # Nothing but the runs is left, and each is one as any other.
    folders = {path for path in (folder / "sweep/tiny/made").iterdir()}
    assert folders == set(found.values())
    config = RunDirectory(found["seed=4"]).read_config()
    assert "skip_done" not in str(config)
    assert config["overrides"][-1] == "trainer.threads=1"
    assert json.loads((found["seed=1"] / "status.json").read_text())["status"] == "done"


def test_nothing_is_left_to_do(swept):
    folder, *_ = swept
    found = runs(folder)
    assert jobs(done(folder, *GOES_ON, "seed=range(1,5)")) == "4 skipped"
    assert runs(folder) == found


@pytest.mark.slow
def test_what_another_process_trains_is_left_to_it(tmp_path):
    done(tmp_path, *ARGS, "seed=1")
    run = runs(tmp_path)["seed=1"]
    RunDirectory(run).write_status("running")
    with FileLock(run / ".lock"):
        told = done(tmp_path, *GOES_ON, "seed=1")
    assert told.startswith("job 0: left to another process")
    assert jobs(told) == "1 elsewhere"
    assert os.listdir(run.parent) == [run.name]


def test_a_job_that_another_sweep_begins_is_left_to_it(tmp_path, monkeypatch):
    """A second sweep comes to the job in the moment when the first has looked for its run."""
    (tmp_path / "sweep").mkdir()
    second = tmp_path / "second"
    ended = []

    def take(config, found):
        if not ended:
            ended.append("began")
            second.mkdir()
            other = {**config, "directory": str(second)}
            ended[0] = sweeps.go_on(lambda config: 0.0, other, "sweep", ["seed"])[1]
        return "done"

    monkeypatch.setattr(sweeps, "_take", take)
    assert jobs(done(tmp_path, *GOES_ON, "seed=1")) == "1 done"
    assert ended == ["elsewhere"]
    assert not second.exists()
    assert len(runs(tmp_path)) == 1


@pytest.mark.slow
def test_a_damaged_run_is_told(tmp_path):
    done(tmp_path, *ARGS, "seed=1,2")
    (runs(tmp_path)["seed=1"] / "metrics.json").write_text("[")
    (runs(tmp_path)["seed=2"] / "config.yaml").write_text("a: [")
    for name, overrides in {"a": "['((']", "b": "[1]", "c": "3"}.items():  # nobody's jobs
        (tmp_path / "sweep" / name).mkdir()
        (tmp_path / "sweep" / name / "config.yaml").write_text(f"overrides: {overrides}")
    result = armodels(tmp_path, *GOES_ON, "seed=1,2")
    assert result.code == 1
    assert jobs(result.out) == "1 done, 1 failed"  # one has no config that says whose run it is
    assert re.search(r"seed=1: failed: .*metrics.json is damaged", result.out)


def test_a_failed_run_goes_but_for_what_is_not_its_own(tmp_path):
    done(tmp_path, *ARGS, "seed=1")
    run = runs(tmp_path)["seed=1"]
    (run / "notes.txt").write_text("mine")
    RunDirectory(run).clear()
    assert os.listdir(run) == ["notes.txt"]


def test_a_sweep_that_was_stopped_says_how_it_goes_on(tmp_path):
    result = armodels(tmp_path, *ARGS, "data.dynamic=true", "seed=1,2", TINY_SIGNAL="SIGTERM 1")
    assert result.code == 143
    again = "the sweep goes on by armodels train -m data=tiny"
    assert again in result.err
    assert result.err.rstrip().endswith("seed=1,2 skip_done=true")
    told = done(tmp_path, *GOES_ON, "data.dynamic=true", "seed=1,2")
    assert jobs(told) == "1 done, 1 resumed"


@pytest.mark.slow
def test_a_sweep_stops_at_its_first_failure_where_that_is_asked_for(tmp_path):
    four = (*ARGS, "seed=1,2", "optimizer.lr=0.01,1e30", "trainer.log_every=1")
    assert jobs(armodels(tmp_path, *four, "out=all").out) == "2 done, 2 failed"
    result = armodels(tmp_path, *four, "on_error=stop")
    assert result.code == 1
    assert jobs(result.out) == "1 done, 2 not begun, 1 failed"
    told = "job 2  seed=2 optimizer.lr=0.01: not begun, since a job has failed (on_error=stop)"
    assert told in result.out
    folders = list((tmp_path / "sweep/tiny/made").iterdir())
    assert sorted(RunDirectory(run).read_status()["status"] for run in folders) == [
        "done", "failed"
    ]  # fmt: skip
    # The sweep goes on with what was not begun; the choice is none of what a run is.
    (whole,) = [run for run in folders if RunDirectory(run).read_status()["status"] == "done"]
    (whole / "metrics.json").unlink()
    RunDirectory(whole).write_status("interrupted")
    again = armodels(tmp_path, *four, "skip_done=true", "on_error=continue")
    assert jobs(again.out) == "1 done, 1 resumed, 2 failed"
    assert "on_error=continue" not in RunDirectory(whole).read_config()["overrides"]
    assert len(list((tmp_path / "sweep/tiny/made").iterdir())) == 4


def test_a_job_returns_a_finite_float_or_nan_where_it_failed(tmp_path, monkeypatch):
    """What a sweeper of Hydra minimizes: nats of valid."""
    found, job_of_hydra = [], cli._job

    def watched(name, config):
        found.append(job_of_hydra(name, config))
        return found[-1]

    monkeypatch.setattr(cli, "_job", watched)
    armodels(tmp_path, *ARGS, "optimizer.lr=0.01,1e30", "trainer.log_every=1")
    (good, _), (bad, record) = found
    assert type(good) is type(bad) is float
    (metrics,) = (tmp_path / "sweep").rglob("metrics.json")
    assert good == json.loads(metrics.read_text())["valid"]["nats"]
    assert math.isnan(bad)
    assert "the loss became" in record["error"]


class WorkerCrashedError(Exception):
    """As Ray has it."""


@pytest.mark.parametrize("kind", [BrokenProcessPool, WorkerCrashedError])
def test_a_killed_worker_is_told_in_a_sentence(kind):
    told = errors.explain(kind("{SIGKILL(-9)}"), "train", [])
    assert told.startswith("a process of the sweep was killed")
    assert told.endswith("the same command with skip_done=true goes on")


BAD = {
    "unknown folder": (
        (*GOES_ON, "seed=1,2"),
        "there is no sweep to go on with: the folder sweep does not exist; begin one without "
        "skip_done=true",
    ),
    "no sweep": (
        ("train", *TINY, "skip_done=true"),
        "skip_done=true goes on with a sweep, which needs -m",
    ),
    "no choice": (
        (*ARGS, "on_error=halt", "seed=1"),
        "on_error is 'halt'; choose continue or stop",
    ),
    "no switch": (
        (*ARGS, "skip_done=maybe", "seed=1,2"),
        "skip_done is 'maybe'; it must be true or false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path):
    args, told = BAD[name]
    assert armodels(tmp_path, *args).error == told
    assert os.listdir(tmp_path) in ([], ["outputs"])


def test_what_cannot_go_on_together(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    (tmp_path / "outputs").mkdir()
    result = armodels(tmp_path, "train", "-m", "resume=run", "skip_done=true")
    assert "finds by itself what it resumes; leave resume=run away" in result.err
    torchrun = dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "0")
    torchrun |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for args in (("train", "-m", *TINY, "skip_done=true"), ("tune",), ("sample", "run")):
        assert "start it without torchrun" in armodels(tmp_path, *args, **torchrun).err


# Real processes

LONGER = ("train", "-m", *TINY, "data.dynamic=true", "trainer.max_steps=30", "out=sweep",
          "trainer.checkpoint_every=5", "trainer.log_every=10")  # fmt: skip


def statuses(folder: Path) -> Counter:
    found = (folder / "sweep").rglob("status.json")
    return Counter(RunDirectory(file.parent).read_status()["status"] for file in found)


@pytest.mark.slow
def test_a_sweep_of_fifty_with_ten_failures_and_two_kills(tmp_path):
    fifty = (*LONGER, "seed=range(10)", "optimizer.lr=0.01,0.02,0.03,0.04,1e30")
    killed = process(tmp_path, *fifty, TINY_SIGNAL="SIGKILL 60 all")
    assert killed.code == -9
    first = statuses(tmp_path)
    assert first["killed"] == 1
    assert first["done"] >= 8
    assert first["failed"] >= 2
    killed = process(tmp_path, *fifty, "skip_done=true", TINY_SIGNAL="SIGKILL 60 all")
    assert killed.code == -9
    assert "resumed: valid" in killed.out
    second = statuses(tmp_path)
    assert second["killed"] == 1
    assert second["done"] > first["done"]
    result = process(tmp_path, *fifty, "skip_done=true")
    assert result.code == 1
    assert statuses(tmp_path) == {"done": 40, "failed": 10}
    left = 40 - second["done"] - 1
    told = f"{left} done, {second['done']} skipped, 1 resumed, 10 failed"
    assert jobs(result.out) == told
    reasons = re.findall("^armodels: error: (.*)$", result.err, re.MULTILINE)
    assert len(reasons) == 10
    assert len(re.findall("^armodels: failed: .*lr=1e", result.err, re.MULTILINE)) == 10
    assert len([*(tmp_path / "sweep/tiny/made").iterdir()]) == 50
    # A run that was killed and resumed has the numbers of one that was not.
    resumed = re.search(r"seed=(\d) optimizer.lr=([\d.]+): resumed: (valid .* nats)", result.out)
    seed, lr, numbers = resumed.groups()
    alone = (*LONGER, f"seed={seed}", f"optimizer.lr={lr}", "out=alone")
    assert numbers in done(tmp_path, *[word for word in alone if word != "out=sweep"])


@pytest.mark.slow
def test_two_sweeps_at_once_train_each_job_once(tmp_path):
    (tmp_path / "sweep").mkdir()
    both = [start(tmp_path, *LONGER, "seed=range(12)", "skip_done=true") for _ in range(2)]
    told = [child.communicate(timeout=300) for child in both]
    assert [child.returncode for child in both] == [0, 0], told
    counts = [dict(item.split()[::-1] for item in jobs(out).split(", ")) for out, _ in told]
    assert sum(int(count.get("done", 0)) for count in counts) == 12
    assert all(sum(map(int, count.values())) == 12 for count in counts)
    assert len(runs(tmp_path)) == 12
    assert statuses(tmp_path) == {"done": 12}


WORKERS = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
ALL_THREADS = "import os; del os.environ['OMP_NUM_THREADS']; from armodels import cli; cli.main()"


@pytest.mark.slow
def test_a_killed_worker_leaves_the_others_results(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    six = (*LONGER, "seed=range(6)", *WORKERS)
    result = process(tmp_path, *six, TINY_SIGNAL="SIGKILL 7 all")
    assert result.code == 1
    assert "a process of the sweep was killed" in result.err
    assert "skip_done=true goes on" in result.err
    assert "Traceback" not in result.err
    before = {run: (run / "metrics.json").read_bytes() for run in runs(tmp_path).values()
              if RunDirectory(run).read_status()["status"] == "done"}  # fmt: skip
    assert before
    assert jobs(result.out) == f"{len(before)} done"
    result = process(tmp_path, *six, "skip_done=true", launcher=("-c", ALL_THREADS))
    assert result.code == 0, result.err
    assert f"{len(before)} skipped" in jobs(result.out)
    assert statuses(tmp_path) == {"done": 6}
    assert len(runs(tmp_path)) == 6
    for run, metrics in before.items():
        assert (run / "metrics.json").read_bytes() == metrics
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    for run in {*runs(tmp_path).values()} - before.keys():
        environment = json.loads((run / "metrics.json").read_text())["environment"]
        assert environment["threads"] == threads
