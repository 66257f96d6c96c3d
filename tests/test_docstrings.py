"""Docstrings say what is raised and what the arguments are; names and sizes of rooms."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import armodels

ROOT = Path(armodels.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}

ARGS = r"^\s*Args:$"

NAMES = {"given", "told", "said", "Above", "Along", "Whole"}
"""Names that tell a newcomer nothing."""

LONGEST = 500
"""Lines of a room at most, save the compiled kernels."""

# Rooms not done yet; none is to be added.
UNDOCUMENTED: set[str] = set()
UNNAMED: set[str] = set()
LONG: set[str] = {"kernels/compiled.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(source: str) -> Iterator[tuple[str, Function, ast.ClassDef | None]]:
    """Qualified name, node and class of public functions and of methods of public classes."""
    for node in ast.parse(source).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for one in node.body:
                if isinstance(one, Function) and (one.name == "__init__" or one.name[:1] != "_"):
                    yield f"{node.name}.{one.name}", one, node


def raised(function: Function) -> set[str]:
    """Names of the errors that the body itself raises, also in blocks; not of inner functions."""
    found, left = set(), list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(error).rpartition(".")[2]
            if isinstance(node.exc, ast.Call) or name[0].isupper():  # no caught one, raised again
                found.add(name)
        left += ast.iter_child_nodes(node)
    return found - {"NotImplementedError"}


def says_raises(doc: str) -> bool:
    """Whether a docstring has a Raises section, or its first sentence is "Raise X ..."."""
    return bool(re.search(r"^\s*Raises:$", doc, re.M) or re.match(r"Raise \w+", doc))


def documents(function: Function, owner: ast.ClassDef | None) -> str:
    """The docstring; of ``__init__`` that of its class, which names the arguments."""
    node = owner if owner is not None and function.name == "__init__" else function
    return ast.get_docstring(node) or ""


def above(file: str, name: str) -> list[str]:
    """Docstrings of what a method overrides."""
    owner, _, method = name.partition(".")
    if not method:
        return []
    module = "armodels." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    bases = getattr(importlib.import_module(module), owner).__mro__[1:]
    return [getattr(vars(base).get(method), "__doc__", None) or "" for base in bases]


def silent(file: str, source: str) -> list[str]:
    """Public functions that raise what neither their docstring says nor what they override."""
    return [
        f"{name} raises {', '.join(sorted(errors))}"
        for name, node, owner in public(source)
        if (errors := raised(node))
        and not any(map(says_raises, [documents(node, owner), *above(file, name)]))
    ]


def unexplained(file: str, source: str) -> list[str]:
    """Public functions of three or more arguments without Args, theirs or what they override's."""
    found = []
    for name, node, owner in public(source):
        args = node.args
        names = [one.arg for one in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        names += [one.arg for one in (args.vararg, args.kwarg) if one]
        if len({*names} - {"self", "cls"}) >= 3:
            docs = [documents(node, owner), *above(file, name)]
            found += [name] * (not any(re.search(ARGS, doc, re.M) for doc in docs))
    return found


def identifiers(source: str) -> set[str]:
    """Names of variables, parameters, attributes, functions and classes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name"):
            found.add(getattr(node, field, None))
    return found


def documented(file: str) -> bool:
    return not silent(file, FILES[file]) and not unexplained(file, FILES[file])


@pytest.mark.parametrize("file", sorted({*FILES} - UNDOCUMENTED))
def test_whoever_raises_says_so(file):
    assert silent(file, FILES[file]) == []


@pytest.mark.parametrize("file", sorted({*FILES} - UNDOCUMENTED))
def test_three_arguments_are_explained(file):
    assert unexplained(file, FILES[file]) == []


@pytest.mark.parametrize("file", sorted({*FILES} - UNNAMED))
def test_names_say_what_they_hold(file):
    assert identifiers(FILES[file]) & NAMES == set()


@pytest.mark.parametrize("file", sorted({*FILES} - LONG))
def test_a_room_has_at_most_500_lines(file):
    assert len(FILES[file].splitlines()) <= LONGEST


def test_the_lists_hold_no_room_that_is_done():
    assert [file for file in sorted(UNDOCUMENTED) if documented(file)] == []
    assert [file for file in sorted(UNNAMED) if not identifiers(FILES[file]) & NAMES] == []
    assert [file for file in sorted(LONG) if len(FILES[file].splitlines()) <= LONGEST] == []


@pytest.mark.parametrize(
    ("source", "misses"),
    [
        ("def f(): raise ValueError", 1),
        ("def f():\n    with a:\n        raise ValueError('no')", 1),
        ("def f():\n    'Raise ValueError if not.'\n    raise ValueError('no')", 0),
        ("def f():\n    'F.\\n\\n    Raises:\\n        ValueError: No.'\n    raise ValueError", 0),
        ("def f():\n    try: g()\n    except ValueError as error: raise error", 0),
        ("def f():\n    raise", 0),
        ("def f(): raise NotImplementedError", 0),
        ("def f():\n    def g(): raise ValueError", 0),
        ("def _f(): raise ValueError", 0),
        ("class A:\n    'A.'\n    def __init__(self): raise ValueError", 1),
        ("def f(a, b, c): ...", 1),
        ("def f(a, *, b, **c): ...", 1),
        ("def f(a, b): ...", 0),
        ("def f(a, b, c):\n    'F.\\n\\n    Args:\\n        a: A.'", 0),
    ],
)
def test_a_miss_is_seen(source, misses):
    """Of functions of a module; the class is one that has no bases."""
    file = "show.py"
    found = [
        name
        for name, node, owner in public(source)
        if raised(node) and not says_raises(documents(node, owner))
    ]
    if "class" not in source:
        assert len(silent(file, source)) + len(unexplained(file, source)) == misses
    else:
        assert len(found) == misses


def test_every_kind_of_name_is_seen():
    for source in ("given = 1", "def told(): ...", "class Whole: ...", "def f(said): ...",
                   "a.Along", "try: ...\nexcept E as given: ..."):  # fmt: skip
        assert identifiers(source) & NAMES, source
