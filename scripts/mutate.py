"""Plant known bugs, one at a time, in a copy of the tree, and show which test catches each.

    python scripts/mutate.py [WORD ...]    (only the bugs whose name holds one of the words)
    python scripts/mutate.py --check       (only say, in seconds, which bugs have lost their place)
    python scripts/mutate.py --refile      (and file anew those with one place to go to)

A bug that no test catches, or that has lost its place, makes this fail.

Bugs are filed like the sources: ``scripts/bugs/networks/made.txt`` holds those of
``armodels/networks/made.py``, and ``scripts/bugs/configs/model/made.yaml.txt`` those of
``configs/model/made.yaml``. One bug, with an empty line before the next::

    made: output sees itself
    MADE.__init__ test_invariants.py::test_x test_made.py::test_y
    - mask = rank_mask(seen, outputs, strict=True)
    + mask = rank_mask(seen, outputs, strict=False)

That is: its name, which no other bug has; the anchor and the tests that must catch it; the old
text and the new. The anchor is the innermost function or class that holds the whole old text, as
``function``, ``Class.method`` or ``function.inner``, or the word ``module`` for text outside of
all (and for a file that is not Python). Within its anchor the old text stands exactly once, be it
part of a line. So lines may move within a file, and equal lines may stand elsewhere in it. When a
function moves to another file, ``--refile`` takes its bugs along.
"""

import ast
import contextlib
import multiprocessing
import multiprocessing.context
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUGS = ROOT / "scripts" / "bugs"
SECONDS = 300  # a bug that makes a test hang is caught, too
HEAVY = ["torch", "torchvision", "lightning_fabric", "numba", "tqdm", "scipy.stats", "pandas"]
HEAVY += ["sklearn.mixture", "matplotlib.figure", "torch.utils.tensorboard", "pytest", "PIL.Image"]
"""Packages that tests import; none of them imports the copy of the tree."""


class Bug(NamedTuple):
    """Within ``anchor`` of ``file``, ``old`` stands exactly once; ``new`` takes its place."""

    name: str
    file: str
    anchor: str
    old: str
    new: str
    tests: list[str]


class Misplaced(ValueError):
    """A bug has not exactly one place; the message says why, and where it may belong."""


def source_of(page: Path) -> str:
    """The file, below the root, whose bugs the text file ``page`` holds."""
    name = page.relative_to(BUGS).with_suffix("").as_posix()
    return name if Path(name).suffix else f"armodels/{name}.py"


def page_of(file: str) -> Path:
    """The text file with the bugs of ``file``: the inverse of ``source_of``."""
    name = file.removeprefix("armodels/").removesuffix(".py") if file.endswith(".py") else file
    return BUGS / f"{name}.txt"


def read_bugs() -> list[Bug]:
    """All bugs, written as the docstring of this module says.

    Raises:
        ValueError: A bug is not complete, or two have one name.
    """
    found: dict[str, Bug] = {}
    for page in sorted(BUGS.rglob("*.txt")):
        for block in re.split(r"\n{2,}", page.read_text().strip("\n")):
            name, _, rest = block.partition("\n")
            where, *lines = rest.split("\n")
            anchor, *tests = where.split() or [""]
            old, new = ("\n".join(one[2:] for one in lines if one[:1] == sign) for sign in "-+")
            if not (old and tests):
                raise ValueError(f"bug {name!r} of {page} has no tests or no old text")
            if name in found:
                raise ValueError(f"two bugs have the name {name!r}, the second in {page}")
            found[name] = Bug(name, source_of(page), anchor, old, new, tests)
    return list(found.values())


def write_bugs(bugs: list[Bug]) -> None:
    """Write the folder of bugs anew, those of one source file in the order of ``bugs``."""
    pages: dict[Path, list[str]] = {page: [] for page in BUGS.rglob("*.txt")}
    for bug in bugs:
        lines = [bug.name, " ".join([bug.anchor, *bug.tests])]
        for sign, text in zip("-+", (bug.old, bug.new), strict=True):
            lines += [f"{sign} {line}".rstrip(" ") for line in text.split("\n")]
        pages.setdefault(page_of(bug.file), []).append("\n".join(lines) + "\n")
    for page, blocks in pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join(blocks))
        if not blocks:
            page.unlink()


@cache
def anchors(source: str) -> list[tuple[str, int, int]]:
    """Name, first and last character (+ 1) of all functions and classes, outer ones first."""
    starts = [0, *(match.end() for match in re.finditer("\n", source)), len(source)]
    found = []

    def visit(node: ast.AST, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = above
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{above}.{child.name}".lstrip(".")
                first = min(one.lineno for one in (child, *child.decorator_list))
                found.append((name, starts[first - 1], starts[child.end_lineno or first]))
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def places(file: str, source: str, text: str) -> list[tuple[str, int]]:
    """Every place of a text: the innermost function or class that holds it whole, and where."""
    named = anchors(source) if file.endswith(".py") else []
    found = []
    at = source.find(text)
    while at >= 0:
        holds = [name for name, a, b in named if a <= at and at + len(text) <= b]
        found.append((holds[-1] if holds else "module", at))
        at = source.find(text, at + 1)
    return found


def elsewhere(bug: Bug, folder: Path) -> list[tuple[str, str]]:
    """File and anchor of every place of a bug's text, in all files of its kind.

    Places in functions of the very name of the anchor go before those in a function of another
    class with its last name, and those before all other places.
    """
    found = []
    kind = Path(bug.file).suffix
    for path in sorted((folder / Path(bug.file).parts[0]).rglob(f"*{kind}")):
        file = path.relative_to(folder).as_posix()
        found += [(file, name) for name, _ in places(file, path.read_text(), bug.old)]
    same = [one for one in found if one[1] == bug.anchor]
    last = bug.anchor.rpartition(".")[2]
    return same or [one for one in found if one[1].rpartition(".")[2] == last] or found


def planted(bug: Bug, folder: Path) -> str:
    """The file's text with the bug.

    Raises:
        Misplaced: The old text does not stand exactly once within the anchor.
    """
    path = folder / bug.file
    source = path.read_text() if path.is_file() else ""
    here = [at for name, at in places(bug.file, source, bug.old) if name == bug.anchor]
    if len(here) != 1:
        other = [f"{name} of {file}" for file, name in elsewhere(bug, folder)]
        page = page_of(bug.file).relative_to(ROOT)
        raise Misplaced(
            f"bug {bug.name!r}: its text stands {len(here)} times in {bug.anchor} of {bug.file}, "
            f"not once, but in {', in '.join(other) or 'no other file'}; mend it in {page}"
        )
    return source[: here[0]] + bug.new + source[here[0] + len(bug.old) :]


def check(refile: bool) -> int:
    """Print which bugs have lost their place, and the number of those that have none now."""
    bugs, lost = read_bugs(), 0
    for i, bug in enumerate(bugs):
        try:
            planted(bug, ROOT)
        except Misplaced as error:
            other = elsewhere(bug, ROOT)
            if refile and len(other) == 1:
                file, anchor = other[0]
                bugs[i] = bug._replace(file=file, anchor=anchor)
                print(f"bug {bug.name!r}: now in {anchor} of {file}")
            else:
                lost += 1
                print(error)
    if refile:
        write_bugs(bugs)
    print(f"{len(bugs) - lost} of {len(bugs)} bugs have their place")
    return lost


def copy_tree(source: Path, folder: Path) -> None:
    """What the tests need, and nothing else."""
    for part in ("armodels", "configs", "tests"):
        compiled = shutil.ignore_patterns("*.pyc")
        shutil.copytree(source / part, folder / part, symlinks=True, ignore=compiled)
    shutil.copy(source / "pyproject.toml", folder)
    # As in a wheel: without it Hydra finds the configs of the package that is installed.
    if not (found := folder / "armodels/configs").exists():
        found.symlink_to("../configs")


def run_tests(folder: Path, tests: list[str], seconds: float | None = None) -> tuple[bool, str]:
    """Did they pass within so many seconds, and the first that failed."""
    with tempfile.NamedTemporaryFile() as told:
        process = _forks().Process(target=_pytest, args=(folder, tests, told.name))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return False, "(the tests hang)"
        output = told.read().decode(errors="replace")
    if process.exitcode < 0:
        return False, "(the tests are killed)"
    if process.exitcode not in (0, 1, 2):
        raise RuntimeError(f"pytest did not run: {output}")
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    return process.exitcode == 0, found.group(1) if found else "(import fails)"


@cache
def _forks() -> multiprocessing.context.BaseContext:
    """Where processes are forks of one that has imported what takes seconds to import."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Locks of bars that a test began are no loss where its process ends at once.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def _pytest(folder: Path, tests: list[str], told: str) -> None:
    """Run tests of a tree in this process; what they print goes into a file."""
    import pytest

    os.setsid()  # what hangs is killed with all that it started
    os.chdir(folder)
    # The copy is imported, not an installed package.
    others = (one for one in sys.path if one and one != str(ROOT / "scripts"))
    sys.path[:] = [str(folder), *others]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in ("PYTHONPATH", "PYTHONWARNINGS"):
        os.environ.pop(name, None)
    sys.dont_write_bytecode = True
    out = os.open(told, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *(f"tests/{name}" for name in tests)])
    sys.stdout.flush()
    os._exit(code)  # a thread that a broken test left behind must not keep the process


def try_bug(bug: Bug, clean: Path) -> tuple[Bug, bool, str, float]:
    """Plant and test: the bug, whether it survived, what caught it, seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(clean, folder)
        (folder / bug.file).write_text(planted(bug, clean))
        survived, test = run_tests(folder, bug.tests, SECONDS)
    return bug, survived, test, time.perf_counter() - start


def main(words: list[str]) -> int:
    """Print the table; the number of survivors."""
    if words in (["--check"], ["--refile"]):
        return check(refile=words == ["--refile"])
    bugs = [bug for bug in read_bugs() if not words or any(word in bug.name for word in words)]
    if not bugs:
        raise SystemExit(f"no bug has {' or '.join(words)} in its name")
    for bug in bugs:  # a stale one fails here, not after minutes of tests
        planted(bug, ROOT)
    survivors = []
    wide = max(len(bug.name) for bug in bugs)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        # Run once without a bug; what numba compiles meanwhile is copied with this tree.
        clean = Path(name)
        copy_tree(ROOT, clean)
        files: dict[str, set[str]] = {}
        for test in (test for bug in bugs for test in bug.tests):
            files.setdefault(test.partition("::")[0], set()).add(test)
        groups = list(map(sorted, files.values()))
        for passed, test in pool.map(run_tests, [clean] * len(groups), groups):
            if not passed:
                raise SystemExit(f"without any bug, {test} fails")
        for bug, survived, test, seconds in pool.map(try_bug, bugs, [clean] * len(bugs)):
            print(f"{bug.name:{wide}} | {'SURVIVES' if survived else test} | {seconds:.0f} s")
            sys.stdout.flush()
            survivors += [bug.name] * survived
    print(f"{len(bugs) - len(survivors)} of {len(bugs)} bugs caught")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
