"""The scripts of examples/ run, and say what they promise."""

import runpy
import sys
from pathlib import Path

import pytest
from command import armodels, done
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "examples"


def run(name: str, monkeypatch, folder: Path, *args: str) -> dict:
    """The names that a script leaves, run in a folder where it must write nothing."""
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *args])
    found = runpy.run_path(str(FOLDER / name))
    assert sorted(folder.iterdir()) == before
    return found


def test_an_own_array(monkeypatch, tmp_path):
    found = run("own_array.py", monkeypatch, tmp_path)
    result, x = found["result"], found["x"]
    truth = 4 * 0.6931
    assert truth <= result.metrics["test"]["nats"] + 0.1 < truth + 0.3
    assert isinstance(x, Tensor)
    completed = result.model.complete(x, found["torch"].arange(8) < 4).values
    assert (completed == x).double().mean() > 0.9


@pytest.mark.slow
def test_an_own_network(monkeypatch, tmp_path):
    found = run("own_network.py", monkeypatch, tmp_path)
    result = found["result"]
    assert 0 <= result.metrics["gap_to_truth"] < 0.1
    assert result.metrics["model"] == "Markov with bernoulli head"
    x = result.model.sample(20)
    assert (x == x[:, :1]).double().mean() > 0.9
    completed = result.model.complete(x, x.new_ones(8).bool().logical_and(x[0] >= 0)).values
    assert completed.equal(x)


def test_a_saved_run(monkeypatch, tmp_path, capsys):
    keys = ("trainer.max_steps=5", "trainer.progress=false", "trainer.accelerator=cpu")
    done(tmp_path, "train", "data=digits", "model.hidden_sizes=[20]", *keys, "out=run")
    told = armodels(tmp_path, "eval", "run", "device=cpu").out
    found = run("saved_run.py", monkeypatch, tmp_path, "run")
    assert f"{found['report']['nats']:.4f} ±" in told


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 20
    assert f"def test_{path.stem.replace('own', 'an_own').replace('saved', 'a_saved')}(" in (
        Path(__file__).read_text()
    )
