"""The newcomer's walk of docs/architecture.md leads where it says."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import QUICK, done

import armodels

ROOT = Path(armodels.__file__).parent
PAGE = ROOT.parent / "docs/architecture.md"
WALKS = re.findall(r"(?:^\d\. `.*\n)+", PAGE.read_text(), re.M)


STATIONS = [re.findall(r"^\d\. `(\S+\.py)` `(\S+)`: ", walk, re.M) for walk in WALKS]


@contextlib.contextmanager
def visited() -> Iterator[dict[tuple[str, str], None]]:
    """Functions of the package that are called in the block, by file and name, in order."""
    calls: dict[tuple[str, str], None] = {}
    names: dict[object, tuple[str, str] | None] = {}

    def called(frame, event, argument):
        code = frame.f_code
        if event == "call" and code not in names:
            path = Path(code.co_filename)
            inside = path.is_relative_to(ROOT)
            # Python 3.10 knows no more than the last part of a name.
            name = getattr(code, "co_qualname", code.co_name)
            names[code] = (path.relative_to(ROOT).as_posix(), name) if inside else None
            if names[code]:
                calls[names[code]] = None

    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a table's run and a PixelCNN's, which is also the log of what was called."""
    folder = tmp_path_factory.mktemp("newcomer")
    rows = "\n".join(f"{i % 7 / 7},{i % 5 / 5}" for i in range(60))
    (folder / "table.csv").write_text(f"a,b\n{rows}\n")
    steps = ("trainer.max_steps=2", *QUICK)
    sizes = ("model.num_layers=1", "model.num_channels=4")
    done(folder, "train", "data=table", "data.path=table.csv", *SMALL, *steps, "out=table")
    image = ("data=tiny", "data.kind=image", "data.shape=[1,3,4]", "data.levels=3")
    done(folder, "train", *image, "model=pixelcnn", *sizes, *steps, "out=pixelcnn")
    return folder


SMALL = ("model.hidden_sizes=[5]",)
COMMANDS = [
    ("eval", "table", "device=cpu"),
    ("train", "data=tiny", *SMALL, "trainer.max_steps=1", *QUICK, "out=again"),
    ("sample", "pixelcnn", "num=2", "device=cpu"),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_walk_leads_where_it_says(number, runs):
    """At most eight stations, none visited twice, in the order in which the command calls them."""
    stations = STATIONS[number]
    assert len(stations) == WALKS[number].count("\n") <= 8
    assert len({file for file, _ in stations}) == len(stations)
    with visited() as calls:
        done(runs, *COMMANDS[number])
    if sys.version_info < (3, 11):
        stations = [(file, name.rpartition(".")[2]) for file, name in stations]
    order = list(calls)
    assert [one for one in stations if one not in calls] == []
    assert sorted(stations, key=order.index) == stations


def test_there_are_three_walks():
    assert len(WALKS) == len(COMMANDS)
