"""The trainer: what a run computes does not depend on how it was stopped, split or watched."""

import csv
import dataclasses
import json
import math
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from cases import CASES, every
from command import QUICK, TINY, armodels, done, fork
from lightning_fabric import Fabric
from tqdm import tqdm

from armodels import checkpoints, construct, limits
from armodels.baselines import categoricals
from armodels.checkpoints import load_checkpoint, load_model
from armodels.density.autoregressive import AutoregressiveModel
from armodels.evaluation import evaluate, knowing_nothing
from armodels.lines import Lines
from armodels.run import RunDirectory
from armodels.schedules import Constant, Cosine, Exponential
from armodels.training import batches, loop
from armodels.training.batches import Batches
from armodels.training.drawing import Drawing
from armodels.training.loop import Trainer
from armodels.trust import Trust

STEPS_PER_EPOCH = 7  # of 50 examples in batches of 8

TRUST = Trust(frozenset({"tiny.Tiny"}))

TIMES = ("started", "seconds", "examples_per_s", "watch/examples_per_s", "peak_memory_bytes")


# What two runs are compared by


def metrics(run: Path) -> dict:
    """metrics.json without what a clock or a machine says, or how it was called."""
    numbers = json.loads((run / "metrics.json").read_text())
    return {k: v for k, v in numbers.items() if k not in (*TIMES, "environment", "overrides")}


def curve(run: Path) -> list[dict]:
    """metrics.csv without times."""
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_equal(a, b, where="checkpoint"):
    """Bit for bit, through nested builtins and tensors."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def checkpoint(run: Path, name: str = "last") -> dict:
    """A checkpoint without times and the way it was called."""
    content = load_checkpoint(RunDirectory(run).checkpoint(name))
    del content["config"], content["state"]["seconds"], content["state"]["spent"]
    return content


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("last", "best"):
        assert_equal(checkpoint(a, name), checkpoint(b, name), name)
    assert curve(a) == curve(b)
    assert metrics(a) == metrics(b)
    assert RunDirectory(a).read_status()["status"] == "done"
    assert RunDirectory(b).read_status()["status"] == "done"


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(RunDirectory(run).checkpoint(name))["model"]


# Going on

EVERYTHING = (
    "data.dynamic=true", "model.hidden_sizes=[9,9]", "model.dropout=0.3", "model.num_orders=3",
    "model.order=random", "trainer.ema=0.8", "trainer.max_grad_norm=1", "trainer.log_every=3",
)  # fmt: skip
OPTIMIZERS = {
    "adamw": EVERYTHING,
    "sgd": ("optimizer=sgd",),
    "adam": ("optimizer=adam", "trainer.precision=64-true", "trainer.ema=0.9"),
    "adagrad": ("optimizer=adagrad", "trainer.accumulate=3"),
    "adadelta": ("optimizer=adadelta", "trainer.precision=bf16-mixed"),
    "nade": ("model=nade", "model.hidden_size=6", "trainer.accumulate=3"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_and_ten_steps_are_twenty(name, tmp_path):
    args = ["train", *TINY, "schedule=constant", "trainer.log_every=5", *OPTIMIZERS[name]]
    args = [a for a in args if not (name == "nade" and "hidden_sizes" in a)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done(tmp_path, *args, "trainer.eval_every=null", "trainer.max_steps=20", "out=whole")
    done(tmp_path, *args, "trainer.eval_every=null", "trainer.max_steps=10", "out=parts")
    told = done(tmp_path, "train", "resume=parts", "trainer.max_steps=20")
    assert "resuming with a changed trainer.max_steps" in told
    assert "going on from step 10" in told
    overrides = json.loads((parts / "metrics.json").read_text())["overrides"]
    said = [o for o in overrides if o.startswith("trainer.max_steps")]
    assert said == ["trainer.max_steps=20"]
    a, b = checkpoint(whole), checkpoint(parts)
    # The half run evaluated once more, at its end.
    for content in (a, b):
        del content["state"]["best_nats"], content["state"]["best_step"]
        for key in ("evaluations_since_best", "own_best_nats", "tried"):
            del content["state"][key]
    assert_equal(a, b)
    extra = [row for row in curve(parts) if row["step"] == "10" and row["valid/nats"]]
    assert len(extra) == 1
    assert [row for row in curve(parts) if row not in extra] == curve(whole)
    rows = [row for row in curve(parts) if row["valid/nats"]]
    nats = {int(row["step"]): float(row["valid/nats"]) for row in rows}
    assert [*nats] == [10, 20]
    best = min(nats, key=nats.__getitem__)
    assert (metrics(parts)["best_step"], metrics(parts)["valid"]["nats"]) == (best, nats[best])
    assert (metrics(whole)["best_step"], metrics(whole)["valid"]["nats"]) == (20, nats[20])


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path):
    args = ("train", *TINY, *EVERYTHING, "trainer.max_steps=20")
    done(tmp_path, *args, "out=whole")
    child = fork(tmp_path, *args, "out=run", TINY_SIGNAL=f"{number} 2")  # in the second epoch
    child.join(60)
    assert child.exitcode == {"SIGTERM": 143, "SIGINT": 130}[number]
    told = (tmp_path / "told").read_text()
    assert "Traceback" not in told
    assert told.strip().splitlines()[-1].startswith("armodels: stopped at step ")
    assert told.strip().endswith("go on with: armodels train resume=run trust=tiny.Tiny")
    status = RunDirectory(tmp_path / "run").read_status()
    assert status["status"] == "interrupted"
    assert status["reason"].endswith("resume=run trust=tiny.Tiny")
    step = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"]
    assert step % STEPS_PER_EPOCH, "the signal was meant to come within an epoch"
    assert step < 20
    assert not (tmp_path / "run/metrics.json").exists()
    done(tmp_path, "train", "resume=run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    # A finished run resumed is the same run.
    before = metrics(tmp_path / "run"), curve(tmp_path / "run")
    done(tmp_path, "train", "resume=run")
    assert before == (metrics(tmp_path / "run"), curve(tmp_path / "run"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_ctrl_c_in_the_last_evaluation_keeps_what_was_trained(tmp_path, monkeypatch):
    """An exact evaluation may take longer than the training before it."""
    args = ("train", *TINY, "trainer.max_steps=3", "trainer.eval_every=null")

    def stopped(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", stopped)
        told = armodels(tmp_path, *args, "out=run")
    assert told.code == 130
    line = "stopped while evaluating valid; go on with: armodels train resume=run trust=tiny.Tiny"
    assert told.err.strip().splitlines()[-1] == f"armodels: {line}"
    status = RunDirectory(tmp_path / "run").read_status()
    assert (status["status"], status["reason"]) == ("interrupted", line)
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == 3
    done(tmp_path, "train", "resume=run")
    done(tmp_path, *args, "out=whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def work(*args, **options) -> None:
    """What would go on for long, if nothing ended it."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass
    raise AssertionError("nothing ended it")


TWO_EPOCHS = ("train", *TINY, "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """A run of two epochs that nothing stopped."""
    folder = tmp_path_factory.mktemp("two_epochs")
    done(folder, *TWO_EPOCHS, "out=whole")
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["initializing", "evaluating valid", "drawing", "evaluating test"]
)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_what_is_between_steps_at_once(where, name, two_epochs, tmp_path, monkeypatch):
    """And what was missing then is all that is done when the run goes on."""
    number, evaluated = signal.Signals[name], []

    def stop(*args, **options):
        os.kill(os.getpid(), number)
        work()

    def watched(*args, name, **options):
        if where == f"evaluating {name}":
            stop()
        evaluated.append(name)
        return evaluate(*args, name=name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", watched)
        if where == "initializing":
            patched.setattr(AutoregressiveModel, "initialize", stop)
        if where == "drawing":
            patched.setattr(Drawing, "draw", stop)
        told = armodels(tmp_path, *TWO_EPOCHS, "out=run")
    assert told.code == 128 + number
    line = f"stopped while {where}; go on with: armodels train resume=run trust=tiny.Tiny"
    assert told.err.strip().splitlines()[-1] == f"armodels: {line}"
    status = RunDirectory(tmp_path / "run").read_status()
    assert (status["status"], status["reason"]) == ("interrupted", line)
    where = "nowhere"
    monkeypatch.setattr(loop, "evaluate", watched)
    done(tmp_path, "train", "resume=run")
    assert evaluated == ["valid", "valid", "test"]
    assert_same_run(two_epochs, tmp_path / "run")


KILLED = ("train", *TINY, *EVERYTHING, "trainer.max_steps=120", "trainer.checkpoint_every=0",
          "samples.num=4")  # fmt: skip


def whole_run(folder: Path) -> int:
    """Train to the end; how many operations on files that took, from which a run can go on."""
    child = fork(folder, *KILLED, "out=whole", KILL_AT="whole 0")
    child.join()
    assert child.exitcode == 0, (folder / "told").read_text()
    return (folder / "operations").stat().st_size


def kill_and_resume(folder: Path, name: str, operation: int, times: int = 1) -> int:
    """Kill before an operation on files, resume; how many of the processes were killed."""
    killed = 0
    args = (*KILLED, f"out={name}")
    for _ in range(times):
        child = fork(folder, *args, KILL_AT=f"{name} {operation}")
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL, (folder / "told").read_text()
        killed += 1
        assert RunDirectory(folder / name).read_status()["status"] == "killed"
        args = ("train", f"resume={name}")
    done(folder, "train", f"resume={name}")
    leftover = [str(path) for path in (folder / name).rglob("*.part")]
    assert len(leftover) <= killed  # of the very write that was cut off
    return killed


def test_kill_at_a_random_moment(tmp_path):
    operation = random.SystemRandom().randint(1, whole_run(tmp_path) // 2)
    print(f"killed before operation {operation}")
    assert kill_and_resume(tmp_path, "run", operation, times=2) > 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_kill_at_twenty_moments(tmp_path):
    operations = whole_run(tmp_path)
    for i in range(20):
        assert kill_and_resume(tmp_path, f"run-{i}", 1 + i * operations // 20) == 1
        assert_same_run(tmp_path / "whole", tmp_path / f"run-{i}")


def test_killed_before_the_first_checkpoint(tmp_path):
    args = ("train", *TINY, "trainer.max_steps=5")
    done(tmp_path, *args, "out=whole")
    done(tmp_path, *args, "out=run")
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "metrics.csv", "metrics.json"):
        (tmp_path / "run" / name).unlink()
    told = done(tmp_path, "train", "resume=run")
    assert "before its first checkpoint" in told
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# What must not matter


@pytest.mark.slow
def test_watching_changes_no_weight(tmp_path):
    args = ("train", *TINY, *EVERYTHING, "trainer.max_steps=15")
    done(tmp_path, *args, "out=a")
    done(tmp_path, *args, "trainer.eval_every=0.2", "samples.num=3", "trainer.log_every=1",
         "trainer.checkpoint_every=0", "eval.batch_size=5", "out=b")  # fmt: skip
    done(tmp_path, *args, "trainer.eval_every=null", "out=c")
    for name in ("b", "c"):
        assert_equal(weights(tmp_path / "a"), weights(tmp_path / name))
        assert_equal(checkpoint(tmp_path / "a")["ema"], checkpoint(tmp_path / name)["ema"])
        a, b = (checkpoint(tmp_path / run)["optimizer"] for run in ("a", name))
        assert_equal(a, b)
    assert len(curve(tmp_path / "b")) > len(curve(tmp_path / "a"))


@pytest.mark.parametrize("model", ["made", "nade"])
def test_accumulation_is_the_same_step(model, tmp_path):
    sizes = {"made": "model.hidden_sizes=[6]", "nade": "model.hidden_size=6"}[model]
    args = [a for a in TINY if "hidden" not in a]
    # Float64 and plain SGD: what differs is the order of a sum. The last batch holds two examples.
    args = ("train", *args, f"model={model}", sizes, "optimizer=sgd", "trainer.precision=64-true")
    for n in (1, 4):
        extra = (f"trainer.accumulate={n}", f"out=by{n}", "trainer.max_steps=9")
        done(tmp_path, *args, *extra, "trainer.log_every=1")
    a, b = weights(tmp_path / "by1"), weights(tmp_path / "by4")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-14)
    norms = [
        [float(r["watch/grad_norm"] or 0) for r in curve(tmp_path / f"by{n}")] for n in (1, 4)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_one_step_is_the_gradient_of_the_mean(tmp_path):
    """The reported norm, clipping and the step itself, against autograd on the whole batch."""
    args = ("train", *TINY, "optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false",
            "schedule=constant", "trainer.precision=64-true", "trainer.batch_size=50",
            "trainer.log_every=1")  # fmt: skip
    done(tmp_path, *args, "trainer.max_steps=0", "out=zero")
    done(tmp_path, *args, "trainer.max_steps=1", "out=one")
    done(tmp_path, *args, "trainer.max_steps=1", "trainer.max_grad_norm=0.01", "out=clipped")
    from tiny import Tiny

    x = Tiny("image", [1, 3, 4], 3, False, 50, None, 0).load().train
    model = load_model(tmp_path / "zero", checkpoint="last").requires_grad_(True).train()
    loss = -model.log_prob(x).mean()
    loss.backward()
    loss = float(loss.detach())
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    for run, factor in (("one", 1.0), ("clipped", 0.01 / norm)):
        row = curve(tmp_path / run)[0]
        assert float(row["watch/grad_norm"]) == pytest.approx(norm)
        assert float(row["train/nats"]) == pytest.approx(loss)
        after = weights(tmp_path / run)
        for name, p in model.named_parameters():
            expected = p.detach() - 0.01 * factor * p.grad
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-9)


def test_fresh_values_are_those_of_their_rows(tmp_path, monkeypatch):
    """They are drawn for blocks of steps, which start anew with each epoch and fit into memory."""
    monkeypatch.setattr(batches, "BLOCK_STEPS", 5)
    done(tmp_path, "train", *TINY, "trainer.max_steps=0", "out=run")
    config = RunDirectory(tmp_path / "run").read_config()
    source = construct.source(config["data"] | {"dynamic": True}, TRUST)
    plain, drawn = source.load(), []

    def draw(rows, generator):
        drawn.append(len(rows))
        return rows + torch.randint(2, (len(rows), 1, 1, 1), generator=generator)

    spec = dataclasses.replace(plain.spec, levels=4)
    splits = dataclasses.replace(plain, spec=spec, transform=draw)
    arguments = (splits, None, 8, config["seed"], Fabric(accelerator="cpu"))
    drawn_by = Batches(*arguments)
    drawn.clear()
    seen, noise = [], []
    for step in range(2 * STEPS_PER_EPOCH):
        rows = drawn_by.rows(step)
        seen.append(drawn_by.batch(step).x)
        fresh = seen[-1] - plain.train[rows]
        assert torch.equal(fresh, fresh[:, :1, :1, :1].expand_as(fresh))
        assert set(fresh.unique().tolist()) <= {0, 1}
        noise += fresh[:, 0, 0, 0].tolist()
    assert drawn == 2 * [40, 10]
    assert noise[:50] != noise[50:]  # of the other epoch
    assert noise[:10] != noise[40:50]  # of the other block
    # From any step, as a run that is continued.
    for step in (4, 6, 9):
        assert torch.equal(Batches(*arguments).batch(step).x, seen[step])


def test_every_epoch_sees_every_example_once(tmp_path):
    """SGD of no rate to speak of and a fixed model: the curve's points are means over batches."""
    done(tmp_path, "train", *TINY, "optimizer=sgd", "optimizer.lr=1e-99", "out=run",
         "trainer.precision=64-true", f"trainer.log_every={STEPS_PER_EPOCH}",
         "trainer.max_epochs=2")  # fmt: skip
    model = load_model(tmp_path / "run", checkpoint="last")
    from tiny import Tiny

    x = Tiny("image", [1, 3, 4], 3, False, 50, None, 0).load().train
    points = [float(row["train/nats"]) for row in curve(tmp_path / "run") if row["train/nats"]]
    assert points == pytest.approx(2 * [-float(model.log_prob(x).mean())])


@pytest.mark.parametrize("size", [1, 7, 128])
def test_evaluation_does_not_depend_on_the_batch(size, tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=3", "trainer.precision=64-true", "out=run")
    done(tmp_path, "eval", "run", f"eval.batch_size={size}", "out=report.json", "device=cpu")
    report = json.loads((tmp_path / "report.json").read_text())
    test = metrics(tmp_path / "run")["test"]
    assert report["num_examples"] == test["num_examples"] == 23
    assert report["nats"] == pytest.approx(test["nats"], rel=1e-12)
    assert report["nats_ci95"] == pytest.approx(test["nats_ci95"], rel=1e-9)
    from tiny import Tiny

    x = Tiny("image", [1, 3, 4], 3, False, 50, None, 0).load().test
    values = load_model(tmp_path / "run").log_prob(x)
    assert report["nats"] == pytest.approx(-float(values.mean()), rel=1e-12)
    assert report["nats_ci95"] == pytest.approx(1.96 * float(values.std()) / 23**0.5, rel=1e-9)
    assert report["bits_per_dim"] == pytest.approx(-float(values.mean()) / 12 / math.log(2))


# Average, early stopping, schedules, limits


def test_average_of_the_weights(tmp_path):
    """Its closed form, from runs stopped after each step; and that it is what is evaluated."""
    args = ("train", *TINY, "trainer.ema=0.7", "schedule=constant", "trainer.precision=64-true")
    for t in (1, 2, 3):
        done(tmp_path, *args, f"trainer.max_steps={t}", f"out=run{t}")
    after = [weights(tmp_path / f"run{t}") for t in (1, 2, 3)]
    average = checkpoint(tmp_path / "run3")["ema"]
    for name, value in average.items():
        terms = [0.3 * 0.7 ** (2 - i) * w[name] for i, w in enumerate(after)]
        torch.testing.assert_close(value, sum(terms) / (1 - 0.7**3), rtol=1e-12, atol=1e-14)
    told = done(tmp_path, *args, "trainer.max_steps=3", "eval.weights=raw", "out=raw")
    assert "raw weights evaluated" in told
    assert_equal(weights(tmp_path / "raw"), weights(tmp_path / "run3"))
    ema, raw = metrics(tmp_path / "run3"), metrics(tmp_path / "raw")
    assert (ema["weights"], raw["weights"]) == ("ema", "raw")
    assert ema["test"]["nats"] != raw["test"]["nats"]
    for run, name, numbers in (("run3", "ema", ema), ("run3", "raw", raw), ("raw", "ema", ema)):
        told = done(tmp_path, "eval", run, f"eval.weights={name}", "device=cpu",
                    "checkpoint=last", "out=r.json")  # fmt: skip
        assert f"({name} weights, step 3)" in told
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["nats"] == pytest.approx(numbers["test"]["nats"], rel=1e-12)


def test_valid_is_evaluated_once_for_each_checkpoint(tmp_path, monkeypatch):
    evaluated = []

    def watched(*args, name, **options):
        evaluated.append(name)
        return evaluate(*args, name=name, **options)

    monkeypatch.setattr(loop, "evaluate", watched)
    args = ("trainer.ema=0.7", "trainer.max_epochs=2")
    done(tmp_path, "train", *TINY, *args, "out=run")
    assert evaluated == ["valid", "valid", "test"]
    found = metrics(tmp_path / "run")
    assert found["valid"] == checkpoint(tmp_path / "run", "best")["state"]["valid"]
    # Other weights than those that were evaluated then: anew.
    evaluated.clear()
    done(tmp_path, "train", "resume=run", "eval.weights=raw")
    assert evaluated == ["valid", "test"]
    raw = metrics(tmp_path / "run")
    assert raw["valid"]["nats"] != found["valid"]["nats"]
    done(tmp_path, "eval", "run", "split=valid", "eval.weights=raw", "device=cpu", "out=r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["nats"] == pytest.approx(raw["valid"]["nats"], rel=1e-6)


def test_early_stopping(tmp_path):
    # At such a rate nothing gets better after the first evaluation.
    told = done(tmp_path, "train", *TINY, "optimizer.lr=1e-99", "trainer.patience=3",
                "trainer.max_epochs=20", "out=run")  # fmt: skip
    assert "no better valid likelihood in 3 evaluations" in told
    numbers = metrics(tmp_path / "run")
    assert numbers["steps"] == 4 * STEPS_PER_EPOCH
    assert numbers["best_step"] == STEPS_PER_EPOCH


def test_the_best_weights_are_reported_not_the_last(tmp_path):
    # A huge last learning rate spoils the weights after a good start.
    done(tmp_path, "train", *TINY, "optimizer=sgd", "optimizer.lr=0.5", "trainer.max_steps=21",
         "schedule=constant", "out=run")  # fmt: skip
    rows = [row for row in curve(tmp_path / "run") if row["valid/nats"]]
    best = min(rows, key=lambda row: float(row["valid/nats"]))
    numbers = metrics(tmp_path / "run")
    assert numbers["best_step"] == int(best["step"])
    assert numbers["valid"]["nats"] == float(best["valid/nats"])
    assert numbers["best_step"] < numbers["steps"]
    done(tmp_path, "eval", "run", "device=cpu", "out=eval.json")
    again = json.loads((tmp_path / "eval.json").read_text())
    assert numbers["test"]["nats"] == pytest.approx(again["nats"], rel=1e-6)


def test_schedules():
    cosine = Cosine(warmup_steps=4, final=0.1)
    assert [cosine(i, 24) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4, 24) == 1.0
    assert cosine(14, 24) == pytest.approx(0.55)  # half-way: the mean of 1 and final
    assert cosine(24, 24) == pytest.approx(0.1)
    assert cosine(9, 24) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert [Constant(2)(i, None) for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    exponential = Exponential(1, 0.5)
    assert [exponential(i, None) for i in range(4)] == [1.0, 1.0, 0.5, 0.25]
    # Of time: whichever is further on.
    assert [cosine(i, None, 0.5) for i in (4, 9)] == pytest.approx(2 * [0.55])
    assert cosine(9, 24, 0.5) == pytest.approx(0.55)
    assert cosine(14, 24, 0.1) == pytest.approx(0.55)
    assert cosine(7, None, 1.0) == pytest.approx(0.1)
    assert Constant(0)(3, None, 0.5) == 1.0
    with pytest.raises(ValueError, match="gamma is 2"):
        Exponential(gamma=2)
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        Constant(-1)


def test_the_schedule_drives_the_rate(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=8", "schedule.warmup_steps=2",
         "trainer.log_every=1", "optimizer.lr=0.01", "out=run")  # fmt: skip
    rates = [float(row["watch/lr"]) for row in curve(tmp_path / "run") if row["watch/lr"]]
    schedule = Cosine(2)
    assert rates == pytest.approx([0.01 * schedule(i, 8) for i in range(8)])


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (("trainer.max_epochs=2",), 14),
        (("trainer.max_epochs=2", "trainer.max_steps=9"), 9),
        (("trainer.max_steps=0",), 0),
        (("trainer.max_epochs=0",), 0),
    ],
)
def test_limits(limit, steps, tmp_path):
    done(tmp_path, "train", *TINY, *limit, "out=run")
    assert metrics(tmp_path / "run")["steps"] == steps


class Clock:
    """A clock that goes on by so many seconds whenever it is read."""

    def __init__(self, tick: float):
        self.tick, self.time = tick, 0.0

    def __call__(self) -> float:
        self.time += self.tick
        return self.time


@pytest.mark.slow
def test_a_limit_of_minutes_holds_what_saving_takes(tmp_path, monkeypatch):
    """Checkpoints of a large model on a slow disk, which take twenty seconds each."""
    clock, save = Clock(0.05), checkpoints.save

    def slowly(*args):
        save(*args)
        clock.time += 20

    monkeypatch.setattr(limits, "now", clock)
    monkeypatch.setattr(checkpoints, "save", slowly)
    done(tmp_path, "train", *TINY, "trainer.max_epochs=null", "trainer.max_minutes=5",
         "trainer.eval_every=null", "out=run")  # fmt: skip
    assert 150 < clock.time < 300


def test_a_limit_of_minutes_holds_everything(tmp_path, monkeypatch):
    """The cosine ends where the time for training does, and the evaluations come within it."""
    clock = Clock(1.0)
    monkeypatch.setattr(limits, "now", clock)
    told = done(tmp_path, "train", *TINY, "trainer.max_epochs=null", "trainer.max_minutes=10",
                "trainer.log_every=1", "optimizer.lr=0.01", "out=run")  # fmt: skip
    assert "10.0 min in all, training until " in told
    rates = [float(row["watch/lr"]) for row in curve(tmp_path / "run") if row["watch/lr"]]
    assert len(rates) > 100
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[len(rates) // 2] == pytest.approx(0.005, rel=0.1)
    assert rates[-1] < 1e-4
    assert rates == sorted(rates, reverse=True)
    assert clock.time < 600
    spent = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["state"]["spent"]
    assert 500 < spent < 600


def test_a_limit_that_holds_no_evaluation(tmp_path, monkeypatch):
    """Training has all of it; the evaluations follow by the command that is named."""
    monkeypatch.setattr(limits, "now", Clock(1.0))
    limit = ("trainer.max_epochs=null", "trainer.max_minutes=0.5")
    result = armodels(tmp_path, "train", *TINY, *limit, "eval.batch_size=1", "out=run")
    assert result.code == 1
    assert "trainer.max_minutes=0.5 holds no exact evaluation" in result.err
    told = result.err.strip().splitlines()[-1]
    assert told.startswith("armodels: error: trainer.max_minutes=0.5 ended between two steps; ")
    step = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"]
    assert step > 0
    words = ("train", "resume=run", "trainer.max_minutes=null", f"trainer.max_steps={step}",
             "trust=tiny.Tiny")  # fmt: skip
    assert told.endswith(f"armodels {' '.join(words)}")
    status = RunDirectory(tmp_path / "run").read_status()
    assert status["status"] == "interrupted"
    assert status["reason"] in told
    done(tmp_path, *words)
    assert metrics(tmp_path / "run")["steps"] == step


def test_the_bell_ends_what_takes_too_long(tmp_path, monkeypatch):
    bells = []

    class Bell(threading.Timer):
        """It rings when the test says so: no test waits for a clock."""

        def start(self):
            bells.append(self)

    def slow(*args, **options):
        threading.Thread(target=bells[0].function).start()
        work()

    with monkeypatch.context() as patched:
        patched.setattr(limits, "now", Clock(0.0))
        patched.setattr(threading, "Timer", Bell)
        patched.setattr(AutoregressiveModel, "initialize", slow)
        told = armodels(tmp_path, "train", *TINY, "trainer.max_minutes=10", "out=run").error
    assert [bell.interval for bell in bells] == [600]
    assert told.startswith("trainer.max_minutes=10 ended while initializing; try: armodels train")
    assert RunDirectory(tmp_path / "run").read_status()["status"] == "interrupted"


# Failing


def test_a_loss_that_is_not_finite_stops(tmp_path):
    result = armodels(tmp_path, "train", *TINY, "data.kind=vector", "data.shape=[3]",
                      "data.levels=null", "optimizer=sgd", "optimizer.lr=1e30",
                      "schedule=constant", "trainer.log_every=1", "out=run")  # fmt: skip
    assert result.code == 1
    told = result.error
    assert told.startswith("the loss became ")
    assert " at step " in told
    assert "(gradient norm " in told
    assert "the last good checkpoint is run/checkpoints/last.pt" in told
    status = RunDirectory(tmp_path / "run").read_status()
    assert (status["status"], status["reason"]) == ("failed", told)
    assert "FloatingPointError" in (tmp_path / "run/train.log").read_text()
    model = load_model(tmp_path / "run", checkpoint="last")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


WORSE = ("train", *TINY, "optimizer=sgd", "optimizer.lr=50", "schedule=constant")


def test_a_model_that_is_worse_than_knowing_nothing_is_not_done_without_a_word(tmp_path):
    result = armodels(tmp_path, *WORSE, "trainer.max_epochs=2", "out=run")
    uniform = f"{12 * math.log(3):.3f} of the uniform distribution"
    told = [line for line in result.err.splitlines() if "warning" in line]
    assert result.code == 0
    assert re.search(
        rf"warning: \S+ nats on valid at step 7 are worse than the {uniform}", told[0]
    )
    status = RunDirectory(tmp_path / "run").read_status()
    assert status["status"] == "done"
    assert status["warning"].startswith("worse than knowing nothing: ")
    assert f"but {uniform}; lower optimizer.lr" in status["warning"]
    assert metrics(tmp_path / "run")["warning"] == status["warning"]
    assert told[1:] == [f"armodels: warning: {status['warning']}"]
    # Good weights, and bad ones after them.
    args = ("data.name=copy_chain", "data.num_dims=4", "optimizer=sgd", "schedule=constant")
    done(tmp_path, "train", *TOY, *args, "optimizer.lr=0.1", "trainer.max_steps=100", "out=later")
    assert "warning" not in RunDirectory(tmp_path / "later").read_status()
    done(tmp_path, "train", "resume=later", "trainer.max_steps=110", "optimizer.lr=1e4")
    warning = RunDirectory(tmp_path / "later").read_status()["warning"]
    assert warning.startswith("diverged: ")
    best = metrics(tmp_path / "later")["best_step"]
    assert best <= 100
    assert f"the best weights, of step {best}, are kept" in warning


def test_what_knowing_nothing_costs(tmp_path):
    done(tmp_path, "train", *TINY, "data.kind=vector", "data.shape=[3]", "data.levels=null",
         "trainer.max_steps=0", "out=run")  # fmt: skip
    config = RunDirectory(tmp_path / "run").read_config()["data"]
    splits = construct.source(config, TRUST).load()
    name, nothing = knowing_nothing(splits)
    train = splits.train.double()
    gaussians = torch.distributions.Normal(train.mean(0), train.std(0))
    assert name == "independent Gaussians"
    assert nothing == pytest.approx(
        -float(gaussians.log_prob(splits.valid.double()).sum(1).mean())
    )
    splits.train[:, 1] = 3.0
    assert knowing_nothing(splits) is None


# What is told


@pytest.mark.parametrize("number", [1, 7, 29, 100, 5000])
def test_few_lines_where_no_terminal_shows_them(number):
    lines = Lines(all_of_them=False)
    due = [lines.due(i / number) for i in range(1, number + 1)]
    assert sum(due) <= 30
    assert sum(due) >= min(number, 25)
    assert due[0]
    assert due[-1]
    terminal = Lines(all_of_them=True)
    assert all(terminal.due(i / number) for i in range(1, number + 1))


def test_one_line_for_each_evaluation_under_one_header(tmp_path):
    args = ("train", *TINY[:3], *QUICK[1:], "trainer.progress=true", "optimizer.lr=0.01")
    result = armodels(tmp_path, *args, "trainer.max_epochs=3", "out=run")
    assert "\r" not in result.out + result.err  # no bar where there is no terminal
    assert [line for line in result.err.splitlines() if "warning" not in line] == []
    lines = result.out.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.split()[:1] == ["epoch"]]
    rows = [row for row in curve(tmp_path / "run") if row["valid/nats"]]
    for i, row in enumerate(rows, 1):
        epoch, step, train, valid, sign, half, _, *best = lines[start + i].split()
        assert (epoch, step, sign) == (str(i), str(i * STEPS_PER_EPOCH), "±")
        assert float(valid) == pytest.approx(float(row["valid/nats"]), abs=1e-3)
        assert 0 < float(half) < 1
        assert 10 < float(train) < 15
        assert best == ["*"], "every epoch is better than the one before"
    assert lines[start + 4] == ""


def test_what_is_written_of_memory(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=0", "out=run")
    peak = json.loads((tmp_path / "run/metrics.json").read_text())["peak_memory_bytes"]
    assert 5e7 < peak < 1e11


# Compiled code


@pytest.mark.slow
@pytest.mark.parametrize("graphs", ["false", "true"])  # of CUDA: here they change nothing
def test_compile_changes_nothing_but_speed(tmp_path, graphs):
    args = ("train", *TINY, "trainer.max_steps=4", "trainer.ema=0.9")
    done(tmp_path, *args, "out=plain")
    options = ("trainer.compile=true", f"trainer.cuda_graphs={graphs}")
    done(tmp_path, *args, *options, "out=compiled")
    a, b = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "compiled")
    assert a["model"].keys() == b["model"].keys()
    assert a["ema"].keys() == b["ema"].keys()
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-4, atol=1e-5)
    done(tmp_path, "eval", "compiled", "device=cpu")
    done(tmp_path, "train", "resume=compiled", "trainer.max_steps=5")


# Known numbers

GOLDEN = json.loads(golden.FILE.read_text())


@every(CASES, "name")
def test_golden_loss(name):
    assert name in GOLDEN, "a new case: run python tests/golden.py"
    assert golden.loss(name) == pytest.approx(GOLDEN[name], rel=1e-7)


def test_every_golden_loss_has_a_case():
    assert GOLDEN.keys() == CASES.keys()


TOY = ("data=toy", "data.num_train=500", "data.num_valid=200", "data.num_test=200",
       "trainer.progress=false", "samples.num=0", "trainer.accelerator=cpu")  # fmt: skip


@pytest.mark.parametrize("code", ["copy_chain", "parity"])
def test_a_tiny_model_reaches_the_entropy(code, tmp_path):
    done(tmp_path, "train", *TOY, f"data.name={code}", "data.num_dims=4", "out=run",
         "model.hidden_sizes=[64]", "trainer.max_steps=800", "trainer.eval_every=null",
         "optimizer.lr=0.03", "optimizer.weight_decay=0", "model.activation=tanh")  # fmt: skip
    gap = metrics(tmp_path / "run")["gap_to_truth"]
    assert 0 <= gap < 0.02
    x = load_model(tmp_path / "run").sample(200, generator=torch.Generator().manual_seed(0))
    if code == "copy_chain":
        assert bool((x == x[:, :1]).all())
        assert 60 < int(x[:, 0].sum()) < 140
    else:
        assert int((x.sum(1) % 2 == 0).sum()) > 190


@pytest.mark.parametrize("progress", ["true", "false"])
def test_em_shows_its_bar_as_training_does(progress, tmp_path, monkeypatch):
    shown = []

    def bar(*args, disable, **options):
        shown.append({None: "true", True: "false"}[disable])  # None: on a terminal
        return tqdm(*args, disable=True, **options)

    monkeypatch.setattr(categoricals, "tqdm", bar)
    model = ("model=mixture_of_categoricals", "model.num_components=2")
    args = ("data=tiny", "data.levels=2", *QUICK[1:], f"trainer.progress={progress}")
    done(tmp_path, "train", *model, *args, "out=run")
    assert shown == [progress]


# Speed


def test_denormals_are_zero_while_weights_move_and_at_no_other_time(tmp_path, monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    seen, step = [], Trainer._step

    def tiny() -> float:
        return (torch.tensor([1e-40]) * 0.9).view(torch.int32).item()

    def watched(trainer):
        seen.append(tiny())
        step(trainer)

    monkeypatch.setattr(Trainer, "_step", watched)
    done(tmp_path, "train", *TINY, "trainer.max_steps=3", "out=run")
    assert seen == [0, 0, 0]
    assert tiny() != 0


def test_a_baseline_is_not_warned_of_itself(tmp_path):
    """Both are independent Gaussians, but for a rounding and a prior."""
    rows = np.random.RandomState(0).rand(60, 3)
    np.savetxt(tmp_path / "noise.csv", rows, delimiter=",", header="a,b,c", comments="")
    result = armodels(
        tmp_path,
        "train",
        "data=table",
        "data.path=noise.csv",
        "model=independent",
        *QUICK,
        "out=run",
    )
    assert (result.code, result.err) == (0, "")


def test_a_run_whose_steps_end_within_its_time_does_not_depend_on_the_clock():
    """Loading takes a share of the time before the first step."""
    schedule = Cosine()
    assert schedule(0, 100, 0.09) == schedule(0, 100) == 1
    assert schedule(40, 100, 0.2) == schedule(40, 100)
    assert schedule(20, 100, 0.4) == schedule(40, 100)  # its time will end first
    assert schedule(0, None, 0.09) < 1
