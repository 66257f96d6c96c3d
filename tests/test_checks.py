"""What a config's values must be: every number of every shipped config, with wrong ones tried."""

import inspect
import re
import typing
from types import UnionType

import hydra.utils
import numpy as np
import pytest
import torch
import yaml
from command import CONFIGS, TINY, armodels, done
from test_architecture import MODULES, classes

from armodels import baselines, checks, cli, construct, errors, heads, schedules
from armodels.density.base import DensityModel
from armodels.heads import Head
from armodels.networks import layers
from armodels.networks.base import Network
from armodels.spec import DataSpec
from armodels.training.settings import Settings

SPECS = {
    "binary": DataSpec("tried", "image", (1, 4, 4), 2, "probability"),
    "real": DataSpec("tried", "vector", (3,), None, "density"),
}
SMALL = {"hidden_sizes": [4], "hidden_size": 4, "num_channels": 4, "num_components": 2}
NOTHING_SENSIBLE = ("text", {}, [[1]], True, float("nan"), float("inf"), -float("inf"), 10**400)

# Where 0 and what lies below it mean something.
ZERO = {
    "seed", "order_seed", "connectivity_seed", "split_seed", "fold", "warmup_steps", "final",
    "weight_decay", "momentum", "rho", "dropout", "smoothing", "margin", "tolerance",
    "regularization", "num_blocks", "num_resnets", "num_bins", "min_log_scale", "max_log_scale",
    "valid", "test", "repeat",
    "num_noops", "betas", "max_epochs", "max_steps", "max_minutes", "checkpoint_every",
    "samples.num", "samples.temperature", "temperature", "num_neighbours", "keep", "label",
    "port", "noise", "memory",
}  # fmt: skip
NEGATIVE = {"min_log_scale", "max_log_scale"}


def plain(hint):
    """The kinds that a hint allows, without their ranges."""
    if typing.get_origin(hint) is typing.Annotated:
        return plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return set().union(*map(plain, typing.get_args(hint)))
    return {typing.get_origin(hint) or hint}


def hints_of(target) -> dict:
    made = target.__init__ if isinstance(target, type) else target
    return typing.get_type_hints(made, include_extras=True)


def build_one(group: str, config: dict, spec: DataSpec):
    """The object of a group's config, as train.py has it built before any data is read."""
    if group == "data":
        return construct.source(config)
    if group == "model":
        return construct.model(config, {"_target_": "armodels.heads.auto"}, spec)
    if group == "head":
        return construct.model(MADE, config, spec)
    if group == "optimizer":
        return construct.optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    return construct.schedule(config) if group == "schedule" else Settings(**config)


def refusal(group: str, config: dict, spec: DataSpec) -> str:
    """The sentence in which a config is refused; empty where it is not."""
    try:
        build_one(group, config, spec)
    except Exception as error:
        told = errors.explain(error, "train", [])
        return "" if "HYDRA_FULL_ERROR" in told else told
    return ""


MADE = yaml.safe_load((CONFIGS / "model/made.yaml").read_text()) | {"hidden_sizes": [4]}


def numbers(config: dict, hints: dict) -> list[str]:
    """Keys of a config that hold numbers, or lists of them."""
    found = []
    for key, value in config.items():
        several = value if isinstance(value, list) else [value]
        is_number = any(type(one) in (int, float) for one in several)
        if is_number or (key in hints and plain(hints[key]) & {int, float}):
            found.append(key)
    return found


def tried() -> dict[str, tuple[str, dict, str, set]]:
    """One entry for each key of the configs from which an object is built."""
    found = {}
    for group in ("data", "model", "head", "optimizer", "schedule", "trainer"):
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            config = yaml.safe_load(path.read_text())
            if group == "trainer":
                if path.stem != "default":
                    continue
                hints = typing.get_type_hints(Settings, include_extras=True)
            else:
                target = hydra.utils.get_object(config["_target_"])
                hints = hints_of(target)
            for key, value in config.items():
                if value == "${seed}":
                    config[key] = 0
                if value == "???":
                    config[key] = "nowhere"
            for key in numbers(config, hints):
                kinds = plain(hints.get(key, type(config[key])))
                found[f"{group}/{path.stem}/{key}"] = (group, config, key, kinds)
    return found


TRIED = tried()


@pytest.mark.parametrize("name", TRIED)
def test_no_wrong_number_is_taken(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group, config, key, kinds = TRIED[name]
    config = {k: SMALL.get(k, v) if group == "model" and v else v for k, v in config.items()}
    real = group == "head" and "gaussian" in name or name.startswith("head/auto")
    real = real or name.startswith(("model/gmm", "model/inverse_flow"))
    spec = SPECS["real" if real else "binary"]
    several = isinstance(config[key], list)
    wrong = [*NOTHING_SENSIBLE]
    if key not in NEGATIVE:
        wrong.append(-1)
    if key not in ZERO:
        wrong.append(0)
    if int in kinds:
        wrong += [1.5, 10**18, 10**19]
    if several:
        wrong = [*([one] for one in wrong if one != [[1]]), "text", {}, 1]
    for value in wrong:
        told = refusal(group, {**config, key: value}, spec)
        assert re.search(rf"\b{key}\b", told), (value, told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_number_of_a_verb_has_a_range(verb):
    """What the verbs' own configs hold stands in no signature."""
    config = yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text())
    own = {key: value for key, value in config.items() if key != "hydra"}
    flat = {k: v for k, v in own.items() if not isinstance(v, dict)}
    for section, values in own.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    named = {key for key, value in flat.items() if type(value) in (int, float)}
    assert named <= checks.KEYS.keys()
    for key in flat.keys() & checks.KEYS.keys():
        kinds = plain(checks.KEYS[key])
        if not kinds & {int, float}:
            continue
        wrong = [*NOTHING_SENSIBLE, -(10**19)]
        wrong += [] if key in NEGATIVE else [-1]
        wrong += [] if key in ZERO else [0]
        wrong += [10**18, 10**19, 1.5] if int in kinds else []
        for value in wrong:
            section, _, last = key.rpartition(".")
            with pytest.raises(ValueError, match=rf"^{re.escape(key)} is "):
                checks.require_keys({section: {last: value}} if section else {key: value})


BITS, REAL = SPECS["binary"], SPECS["real"]
CALLS = {
    "mixing is 'even'; choose learned or uniform": lambda: heads.GaussianMixture(
        REAL, mixing="even"
    ),
    "num_components is 0; it must be at least 1": lambda: heads.DiscretizedLogisticMixture(
        BITS, num_components=0
    ),
    "min_log_scale is nan; it must be a finite number": lambda: heads.GaussianMixture(
        REAL, min_log_scale=float("nan")
    ),
    "smoothing is -0.5; it must be at least 0": lambda: baselines.Independent(
        BITS, smoothing=-0.5
    ),
    "num_components is 2.0; it must be a whole number": lambda: baselines.MixtureOfCategoricals(
        BITS, num_components=2.0
    ),
    "covariance_type is 'free'; choose full, tied, diag or spherical": lambda: baselines.GMM(
        REAL, covariance_type="free"
    ),
    "joint is 1; it must be true or false": lambda: baselines.Histogram(BITS, joint=1),
    "gamma is 1.5; it must be above 0 and at most 1": lambda: schedules.Exponential(gamma=1.5),
    "warmup_steps is -1; it must be at least 0": lambda: schedules.Constant(-1),
}


@pytest.mark.parametrize("sentence", CALLS)
def test_a_constructor_called_from_python_refuses_as_a_config_does(sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        CALLS[sentence]()


def test_checked_takes_what_python_has_in_the_place_of_a_config():
    """Tuples, NumPy's numbers and None where it may be; a wrong call stays Python's own error."""

    @checks.checked
    def found(
        sizes: list[checks.Count], rate: checks.Share = 0.0, seed: checks.Seed | None = None
    ):
        return sizes, rate, seed

    assert found((1, np.int64(2)), rate=np.float64(0.5)) == ((1, 2), 0.5, None)
    with pytest.raises(ValueError, match=r"^sizes is \(1, 0\); each must be at least 1$"):
        found((1, 0))
    with pytest.raises(ValueError, match="^rate is 1; it must be at least 0 and below 1$"):
        found([1], 1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'sizes'"):
        found()


def constructors():
    for name in MODULES:
        if name.split(".")[0] in ("networks", "heads", "density", "baselines", "schedules"):
            for kind, _ in classes(name):
                if "__init__" in vars(kind) and not inspect.isabstract(kind):
                    yield pytest.param(kind, id=kind.__name__)


@pytest.mark.parametrize("kind", [*constructors()])
def test_constructors_of_models_are_checked(kind):
    """Where a type has a range or choices, as those of arguments that a config gives."""
    hints = str(typing.get_type_hints(kind.__init__, include_extras=True))
    is_model = issubclass(kind, (Network, Head, DensityModel, schedules.Schedule))
    constrained = is_model and ("Annotated" in hints or "Literal" in hints)
    assert hasattr(kind.__init__, "__wrapped__") or not constrained, "decorate it with @checked"


def test_every_activation_has_its_name_in_the_type():
    assert typing.get_args(layers.Activation) == tuple(layers.ACTIVATIONS)


WRONG = {
    "samples.num=-1": "samples.num is -1; it must be at least 0",
    "samples.temperature=nan": "samples.temperature is nan; it must be a finite number",
    "eval.batch_size=0": "eval.batch_size is 0; it must be at least 1",
    "seed=-1": "seed is -1; it must be from 0 to 4294967295",
    "seed=4294967296": "seed is 4294967296; it must be from 0 to 4294967295",
    "model.dropout=1": "model.dropout is 1; it must be at least 0 and below 1",
    "model.dropout=.inf": "model.dropout is '.inf'; it must be a number",
    "optimizer.lr=0": "optimizer.lr is 0; it must be above 0",
    "optimizer.lr=inf": "optimizer.lr is inf; it must be a finite number",
    "optimizer.betas=[0.9,1]": "optimizer.betas is [0.9, 1]; each must be at least 0 and below 1",
    "optimizer.betas=[0.9]": "optimizer.betas is [0.9]; it must be a list of 2 numbers",
    "schedule.warmup_steps=-1": "schedule.warmup_steps is -1; it must be at least 0",
    "trainer.threads=100000": "trainer.threads is 100000; it must be from 1 to ",
    "trainer.accumulate=9": "trainer.accumulate is 9, but a batch of trainer.batch_size=8 cannot",
    "trainer.precision=half": "choose 32-true, bf16-mixed, 16-mixed or 64-true",
    "trainer.accelerator=gpu": "trainer.accelerator is 'gpu'; choose auto, cpu, cuda or mps",
    "trainer.max_epochs=1000000000000000000": "it must be at most 2147483647",
    "trainer.max_minutes=nan": "trainer.max_minutes is nan; it must be a finite number or null",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_refused_before_anything_is_touched(override, tmp_path):
    told = armodels(tmp_path, "train", *TINY, "data.damage=loud", override, "out=run").error
    assert WRONG[override] in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"extra": 1}, "trainer.extra is no key; choose from max_epochs, max_steps"),
        ({"batch_size": None}, "trainer.batch_size is missing"),
    ],
)
def test_keys_of_the_trainer_in_a_saved_config(change, told, tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    path = tmp_path / "run/config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in change.items():
        config["trainer"].pop(key, None)
        config["trainer"] |= {} if value is None else {key: value}
    path.write_text(yaml.safe_dump(config))
    assert armodels(tmp_path, "train", "resume=run").error.startswith(told)
