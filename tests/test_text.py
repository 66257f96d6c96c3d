"""Texts from the file to the number and back to a text."""

import gzip
import os
import shlex
import tracemalloc
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from command import QUICK, armodels, done

from armodels import heads
from armodels.alphabet import LINE, Alphabet, code_points
from armodels.data.text import Text, TinyShakespeare
from armodels.density.walk import draw_among
from armodels.prompts import Shown
from armodels.spec import DataSpec

REAL = Path(os.environ.get("ARMODELS_DATA", ""))
needs_real = pytest.mark.skipif(
    not (REAL / "text/tinyshakespeare.txt").exists(), reason="needs text in $ARMODELS_DATA"
)
VERSE = "the cat sat on the mat.\nthe dog ran to the cat.\n" * 40
SMALL = ("model=rnn", "model.hidden_size=8", "data=text", "data.length=16", "trainer.batch_size=8")


@pytest.fixture
def verse(tmp_path) -> Path:
    path = tmp_path / "verse.txt"
    path.write_text(VERSE)
    return path


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_a_text_comes_back(unit):
    text = "Grüße, 世界! 🎵\n"
    symbols = code_points(text) if unit == "char" else np.frombuffer(text.encode(), np.uint8)
    alphabet = Alphabet.of(symbols, unit)
    levels = alphabet.encoded(symbols, "it")
    assert (levels.dtype, levels.max()) == (np.uint8, alphabet.num_levels - 1)
    assert alphabet.decoded(levels) == text
    assert Alphabet(**vars(alphabet)) == alphabet


def test_a_stranger_is_named_with_its_place_or_gets_a_level():
    alphabet = Alphabet.of(code_points("ab\n"), "char")
    with pytest.raises(
        ValueError, match=r"^it has the character 'é' \(U\+00E9\) at line 2, column 3"
    ):
        alphabet.encoded(code_points("ab\nabé"), "it")
    some = Alphabet.of(code_points("ab\n"), "char", unknown=True)
    levels = some.encoded(code_points("aéb"), "it")
    assert levels.tolist() == [1, 3, 2]
    assert some.decoded(levels) == "a\N{REPLACEMENT CHARACTER}b"


def test_a_text_is_cut_by_position(verse):
    splits = Text(str(verse), length=10, valid=0.1, test=0.2).load()
    alphabet = splits.spec.alphabet
    whole = "".join(
        alphabet.decoded(splits.pieces[part][0][:]) for part in ("train", "valid", "test")
    )
    assert whole == VERSE
    sizes = [len(splits.pieces[part][0]) for part in ("train", "valid", "test")]
    assert sizes[1:] == [round(0.1 * len(VERSE)), round(0.2 * len(VERSE))]
    for part in ("valid", "test"):
        rows = splits.split(part)
        assert len(rows) == len(splits.pieces[part][0]) // 10
        assert rows[:].flatten().equal(splits.pieces[part][0][: 10 * len(rows)])


def test_training_windows_begin_anywhere(verse):
    splits = Text(str(verse), length=10).load()
    piece = splits.pieces["train"][0]
    every = {tuple(row.tolist()) for row in piece.unfold(0, 10, 1)}
    raw = splits.train[torch.arange(len(splits.train))]
    seen = torch.cat([splits.transform(raw, torch.Generator().manual_seed(i)) for i in range(60)])
    assert {tuple(row.tolist()) for row in seen} == every
    firsts = {
        int((raw[0].unfold(0, 10, 1) == row).all(1).nonzero()[0]) for row in seen[:: len(raw)]
    }
    assert firsts == set(range(10))


def test_a_folder_and_packed_files_are_one_text(tmp_path):
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt.gz").write_bytes(gzip.compress(VERSE.encode()))
    (folder / "b" / "c.txt").write_text(VERSE.upper())
    (folder / ".DS_Store").write_bytes(b"\xff\xfe")  # hidden, and no text
    splits = Text(str(folder), length=8, unknown=True).load()
    pieces = [splits.pieces[part][0] for part in ("train", "valid", "test")]
    assert sum(map(len, pieces)) == 2 * len(VERSE)
    assert splits.spec.alphabet.decoded(pieces[0][: len(VERSE)]) == VERSE


def test_bytes_stay_on_their_disk(verse):
    splits = Text(str(verse), unit="byte", length=8).load()
    assert not isinstance(splits.pieces["train"][0], torch.Tensor)
    assert bytes(splits.pieces["train"][0][:20].tolist()).decode() == VERSE[:20]
    assert splits.spec.levels == 256


BAD = {
    "latin": ("Gr\xfc\xdfe".encode("latin-1") * 99, {}, "is not UTF-8: byte 2 is 0xfc"),
    "empty": (b"", {}, "is empty"),
    "short": (
        b"abcabcabc" * 9,
        {"length": 64},
        "has 73 chars, but windows of data.length=64",
    ),
    "same": (b"a" * 999, {"length": 4}, "is one char over and over"),
    "shares": (b"abc" * 99, {"valid": 0.6, "test": 0.5}, "train needs a share too"),
    "strange": (b"ab" * 99 + b"c", {"length": 4}, "has the character 'c'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_texts_are_refused_in_one_sentence(name, tmp_path):
    contents, keys, sentence = BAD[name]
    path = tmp_path / "text.txt"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=sentence):
        Text(str(path), **keys).load()
    if "length" in keys and name != "strange":
        typed = [f"data.{key}={value}" for key, value in keys.items()]
        told = armodels(tmp_path, "train", "data=text", "data.path=text.txt", "model=rnn", *typed)
        assert sentence in told.error


def test_a_text_beyond_memory_is_refused_while_it_is_unpacked(tmp_path, monkeypatch):
    """A gigabyte of zeros in a megabyte; a folder counts as one text."""
    memory = types.SimpleNamespace(available=24 * 3_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    bomb = tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="bomb.gz has more than the 3,000,000 bytes that this"):
        Text(str(bomb)).load()
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - left < 2**24
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_bytes(b"word " * 400_000)
    with pytest.raises(ValueError, match=r"b\.txt has more than the 1,000,000 bytes"):
        Text(str(folder)).load()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="name one with data.path"):
        Text(str(tmp_path / "no.txt")).load()
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="no readable gzip stream"):
        Text(str(tmp_path / "bad.gz")).load()
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        Text(str(tmp_path / "none")).load()


def test_the_library_of_python_needs_no_file():
    splits = Text(length=64).load()
    assert splits.spec.alphabet.num_levels == 96
    assert len(splits.train) > 10_000
    assert splits.spec.name.startswith("python-3.")


@needs_real
def test_tiny_shakespeare_has_its_usual_tenth():
    splits = TinyShakespeare(root=str(REAL)).load()
    assert [len(splits.pieces[part][0]) for part in ("train", "valid")] == [1_003_854, 111_540]
    assert splits.pieces["valid"][0].equal(splits.pieces["test"][0])
    honest = TinyShakespeare(test=True, root=str(REAL)).load()
    assert not honest.pieces["valid"][0][:100].equal(honest.pieces["test"][0][:100])
    assert honest.spec.name != splits.spec.name


@pytest.mark.parametrize("keys", [{}, {"test": True}, {"unit": "byte"}])
def test_what_tiny_shakespeare_is_needs_no_file(keys, tmp_path):
    spec = TinyShakespeare(root=str(tmp_path), **keys).spec
    assert spec.levels == (256 if keys.get("unit") else 65)
    if (REAL / "text/tinyshakespeare.txt").exists():
        assert TinyShakespeare(root=str(REAL), **keys).load().spec == spec


def test_other_shares_have_another_name(verse):
    names = {
        Text(str(verse), length=9, **keys).spec.name
        for keys in ({}, {"test": 0.1}, {"valid": 0.1}, {"name": "a"}, {"name": "a", "test": 0.2})
    }
    assert names == {
        "text-verse-char-9", "text-verse-split0.05-0.1-char-9", "text-verse-split0.1-0.05-char-9",
        "a-char-9", "a-split0.05-0.2-char-9",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "verse.txt").write_text(VERSE)
    done(folder, "train", *SMALL, "data.path=verse.txt", *QUICK, "trainer.max_steps=40", "out=run")
    return folder


def test_a_training_tells_nats_per_symbol(run):
    told = done(run, "eval", "run", "device=cpu", "split=valid")
    assert f"({round(0.05 * len(VERSE))} chars)" in told
    assert "nats/char" in told
    rows = (run / "run/metrics.csv").read_text().splitlines()
    assert "valid/nats_per_symbol" in rows[0]


def test_what_a_training_of_a_text_prints_runs_as_pasted(run):
    keys = ("data.path=verse.txt", *QUICK, "trainer.max_steps=1", "out=said")
    told = done(run, "train", *SMALL, *keys)
    (line,) = [line.strip() for line in told.splitlines() if "armodels complete " in line]
    done(run, *shlex.split(line)[1:], "length=3", "device=cpu")
    assert Alphabet((10, 49, 66), "char").letter == "B"
    assert Alphabet((49, 50), "char").letter == "1"


def test_samples_are_texts(run):
    told = done(run, "sample", "run", "num=3", "device=cpu")
    path = run / "run/samples/sample-seed0-t1.txt"
    assert "sample-seed0-t1.txt" in told
    assert [len(one) for one in path.read_text().split(f"\n{LINE}\n")] == [16] * 3
    keys = ("data.path=verse.txt", *QUICK, "samples.num=2", "trainer.max_steps=3", "out=seen")
    done(run, "train", *SMALL, *keys)
    (text,) = (run / "seen/samples").glob("*.txt")
    assert set(text.read_text()) <= {*VERSE, *LINE}
    events = b"".join(path.read_bytes() for path in (run / "seen").rglob("events*"))
    assert b"view/samples" in events


def test_a_prompt_goes_on(run):
    told = done(run, "complete", "run", "prompt=the cat ", "length=30", "device=cpu")
    written = (run / "run/samples/prompt-the-cat-seed0-t1-length30.txt").read_text()
    assert written.startswith("the cat ")
    assert len(written) == len("the cat ") + 30
    assert written in told
    again = done(run, "complete", "run", "prompt=the cat ", "length=30", "device=cpu")
    assert written in again


def test_a_prompt_may_be_longer_than_a_window_and_lie_in_a_file(run):
    (run / "begin.txt").write_text(VERSE[:100])
    done(
        run,
        "complete",
        "run",
        "prompt_file=begin.txt",
        "length=5",
        "device=cpu",
        "seed=3",
        "num_completions=2",
    )
    text = (run / "run/samples/prompt-begin-seed3-t1-length5.txt").read_text()
    first, second = text.split(f"\n{LINE}\n")
    assert first[:100] == second[:100] == VERSE[:100]
    assert len(first) == len(second) == 105


def test_a_text_begins_from_nothing(run):
    """A length alone; what a network says first is what a walk without a prompt has."""
    told = done(run, "complete", "run", "length=40", "device=cpu", "num_completions=2")
    assert "shown  the first of 2 texts; the file has all of them" in told
    text = (run / "run/samples/prompt-seed0-t1-length40.txt").read_text()
    assert [len(one) for one in text.split(f"\n{LINE}\n")] == [40, 40]


def test_a_long_prompt_is_shown_by_its_end(run):
    (run / "long.txt").write_text(VERSE[:50] * 30)
    told = done(run, "complete", "run", "prompt_file=long.txt", "length=5", "device=cpu")
    assert "(of 1,500 chars the last 1000 follow)" in told
    assert VERSE[:50] * 20 in told
    assert VERSE[:50] * 21 not in told
    text = (run / "run/samples/prompt-long-seed0-t1-length5.txt").read_text()
    assert text.startswith(VERSE[:50] * 30)


def test_what_is_left_of_a_character_is_printed_at_the_end(capsys):
    """Bytes of characters come one by one; the end cuts one off."""
    alphabet = Alphabet(tuple(range(256)), "byte")
    drawn = "é!世".encode()[:-1]
    shown = Shown(alphabet)
    printed = []
    for level in drawn:
        shown(torch.tensor([[level]]))
        printed.append(capsys.readouterr().out)
    assert printed == ["", "é", "!", "", ""]
    shown.end()
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}"


REFUSED = {
    "negative": (["prompt=the", "length=-3"], "length is -3; it must be at least 1"),
    "strange": (
        ["prompt=the cät"],
        "the prompt has the character 'ä' (U+00E4) at line 1, column 6",
    ),
    "length": (["prompt=the", "length=0"], "length is 0; it must be at least 1"),
    "both": (["prompt=a", "prompt_file=b"], "both say what comes first"),
    "none": (["prompt_file=nothing"], "prompt_file nothing does not exist"),
    "empty": (["prompt_file=empty.txt"], "prompt_file empty.txt is empty"),
    "unread": (
        ["prompt=the", "keep=0.3"],
        "keep=0.3 goes with image=FILE or examples of the test split, not with a prompt; leave it",
    ),
    "unprompted": (["top_k=3"], "top_k=3 goes with a prompt, not with examples of the test split"),
    "seconds": (
        ["prompt=the", "length=2.5"],
        "length is 2.5; it must be a whole number or seconds such as 2.5s or null",
    ),
    "top_k": (["prompt=the", "top_k=0"], "top_k is 0; it must be at least 1"),
    "top_p": (["prompt=the", "top_p=1.5"], "top_p is 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_prompts_that_cannot_be_are_refused(name, run):
    typed, sentence = REFUSED[name]
    (run / "empty.txt").touch()
    assert sentence in armodels(run, "complete", "run", "device=cpu", *typed).error


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_among_the_likeliest(temperature):
    head = heads.Categorical(DataSpec("some", "sequence", (1,), 5, "probability"))
    logits = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.double).log()
    params = logits[torch.tensor([2, 0, 4, 1, 3])].expand(4000, 5)
    noise = torch.rand(4000, 1, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0))

    def shares(**keys):
        values = draw_among(head, noise, temperature, **keys)(0, params)
        return torch.bincount(values[:, 0].long(), minlength=5) / 4000

    def expected(kept):
        weights = torch.zeros(5, dtype=torch.double)
        chosen = params[0][kept].exp() ** (1 / temperature)
        weights[kept] = chosen / chosen.sum()
        return weights.float()

    for keys, kept in (
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.8}, [0, 1, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.8, "top_k": 2}, [1, 3]),
    ):
        found = shares(**keys)
        assert set(found.nonzero()[:, 0].tolist()) == set(kept), keys
        torch.testing.assert_close(found, expected(kept), rtol=0, atol=0.03)
    for keys in ({"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match="it must be"):
            draw_among(head, noise, **keys)
