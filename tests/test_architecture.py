"""Imports flow one way, and heavy packages stay behind their doors."""

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import armodels

ROOT = Path(armodels.__file__).parent

# Lowest first: a module imports lower layers only, or its own package.
LAYERS = [
    {
        "alphabet",
        "archive",
        "notes",
        "waveform",
        "show",
        "checks",
        "disk",
        "draws",
        "earlier",
        "frugal",
    }
    | {"licences", "lines", "names"},
    {"limits", "spec", "schedules", "run", "machine", "optimizers"},
    {"card", "contexts", "orders", "masks", "kernels", "typed", "errors"},
    {"networks", "heads", "objectives"},
    {"density", "data"},
    {"baselines", "coding", "features", "flows", "partial"},
    {"scoring"},
    {"evaluation"},
    {"trust"},
    {"construct", "exported", "parts", "pictures"},
    {"charts"},
    {"views"},
    {"loggers"},
    {"checkpoints", "tracking", "memory"},
    {"roads"},
    {
        "anomalies",
        "compression",
        "examples",
        "imputation",
        "prompts",
        "training",
        "resuming",
        "search",
        "failing",
    },
    {"candidates", "blending", "distilling", "originals", "study", "named"},
    {"tasks"},
    {"sweeps"},
    {"launchers"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Narrower than the layers; "networks" here is any family's file, "networks.base" is not.
ONLY = {
    "kernels": set(),
    "machine": set(),
    "run": {"checks", "disk", "show"},
    "disk": set(),
    "earlier": set(),
    "masks": set(),
    "contexts": {"spec"},
    "data": {
        "alphabet",
        "checks",
        "contexts",
        "disk",
        "kernels",
        "notes",
        "show",
        "spec",
        "waveform",
    },
    "pictures": {"spec"},
    "charts": {"pictures", "spec"},
    "objectives": {"draws", "orders", "spec"},
    "density": {
        "checks",
        "networks.base",
        "networks.grouped",
        "networks.stream",
        "heads",
        "objectives",
        "orders",
        "spec",
    },
    "partial": {"__version__", "disk", "show"},
    "archive": set(),
    "coding": {"density", "heads", "networks.stream"},
    "scoring": {"data.rows", "density", "partial", "show"},
    "evaluation": {
        "checks",
        "data.arrays",
        "data.base",
        "data.rows",
        "density",
        "lines",
        "scoring",
        "spec",
    },
    # It is called with objects: nothing in it reads a config.
    "training": {
        "charts",
        "checkpoints",
        "checks",
        "contexts",
        "data.base",
        "data.rows",
        "density.base",
        "density.stream",
        "disk",
        "draws",
        "evaluation",
        "limits",
        "machine",
        "lines",
        "loggers.base",
        "objectives",
        "pictures",
        "run",
        "schedules",
        "scoring",
        "show",
        "spec",
        "tracking",
        "views",
    },  # fmt: skip
    "resuming": {"checks", "construct", "run"},
    "flows": {
        "checks",
        "density",
        "networks.layers",
        "networks.made",
        "networks.splines",
        "orders",
        "spec",
    },
    "baselines": {"checks", "density", "networks.base", "heads", "orders", "spec"},
}
NEVER = {"tasks.train": {"networks", "heads"}}

DOORS = {
    "constriction": {"coding"},
    "hydra": {"cli", "construct", "launchers", "named", "search"},
    "lightning_fabric": {"tasks.train", "training", "evaluation", "scoring"},
    "matplotlib": {"charts"},
    "mido": {"data.midi"},
    "optuna": {"study"},
    "safetensors": {"exported"},
    "submitit": {"launchers"},
    "pandas": {"data.dialect", "data.files"},
    "mlflow": {"loggers.mlflow"},
    "wandb": {"loggers.wandb"},
    "lightning": set(),
    "pytorch_lightning": set(),
}


def modules() -> dict[str, str]:
    """Name below ``armodels`` -> source, of every module but the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text()
    del found["__init__"]
    return found


MODULES = modules()


def imports(source: str) -> set[str]:
    """Every module that is imported anywhere in the source, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(source: str) -> set[str]:
    """Imports of this package, as paths below it; a function's name may stand at the end."""
    names = {name for name in imports(source) if name.startswith("armodels.")}
    below = {name.removeprefix("armodels.") for name in names}
    return {name for name in below if name.split(".")[0] in RANK}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def wrong_edges(name: str, source: str) -> list[str]:
    """Imports of this package that the module ``name`` must not have."""
    top, wrong = name.split(".")[0], []
    for used in sorted(own(source)):
        used_top = used.split(".")[0]
        if top == used_top:
            good = top != "tasks"  # they stand side by side
        else:
            good = RANK[used_top] < RANK[top] and within(used, ONLY.get(top, {used}))
        if not good or within(used, NEVER.get(name, set())):
            wrong.append(used)
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_flow_one_way(name):
    assert name.split(".")[0] in RANK, f"{name} has no place in LAYERS yet"
    assert wrong_edges(name, MODULES[name]) == [], f"{name} may not import these"


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_stay_behind_their_doors(name):
    used = {one.split(".")[0] for one in imports(MODULES[name])}
    for package, doors in DOORS.items():
        assert package not in used or within(name, doors), f"{name} may not import {package}"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("spec", "from armodels import orders"),
        ("heads", "from armodels.density.autoregressive import AutoregressiveModel"),
        ("heads", "from armodels.networks import layers"),
        ("networks.nade", "import armodels.heads"),
        ("data.digits", "def load():\n    from armodels.orders import make"),
        ("data.digits", "from armodels import density"),
        ("density", "from armodels.networks.made import MADE"),
        ("density", "from armodels import data"),
        ("kernels.nade", "from armodels.spec import DataSpec"),
        ("tasks.train", "from armodels.networks.base import Network"),
        ("tasks.sample", "from armodels.tasks.train import train"),
        ("tasks.score", "from armodels.tasks.evaluate import main"),
        ("training.loop", "from armodels import construct"),
        ("training.loop", "from armodels.networks.base import Network"),
        ("run", "from armodels import cli"),
        ("run", "from armodels.checkpoints import restore"),
    ],
)
def test_a_wrong_edge_is_seen(name, source):
    assert wrong_edges(name, source)


def test_right_edges_pass():
    assert not wrong_edges("networks.made", "from armodels.networks import layers\nimport torch")
    assert not wrong_edges("density", "from armodels.networks.base import Network")
    assert not wrong_edges("tasks.train", "from armodels import run, __version__")


@pytest.mark.parametrize(
    "module", ["armodels", *(f"armodels.{name}" for name in MODULES if name == "cli")]
)
def test_the_front_door_is_light(module):
    """Help and version must not wait seconds for torch."""
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'hydra', 'numpy', 'lightning_fabric'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{module} imports {done.stderr}"


LIGHT = {
    "tasks.compare": {"torch", "numpy", "hydra"},
    "tasks.list": {"torch", "numpy"},
    "run": {"torch", "pandas"},
    "data.tables": {"pandas"},  # it takes a third of a second that no other command needs
    "tasks.evaluate": {"torchvision", "matplotlib", "pandas", "sklearn", "scipy", "numba"},
    "tasks.train": {"torchvision", "matplotlib", "pandas", "sklearn", "scipy", "numba"},
}
"""What modules do without until they are used; one that does without more stands earlier."""


@pytest.fixture(scope="module")
def imported():
    """What each module of ``LIGHT`` imports that it should not, in one new process."""
    code = (
        "import importlib, json, sys\n"
        f"for module, heavy in {LIGHT}.items():\n"
        "    importlib.import_module(f'armodels.{module}')\n"
        "    print(json.dumps([module, sorted(heavy & set(sys.modules))]))\n"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return dict(map(json.loads, told.stdout.splitlines()))


@pytest.mark.parametrize("module", LIGHT)
def test_heavy_packages_wait_until_they_are_used(module, imported):
    assert imported[module] == []


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_one_system_is_imported(name):
    """``fcntl`` and its like do not exist on Windows."""
    used = {one.split(".")[0] for one in imports(MODULES[name])}
    used &= {"fcntl", "resource", "termios", "pwd", "grp", "msvcrt", "winreg"}
    assert used <= ({"resource"} if name == "machine" else set())  # inside a branch for POSIX


def test_public_names_are_found_lazily():
    assert armodels.DataSpec is sys.modules["armodels.spec"].DataSpec
    with pytest.raises(AttributeError, match="module 'armodels' has no attribute 'Models'"):
        armodels.Models  # noqa: B018


# Abstract or final

HOOKS = {"__init__", "_set_order", "__setattr__"}
"""Methods of an abstract base or of torch that a subclass extends: it calls that of the base."""


def classes(name: str) -> list[tuple[type, ast.ClassDef]]:
    """The classes of a module's top level, each with its source."""
    module = importlib.import_module(f"armodels.{name}")
    nodes = ast.parse(MODULES[name]).body
    return [(getattr(module, node.name), node) for node in nodes if isinstance(node, ast.ClassDef)]


ROOMS = [name for name in MODULES if name != "__main__"]  # which runs the command line


@functools.cache
def bases() -> set[type]:
    """Every class that another class of the package is made of."""
    return {base for name in ROOMS for kind, _ in classes(name) for base in kind.__bases__}


def is_open(kind: type, node: ast.ClassDef) -> bool:
    """Whether a class is neither abstract nor final: it works, and what is below it may bend it.

    Records (NamedTuple, dataclass) and exceptions need no mark: they have no behaviour to bend.
    """
    if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False):
        return False
    marks = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
    record = issubclass(kind, (tuple, BaseException)) or "dataclass" in marks
    return kind in bases() or not (record or "final" in marks)


def extended(node: ast.ClassDef) -> set[str]:
    """Methods of its base that a class calls from its own, where the base does not ask for it."""
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
    return {one.attr for one in calls if ast.unparse(one.value) == "super()"} - HOOKS


@pytest.mark.parametrize("name", ROOMS)
def test_classes_are_abstract_or_final(name):
    """What a class does stands in one place: nothing below it changes it."""
    wrong = {node.name for kind, node in classes(name) if is_open(kind, node)}
    wrong |= {f"{node.name}.{one}" for _, node in classes(name) for one in extended(node)}
    assert not wrong, "share code by functions or by an abstract base, and mark what is final"


def test_an_open_class_is_seen():
    def seen(source: str) -> list[bool]:
        source = f"from abc import *\nfrom dataclasses import *\nfrom typing import *\n{source}"
        names: dict = {}
        exec(source, names)
        nodes = [one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)]
        return [is_open(names[node.name], node) for node in nodes]

    assert seen("class A: pass") == [True]
    assert seen("@final\nclass A: pass") == [False]
    assert seen("class A(ABC):\n    @abstractmethod\n    def f(self): ...") == [False]
    assert seen("class A(ABC):\n    def f(self): ...") == [True]
    assert seen("@dataclass(frozen=True)\nclass A: pass\nclass B(NamedTuple): pass") == [False] * 2
    assert seen("class A(ValueError): pass") == [False]
    calls = "class A(B):\n    def f(self):\n        return super().f().g()"
    assert extended(ast.parse(calls).body[0]) == {"f"}
    assert not extended(ast.parse(calls.replace("f(", "__init__(")).body[0])
