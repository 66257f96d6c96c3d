"""docs/needs.md: each need has its tests, and they exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", (ROOT / "docs/needs.md").read_text(), re.M)


def functions_of(file: str) -> set[str]:
    """Names of the functions of a file that pytest collects."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_forty_needs():
    assert [int(number) for number, _ in ROWS] == list(range(1, 41))


def test_each_need_is_shown_by_tests_that_exist():
    found: dict[str, set[str]] = {}
    for number, cell in ROWS:
        named = cell.split("<br>")
        for one in named:
            file, name = re.fullmatch(r"`(tests/test_\w+\.py)::(test_\w+)`", one).groups()
            if file not in found:
                found[file] = functions_of(file)
            assert name in found[file], f"need {number}: {one}"
