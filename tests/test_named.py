"""What a notebook calls: ``load_data`` and ``build`` by name, settings of ``fit`` as keywords."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import CONFIGS, QUICK, armodels, done

import armodels as api
from armodels import show
from armodels.candidates import new_model
from armodels.checkpoints import load_checkpoint
from armodels.trust import PACKAGE

QUIET = {"accelerator": "cpu", "progress": False, "quiet": True}
SPEC = api.DataSpec("own", "vector", (3,), 2, "probability")
ROWS = np.arange(180).reshape(60, 3) % 7 % 2


def test_data_by_name():
    data = api.load_data("digits", levels=2)
    assert data.spec.levels == 2
    with pytest.raises(ValueError, match="no data called 'digit'; did you mean 'digits'"):
        api.load_data("digit")
    with pytest.raises(ValueError, match=r"data table needs path=\.\.\."):
        api.load_data("table")


def test_a_model_by_name_is_the_one_of_train():
    """Its weights are those of a config's, bit for bit; torch's own stream stays."""
    config = {"seed": 3, "head": {"_target_": "armodels.heads.auto"}}
    config["model"] = yaml.safe_load((CONFIGS / "model/made.yaml").read_text())
    config["model"] |= {"hidden_sizes": [6]}
    before = torch.get_rng_state()
    model = api.build("made", SPEC, hidden_sizes=(np.int64(6),), seed=3)
    assert torch.get_rng_state().equal(before)
    same_weights(model.state_dict(), new_model(config, SPEC, PACKAGE).state_dict())


def same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(value.equal(other[name]) for name, value in one.items())


@pytest.mark.slow
def test_fit_of_a_model_by_name_is_a_run_of_train(tmp_path):
    keys = ("model.hidden_sizes=[6]", "trainer.max_steps=20", "seed=3", *QUICK, "out=run")
    done(tmp_path, "train", "data=digits", "model=made", *keys)
    data = api.load_data("digits")
    model = api.build("made", data.spec, hidden_sizes=[6], seed=3)
    adamw = lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True)  # noqa: E731
    api.fit(
        model, data, max_steps=20, seed=3, optimizer=adamw, directory=tmp_path / "own", **QUIET
    )
    one, other = (load_checkpoint(tmp_path / f"{name}/checkpoints/best.pt")["model"]
                  for name in ("run", "own"))  # fmt: skip
    same_weights(one, other)


def test_a_run_says_how_its_model_is_built(tmp_path):
    """What reads a run takes it, and names the data where it must read some."""
    data = api.load_data("digits")
    model = api.build("made", data.spec, hidden_sizes=[6], order="random", num_orders=2)
    api.fit(model, data, max_steps=2, directory=tmp_path / "run", **QUIET)
    x = data.test[:3]
    assert api.load_model(tmp_path / "run").log_prob(x).equal(model.log_prob(x))
    told = armodels(tmp_path, "eval", "run", "device=cpu").error
    assert "name them with data=" in told
    assert "test" in done(tmp_path, "eval", "run", "data=digits", "device=cpu")
    assert "resume=True" in armodels(tmp_path, "train", "resume=run").error
    again = api.fit(model, data, max_steps=3, directory=tmp_path / "run", resume=True, **QUIET)
    assert again.metrics["steps"] == 3


def test_settings_are_keywords_of_fit():
    splits = api.Splits.of(ROWS)
    model = api.build("made", splits.spec, hidden_sizes=[4])
    settings = api.Settings(
        max_steps=1, batch_size=5, **{k: QUIET[k] for k in QUIET if k != "quiet"}
    )
    assert api.fit(model, splits, settings, quiet=True, max_steps=2).metrics["steps"] == 2
    assert settings.max_steps == 1


def test_without_a_limit_fit_takes_five_minutes():
    from armodels.training.fit import _changed

    assert _changed(None, {}).max_minutes == 5
    assert _changed(None, {"batch_size": 7}).max_minutes == 5
    assert _changed(None, {"max_epochs": 7}) == api.Settings(max_epochs=7)


def fit(**keys):
    splits = api.Splits.of(ROWS)
    api.fit(api.build("made", splits.spec, hidden_sizes=[4]), splits, **keys)


WRONG = {
    "a setting near it": (lambda: fit(max_minute=1), "did you mean max_minutes?"),
    "one of another program": (lambda: fit(epochs=1), "did you mean max_epochs?"),
    "a rate": (lambda: fit(lr=1), "give optimizer=lambda params"),
    "nothing like it": (lambda: fit(qqq=1), "settings are max_epochs, max_steps"),
    "a setting": (lambda: fit(max_epochs=-1), "^max_epochs is -1; it must be at least 0"),
    "a switch": (lambda: fit(compile=3), "^compile is 3; it must be True or False"),
    "no limit": (lambda: api.Settings(max_epochs=None), "^set max_epochs, max_steps or max_min"),
    "two settings": (lambda: api.Settings(cuda_graphs=True), "^cuda_graphs=True .* compile=True"),
    "a model": (lambda: api.build("mad", SPEC), "no model called 'mad'; did you mean 'made'?"),
    "a key": (lambda: api.build("made", SPEC, hiden_sizes=[1]), "did you mean hidden_sizes?"),
    "a value": (lambda: api.build("made", SPEC, hidden_sizes=3), "^hidden_sizes is 3; it must be"),
    "a choice": (lambda: api.build("made", SPEC, order="x"), "^order is 'x'; choose raster"),
    "an empty list": (lambda: api.build("made", SPEC, hidden_sizes=[]), "direct_connections=True"),
    "two keys": (lambda: api.build("made", SPEC, resample_orders=True), "^resample_orders=True"),
    "a head": (lambda: api.build("made", SPEC, head="gaussian"), "'gaussian_mixture'"),
    "a key of it": (lambda: api.build("made", SPEC, head={"num_components": 0}), "at least 1"),
    "no spec": (lambda: api.build("made", ROWS), "must be of type DataSpec"),
    "a blend": (lambda: api.build("blend", SPEC), "a blend is made of models"),
    "the data": (lambda: api.build("pixelcnn", SPEC), "takes image data"),
    "a key of data": (lambda: api.load_data("digits", level=2), "did you mean levels?"),
    "a value of data": (lambda: api.load_data("mnist", binarization="x"), "^binarization is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_the_words_of_python(name):
    call, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=told) as caught:
        call()
    assert type(caught.value) in (ValueError, TypeError)
    assert "trainer." not in str(caught.value)
    assert " null" not in str(caught.value)


def test_words_of_python_end_with_the_block(capsys):
    with show.in_python(["trainer.max_steps"]):
        show.say("trainer.max_steps=null, model.pt, a.trainer.max_steps, trainer.max_steps(")
        show.warn("trainer.max_steps is x; it must be a number or null")
    show.say("trainer.max_steps=null")
    out, err = capsys.readouterr()
    first = "max_steps=None, model.pt, a.trainer.max_steps, trainer.max_steps("
    assert out == f"{first}\ntrainer.max_steps=null\n"
    assert err == "armodels: warning: max_steps is x; it must be a number or None\n"


USER = """
import numpy as np
import torch

import armodels

splits: armodels.Splits = armodels.Splits.of(np.zeros((60, 3), dtype=np.int64))
model: armodels.DensityModel = armodels.build("made", splits.spec, hidden_sizes=[4])
result: armodels.Result = armodels.fit(model, splits, max_steps=1, seed=1)
log_prob: torch.Tensor = result.model.log_prob(splits.test[:4])
samples: torch.Tensor = model.sample(64)
values: torch.Tensor = model.complete(samples, torch.ones(3, dtype=torch.bool)).values
again: armodels.DensityModel = armodels.load_model("run")
nats: float = armodels.evaluate(again, splits.test).report(splits.spec)["nats"]
settings = armodels.Settings(max_steps="many")  # [arg-type]
print(armodels.no_such_name)  # [attr-defined]
"""


@pytest.mark.slow
def test_a_users_script_passes_a_strict_type_checker(tmp_path):
    """And what is wrong in it is found, which shows that the types are there."""
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    root = Path(api.__file__).parents[1]  # which no type checker sees by an editable install
    command += ["--config-file", str(root / "pyproject.toml")]
    told = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"MYPYPATH": str(root)},
    )
    errors = [line for line in told.stdout.splitlines() if ": error: " in line]
    wanted = [line for line in enumerate(USER.splitlines(), 1) if "# [" in line[1]]
    assert len(errors) == len(wanted), told.stdout + told.stderr
    for line, (number, source) in zip(errors, wanted, strict=True):
        assert line.startswith(f"user.py:{number}: ")
        assert line.endswith(source.partition("# ")[2])
