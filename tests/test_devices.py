"""Several processes that share the work are one: in what they draw, train and say."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from cases import CASES
from command import HERE, TINY, TORCHRUN, done, process, snapshot, start

from armodels import draws
from armodels.checkpoints import load_checkpoint
from armodels.run import RunDirectory
from armodels.tracking import read_rows

ONE = ("-m", "armodels")
TWO = (*TORCHRUN, *ONE)

TIMED = ("seconds", "watch/examples_per_s")


# What is drawn


def gradients(name: str, num_parts: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The objective of five examples, and its gradient, by parts that draw for all of them."""
    model, x = CASES[name].build(0).train(), CASES[name].events(5)
    objective = model.default_objective()
    found = torch.zeros(5, dtype=torch.double)
    for part in range(num_parts):
        torch.manual_seed(3)
        rows = slice(part, None, num_parts)
        with draws.shared(rows, len(x)):
            each = objective(x[rows])
        if each.requires_grad:
            each.sum().backward()
        found[rows] = each.detach().double()
    return found, [p.grad for p in model.parameters() if p.grad is not None]


DRAWING = ("made-deep", "pixelcnn", "rnn-vanilla", "deep-nade", "masked-transformer-canonical")


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[] if one in DRAWING else [pytest.mark.slow]) for one in CASES],
)
def test_shares_of_a_batch_draw_what_the_whole_draws(name):
    whole, gradient = gradients(name, 1)
    parted, gradient_of_parts = gradients(name, 3)  # one of which is a single example
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient_of_parts, gradient, rtol=1e-8, atol=1e-8)


# What is trained


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(RunDirectory(run).checkpoint("last"))["model"]


def require_alike(one: Path, two: Path) -> None:
    """Two runs have the same curves, numbers and weights, as far as sums of shares can have."""
    rows = read_rows(one), read_rows(two)
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - set(TIMED):
            assert float(b[key] or 0) == pytest.approx(float(a[key] or 0), rel=1e-6), key
    a, b = (RunDirectory(run).read_metrics() for run in (one, two))
    for split in ("valid", "test"):
        assert a[split]["num_examples"] == b[split]["num_examples"]
        assert b[split]["nats"] == pytest.approx(a[split]["nats"], rel=1e-9)
        assert b[split]["nats_ci95"] == pytest.approx(a[split]["nats_ci95"], rel=1e-6)
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    args = ("train", *TINY, "trainer.max_steps=10", "trainer.log_every=5", "optimizer=sgd",
            "data.num_train=51", "trainer.precision=64-true", "trainer.ema=0.5")  # fmt: skip
    done(tmp_path, *args, "out=one")
    result = process(tmp_path, *args, "out=two", "trainer.devices=2", launcher=TWO)
    assert result.code == 0, result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert len(list((tmp_path / "two").glob("events.*"))) == 1
    lines = [line for line in (result.out + result.err).splitlines() if "armodels" in line]
    lines += [line for line in result.out.splitlines() if line]
    assert len(lines) > 10
    assert [line for line in lines if (result.out + result.err).count(line) > 1] == []
    require_alike(tmp_path / "one", tmp_path / "two")
    assert RunDirectory(tmp_path / "two").read_metrics()["environment"]["processes"] == 2
    # Refusing, as two.
    before = snapshot(tmp_path)
    result = process(tmp_path, *args, "out=two", launcher=TWO)
    assert result.code != 0
    assert "output directory two exists and is not empty" in result.err
    result = process(tmp_path, "train", "resume=two", "trainer.devices=3", launcher=TWO)
    assert result.code != 0
    told = "trainer.devices=3 needs one process a device, and there are 2; start with torchrun"
    assert told in result.err
    assert snapshot(tmp_path) == before


LABELLED = ("train", "data=digits", "model.context=label", "model.hidden_sizes=[20]",
            "model.dropout=0.4", "model.num_orders=2", "model.order=random",
            "trainer.precision=64-true", "trainer.accumulate=3", "trainer.batch_size=250",
            "trainer.ema=0.9", "trainer.progress=false", "samples.num=0",
            "trainer.log_every=5", "trainer.accelerator=cpu", "schedule=constant")  # fmt: skip


@pytest.mark.slow
def test_processes_may_change_in_number_and_stop_early_as_one_does(tmp_path):
    early = ("trainer.patience=1", "optimizer.lr=0.3")
    done(tmp_path, *LABELLED, *early, "out=one")
    result = process(tmp_path, *LABELLED, *early, "out=two", launcher=TWO)
    assert result.code == 0, result.err
    assert "no better valid likelihood in 1 evaluation" in result.out
    require_alike(tmp_path / "one", tmp_path / "two")
    # One after two, and two after one, go on as if nothing had changed.
    done(tmp_path, *LABELLED, "trainer.max_steps=13", "out=whole")
    for first, then in ((TWO, ONE), (ONE, TWO)):
        out = f"out={len(first)}"
        result = process(tmp_path, *LABELLED, "trainer.max_steps=6", out, launcher=first)
        assert result.code == 0, result.err
        more = (f"resume={len(first)}", "trainer.max_steps=13")
        result = process(tmp_path, "train", *more, launcher=then)
        assert result.code == 0, result.err
        require_same_end(tmp_path / "whole", tmp_path / str(len(first)))


def require_same_end(one: Path, two: Path) -> None:
    """The same weights, and the same points of the loss, sums before the stop included."""
    points = [[row for row in read_rows(run) if row["train/nats"]] for run in (one, two)]
    for row, other in zip(*points, strict=True):
        assert row["step"] == other["step"]
        assert float(other["train/nats"]) == pytest.approx(float(row["train/nats"]), rel=1e-6)
    a, b = weights(one), weights(two)
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_two_processes_train_every_case_as_one_does(tmp_path):
    found = []
    for launcher in ((), TORCHRUN):
        file = str(tmp_path / f"{len(launcher)}.pt")
        result = process(tmp_path, file, *CASES, launcher=(*launcher, str(HERE / "fits.py")))
        assert result.code == 0, result.err[-3000:]
        found.append(torch.load(file, weights_only=True))
    one, two = found
    assert one.keys() == two.keys() == CASES.keys()
    assert sum("error" in each for each in one.values()) < 5, "of baselines"
    for name in CASES:
        assert one[name].pop("error", "") == two[name].pop("error", ""), name
        torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-8, msg=name)


PARTED = ("train", "data=text", "data.path=book.txt", "model=transformer", "model.hidden_size=16",
          "model.num_heads=2", "model.num_layers=2", "model.dropout=0.1", "data.length=32",
          "trainer.ema=0.9", "trainer.batch_size=7", "trainer.accumulate=2", "trainer.log_every=1",
          "trainer.max_grad_norm=1", "trainer.eval_every=null", "trainer.test=false",
          "trainer.max_minutes=null", "schedule=constant", "samples.num=1",
          "trainer.progress=false", "trainer.accelerator=cpu")  # fmt: skip
WAYS = {"fsdp": (TWO, "fsdp"), "ddp": (TWO, "ddp"), "alone": (ONE, "ddp")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [("fsdp", "alone"), ("ddp", "fsdp"), ("alone", "fsdp")]
)
def test_parted_weights_train_as_whole_ones(first, then, tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"{i} and {i * i}; " for i in range(500)))
    done(tmp_path, *PARTED, "trainer.max_steps=8", "out=whole")
    for way, *args in (
        (first, *PARTED, "trainer.max_steps=5", "out=run"),
        (then, "train", "resume=run", "trainer.max_steps=8"),
    ):
        launcher, strategy = WAYS[way]
        words = [f"trainer.strategy={strategy}"] if way != "alone" else []
        result = process(tmp_path, *args, *words, launcher=launcher)
        assert result.code == 0, result.err
    assert len(list((tmp_path / "run/samples").glob("*.txt"))) == 2
    rows = [row for row in read_rows(tmp_path / "run") if row["train/nats"] or row["step"] == "8"]
    for a, b in zip(read_rows(tmp_path / "whole"), rows, strict=True):
        for key in ("train/nats", "valid/nats", "watch/grad_norm"):
            assert float(b[key] or 0) == pytest.approx(float(a[key] or 0), rel=1e-5), key


# What happens where one of them ends

LONG = (*TINY, "trainer.max_steps=1000000", "trainer.eval_every=null")


def interrupted(folder: Path, which: int | None, number: signal.Signals, times: int = 1) -> str:
    """What is said where a signal ends one of two processes, or is sent to all of the group.

    Args:
        folder: Of the run.
        which: Process; None: all, and torchrun.
        number: Of the signal.
        times: So often it is sent to both processes, and not to torchrun; 1: as ``which`` has it.
    """
    with start(folder, "train", *LONG, "out=run", launcher=TWO, start_new_session=True) as child:
        try:
            until = time.monotonic() + 120
            while not RunDirectory(folder / "run").checkpoint("last").is_file():
                assert time.monotonic() < until
                time.sleep(0.1)
            time.sleep(1)
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            if times > 1:
                for pid in times * children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), number)
                    time.sleep(0.01)
            elif which is None:
                os.killpg(child.pid, number)
            else:
                os.kill(int(children[which]), number)
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode != 0
    return sentences(err)


def sentences(err: str) -> list[str]:
    """What the command says of itself."""
    return [line for line in err.splitlines() if line.startswith("armodels:")]


AGAIN = "go on with: torchrun --nproc-per-node=2 -m armodels train resume=run trust=tiny.Tiny"


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_ends_the_others_with_a_sentence(which, tmp_path):
    lost = "error: one of 2 processes that shared the work has ended, so that the others do, too"
    assert interrupted(tmp_path, which, signal.SIGKILL) == [f"armodels: {lost}; {AGAIN}"]
    status = RunDirectory(tmp_path / "run").read_status()
    assert status["status"] == ("killed" if which == 0 else "interrupted")
    result = process(tmp_path, "train", "resume=run", "trainer.max_steps=9", launcher=ONE)
    assert result.code == 0, result.err


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_all_processes_saves_and_says_how_to_go_on(number, times, tmp_path):
    """torchrun repeats to its processes what a shell or a scheduler sends to all."""
    (line,) = interrupted(tmp_path, None, number, times)
    assert line.startswith("armodels: stopped at step ")
    assert line.endswith(AGAIN)
    step = load_checkpoint(RunDirectory(tmp_path / "run").checkpoint("last"))["step"]
    assert f"stopped at step {step};" in line


BROKEN = """
import os, runpy, sys, time
first = os.environ["RANK"] == "0"
if {alone} and not first:
    sys.argv.append("model.hidden_sizes=[0]")
if first:
    time.sleep({later})
runpy.run_module("armodels", run_name="__main__")
"""


@pytest.mark.slow
def test_a_failure_of_all_processes_is_said_by_the_first_one_however_late(tmp_path):
    (tmp_path / "late.py").write_text(BROKEN.format(alone=False, later=3))
    words = (*TINY, "model.hidden_sizes=[0]", "out=run")
    result = process(tmp_path, "train", *words, launcher=(*TORCHRUN, "late.py"))
    (line,) = sentences(result.err)
    assert line.startswith("armodels: error: model.hidden_sizes")


@pytest.mark.slow
def test_a_process_that_fails_alone_says_so(tmp_path):
    (tmp_path / "alone.py").write_text(BROKEN.format(alone=True, later=0))
    result = process(tmp_path, "train", *TINY, "out=run", launcher=(*TORCHRUN, "alone.py"))
    lines = sentences(result.err)
    assert len(lines) == 2
    assert lines[0].startswith("armodels: process 1: error: model.hidden_sizes")
    assert lines[1].endswith(AGAIN)
