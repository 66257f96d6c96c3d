"""Every logger gets the same; one that breaks takes no training with it."""

import csv
import importlib.util
import json
import signal
import socket
import struct
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from command import QUICK, TINY, armodels, done, fork, process, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import armodels as package
from armodels import limits, tracking, typed
from armodels.loggers.base import Logger, read_names
from armodels.loggers.wandb import _records
from armodels.networks.nade import NADE
from armodels.run import RunDirectory
from armodels.tracking import Tracker

SHORT = (*TINY, "trainer.max_steps=9", "trainer.log_every=2")
WITH_PICTURES = (*[one for one in SHORT if one != "samples.num=0"], "samples.num=4")
OFFLINE = {"WANDB_MODE": "offline"}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
            "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "armodels")  # fmt: skip


# What is typed


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("none", ()),
        (None, ()),
        ([], ()),
        ("csv", ()),
        ("tensorboard", ("tensorboard",)),
        ("mlflow,csv, tensorboard", ("tensorboard", "mlflow")),
        (["wandb", "wandb"], ("wandb",)),
    ],
)
def test_names_are_read(value, names):
    assert read_names(value) == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tensorbord", "did you mean tensorboard"),
        ("none,csv", "none stands alone"),
        (3, "logger is 3"),
        ([3], "logger is"),
        ("", "choose from tensorboard, csv, wandb, mlflow, or none"),
    ],
)
def test_what_is_no_logger_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_names(value)


@pytest.mark.parametrize("more", [[], ["-m"]])
@pytest.mark.parametrize("value", ["tensorboard,csv", "[tensorboard,csv]", "[tensorboard, csv]"])
def test_a_comma_is_a_list_also_in_a_sweep(value, more):
    words = typed.translate([*more, f"logger={value}"], verb="train")
    assert words == [*more, "logger=[tensorboard,csv]"]


@pytest.mark.slow
def test_a_sweep_with_several_loggers_has_a_job_a_seed(tmp_path):
    args = (*TINY, "logger=tensorboard,csv", "seed=1,2", "trainer.max_steps=1")
    assert "jobs: 2 done" in done(tmp_path, "train", "-m", *args, "out=runs")
    assert len(list(tmp_path.glob("runs/**/events.*"))) == 2
    configs = [RunDirectory(p.parent).read_config() for p in tmp_path.glob("runs/**/config.yaml")]
    assert [one["logger"] for one in configs] == [["tensorboard", "csv"]] * 2


@pytest.mark.parametrize("missing", ["wandb", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_a_missing_package_is_said_before_any_work(missing, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    args = ("data=tiny", "data.damage=loud", *QUICK, f"logger=tensorboard,{missing}", "out=run")
    error = armodels(tmp_path, "train", *args).error
    assert error == (
        f"logger={missing} needs {missing}, not installed here: pip install 'armodels[{missing}]'"
    )
    assert not list(tmp_path.iterdir())


def test_a_store_of_files_is_refused_before_any_work(tmp_path):
    args = ("data=tiny", "data.damage=loud", *QUICK, "logger=mlflow", "out=run")
    error = armodels(tmp_path, "train", *args, MLFLOW_TRACKING_URI="mlruns").error
    assert "MLFLOW_TRACKING_URI is mlruns, a store of files" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_account_that_is_not_known_is_said_before_any_work(tmp_path, monkeypatch):
    """Without the package: its own answer is that of the slow tests."""

    def refuse():
        raise ValueError("logger=wandb knows no account here: run wandb login")

    monkeypatch.setattr(tracking, "require_account", refuse)
    args = ("data=tiny", "data.damage=loud", *QUICK, "logger=wandb", "out=run")
    assert "run wandb login" in armodels(tmp_path, "train", *args).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["none", pytest.param("csv", marks=pytest.mark.slow)])
def test_without_loggers_a_run_has_its_table(value, tmp_path):
    out = done(tmp_path, "train", *SHORT, f"logger={value}", "out=run")
    assert "armodels tensorboard" not in out
    assert not list(tmp_path.glob("run/events.*"))
    assert not (tmp_path / "run/loggers.json").exists()
    assert len(table(tmp_path / "run")) == 6
    out = done(tmp_path, "train", "resume=run", "trainer.max_steps=11", "logger=tensorboard")
    assert "resuming with a changed logger, trainer.max_steps" in out
    # It gets what was recorded before it was asked for.
    assert points_of_tensorboard(tmp_path / "run")["train/nats"].keys() == {2, 4, 6, 8, 10}
    assert RunDirectory(tmp_path / "run").read_config()["logger"] == ["tensorboard"]


def test_fit_takes_loggers(tmp_path):
    spec = package.DataSpec("own", "vector", (3,), 2, "probability")

    def model():
        return package.AutoregressiveModel.of(NADE, spec, hidden_size=2)

    splits = package.Splits(spec, *(torch.randint(2, (9, 3)).to(spec.dtype) for _ in range(3)))
    settings = package.Settings(max_steps=1, log_every=1, progress=False)
    options = {"settings": settings, "quiet": True}
    with pytest.raises(ValueError, match="logger='wandb' records the run of a directory"):
        package.fit(model(), splits, logger="wandb", **options)
    with pytest.raises(ValueError, match="choose from"):
        package.fit(model(), splits, logger="x", **options)
    package.fit(model(), splits, logger="none", directory=tmp_path / "none", **options)
    assert not list(tmp_path.glob("none/events.*"))
    assert RunDirectory(tmp_path / "none").read_config()["logger"] == []
    package.fit(model(), splits, logger=["tensorboard"], directory=tmp_path / "run", **options)
    assert len(list(tmp_path.glob("run/events.*"))) == 1


# What goes wrong


class Spy(Logger):
    """Keeps what it is called with; fails where it is told to."""

    name = "wandb"
    made: list["Spy"]
    fails: str
    error: BaseException

    def __init__(self, directory: Path, step: int):
        self.calls: list[tuple] = []
        type(self).made.append(self)
        self._note("open", step)

    def _note(self, what: str, *values: object) -> None:
        self.calls.append((what, *values))
        if what == self.fails:
            raise self.error

    def has(self, tag, step):
        return step == 4

    def start(self, settings, typed):
        self._note("start", settings, typed)

    def points(self, values, step):
        self._note("points", values, step)

    def picture(self, tag, picture, step):
        self._note("picture", tag, step)

    def text(self, tag, text, step):
        self._note("text", tag, step)

    def sound(self, tag, sound, step):
        self._note("sound", tag, step)

    def flush(self):
        self._note("flush")

    def close(self, status):
        self._note("close", status)


@pytest.fixture
def spy(monkeypatch):
    """The place of wandb is taken by a logger that fails nowhere, until told."""
    Spy.made, Spy.fails, Spy.error = [], "", ConnectionError("the network is gone")
    monkeypatch.setitem(tracking.OPENERS, "wandb", Spy)
    monkeypatch.setattr(tracking, "require_account", lambda: None)
    return Spy


WARNING = "warning: logger wandb records nothing more of this run (the network is gone)"


@pytest.mark.parametrize(
    "fails",
    ["points", *(pytest.param(one, marks=pytest.mark.slow)
                 for one in ("open", "start", "picture", "flush", "close"))],
)  # fmt: skip
def test_a_logger_that_fails_is_said_once_and_left_out(fails, spy, tmp_path):
    spy.fails = fails
    result = armodels(tmp_path, "train", *WITH_PICTURES, "logger=wandb,tensorboard", "out=run")
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert WARNING in result.err
    assert RunDirectory(tmp_path / "run").read_status()["status"] == "done"
    (one,) = spy.made
    assert [call[0] for call in one.calls].count(fails) == 1 + (fails == "close")
    # It may still hear how the run ended.
    assert [call for call in one.calls if call[0] == "close"][-1:] == [("close", "done")] * (
        fails != "open"
    )
    # The other one has all.
    assert points_of_tensorboard(tmp_path / "run")["train/nats"].keys() == {2, 4, 6, 8}
    assert len(table(tmp_path / "run")) == 6


@pytest.mark.parametrize(
    ("error", "kind"),
    [(limits.OutOfTime("time"), limits.OutOfTime), (limits.Stopped(2), limits.Stopped)],
)
def test_what_ends_a_run_is_no_failure_of_a_logger(error, kind, spy, tmp_path):
    """A request to stop may reach the program while a logger is at work."""
    spy.error, spy.fails = error, "points"
    tracker = Tracker(tmp_path, loggers=["wandb"])
    with pytest.raises(kind):
        tracker.row(1, 0.1, 0.1, {"train/nats": 1.0})
    spy.fails = ""
    tracker.scalar("valid/nats", 1.0, 2)
    assert spy.made[0].calls[-1] == ("points", {"valid/nats": 1.0}, 2)


def test_a_point_that_is_there_is_not_recorded_again(spy, tmp_path):
    done(tmp_path, "train", *SHORT, "logger=wandb", "out=run")
    steps = [call[2] for call in spy.made[0].calls if call[0] == "points"]
    assert steps == [2, 6, 7, 8, 9, *[9] * 4]  # 4 is, as this one says


def test_how_a_run_ended_is_told(spy, tmp_path):
    args = (*SHORT, "data.dynamic=true", "logger=wandb")
    ends = {
        "done": nullcontext(),
        "interrupted": {"TINY_SIGNAL": "SIGTERM 1"},
    }
    for status, env in ends.items():
        env = env if isinstance(env, dict) else {}
        armodels(tmp_path, "train", *args, f"out={status}", **env)
        assert spy.made[-1].calls[-1] == ("close", status)
    armodels(tmp_path, "train", *args, "out=failed", "optimizer.lr=1e30")
    assert RunDirectory(tmp_path / "failed").read_status()["status"] == "failed"
    assert spy.made[-1].calls[-1] == ("close", "failed")


@pytest.mark.slow
def test_a_job_that_is_refused_before_it_begins_is_one_of_the_runs(spy, tmp_path):
    args = (*SHORT, "logger=wandb", "model.hidden_sizes=[-1]")
    armodels(tmp_path, "train", "-m", *args, "out=sweep", "seed=1")
    (one,) = spy.made
    assert one.calls[-1] == ("close", "failed")


def test_a_run_that_is_removed_leaves_nothing_of_its_loggers(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin({"seed": 0})
    (tmp_path / "run/wandb/offline-run-1").mkdir(parents=True)
    (tmp_path / "run/loggers.json").write_text("{}")
    run.clear()
    assert not list(tmp_path.glob("run/[!.]*"))


# What the loggers' own readers find


def table(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def points_of_table(run: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value."""
    points: dict[str, dict[int, float]] = {}
    for row in table(run):
        for tag, cell in row.items():
            if "/" in tag and cell:
                points.setdefault(tag, {})[int(row["step"])] = float(cell)
    return points


def points_of_tensorboard(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, each in found.items():
        assert len({e.step for e in each}) == len(each), tag
    return {tag: {e.step: e.value for e in each} for tag, each in found.items()}


def client(folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder}/outputs/mlflow.db")


def points_of_mlflow(folder: Path, run: Path) -> dict[str, dict[int, float]]:
    store, number = client(folder), json.loads((run / "loggers.json").read_text())["mlflow"]
    found = {}
    for tag in store.get_run(number).data.metrics:
        history = store.get_metric_history(number, tag)
        assert len({one.step for one in history}) == len(history), tag
        found[tag] = {one.step: one.value for one in history}
    return found


def records_of_wandb(run: Path) -> list:
    """Records of every file of a run, which must have one id. wandb has no reader in Python."""
    from wandb.proto import wandb_internal_pb2

    number = json.loads((run / "loggers.json").read_text())["wandb"]
    found = []
    for file in sorted(run.glob("wandb/*run-*/run-*.wandb")):
        content = file.read_bytes()
        assert content[:4] == b":W&B"
        blocks = [content[at : at + 32768] for at in range(0, len(content), 32768)]
        record = b""
        for i, block in enumerate(blocks):
            at = 0 if i else 7
            while at + 7 <= len(block) and block[at + 6]:
                length, kind = struct.unpack("<HB", block[at + 4 : at + 7])
                record += block[at + 7 : at + 7 + length]
                at += 7 + length
                if kind in (1, 4):
                    found.append(wandb_internal_pb2.Record.FromString(record))
                    record = b""
        begun = [one.run.run_id for one in found if one.WhichOneof("record_type") == "run"]
        assert set(begun) <= {number}
    return found


def points_of_wandb(run: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for one in records_of_wandb(run):
        for item in one.history.item:
            tag = item.key or "/".join(item.nested_key)
            if tag.startswith(("train/", "valid/", "watch/", "with_best/")):
                steps = found.setdefault(tag, {})
                assert one.history.step.num not in steps, tag
                steps[one.history.step.num] = json.loads(item.value_json)
    return found


def require_the_same(folder: Path, run: Path) -> dict[str, dict[int, float]]:
    """Tag by tag, step by step, value by value."""
    events, mlflow, wandb = (
        points_of_tensorboard(run),
        points_of_mlflow(folder, run),
        points_of_wandb(run),
    )
    assert mlflow == wandb
    assert {tag: [*steps] for tag, steps in events.items()} == {
        tag: sorted(steps) for tag, steps in mlflow.items()
    }
    for tag, steps in events.items():
        assert [*steps.values()] == pytest.approx([mlflow[tag][s] for s in steps], rel=1e-6)
    rows = points_of_table(run)
    assert {tag: mlflow[tag] for tag in rows} == rows
    return mlflow


@pytest.fixture
def no_network(monkeypatch):
    """What this process asks of any other machine fails, and is noted."""
    asked = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def refuse(self, address):
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        asked.append(address)
        raise ConnectionRefusedError(address)

    def refuse_name(host, *args, **options):
        asked.append(host)
        raise OSError(f"no network: {host}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    yield asked
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


ALL = "logger=tensorboard,csv,wandb,mlflow"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of their packages
def test_all_loggers_hold_the_same_of_a_baseline(tmp_path, no_network):
    """Its line is as long as the curves beside it, though it takes no step."""
    args = ("data=tiny", "model=independent", *QUICK, "trainer.max_steps=9", ALL, "out=run")
    done(tmp_path, "train", *args, **OFFLINE)
    run = tmp_path / "run"
    points, number = points_of_wandb(run), RunDirectory(run).read_metrics()["test"]["nats"]
    assert points == points_of_mlflow(tmp_path, run)
    assert points.keys() == points_of_tensorboard(run).keys()
    assert points["with_best/test_nats"] == {9: number}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of their packages
def test_all_loggers_hold_the_same_offline(tmp_path, no_network):
    args = (*WITH_PICTURES, ALL, "tags=[a]", "out=run", "trainer.ema=0.5")
    done(tmp_path, "train", *args, **OFFLINE)
    run = tmp_path / "run"
    points = require_the_same(tmp_path, run)
    assert {"train/nats", "watch/lr", "valid/bits_per_dim"} < points.keys()
    numbers = RunDirectory(run).read_metrics()
    for split in ("valid", "test"):
        for unit in ("nats", "bits_per_dim"):
            assert points[f"with_best/{split}_{unit}"] == {9: numbers[split][unit]}
    # Settings.
    number = json.loads((run / "loggers.json").read_text())
    stored = client(tmp_path).get_run(number["mlflow"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["choices.model"] == "made"
    assert stored.data.params["trainer.ema"] == "0.5"
    assert stored.data.params["tags"] == "a"
    assert "trainer.progress" not in stored.data.params
    assert "trainer.ema=0.5" in stored.data.tags["overrides"]
    records = records_of_wandb(run)
    config = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for one in records
        for item in [*one.run.config.update, *one.config.update]
    }
    del config["_wandb"]
    shown = {key: value for key, value in config.items() if key not in ("overrides", "started")}
    assert {key: str(value) for key, value in shown.items() if key in stored.data.params} == {
        key: value.removesuffix(".0") if isinstance(shown[key], int) else value
        for key, value in stored.data.params.items()
    }
    assert [one.exit.exit_code for one in records if one.WhichOneof("record_type") == "exit"] == [
        0
    ]
    # Pictures.
    pictures = {
        (one.history.step.num, item.nested_key[0])
        for one in records
        for item in one.history.item
        if item.nested_key and item.nested_key[-1] == "_type"
    }
    drawn = {(step, f"view/{name}") for step in (7, 9) for name in ("samples", "surprise")}
    drawn |= {(9, f"view/{name}") for name in ("samples_in_steps", "surprise_expected")}
    assert pictures == drawn
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 6
    images = list((tmp_path / "outputs/mlflow-artifacts").rglob("*.png"))
    assert {tuple(p.name.split("+")[:3:2]) for p in images} == {
        (name.replace("/", "~"), str(step)) for step, name in drawn
    }
    assert no_network == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_goes_on_is_one_run_in_every_logger(number, tmp_path):
    args = ("train", *TINY, "data.dynamic=true", "trainer.max_steps=16", "trainer.log_every=1",
            "trainer.eval_every=0.5", "samples.num=2", "out=run")  # fmt: skip
    child = fork(tmp_path, *args, ALL, TINY_SIGNAL=f"{number.name} 3", **OFFLINE)
    child.join(120)
    assert child.exitcode != 0
    run = tmp_path / "run"
    ids = json.loads((run / "loggers.json").read_text())
    status = client(tmp_path).get_run(ids["mlflow"]).info.status
    assert status == ("RUNNING" if number == signal.SIGKILL else "KILLED")
    if number == signal.SIGTERM:
        records = records_of_wandb(run)
        kinds = [one.WhichOneof("record_type") for one in records]
        assert "preempting" in kinds
        assert [one.exit.exit_code for one in records if one.HasField("exit")] == [1]
    for more in ((), ("trainer.max_steps=18",)):
        done(tmp_path, "train", "resume=run", *more, **OFFLINE)
        assert json.loads((run / "loggers.json").read_text()) == ids
    points = points_of_wandb(run)
    table = points_of_table(run)
    tags = {tag for tag in table if tag != "watch/examples_per_s"}
    for found in (points, points_of_mlflow(tmp_path, run)):
        # What a killed process had recorded after its checkpoint took other time, and stays.
        assert {tag: found[tag] for tag in tags} == {tag: table[tag] for tag in tags}
        assert found["watch/examples_per_s"].keys() == set(range(1, 19))
        assert found["with_best/test_nats"].keys() == {16, 18}
    stored = client(tmp_path).get_run(ids["mlflow"])
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["changed.trainer.max_steps"] == "18.0"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_failed_run_is_failed_in_every_logger(tmp_path):
    result = armodels(tmp_path, "train", *SHORT, ALL, "optimizer.lr=1e30", "out=run", **OFFLINE)
    assert result.code == 1
    run = tmp_path / "run"
    ids = json.loads((run / "loggers.json").read_text())
    assert client(tmp_path).get_run(ids["mlflow"]).info.status == "FAILED"
    records = records_of_wandb(run)
    assert not any(one.HasField("preempting") for one in records)
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_logger_asked_for_later_gets_the_rows_of_the_table(tmp_path):
    done(tmp_path, "train", *SHORT, "out=run", "logger=none")
    done(tmp_path, "train", "resume=run", ALL, "trainer.max_steps=12", **OFFLINE)
    run = tmp_path / "run"
    assert require_the_same(tmp_path, run)["train/nats"].keys() == {2, 4, 6, 8, 10, 12}
    # A stranger's id, or one of another store, is none.
    (run / "loggers.json").write_text('{"wandb": "../../x", "mlflow": "' + 32 * "0" + '"}')
    done(tmp_path, "train", "resume=run", "trainer.max_steps=14", **OFFLINE)
    ids = json.loads((run / "loggers.json").read_text())
    assert ids["wandb"] != "../../x"
    assert points_of_mlflow(tmp_path, run)["train/nats"].keys() == {2, 4, 6, 8, 10, 12, 14}


def test_records_longer_than_a_block_of_wandbs_file_are_read():
    # The second leaves three bytes of the first block, too few for a part.
    records = [b"a" * 10, b"b" * 32_734, b"c" * 70_000, b"d" * 3, b"e" * 32_760]
    content = b":W&B\x00\x00\x00"
    for record in records:
        left, first = record, True
        while left or first:
            room = 32_768 - len(content) % 32_768
            if room < 7:
                content += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}
            content += struct.pack("<IHB", 0, len(part), kind[first, not left]) + part
            first = False
    assert list(_records(content)) == records
    assert list(_records(content[:-1])) == records[:-1]
    assert list(_records(content[:100])) == records[:1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_of_two_processes_the_first_records(tmp_path):
    args = ("train", *SHORT, "data.num_train=51", ALL, "out=run", "trainer.devices=2")
    result = process(tmp_path, *args, launcher=TORCHRUN, **OFFLINE)
    assert result.code == 0, result.err
    assert len(list(tmp_path.glob("run/wandb/offline-run-*"))) == 1
    assert len(client(tmp_path).search_runs(["0", "1"])) == 1
    require_the_same(tmp_path, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_that_begin_together_share_a_store(tmp_path):
    args = ("train", *SHORT, "logger=mlflow")
    children = [start(tmp_path, *args, f"out=run{i}", f"seed={i}") for i in range(3)]
    for child in children:
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
        assert "warning" not in err
    for i in range(3):
        rows = points_of_table(tmp_path / f"run{i}")
        found = points_of_mlflow(tmp_path, tmp_path / f"run{i}")
        assert {tag: found[tag] for tag in rows} == rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_gone_does_not_end_a_training(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {
        "MLFLOW_TRACKING_URI": f"http://localhost:{port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    result = armodels(tmp_path, "train", *SHORT, "logger=mlflow", "out=run", **env)
    assert result.code == 0
    assert "warning: logger mlflow records nothing more of this run" in result.err
    assert len(table(tmp_path / "run")) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_without_an_account_is_refused(tmp_path):
    # In a process of its own: this one keeps the mode that it was in first.
    env = {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": ""}
    result = process(tmp_path, "train", *SHORT, "logger=wandb", "out=run", **env)
    assert "logger=wandb knows no account here: run wandb login" in result.err
    assert not (tmp_path / "run").exists()
