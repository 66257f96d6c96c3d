"""Plant known bugs, one at a time, in a copy of the tree, and show which test catches each.

    python scripts/mutate.py [WORD ...]    (only the bugs whose name holds one of the words)

A bug that no test catches, or whose place has moved, makes this fail. To add one, add it to
scripts/bugs.txt.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # a bug that makes a test hang is caught, too


class Bug(NamedTuple):
    """``old`` stands exactly once in ``file``; ``new`` takes its place."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def read_bugs() -> list[Bug]:
    """The bugs of ``bugs.txt``, which says how they are written."""
    text = (ROOT / "scripts" / "bugs.txt").read_text()
    bugs = []
    for block in re.split(r"\n{2,}", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()):
        name, where, *lines = block.split("\n")
        file, *tests = where.split()
        old, new = ("\n".join(one[2:] for one in lines if one[0] == sign) for sign in "-+")
        if not (old and tests):
            raise ValueError(f"bug {name!r} of scripts/bugs.txt has no tests or no old text")
        bugs.append(Bug(name, file, old, new, tests))
    return bugs


def copy_tree(source: Path, folder: Path) -> None:
    """What the tests need, and nothing else."""
    for part in ("armodels", "configs", "tests"):
        shutil.copytree(source / part, folder / part, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(source / "pyproject.toml", folder)


def run_tests(folder: Path, tests: list[str], seconds: float | None) -> tuple[bool, str]:
    """Did they pass within so many seconds, and the first that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", *(f"tests/{name}" for name in tests)]
    # The copy is imported, not an installed package: `-m` puts its folder first on the path.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return False, "(the tests hang)"
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest did not run: {done.stdout}{done.stderr}")
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return done.returncode == 0, found.group(1) if found else "(import fails)"


def planted(bug: Bug, folder: Path) -> str:
    """The file's text with the bug."""
    source = (folder / bug.file).read_text()
    if source.count(bug.old) != 1:
        raise ValueError(
            f"bug {bug.name!r}: its text stands {source.count(bug.old)} times in {bug.file}, "
            f"not once; mend it in scripts/bugs.txt"
        )
    return source.replace(bug.old, bug.new)


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
        tests = sorted({test for bug in bugs for test in bug.tests})
        passed, test = run_tests(clean, tests, None)  # all of them: minutes where it is busy
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
