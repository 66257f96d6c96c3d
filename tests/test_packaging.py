"""What pyproject.toml, the Makefile, the workflow and the pages for contributors say agrees."""

import ast
import fnmatch
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TREE

import armodels

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(armodels.__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.M))


def test_one_list_of_python_versions():
    lowest, above = map(
        int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    )
    versions = [f"3.{minor}" for minor in range(lowest, above)]
    of_classifiers = [
        found.group(1)
        for one in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one))
    ]
    assert of_classifiers == versions
    for job in ("test", "test-wheel"):
        assert WORKFLOW["jobs"][job]["strategy"]["matrix"]["python"] == versions
        assert WORKFLOW["jobs"][job]["timeout-minutes"] <= 15
    pages = [
        (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    ]
    for page in pages:
        assert f"Python {versions[0]} to {versions[-1]}" in page.replace("\n", " ")


def test_the_workflow_calls_make_targets_and_nothing_else():
    called = [step["run"] for step in STEPS if "run" in step]
    assert called == [
        "make lint", "make test", "make test-wheel", "make test-slow", "make docs"
    ]  # fmt: skip
    assert {line.split()[1] for line in called} <= TARGETS
    assert WORKFLOW["env"] == {"TORCH": "cpu"}
    assert "ifeq ($(TORCH),cpu)" in MAKEFILE


def test_a_fresh_install_has_what_works():
    """Hydra 1.4 cannot read the configs, and an older TensorBoard needs what is gone."""
    wanted = {re.match(r"[\w-]+", one).group(): one for one in PROJECT["dependencies"]}
    assert wanted["hydra-core"].endswith(",<1.4")
    assert wanted["tensorboard"] == "tensorboard>=2.21"
    plugins = {"optuna", "hydra-joblib-launcher", "submitit", "ray", "wandb", "mlflow-skinny"}
    assert not plugins & wanted.keys()
    assert plugins <= {
        re.match(r"[\w-]+", one).group()
        for extra in PROJECT["optional-dependencies"].values()
        for one in extra
    }
    recipe = MAKEFILE.partition("test-wheel:")[2].partition("\n\n")[0]
    assert recipe.count("pip check") == 2
    assert "cd build/wheel/empty && OMP_NUM_THREADS=1 $(FRESH)/python -m pytest tests" in recipe


# What users import and what runs it, sources of data, and the contracts that families are written
# against: all annotated.
TYPED = [
    "armodels",
    "armodels.baselines*",
    "armodels.construct",
    "armodels.candidates",
    "armodels.charts",
    "armodels.checkpoints",
    "armodels.checks",
    "armodels.cli",
    "armodels.contexts",
    "armodels.data*",
    "armodels.density*",
    "armodels.disk",
    "armodels.earlier",
    "armodels.errors",
    "armodels.evaluation",
    "armodels.examples",
    "armodels.heads",
    "armodels.limits",
    "armodels.loggers*",
    "armodels.masks",
    "armodels.memory",
    "armodels.named",
    "armodels.networks*",
    "armodels.objectives",
    "armodels.orders",
    "armodels.pictures",
    "armodels.resuming",
    "armodels.run",
    "armodels.schedules",
    "armodels.spec",
    "armodels.tasks*",
    "armodels.tracking",
    "armodels.training*",
    "armodels.trust",
    "armodels.typed",
]


def unchecked_rooms() -> set[str]:
    """Modules the errors of which mypy ignores."""
    (unchecked,) = [
        set(one["module"])
        for one in PYPROJECT["tool"]["mypy"]["overrides"]
        if "ignore_errors" in one
    ]
    return unchecked


def room_names() -> set[str]:
    """Every module of the package."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "armodels").rglob("*.py")
    }


def test_rooms_without_types_are_counted():
    """Every file is checked but those listed; the list holds no room that is gone."""
    assert PYPROJECT["tool"]["mypy"]["files"] == ["armodels"]
    unchecked = unchecked_rooms()
    assert unchecked <= room_names(), sorted(unchecked - room_names())


@pytest.mark.parametrize("pattern", TYPED)
def test_public_rooms_and_contracts_are_checked(pattern):
    """None of them stands in the list of rooms without types."""
    rooms = fnmatch.filter(room_names(), pattern)
    assert rooms, "no such room"
    assert not unchecked_rooms() & set(rooms)


def test_what_is_given_by_name_has_its_type():
    """A type checker reads the imports, a program ``__getattr__``: both give the same."""
    tree = ast.parse((ROOT / "armodels/__init__.py").read_text())
    (block,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imported = [(one.module, name.name, name.asname) for one in block for name in one.names]
    public = armodels._PUBLIC.items()
    assert sorted(imported) == sorted((module, name, name) for name, module in public)


def test_the_workflow_needs_no_rights():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "secrets." not in (ROOT / ".github/workflows/test.yml").read_text()


def test_contributing_names_what_exists():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"make ([a-z-]+)", page)) <= TARGETS
    paths = re.findall(r"`((?:armodels|configs|scripts|tests|\.github)/[\w./-]*)`", page)
    paths += [path for path in re.findall(r"\]\(([\w./-]+)\)", page) if "://" not in path]
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_changelog_keeps_its_form():
    page = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", page, re.M)
    assert versions[0] == "Unreleased"
    for version in versions[1:]:
        assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", page, re.M), (
            version
        )
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", page, re.M)) <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["armodels", "configs", "scripts", "tests"])
def test_the_oldest_python_can_read_every_file(folder):
    for path in (ROOT / folder).rglob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_tests_of_the_wheel_import_no_test_of_the_tree():
    """Those of the two rooms that are left read the installed package alone."""
    imported = {
        node.module
        for path in Path(__file__).parent.glob("test_*.py")
        if path.stem.removeprefix("test_") not in TREE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    of_the_tree = {f"test_{name}" for name in TREE}
    assert imported & of_the_tree == {"test_architecture", "test_docstrings"}
