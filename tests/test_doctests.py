"""Examples in docstrings print what they say, each with its own imports, in an empty folder."""

import doctest
import importlib

import pytest
from test_docstrings import FILES

import armodels

MODULES = sorted(
    "armodels." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for file, source in FILES.items()
    if ">>> " in source
)
OPTIONS = doctest.ELLIPSIS
BUT = {"Result", "Watching", "Network", "OrderMixture", "DensityModel", "AutoregressiveModel"}
"""Public names whose example stands at the functions or methods that make or use them."""


def examples(module: str) -> list[doctest.DocTest]:
    """The examples of a module; they see nothing of it that they do not import."""
    found = doctest.DocTestFinder().find(importlib.import_module(module), globs={})
    return [one for one in found if one.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner, told = doctest.DocTestRunner(optionflags=OPTIONS), []
    for one in examples(module):
        runner.run(one, out=told.append)
    assert runner.summarize(verbose=False).attempted
    assert not told, "".join(told)


def test_what_is_public_has_an_example():
    named = {one.name.rpartition(".")[2] for module in MODULES for one in examples(module)}
    assert {"of", "log_prob", "sample", "complete", "auto", "make", "walk"} <= named
    assert {*armodels._PUBLIC} - BUT - named == {"Splits"}  # whose example is that of Splits.of
