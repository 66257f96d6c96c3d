"""``score`` of texts: each symbol given all before it, as ``eval`` has it."""

import csv
import gzip
import json
import math
from pathlib import Path

import pytest
from command import QUICK, armodels, done

VERSE = "the cat sat on the mat.\nthe dog ran to the cat.\n\n" * 50
DATA = ("data=text", "data.length=16", *QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    (folder / "verse.txt").write_text(VERSE)
    keys = (*DATA, "data.path=verse.txt")
    rnn = ("model=rnn", "model.hidden_size=8", "trainer.max_steps=3", "trainer.batch_size=8")
    done(folder, "train", *rnn, *keys, "out=network")
    done(folder, "train", "model=ngram", "model.n=3", *keys, "data.unit=byte", "out=bytes")
    done(folder, "train", "model=made", "model.hidden_sizes=[4]", "trainer.max_steps=1",
         "trainer.batch_size=8", *keys, "out=made")  # fmt: skip
    (folder / "test.txt").write_text(VERSE[-round(0.05 * len(VERSE)) :])
    (folder / "test.gz").write_bytes(gzip.compress((folder / "test.txt").read_bytes()))
    return folder


def rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{key: float(one) for key, one in row.items()} for row in csv.DictReader(file)]


def evaluated(run: Path, name: str) -> dict:
    done(run, "eval", name, "device=cpu", "out=report.json")
    return json.loads((run / "report.json").read_text())


@pytest.mark.parametrize("name", ["network", "bytes"])
@pytest.mark.parametrize("file", ["test.txt", "test.gz"])
def test_a_file_has_the_number_that_eval_has_for_its_text(name, file, run):
    told = done(run, "score", name, f"file={file}", "device=cpu", "out=file.csv")
    (row,) = rows(run / "file.csv")
    report = evaluated(run, name)
    assert row["symbols"] == report["num_symbols"] == len((run / "test.txt").read_text())
    assert row["nats_per_symbol"] == pytest.approx(report["nats_per_symbol"], abs=1e-9)
    assert row["bits_per_dim"] == pytest.approx(report["bits_per_symbol"], abs=1e-9)
    assert row["nats"] == pytest.approx(report["nats_per_symbol"] * row["symbols"])
    assert f"{report['nats_per_symbol']:.4f} nats/" in told
    assert f"perplexity {math.exp(report['nats_per_symbol']):.4f}" in told


def test_lines_and_windows_sum_to_the_whole(run):
    text = (run / "test.txt").read_text()
    keys = ("score", "network", "file=test.txt", "device=cpu", "out=parts.csv")
    done(run, *keys)
    (whole,) = rows(run / "parts.csv")
    done(run, *keys, "by=line")
    lines = rows(run / "parts.csv")
    assert [row["symbols"] for row in lines] == list(map(len, text.splitlines(keepends=True)))
    assert any(row["symbols"] == 1 for row in lines)  # an empty one
    done(run, *keys, "by=window")
    windows = rows(run / "parts.csv")
    assert [row["symbols"] for row in windows[:-1]] == [16] * (len(text) // 16)
    for parts in (lines, windows):
        assert sum(row["nats"] for row in parts) == pytest.approx(whole["nats"])
        assert [row["index"] for row in parts] == list(range(len(parts)))
        for row in parts:
            assert row["nats_per_symbol"] == pytest.approx(row["nats"] / row["symbols"])


def test_lines_and_windows_are_written_beside_each_other(run):
    for file in ("file=test.txt", "split=valid"):
        for by in ("by=line", "by=window", "by=auto"):
            done(run, "score", "bytes", file, by, "device=cpu")
        end = file.split("=")[1].removesuffix(".txt")
        found = {path.name for path in (run / "bytes").glob(f"scores-*-{end}*.csv")}
        assert len(found) == 3
        assert {name.rpartition(f"-{end}")[2] for name in found} == {
            ".csv", "-by-line.csv", "-by-window.csv"
        }  # fmt: skip
        for path in (run / "bytes").glob("scores-*.csv"):
            path.unlink()


def test_a_folder_has_a_row_for_each_text(run):
    folder = run / "letters" / "old"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text(VERSE[:100])
    (folder.parent / "c.gz").write_bytes((run / "test.gz").read_bytes())
    told = done(run, "score", "network", "file=letters", "device=cpu", "out=letters.csv")
    with open(run / "letters.csv", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [row["file"] for row in found] == ["letters/c.gz", "letters/old/b.txt"]
    report = evaluated(run, "network")
    assert float(found[0]["nats_per_symbol"]) == pytest.approx(report["nats_per_symbol"])
    assert "2 rows, by piece" in told
    (folder / "d.txt").write_text("ä")
    told = armodels(run, "score", "network", "file=letters", "device=cpu", "out=refused.csv")
    assert "d.txt has the character" in told.error
    assert not (run / "refused.csv").exists()
    (run / "nothing").mkdir()
    told = armodels(run, "score", "network", "file=nothing", "device=cpu").error
    assert "folder nothing holds no file that the model could score" in told


def test_a_split_is_read_whole_too(run):
    told = done(run, "score", "network", "device=cpu")
    (path,) = (run / "network").glob("scores-*-test.csv")
    assert path.name in told
    windows, report = rows(path), evaluated(run, "network")
    total = sum(row["nats"] for row in windows)
    assert total / report["num_symbols"] == pytest.approx(report["nats_per_symbol"], abs=1e-9)
    assert f"{report['nats_per_symbol']:.4f} nats/char" in told
    told = done(run, "score", "network", "split=valid", "by=line", "device=cpu", "out=l.csv")
    assert "by line" in told


def test_a_model_of_one_length_scores_windows(run):
    done(run, "score", "made", "device=cpu", "out=made.csv")
    assert [*rows(run / "made.csv")[0]] == ["index", "nats", "bits_per_dim"]


REFUSED = {
    "none": (("file=no.txt",), "file no.txt does not exist"),
    "empty": (("file=empty.txt",), "file empty.txt is empty"),
    "strange": (
        ("file=strange.txt",),
        "file strange.txt has the character 'ä' (U+00E4) at line 2",
    ),
    "latin": (("file=latin.txt",), "text latin.txt is not UTF-8: byte 2 is 0xe4"),
    "both": (
        ("file=test.txt", "data=text"),
        "data=text goes with a split or against=SETS, not with file=FILE; leave it out",
    ),
    "split": (
        ("file=test.txt", "split=valid"),
        "split=valid goes with a split or against=SETS, not with file",
    ),
    "by": (("by=word",), "by is 'word'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused_in_one_sentence(name, run):
    (run / "empty.txt").write_text("")
    (run / "strange.txt").write_text("the\ncät")
    (run / "latin.txt").write_bytes("thät".encode("latin-1"))
    keys, sentence = REFUSED[name]
    told = armodels(run, "score", "network", *keys, "device=cpu", "out=refused.csv")
    assert sentence in told.error
    assert not (run / "refused.csv").exists()


def test_a_text_needs_a_model_that_reads(run):
    told = armodels(run, "score", "made", "file=test.txt", "device=cpu", "out=refused.csv")
    assert "reads no text of any length" in told.error
    told = armodels(run, "score", "made", "by=line", "device=cpu", "out=refused.csv")
    assert "and a model that reads it whole" in told.error
