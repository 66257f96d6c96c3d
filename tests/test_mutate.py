"""Planted bugs are filed by source file and anchored by function."""

import sys
from pathlib import Path

import pytest

import armodels

ROOT = Path(armodels.__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import mutate  # noqa: E402

SOURCE = '''"""A room."""

LIMIT = 3


class Net:
    size = 3

    @property
    def half(self):
        return self.size // 2

    def forward(self, x):
        def inner(y):
            return y + 1

        return inner(x) + 1


def forward(x):
    return x + 1
'''
PAGE = """\
one: forward adds two
Net.forward test_x.py::test_a test_y.py
- + 1
+ + 2

one: the limit
module test_x.py
- LIMIT = 3
+
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree with one source and its two bugs."""
    for file, text in {"armodels/net.py": SOURCE, "scripts/bugs/net.txt": PAGE}.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "BUGS", tmp_path / "scripts/bugs")
    return tmp_path


def test_every_planted_bug_has_its_place_and_its_tests():
    for bug in mutate.read_bugs():
        mutate.planted(bug, ROOT)
        for test in bug.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text() or not name, bug.name


def test_what_is_written_reads_the_same(tree):
    found = mutate.read_bugs()
    assert [bug.anchor for bug in found] == ["Net.forward", "module"]
    assert found[0].tests == ["test_x.py::test_a", "test_y.py"]
    assert (found[1].old, found[1].new) == ("LIMIT = 3", "")
    mutate.write_bugs(found)
    assert (tree / "scripts/bugs/net.txt").read_text() == PAGE
    for file in ("armodels/net.py", "armodels/networks/__init__.py", "configs/model/made.yaml"):
        assert mutate.source_of(mutate.page_of(file)) == file


def test_a_bug_stands_in_its_anchor_wherever_its_lines_are(tree):
    first, second = mutate.read_bugs()
    bad = mutate.planted(first, tree)
    assert bad == SOURCE.replace("inner(x) + 1", "inner(x) + 2")
    # Lines move, and equal ones come elsewhere: in other functions, inner ones and the class.
    moved = SOURCE.replace("LIMIT = 3\n", "# + 1\n\nLIMIT = 3\n\n\ndef f(x):\n    return x + 1\n")
    moved = moved.replace("size = 3", "size = 3 + 1")
    (tree / "armodels/net.py").write_text(moved)
    assert mutate.planted(first, tree) == moved.replace("inner(x) + 1", "inner(x) + 2")
    assert mutate.planted(second, tree) == moved.replace("LIMIT = 3", "")


@pytest.mark.parametrize(
    ("text", "anchor"),
    [
        ("@property", "Net.half"),
        ("return y", "Net.forward.inner"),
        ("return inner", "Net.forward"),
        ("size = 3", "Net"),
        ("// 2\n\n    def forward", "Net"),
        ("return x", "forward"),
        ("LIMIT", "module"),
    ],
)
def test_the_anchor_is_the_innermost_that_holds_the_whole_text(text, anchor):
    assert [name for name, _ in mutate.places("armodels/net.py", SOURCE, text)] == [anchor]


def test_a_text_that_stands_twice_in_its_anchor_is_refused(tree):
    text = SOURCE.replace("inner(x) + 1", "inner(x) + 1 + 1")
    (tree / "armodels/net.py").write_text(text)
    with pytest.raises(mutate.Misplaced, match="2 times in Net.forward of armodels/net.py"):
        mutate.planted(mutate.read_bugs()[0], tree)


def test_a_function_that_moved_is_found_and_its_bugs_filed_anew(tree, capsys):
    (tree / "armodels/new").mkdir()
    (tree / "armodels/net.py").rename(tree / "armodels/new/room.py")
    where = "but in Net.forward of armodels/new/room.py; mend it in scripts/bugs/net.txt"
    with pytest.raises(mutate.Misplaced, match="0 times") as error:
        mutate.planted(mutate.read_bugs()[0], tree)
    assert where in str(error.value)
    assert mutate.main(["--check"]) == 2
    assert where in capsys.readouterr().out
    assert mutate.main(["--refile"]) == 0
    assert not (tree / "scripts/bugs/net.txt").exists()
    assert (tree / "scripts/bugs/new/room.txt").read_text() == PAGE
    assert mutate.main(["--check"]) == 0
    # A text with several places to go to is left to people.
    room = (tree / "armodels/new/room.py").read_text()
    (tree / "armodels/a.py").write_text(room)
    (tree / "armodels/new/room.py").rename(tree / "armodels/b.py")
    assert mutate.main(["--refile"]) == 2
    assert (tree / "scripts/bugs/new/room.txt").read_text() == PAGE


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("one\nmodule test_x.py\n+ a\n", "no tests or no old text"),
        ("one\nmodule\n- a\n+ b\n", "no tests or no old text"),
        ("one\n", "no tests or no old text"),
        (PAGE + "\n" + PAGE, "two bugs have the name 'one: forward adds two'"),
    ],
)
def test_what_is_not_a_bug_is_refused(tree, page, reason):
    (tree / "scripts/bugs/net.txt").write_text(page)
    with pytest.raises(ValueError, match=reason):
        mutate.read_bugs()
