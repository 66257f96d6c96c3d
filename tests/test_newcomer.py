"""The newcomer's walk of docs/architecture.md leads where it says."""

import ast
import re
from pathlib import Path

import pytest

import armodels

ROOT = Path(armodels.__file__).parent
PAGE = ROOT.parent / "docs/architecture.md"
WALKS = re.findall(r"(?:^\d\. `.*\n)+", PAGE.read_text(), re.M)


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.split("`")[1])
def test_a_walk_leads_where_it_says(walk):
    """At most eight stations, none visited twice, each a function that exists."""
    stations = re.findall(r"^\d\. `(\S+\.py)` `(\S+)`: ", walk, re.M)
    assert len(stations) == walk.count("\n") <= 8
    assert len({file for file, _ in stations}) == len(stations)
    for file, function in stations:
        nodes = ast.parse((ROOT / file).read_text()).body
        for name in function.split("."):
            (found,) = [node for node in nodes if getattr(node, "name", None) == name]
            nodes = found.body


def test_there_are_three_walks():
    assert len(WALKS) == 3
