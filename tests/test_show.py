"""What a user reads is whole wherever it goes, and commands run as pasted."""

import io
import random
import subprocess
import sys

import pytest
from command import process
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from armodels import show

NAMES = [
    "a b",
    "wine's.csv",
    "wine,v2",
    "x[1]",
    "x#1",
    "größe",
    "1e5",
    "2024_11_26",
    "true",
    "null",
]
NAMES += [
    "a=b",
    "a\\",
    "a\\'b",
    "${x}",
    "\\${x}",
    "$x",
    'a"b',
    "",
    "-1",
    "1_0",
    "inf",
    "NaN",
    ":a",
]
NAMES += ["a;b", "~/x", "!x", "a\\\\b", "*", "(x)", "{a:1}", "+1", ".5", "e5", "@x", "???", " a "]
NAMES += ["a\tb", "a\nb", "\x1b[31m", "\udcff.jpg", "é\udcffb"]


def as_typed(words: str) -> list[bytes]:
    """What bash makes of words."""
    command = ["bash", "-c", f"printf '%s\\0' {words}"]
    return subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")[:-1]


def test_a_printed_override_is_read_as_the_value():
    draw = random.Random(0)
    signs = "ab1 '\\\"$={}[](),:#é~!?|*&;<>\t-_.%@+/"
    names = NAMES + ["".join(draw.choices(signs, k=draw.randint(1, 8))) for _ in range(500)]
    words = as_typed(" ".join(show.override("a.b", name) for name in names))
    assert len(words) == len(names)
    parser = OverridesParser.create()
    for name, word in zip(names, words, strict=True):
        value = parser.parse_override(word.decode("utf-8", "surrogateescape")).value()
        found = OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)["x"]
        assert found == name
        assert isinstance(found, str)


def test_numbers_lists_and_switches_are_themselves():
    assert show.override("a", 3) == "a=3"
    assert show.override("a", True) == "a=true"
    assert show.override("a", None) == "a=null"
    assert show.override("data.drop", ["x", "y z", "1"]) == "data.drop=\"[x,'y z','1']\""
    assert show.command("eval", run="my run (2)", split="test", data__path="x") == (
        "armodels eval run=\"'my run (2)'\" split=test data.path=x"
    )
    assert show.command("compare", "a b", "c") == "armodels compare 'a b' c"
    assert show.command("compare", "a=b/c", "-x") == "armodels compare ./a=b/c ./-x"


def test_no_control_character_reaches_the_terminal(capsys):
    show.say("a\x1b[31mb\r\x07\x9b2J\u202ec\udcffd\ne")
    assert capsys.readouterr().out == "a\\x1b[31mb\\r\\x07\\x9b2J\\u202ec\\xffd\ne\n"


def test_a_terminal_that_lacks_signs_gets_others(monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    show.say("1 ± 2 ≤ ü")
    assert plain.buffer.getvalue() == b"1 +- 2 <= \\xfc\n"


@pytest.mark.parametrize("device", ["/dev/full", "closed"])
def test_a_line_that_cannot_be_printed_is_remembered_and_ends_nothing(device, tmp_path):
    program = (
        "import os, sys\nfrom armodels import show\n"
        "if sys.argv[1] == 'closed':\n"
        "    read, write = os.pipe(); os.close(read)\n"
        "else:\n    write = os.open(sys.argv[1], os.O_WRONLY)\n"
        "os.dup2(write, 1)\n"
        "with show.logged() as log:\n"
        "    show.say('one'); log.open('log'); show.say('two')\n"
        "show.warn(type(show.lost).__name__)\n"
    )
    result = process(tmp_path, device, launcher=("-c", program))
    kind = "BrokenPipeError" if device == "closed" else "OSError"
    assert result.err == f"armodels: warning: {kind}\n"
    assert result.code == 0
    log = (tmp_path / "log").read_text().splitlines()
    assert [line.split("] ")[1] for line in log] == ["one", "two"]


def test_a_muted_process_prints_nothing(capsys, monkeypatch):
    monkeypatch.setattr(show, "muted", True)
    show.say("a")
    show.warn("b")
    assert capsys.readouterr() == ("", "")
