"""scripts/torture.py sees what did not survive, and a handful of its trials survive."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import armodels

ROOT = Path(armodels.__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))  # where its processes find it, too

import torture  # noqa: E402
from torture import Blow, Lost, Told  # noqa: E402

GOOD = "armodels: error: no.csv does not exist; name a file with data.path\n"


def told(code: int, err: str = "", out: str = "", peak: float = 400, args=("train",)) -> Told:
    return Told(args, code, out, err, 2.0, 0.1, peak, 3)


def test_what_is_civil():
    told(0, out="± größe\n").well()
    told(1, GOOD).refused()
    told(1, "armodels: warning: far from it\n" + GOOD).either()
    told(
        1, f"armodels: failed: seed=1\n{GOOD}armodels: failed: seed=2\n{GOOD}", args=("-m",)
    ).refused()
    told(-9).stopped(Blow(signal.SIGKILL))
    told(143, "armodels: stopped at step 3\n").stopped(Blow(signal.SIGTERM))


@pytest.mark.parametrize(
    ("one", "way", "why"),
    [
        (told(0), "refused", "is not refused"),
        (told(1, GOOD), "well", "fails"),
        (told(1, GOOD + GOOD), "refused", "with 2 lines"),
        (told(1, "ValueError: no\n"), "refused", "without a word"),
        (told(1, "armodels: error: KeyError: 'a' (HYDRA_FULL_ERROR=1 shows where)"), "either",
         "nobody foresaw it"),
        (told(1, "Traceback (most recent call last):\n" + GOOD), "either", "traceback"),
        (told(0, out="Traceback (most recent call last):\n"), "well", "traceback"),
        (told(0, out="a \x1b[2J name\n"), "well", "control characters"),
        (told(0, peak=5000), "well", "needs 5000 MB"),
        (told(-11), "either", "crashes"),
        (told(-signal.SIGALRM), "either", "hangs"),
    ],
)  # fmt: skip
def test_what_is_not_civil(one, way, why):
    with pytest.raises(Lost, match=why):
        getattr(one, way)()


@pytest.mark.parametrize(
    ("one", "number"),
    [
        (told(1, GOOD), signal.SIGKILL),
        (told(143), signal.SIGKILL),
        (told(143), signal.SIGTERM),  # without a word
        (told(-15, peak=0), signal.SIGTERM),
        (told(130, "armodels: interrupted\n"), signal.SIGTERM),
        (told(129, "Traceback (most recent call last):\n"), signal.SIGHUP),
    ],
)
def test_what_is_no_good_end(one, number):
    with pytest.raises(Lost):
        one.stopped(Blow(number, seconds=1))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"a": 1'),
        ("a.json", b'{"a": NaN}'),
        ("a.csv", b"a,b\n1,2\n3"),
        ("a.csv", b"a,b\n1,2"),
        ("a.png", b"\x89PNG"),
        ("a.npz", b"PK\x03\x04"),
        ("a.pt", b"PK\x03\x04"),
        ("a.yaml", b"a: [1"),
    ],
)
def test_half_a_file_is_seen(name, content, tmp_path):
    (tmp_path / f".{name}.1.part").write_bytes(content)
    torture.require_whole(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Lost, match=f"{name} is half-written"):
        torture.require_whole(tmp_path)


def test_what_differs_is_seen(tmp_path):
    (tmp_path / "a.json").write_text('{"nats": 1.5, "seconds": 3}')
    (tmp_path / "b.csv").write_text("a\n1\n")
    expected = torture.essences(tmp_path)
    (tmp_path / "a.json").write_text('{"nats": 1.5, "seconds": 4}')
    torture.require_same(tmp_path, expected)
    (tmp_path / "c.part").write_text("")
    with pytest.raises(Lost, match="litter /c.part"):
        torture.require_same(tmp_path, expected)
    (tmp_path / "c.part").unlink()
    (tmp_path / "a.json").write_text('{"nats": 1.25}')
    with pytest.raises(Lost, match="a.json is not what"):
        torture.require_same(tmp_path, expected)
    (tmp_path / "b.csv").unlink()
    with pytest.raises(Lost, match="lost /b.csv"):
        torture.require_same(tmp_path, expected)
    one = {"w": torch.ones(2), "x": [np.float64("nan"), 1.0]}
    assert torture.same(one, {"w": torch.ones(2), "x": [np.float64("nan"), 1.0]})
    assert not torture.same(one, one | {"w": torch.ones(2) + 1e-7})
    assert not torture.same(one, one | {"w": torch.ones(2).double()})


def test_traps_go_off_where_code_runs(tmp_path):
    """Those that a careless reader would spring; each was checked to be one."""
    for name in ("torch.load", "joblib.load", "numpy.load", "evilmod.X", "builtins.exec"):
        folder = tmp_path / name
        folder.mkdir()
        rest = torture.payloads(folder)[name]
        if name == "evilmod.X":
            exec((folder / "evilmod.py").read_text(), {})
        elif name == "builtins.exec":
            exec(*rest["_args_"], {})
        else:
            module, function = name.split(".")
            try:
                getattr(__import__(module), function)(**rest)
            except ValueError:
                pass  # what was unpickled is no array
        assert (folder / "PWNED").is_dir(), name


def test_bad_configs_are_many():
    commands = torture.read_configs()
    assert len(commands) == len(set(commands)) >= 200
    assert {command[0] for command in commands} >= {"train", "eval", "sample", "complete", "score"}
    assert not [command for command in commands if any(word.startswith("$T") for word in command)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "indices"),
    [("kills", (0,)), ("races", (0,)), ("disk", (0,)), ("damage", (2,)), ("hostile", (0, 80)),
     ("configs", (0, 400))],
)  # fmt: skip
def test_a_handful_of_trials_survive(kind, indices, stage, tmp_path):
    for result in torture.try_some(kind, stage, indices, tmp_path, 0, 1, keep=False):
        assert result.lost is None


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return torture.Stage(tmp_path_factory.mktemp("torture") / "stage")
