"""trainer.select: the candidates are the runs that a user would have typed, one after another."""

import json

import pytest
import torch
from command import TINY, armodels, done

from armodels import limits
from armodels.checkpoints import load_checkpoint, load_model
from armodels.training.loop import Trainer
from armodels.training.timing import Timetable

STEPS = ("trainer.max_steps=10", "trainer.eval_every=0.3", "trainer.ema=0.9", "data.num_train=50")
SELECT = "trainer.select={optimizer.weight_decay:[0.5,0],model.hidden_sizes:[[3],[6]]}"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def train_tiny(folder, *args):
    return done(folder, "train", *TINY[:1], *TINY[2:], *STEPS, *args)


def same(one, other):
    """Whether two nested states hold the same numbers, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.slow
def test_the_selected_run_is_the_best_of_the_separate_ones(tmp_path):
    told = train_tiny(tmp_path, SELECT, "trainer.patience=3", "out=all")
    alone = {}
    for decay in (0.5, 0):
        for size in (3, 6):
            name = f"{decay}-{size}"
            train_tiny(tmp_path, f"optimizer.weight_decay={decay}", "trainer.patience=3",
                       f"model.hidden_sizes=[{size}]", f"out={name}")  # fmt: skip
            alone[name] = metrics(tmp_path / name)
            line = f"optimizer.weight_decay={decay} model.hidden_sizes='[{size}]'"
            assert f"tried    {line}: {alone[name]['valid']['nats']:.4f} valid nats" in told
    best = min(alone, key=lambda name: alone[name]["valid"]["nats"])
    found = metrics(tmp_path / "all")
    for key in ("valid", "test", "parameters", "best_step"):
        assert found[key] == alone[best][key]
    assert found["steps"] == sum(one["steps"] for one in alone.values())
    decay, size = best.split("-")
    assert found["selected"] == {
        "optimizer.weight_decay": float(decay), "model.hidden_sizes": [int(size)]
    }  # fmt: skip
    assert "selected" not in alone[best]
    kept = [load_checkpoint(tmp_path / name / "checkpoints/best.pt") for name in ("all", best)]
    assert same(kept[0]["model"], kept[1]["model"])
    assert same(kept[0]["ema"], kept[1]["ema"])
    # What reads the checkpoint builds the model that was chosen.
    assert load_model(tmp_path / "all").net.hidden[0].out_features == int(size)


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 10, 13, 20])
def test_a_selection_goes_on_bit_for_bit(at, tmp_path, monkeypatch):
    select = "trainer.select={optimizer.weight_decay:[0.5],model.dropout:[0.6,0.1]}"
    train_tiny(tmp_path, select, "out=whole")
    with monkeypatch.context() as patch:
        save = Trainer._book_seconds

        def stop(trainer):
            save(trainer)
            if trainer.state.total_step >= at:
                trainer.watch.asked = limits.SIGNALS[0]

        patch.setattr(Trainer, "_book_seconds", stop)
        stopped = armodels(tmp_path, "train", *TINY[:1], *TINY[2:], *STEPS, select, "out=cut")
        assert stopped.code != 0
    done(tmp_path, "train", "resume=cut")
    assert metrics(tmp_path / "cut")["test"] == metrics(tmp_path / "whole")["test"]
    for name in ("last", "best"):
        states = [
            load_checkpoint(tmp_path / run / f"checkpoints/{name}.pt") for run in ("cut", "whole")
        ]
        assert same(states[0]["model"], states[1]["model"])
        kept = [state["state"] for state in states]
        for key in ("step", "candidate", "earlier_steps", "tried", "selected", "best_nats"):
            assert kept[0][key] == kept[1][key]


def test_baselines_are_selected_too_and_what_cannot_be_is_left_out(tmp_path):
    told = done(tmp_path, "train", "data=tiny", "data.num_train=60", *TINY[2:], "out=em",
                "model=mixture_of_categoricals",
                "trainer.select={model.num_components:[2,90,4],model.smoothing:[1]}")  # fmt: skip
    assert "left out: data 'tiny-image' has 60 training examples for the 90 components" in told
    assert "tried    model.num_components=90 model.smoothing=1: left out" in told
    chosen = metrics(tmp_path / "em")["selected"]["model.num_components"]
    assert chosen in (2, 4)
    assert len(load_model(tmp_path / "em").log_weights) == chosen
    alone = []
    for num in (2, 4):
        done(tmp_path, "train", "data=tiny", "data.num_train=60", *TINY[2:], f"out={num}",
             "model=mixture_of_categoricals", "model.smoothing=1",
             f"model.num_components={num}")  # fmt: skip
        alone.append(metrics(tmp_path / f"{num}")["valid"]["nats"])
    assert metrics(tmp_path / "em")["valid"]["nats"] == min(alone)


@pytest.mark.parametrize("rates", ["[1e-3,1e30]", "[1e30,1e-3]"])
def test_a_candidate_that_diverges_is_left_out(rates, tmp_path):
    args = (*TINY, *STEPS, "trainer.log_every=1", f"trainer.select={{optimizer.lr:{rates}}}")
    told = done(tmp_path, "train", *args, "out=run")
    assert "left out: the loss became" in told
    assert metrics(tmp_path / "run")["selected"] == {"optimizer.lr": 1e-3}
    last = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert all(value.isfinite().all() for value in last["model"].values())
    alone = "trainer.select={optimizer.lr:[1e30,1e31]}"
    assert "the loss became" in armodels(tmp_path, "train", *args[:-1], alone, "out=no").err


def test_a_typed_value_is_not_chosen(tmp_path):
    told = train_tiny(tmp_path, SELECT, "optimizer.weight_decay=0.25", "out=run")
    assert "selected model.hidden_sizes=" in told
    assert metrics(tmp_path / "run")["selected"].keys() == {"model.hidden_sizes"}
    best = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert best["config"]["optimizer"]["weight_decay"] == 0.25


def test_time_is_shared_out_evenly(tmp_path, monkeypatch):
    """Under a clock that the steps drive: of 60 seconds 10 are kept for test, so each has 10."""
    monkeypatch.setattr(limits.Budget, "spent", property(lambda budget: budget.seconds))
    monkeypatch.setattr(limits.Budget, "seconds", 0.0, raising=False)
    step = Trainer._step

    shares = []

    def ticking(trainer):
        shares.append(trainer.times.share(trainer.state))
        step(trainer)
        trainer.budget.seconds += 1

    monkeypatch.setattr(Trainer, "_step", ticking)
    monkeypatch.setattr(Timetable, "plan", lambda *args, **options: True)
    monkeypatch.setattr(limits.Budget, "end", 50.0)
    train_tiny(tmp_path, "trainer.select={optimizer.lr:[1e-1,1e-2,1e-3,1e-4,1e-5]}",
               "trainer.max_minutes=1", "trainer.max_steps=null", "trainer.max_epochs=null",
               "schedule=cosine", "out=run")  # fmt: skip
    assert metrics(tmp_path / "run")["steps"] == 50
    assert shares == pytest.approx(5 * [i / 10 for i in range(10)])


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ("3", "trainer.select is 3; it must be null, or lists of values by key, such as "
              "{optimizer.weight_decay: [0.01, 0.1]}"),
        ("{data.name:[a]}", "trainer.select names data.name; it chooses values of model, head, "
                            "optimizer and schedule, whose keys begin with these words"),
        ("{optimizer.lr:[]}", "trainer.select.optimizer.lr is []; it must be a list of values "
                              "to try"),
        ("{optimizer.lr:0.1}", "trainer.select.optimizer.lr is 0.1; it must be a list of values "
                               "to try"),
        ("{optimizer.weight:[1]}", "trainer.select names optimizer.weight, which the config does "
                                   "not have; did you mean optimizer.weight_decay?"),
        ("{model.what:[1]}", "trainer.select names model.what, which the config does not have"),
        ("{model.dropout:[0,x]}", "model.dropout is 'x'; it must be a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_selected_is_refused(select, sentence, tmp_path):
    result = armodels(tmp_path, "train", *TINY, *STEPS, f"trainer.select={select}", "out=run")
    assert result.error == sentence
    assert not (tmp_path / "run").exists()


def test_a_selection_is_resumed_as_it_was(tmp_path):
    train_tiny(tmp_path, "trainer.select={optimizer.lr:[0.01,0.001]}", "out=run")
    told = armodels(tmp_path, "train", "resume=run", "trainer.max_steps=20").error
    assert told == (
        "the run chooses by trainer.select, and among candidates that were trained alike: its "
        "trainer.max_steps cannot change; start a new run instead"
    )
    before = metrics(tmp_path / "run")["test"]
    done(tmp_path, "train", "resume=run", "trainer.max_minutes=5")
    assert metrics(tmp_path / "run")["test"] == before
