"""Configs, constructors, cases, the wheel and the README say the same."""

import dataclasses
import functools
import inspect
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hydra.utils
import pytest
import yaml
from cases import CASES
from command import CONFIGS, QUICK, armodels, done
from omegaconf import OmegaConf

import armodels as package
from armodels import cli, construct
from armodels.density.base import DensityModel
from armodels.orders import ORDERS
from armodels.training.settings import Settings

ROOT = Path(package.__file__).resolve().parents[1]
NAMES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.relative_to(CONFIGS).parts[0] != "local"
)
BUILT = [name for name in NAMES if name.split("/")[0] in
         ("model", "head", "data", "optimizer", "schedule")]  # fmt: skip
MODELS = [Path(name).stem for name in NAMES if name.startswith("model/")]
EXPERIMENTS = [name[len("experiment/") : -len(".yaml")] for name in NAMES if "experiment/" in name]

# What a config leaves out, because it fixes the rest so that these have no effect.
LEFT_OUT = {"model/fvsbn.yaml": {"activation", "dropout", "connectivity", "connectivity_seed"}}


def arguments(target) -> set[str]:
    """Keyword arguments that a config may give: not what construct.py gives."""
    parameters = dict(inspect.signature(target).parameters)
    for given in ("spec", "num_params", "params"):
        parameters.pop(given, None)
    if not (inspect.isclass(target) and issubclass(target, DensityModel)):
        parameters.pop("order", None)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, one in parameters.items() if one.kind not in kinds}


@pytest.mark.parametrize("name", BUILT)
def test_keys_are_constructor_arguments(name):
    config = yaml.safe_load((CONFIGS / name).read_text())
    target = hydra.utils.get_object(config.pop("_target_"))
    keys = set(config)
    if name.startswith("model/") and not issubclass(target, DensityModel):
        chosen = set() if target.raster_only else set(construct.ORDER_KEYS)
        assert keys & set(construct.ORDER_KEYS) == chosen
        keys -= chosen
    assert keys <= arguments(target)
    if target.__module__.startswith("armodels."):
        assert keys == arguments(target) - LEFT_OUT.get(name, set())


def test_trainer_keys_are_settings():
    keys = set(yaml.safe_load((CONFIGS / "trainer/default.yaml").read_text()))
    assert keys == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_describes_itself(name):
    lines = (CONFIGS / name).read_text().splitlines()
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    said = [line for line in comments if "@package" not in line]
    assert comments
    assert said, "no line that says what it is"
    assert len(said[0]) > 10
    group = name.split("/")[0]
    if "/" in name:
        assert name.count("/") > 1 or said[0][2:] in armodels_list(group)


@functools.cache
def armodels_list(group: str) -> str:
    return done(ROOT, "list", f"group={group}", ARMODELS_CONFIG_PATH="")


def test_comments_list_the_orders():
    for name in MODELS:
        text = (CONFIGS / f"model/{name}.yaml").read_text()
        if line := re.search(r"^order: .*# (.*)$", text, re.MULTILINE):
            assert line.group(1).split(" | ") == list(ORDERS), name


@pytest.fixture(scope="module")
def tried() -> set[type]:
    """Classes of all that the cases are made of."""
    return {type(module) for case in CASES.values() for module in case.build(0).modules()}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_case(name, tried):
    target = yaml.safe_load((CONFIGS / f"model/{name}.yaml").read_text())["_target_"]
    assert hydra.utils.get_class(target) in tried


def config_of(*args: str) -> dict:
    """What ``armodels train`` would run with."""
    shown = done(ROOT, "train", *args, "--cfg", "job", "--resolve")
    return OmegaConf.to_container(OmegaConf.create(shown))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_builds(name):
    config = config_of(f"experiment={name}")
    source = construct.source(config["data"])
    try:
        spec = source.spec
    except FileNotFoundError as error:  # A text's alphabet stands in its file alone.
        pytest.skip(f"needs a file of $ARMODELS_DATA: {error}")
    model = construct.model(config["model"], config["head"], spec)
    assert model.spec.shape == spec.shape
    if params := list(model.parameters()):
        construct.optimizer(config["optimizer"], params)
    assert construct.schedule(config["schedule"])(0, 100) > 0
    Settings(**config["trainer"])
    text = (CONFIGS / f"experiment/{name}.yaml").read_text()
    command = re.search(r"^# [Cc]ommand: +armodels (train .*)$", text, re.MULTILINE)
    assert command, "the header says no command"
    assert f"experiment={name}" in command.group(1)
    if command.group(1) != f"train experiment={name}":
        done(ROOT, *shlex.split(command.group(1)), "--cfg", "job")
    assert re.search(r"^# [Ee]xpected: ", text, re.MULTILINE)
    assert re.search(r"^# [Rr]un time: ", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "blend"])  # needs runs
def test_every_model_trains_as_it_ships(name, tmp_path):
    """A step, an evaluation and samples; test_kinds.py does the rest, with smaller sizes."""
    target = yaml.safe_load((CONFIGS / f"model/{name}.yaml").read_text())["_target_"]
    kinds = getattr(hydra.utils.get_class(target), "kinds", {"image"})
    shape = () if "image" in kinds else ("data.kind=sequence", "data.shape=[9]")
    levels = "null" if name == "inverse_flow" else "2"
    done(tmp_path, "train", *QUICK, f"model={name}", "data=tiny", f"data.levels={levels}", *shape,
         "data.num_train=100", "trainer.max_steps=1", "samples.num=2", "out=run")  # fmt: skip
    assert (tmp_path / "run/metrics.json").is_file()
    pictures = [path.name for path in (tmp_path / "run/samples").iterdir()]
    assert pictures in (["step-0000000.png"], ["step-0000001.png"])


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("armodels", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / part, ignore=ignore, symlinks=True)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, folder)
    (folder / "configs/local").mkdir(exist_ok=True)
    (folder / "configs/local/default.yaml").write_text("# Mine alone\nseed: 5\n")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
               "--quiet", "--disable-pip-version-check", "."]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


@pytest.mark.slow
def test_the_wheel_holds_every_config(wheel):
    assert {f"armodels/configs/{name}" for name in NAMES} <= wheel
    assert "armodels/configs/__init__.py" in wheel
    assert "armodels/configs/local/default.yaml" not in wheel


@pytest.mark.slow
def test_the_wheel_holds_every_module(wheel):
    modules = {
        f"armodels/{path.relative_to(ROOT / 'armodels').as_posix()}"
        for path in (ROOT / "armodels").rglob("*.py")
    }
    assert modules <= wheel
    assert "armodels/py.typed" in wheel  # without it, type checkers read no annotation
    assert not [name for name in wheel if name.startswith(("tests", "scripts", "configs"))]


# The README and the docs


def commands() -> list[str]:
    """Lines of code blocks that call armodels; those with a placeholder left out."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                if line.startswith("armodels ") and not re.search(r"…|\.\.\.|<", line):
                    found.append(line)
    return sorted(set(found))


def test_no_documented_command_needs_a_mark():
    """Of Hydra's grammar: ``+`` adds, ``~`` takes away, ``@`` moves. Keys of Ray are not ours."""
    lines = [line for line in commands() if "hydra.launcher.ray" not in line]
    words = [word for line in lines for word in shlex.split(line, comments=True)[2:]]
    assert len(words) > 200
    assert not [word for word in words if word[0] in "+~" or "@" in word.partition("=")[0]]


def test_what_is_typed_and_an_experiment_come_last():
    for verb in cli.VERBS:
        config = yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text())
        defaults = config.get("defaults", [])
        assert "_self_" in defaults[:2], verb
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())["defaults"]
    assert train[-2:] == [{"experiment": None}, {"optional local": "default"}]


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_documented_commands_compose(line, tmp_path):
    verb, *args = shlex.split(line, comments=True)[1:]
    if "--config-dir" in args:
        shutil.copytree(ROOT / "examples/clips", tmp_path, dirs_exist_ok=True)
    if verb not in cli.VERBS:
        assert armodels(tmp_path, verb, *args).code == 0
        return
    if "-m" in args:  # --cfg shows one job: the first and the last
        args.remove("-m")
        splits = [arg.split(",") if "[" not in arg else [arg] for arg in args]
        ends = [[s[i] if i == 0 else s[0].split("=")[0] + "=" + s[i] if len(s) > 1 else s[0]
                 for s in splits] for i in (0, -1)]  # fmt: skip
    else:
        ends = [args]
    for one in ends:
        done(tmp_path, verb, *one, "--cfg", "job")
