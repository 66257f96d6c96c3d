"""Models above the budget of the machine are refused before anything is read or filled."""

import pytest
import torch
from cases import CASES, data, every
from command import QUICK, TINY, armodels, done

from armodels import flows, memory
from armodels.baselines import GMM
from armodels.objectives import Distillation

LARGE = "the model would have more than 100,000,000 parameters"


def test_a_model_of_too_many_parameters_is_refused(tmp_path):
    # There are no pictures: it is refused before they are looked for.
    args = ("data=anime", "data.size=[32,32]", "model=made", "head=auto", "out=run", *QUICK)
    error = armodels(tmp_path, "train", *args).error
    assert error.startswith(LARGE)
    assert "model.hidden_sizes, model.encoding=scaled or the data" in error
    assert error.endswith("or try it with model.allow_large=true")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_limit_may_be_lifted(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MOST", 10)
    args = (*TINY, "trainer.max_steps=1", "out=run")
    error = armodels(tmp_path, "train", *args).error
    assert "more than 10 parameters" in error
    for model in ((), ("model=independent",)):
        keys = [arg for arg in args if not (model and "hidden" in arg)]
        out = f"out={len(model)}"
        done(tmp_path, "train", *keys, *model, "model.allow_large=true", out)
        done(tmp_path, "eval", f"run={len(model)}", "device=cpu")  # of the same config
    done(tmp_path, "train", *args[:-1], "seed=1", "model.hidden_sizes=[1]", "out=plain",
         "model.allow_large=true")  # fmt: skip
    monkeypatch.setattr(memory, "MOST", 10**6)
    done(tmp_path, "train", *args[:-1], "seed=2", "model.hidden_sizes=[1]", "out=small")
    assert "1,2" in done(tmp_path, "compare", "plain", "small", "--csv")  # seeds of one row
    assert "allow_large is 'x'" in armodels(tmp_path, "train", *args, "model.allow_large=x").error


def test_a_model_for_which_memory_is_short_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("V", (), {"available": 99}))
    error = armodels(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run").error
    assert error.startswith("training this model takes about 0.0 GB, but this machine has 0.0 GB")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ngram", "markov"])
def test_counts_of_a_text_beyond_memory_are_refused(model, tmp_path):
    """Of 10^13 bytes, in a file of holes that takes no room on the disk."""
    path = tmp_path / "text.bin"
    with path.open("wb") as file:
        file.truncate(10**13)
    args = ("data=text", f"data.path={path}", "data.unit=byte", f"model={model}", "out=run")
    error = armodels(tmp_path, "train", *QUICK, *args).error
    assert error.startswith("training this model takes about 900000.0 GB, but this machine has ")
    assert error.endswith("or try it with model.allow_large=true")
    assert [one.name for one in tmp_path.iterdir()] == ["text.bin"]


@every(CASES, "name")
def test_measuring_changes_nothing(name):
    """Neither a weight, nor the mode, nor the generator; more examples take no less."""
    model = CASES[name].build(0)
    if model.spec.levels is None and model.context is not None:
        pytest.skip("tested with levels")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, training = torch.get_rng_state(), model.training
    small, large = (memory.of_training(model, n, averaged=False) for n in (1, 100))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == training
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    moved = [p for p in model.parameters() if p.requires_grad]  # all but those of blends
    weights = sum(p.numel() * p.element_size() for p in moved)
    assert large >= small >= 5 * weights
    if weights:
        assert large > small


def test_it_counts_what_a_batch_keeps():
    """A linear model keeps its input and little else: known by hand, twice over."""
    model = CASES[next(name for name in CASES if "made" in name)].build(0)
    one, many = (memory.of_training(model, n, averaged=False) for n in (1, 1001))
    values = model.spec.num_dims
    assert 1000 * values * 4 < many - one < 1000 * values * 4000


def test_a_student_is_measured_by_its_draws():
    """Its draws take a pass of each layer; the inverse of other events takes slopes, too."""
    model = flows.InverseFlow(data("vector", 20, levels=None), hidden_sizes=[4])
    teacher = GMM(model.spec, num_components=1)
    teacher.initialize([torch.randn(50, 20, dtype=torch.double)])
    whole, drawn = (
        memory.of_training(model, 100, averaged=False, objective=objective)
        for objective in (None, lambda one: Distillation(one, teacher))
    )
    assert 2 * drawn < whole
