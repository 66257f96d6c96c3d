"""What TensorBoard's own readers find in the runs."""

import csv
import json
import signal
import time

import pytest
from command import TINY, armodels, done, fork
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from armodels.loggers.base import flatten
from armodels.loggers.tensorboard import hparams
from armodels.run import RunDirectory
from armodels.tracking import Tracker

SWEEP = {
    "made": ("model.hidden_sizes=[6]", "trainer.ema=0.5"),
    "nade": ("model.hidden_size=6",),
    "independent": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of three models with two seeds each, in outputs/."""
    folder = tmp_path_factory.mktemp("sweep")
    shared = [item for item in TINY if "hidden" not in item and "samples.num" not in item]
    for model, keys in SWEEP.items():
        args = (*shared, f"model={model}", *keys, "samples.num=4", "trainer.max_steps=9")
        done(folder, "train", "-m", *args, "seed=1,2", "tags=[a,b]",
             "trainer.log_every=3")  # fmt: skip
    return folder


def runs(folder):
    return {
        str(path.parent.relative_to(folder / "outputs")): path.parent
        for path in (folder / "outputs").rglob("status.json")
    }


def context(logdir):
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    return backend_context.Context(base_plugin.TBContext(data_provider=provider))


def sessions(logdir, *tags):
    """What the page of hyperparameters lists, with these metrics."""
    backend, request = context(logdir), RequestContext()
    wanted = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags]
    statuses = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_FAILURE,
                api_pb2.STATUS_UNKNOWN]  # fmt: skip
    groups = list_session_groups.Handler(
        request, backend, "", api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=100, allowed_statuses=statuses,
            col_params=[api_pb2.ColParams(metric=info.name) for info in wanted],
        ),
    ).run()  # fmt: skip
    return [session for group in groups.session_groups for session in group.sessions]


@pytest.mark.slow
def test_hparams_backend_reads_every_run(folder):
    backend, request = context(folder / "outputs"), RequestContext()
    metadata = backend.hparams_metadata(request, "")
    experiment = backend.experiment_from_metadata(request, "", True, metadata, [])
    names = {info.name for info in experiment.hparam_infos}
    union = set()
    for path in runs(folder).values():
        config = RunDirectory(path).read_config()
        union |= set(hparams(config))
    # A key that has one value in all runs may be left out by the backend: none of ours is.
    assert names == union
    assert {"model.hidden_sizes", "model.hidden_size", "model.smoothing"} <= names
    types = {info.name: info.type for info in experiment.hparam_infos}
    assert types["4 lr"] == types["3 seed"] == api_pb2.DATA_TYPE_FLOAT64
    assert types["trainer.compile"] == api_pb2.DATA_TYPE_BOOL
    assert types["1 model"] == api_pb2.DATA_TYPE_STRING
    # Those that differ stand before the others, each part by name.
    columns = [info.name for info in experiment.hparam_infos]
    assert columns[:3] == ["1 model", "3 seed", "5 sizes"]
    assert columns[columns.index("2 data") :][:3] == ["2 data", "4 lr", "7 tags"]
    assert not [name for name in columns if "_target_" in name or "progress" in name]
    groups = list_session_groups.Handler(
        request, backend, "", api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=100, allowed_statuses=[
                api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_FAILURE],
            col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        ),
    ).run()  # fmt: skip
    sessions = {s.name: s for group in groups.session_groups for s in group.sessions}
    assert sessions.keys() == runs(folder).keys()
    assert len(sessions) == 6
    for name, path in runs(folder).items():
        session, numbers = sessions[name], RunDirectory(path).read_metrics()
        assert session.status == api_pb2.STATUS_SUCCESS
        assert 0 <= session.end_time_secs - session.start_time_secs < 600
        values = {m.name.tag: m.value for m in session.metric_values}
        for split in ("valid", "test"):
            for unit in ("nats", "bits_per_dim"):
                told = values[f"with_best/{split}_{unit}"]
                assert told == pytest.approx(numbers[split][unit], rel=1e-6)  # float32 there
        assert "valid/nats" in values
    values = {s.hparams["5 sizes"].string_value for s in groups.session_groups}
    assert values == {"hidden_sizes [6]", "hidden_size 6", ""}


def scalars(path) -> dict[str, list[int]]:
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


CURVES = ("train/nats", "watch/lr", "watch/grad_norm", "watch/examples_per_s", "valid/nats",
          "valid/bits_per_dim")  # fmt: skip
VIEWS = ("view/samples", "view/samples_in_steps", "view/surprise", "view/surprise_expected")


def test_tags_and_grids(folder):
    for name, path in runs(folder).items():
        tags = set(scalars(path))
        best = {f"with_best/{split}_{unit}" for split in ("valid", "test")
                for unit in ("nats", "bits_per_dim")}  # fmt: skip
        trained = not name.startswith("tiny/independent")
        curves = set(CURVES) if trained else {"valid/nats", "valid/bits_per_dim"}
        assert tags == curves | best, name
        images = EventAccumulator(str(path), size_guidance={"images": 0}).Reload()
        steps = {tag: [e.step for e in images.Images(tag)] for tag in images.Tags()["images"]}
        expected = [7, 9] if trained else [0]
        assert steps["view/samples"] == expected
        assert steps["view/surprise"] == expected
        if trained:  # At the end alone, of a model whose values have an order.
            assert steps["view/samples_in_steps"] == [9]
            assert steps["view/surprise_expected"] == [9]
        pictures = sorted(p.name for p in (path / "samples").glob("*.png"))
        assert pictures == [f"step-{step:07d}.png" for step in expected]
        assert images.Images("view/samples")[0].width > 100
        assert len(list(path.glob("events.*"))) == 1
        assert not images.Tags()["histograms"]


def test_a_run_that_fails_keeps_its_points(tmp_path):
    result = armodels(tmp_path, "train", *TINY, "optimizer.lr=1e30", "trainer.log_every=1",
                      "out=run")  # fmt: skip
    assert "the loss became" in result.error
    assert scalars(tmp_path / "run")["train/nats"][0] == 1
    (session,) = sessions(tmp_path / "run")
    assert session.status == api_pb2.STATUS_FAILURE


def test_a_run_is_listed_with_its_numbers_while_it_trains(tmp_path):
    (tmp_path / "run").mkdir()
    tracker = Tracker(tmp_path / "run")
    choices = {"model": "made", "data": "tiny", "experiment": None}
    groups = dict.fromkeys(("data", "model", "head", "optimizer", "schedule", "trainer"), {})
    tracker.start({"seed": 3, "choices": choices, "overrides": [], **groups})
    tracker.row(5, 0.5, 0.1, {"valid/nats": 2.5})
    tracker.flush()
    (session,) = sessions(tmp_path, "valid/nats")
    assert session.status in (api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING)
    assert [(m.value, m.training_step) for m in session.metric_values] == [(2.5, 5)]
    tracker.close("done")


@pytest.mark.slow
def test_curves_take_less_than_a_fiftieth_of_a_training(tmp_path, monkeypatch):
    """Samples are drawn and shown at evaluations alone."""
    spent = []

    def timed(function):
        def call(*args):
            began = time.thread_time()
            function(*args)
            spent.append(time.thread_time() - began)

        return call

    for name in ("start", "row", "flush", "close"):
        monkeypatch.setattr(Tracker, name, timed(getattr(Tracker, name)))
    began = time.thread_time()
    done(tmp_path, "train", "trainer.max_steps=300", "trainer.progress=false", "samples.num=0",
         "out=run")  # fmt: skip
    assert len(spent) > 5
    assert sum(spent) < 0.02 * (time.thread_time() - began)


def test_values_agree_with_the_table(folder):
    for path in runs(folder).values():
        with open(path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in set(CURVES) & set(scalars(path)):
            told = [(e.step, e.value) for e in events.Scalars(tag)]
            table = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
            if "/independent/" in str(path):  # a line across the plot, as long as the curves
                table += [(9, table[0][1])]
            assert [step for step, _ in told] == [step for step, _ in table]
            assert [v for _, v in told] == pytest.approx([v for _, v in table], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_resumed_run_has_no_zigzag(number, tmp_path):
    args = ("train", *TINY, "data.dynamic=true", "trainer.max_steps=16", "trainer.log_every=1",
            "trainer.eval_every=0.5", "samples.num=2")  # fmt: skip
    # The checkpoint of the last evaluation is older than the last points of the curve.
    name = f"{number.name} 3"  # while it draws for step 15
    child = fork(tmp_path, *args, "out=run", TINY_SIGNAL=name)
    child.join(60)
    assert child.exitcode != 0
    done(tmp_path, "train", "resume=run")
    done(tmp_path, "train", "resume=run", "trainer.max_steps=18")
    steps = scalars(tmp_path / "run")
    for tag in CURVES:
        assert steps[tag] == sorted(set(steps[tag])), tag
        assert steps[tag][-1] == 18
    assert steps["train/nats"] == list(range(1, 19))
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(int(row["step"]), bool(row["valid/nats"])) for row in rows]
    assert keys == sorted(set(keys))
    # The numbers of the end are told once: those of the last end.
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    last = events.Scalars("with_best/test_nats")[-1]
    numbers = json.loads((tmp_path / "run/metrics.json").read_text())
    assert last.step == 18
    assert last.value == pytest.approx(numbers["test"]["nats"], rel=1e-6)


def test_a_run_resumed_within_a_second_is_read_in_order(tmp_path):
    now = int(time.time())
    for second in (now, now + 1):  # one of which it is still when the run goes on
        (tmp_path / f"events.out.tfevents.{second}.~.9.0").touch()
    Tracker(tmp_path, 1).close("done")
    names = sorted(path.name for path in tmp_path.glob("events*"))
    assert len(names) == 3
    assert "~" not in names[-1]


def test_pages_show_curves_then_samples():
    """TensorBoard sorts tags by what stands before the slash, and then by the rest."""
    tags = [*CURVES, "with_best/test_nats", *VIEWS]
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in sorted(tags)))
    assert groups == ["train", "valid", "view", "watch", "with_best"]
    assert [tag for tag in sorted(tags) if tag.startswith("view")][0] == "view/samples"


def test_the_table_of_an_older_run_goes_on(tmp_path):
    old = "step,epoch,train/nats,train/lr,train/grad_norm,speed/examples_per_s"
    (tmp_path / "metrics.csv").write_text(f"{old}\n1,0.1,9,2,3,4\n2,0.2,8,2,3,4\n")
    Tracker(tmp_path, 1).close("done")
    with open(tmp_path / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[f"watch/{name}"] for name in ("lr", "grad_norm", "examples_per_s")] == list("234")


def test_a_baseline_that_goes_on_keeps_its_table(folder):
    path = next((folder / "outputs/tiny/independent").iterdir())
    before = (path / "metrics.csv").read_text()
    assert len(before.splitlines()) == 2
    done(folder, "train", f"resume={path.relative_to(folder)}")
    assert (path / "metrics.csv").read_text() == before


def test_flatten():
    config = {
        "a": {"b": 1, "c": {"d": True, "e": None}},
        "lr": 1e-3,
        "sizes": [1, 2],
        "name": "x",
        "none": None,
    }
    flat = flatten(config)
    assert flat == {"a.b": 1.0, "a.c.d": True, "lr": 1e-3, "sizes": "[1, 2]", "name": "x"}
    assert type(flat["a.b"]) is float
    assert type(flat["a.c.d"]) is bool


def test_an_evaluation_that_was_not_saved_is_written_once(tmp_path):
    for evaluated in (True, False):
        tracker = Tracker(tmp_path, 2 * (not evaluated), evaluated)
        if evaluated:
            tracker.row(1, 0.5, 0.1, {"valid/nats": 3.0})
            tracker.row(2, 1.0, 0.2, {"train/nats": 2.0})
        tracker.row(2, 1.0, 0.2, {"valid/nats": 2.5})
        tracker.close("done")
    rows = [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows == ["step", "1", "2", "2"]
