"""A user's own table: every format alike, original units, one clear sentence for a bad file."""

import csv
import dataclasses
import gzip
import importlib.util
import json
import re
import shlex
import sys
import zipfile

import numpy as np
import pandas
import pytest
import torch
from command import QUICK, TINY, armodels, done
from omegaconf import OmegaConf

from armodels.checkpoints import load_checkpoint, restore
from armodels.data import files
from armodels.data.base import PARTS
from armodels.data.tables import Table
from armodels.density.samplers import Sampler
from armodels.spec import Coding, DataSpec, Standardization, nats
from armodels.tasks.complete import fill

NAMES = ["height", "mass", "x y"]
ROWS = np.random.RandomState(0).randn(60, 3).round(4) * [1, 50, 1e-3] + [0, 2000, 5]


def write_text(path, rows=ROWS, names=NAMES, delimiter=",", **options):
    with open(path, "w", newline="", **options) as file:
        writer = csv.writer(file, delimiter=delimiter)
        if names:
            writer.writerow(names)
        writer.writerows(np.asarray(rows).tolist())
    return path


def write_parquet(path, index=None):
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    pandas.DataFrame(ROWS, index, NAMES).to_parquet(path)


def write_zip(path, *names):
    text = write_text(path).read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, text)


WRITERS = {
    "comma.csv": write_text,
    "semicolon.csv": lambda path: write_text(path, delimiter=";"),
    "tab.csv": lambda path: write_text(path, delimiter="\t"),
    "bar.csv": lambda path: write_text(path, delimiter="|"),
    "windows.CSV": lambda path: write_text(path, encoding="utf-8-sig"),
    "t.tsv": lambda path: write_text(path, delimiter="\t"),
    "blanks.txt": lambda path: write_text(path, delimiter=" "),
    "comma.data": write_text,
    "semicolon.dat": lambda path: write_text(path, delimiter=";"),
    "utf-16.csv": lambda path: write_text(path, encoding="utf-16"),
    "packed.csv.gz": lambda path: path.write_bytes(gzip.compress(write_text(path).read_bytes())),
    "packed.ZIP": lambda path: write_zip(path, "t.csv"),
    "decimal.csv": lambda path: write_text(
        path, [[str(cell).replace(".", ",") for cell in row] for row in ROWS], delimiter=";"
    ),
    "fortran.dat": lambda path: write_text(
        path, [[f"{cell:.17E}".replace("E", "D") for cell in row] for row in ROWS], delimiter="\t"
    ),
    "indexed.csv": lambda path: write_text(
        path, [[i, *row] for i, row in enumerate(ROWS.tolist())], ["", *NAMES]
    ),
    "savetxt.txt": lambda path: np.savetxt(path, ROWS, header="made up\nheight mass 'x,y'"),
    "pandas.csv": lambda path: pandas.DataFrame(ROWS, columns=NAMES).to_csv(path),
    "indexed.parquet": lambda path: write_parquet(path, pandas.Index(range(100, 160), name="i")),
    "bare.csv": lambda path: write_text(path, names=None),
    "plain.npy": lambda path: np.save(path, ROWS),
    "named.npy": lambda path: np.save(
        path, np.rec.fromarrays(ROWS.T, names=NAMES).view(np.ndarray)
    ),
    "one.npz": lambda path: np.savez(path, ROWS),
    "t.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_the_same(name, tmp_path):
    WRITERS[name](tmp_path / name)
    source = Table(tmp_path / name)
    spec, splits = source.spec, source.load()
    bare = name in ("bare.csv", "plain.npy", "one.npz")
    names = ("height", "mass", "'x,y'") if name == "savetxt.txt" else tuple(NAMES)
    assert spec.columns == (("0", "1", "2") if bare else names)
    assert spec == splits.spec == Table(tmp_path / name).spec
    assert [len(getattr(splits, part)) for part in PARTS] == [48, 6, 6]
    raw = {part: spec.original(splits.split(part)) for part in PARTS}
    # Every row stands in one split, once, in its own units.
    found = torch.cat(list(raw.values())).numpy()
    np.testing.assert_allclose(sorted(found.tolist()), sorted(ROWS.tolist()), rtol=1e-6, atol=1e-6)
    # The scale is that of the training rows.
    z = splits.train.double()
    assert float(z.mean(0).abs().max()) < 1e-6
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double())
    np.testing.assert_allclose(spec.standardization.mean, raw["train"].mean(0), rtol=1e-5)
    torch.testing.assert_close(spec.encoded(raw["test"]), splits.test)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ValueError, match="t.parquet is read by pyarrow, which is not") as error:
        Table(tmp_path / "t.parquet").load()
    assert str(error.value).endswith(" is not installed: pip install 'armodels[parquet]'")


def test_a_file_may_bring_its_splits(tmp_path):
    parts = dict(zip(PARTS, (ROWS[:30], ROWS[30:35], ROWS[35:]), strict=True))
    np.savez(tmp_path / "t.npz", **parts, other=ROWS[:, :2])
    source = Table(tmp_path / "t.npz", valid=0.4)
    splits = source.load()
    for part, rows in parts.items():
        found = source.spec.original(splits.split(part))
        np.testing.assert_allclose(found, rows, rtol=1e-6, atol=1e-6)
    assert Table(tmp_path / "t.npz", array="other").spec.shape == (2,)
    parts["test"] = ROWS[:, :2]
    np.savez(tmp_path / "t.npz", **parts)
    with pytest.raises(ValueError, match="arrays of table .*t.npz have 3 and 2 columns$"):
        Table(tmp_path / "t.npz").load()


def test_columns_and_splits_are_chosen_and_named(tmp_path):
    path = write_text(tmp_path / "my table.csv")
    full = Table(path).spec
    assert re.fullmatch("table-my-table-[0-9a-f]{8}", full.name)
    chosen = Table(path, columns=["x y", "height"])
    assert chosen.spec.standardization.columns == ("x y", "height")
    first = chosen.spec.original(chosen.load().test)[0].tolist()
    assert any(np.allclose(first, row[[2, 0]], atol=1e-6) for row in ROWS)
    assert Table(path, drop=["height"]).spec == Table(path, columns=["mass", "x y"]).spec
    bare = write_text(tmp_path / "bare.csv", names=None)
    assert Table(bare, columns=[2, 0]).spec.standardization.columns == ("2", "0")
    assert Table(bare, header=True).spec.standardization.columns[0] == str(ROWS[0, 0])
    others = [chosen.spec, Table(path, split_seed=1).spec, Table(path, test=0.2).spec]
    write_text(path, ROWS + [0, 0, 1e-9])
    others.append(Table(path).spec)
    assert len({full.name, *(spec.name for spec in others)}) == 5


def test_cells_of_text(tmp_path):
    """Quotes, blanks around numbers, exponents, blank lines; a number may be written as text."""
    path = tmp_path / "t.csv"
    lines = [f'"{i}", {i * i}e-1 ,+{i}.5' for i in range(20)]
    path.write_text("a,b,c\n\n" + "\n\n".join(lines) + "\n\n")
    source = Table(path)
    rows = torch.cat([source.spec.original(source.load().split(part)) for part in PARTS])
    expected = [[i, i * i / 10, i + 0.5] for i in range(20)]
    np.testing.assert_allclose(sorted(rows.tolist()), expected, atol=1e-5)


DROP_B = "leave the column out with data.drop='[b]'"

BAD = [
    (
        "a,b\n1,2\n3,\n5,NA\n",
        {},
        "column 'b' of {} lacks 2 values, the first in row 2; train on the whole rows with "
        "data.missing=drop, and then armodels complete RUN table={} num_completions=1 "
        f"fills the others; or {DROP_B}",
    ),
    (
        "a,b\n1,2\n3,inf\n",
        {},
        "column 'b' of {} cannot be used: 1 of its values are infinite, the first in row 2; mend "
        "such rows, or leave it out with data.drop='[b]'",
    ),
    (
        "a,x y\n1,2\n3,red\n",
        {},
        "column 'x y' of {} is not numeric: row 2 holds 'red'; leave it out with "
        "data.drop=\"['x y']\", or encode it as numbers",
    ),
    ("a,b\n1,2\n3,1_0\n", {}, "column 'b' of {} is not numeric: row 2 holds '1_0'; leave it"),
    (
        "a,b,c\n1,2,red\n3,blue,4\n",
        {"drop": ["c"]},
        "column 'b' of {} is not numeric: row 2 holds 'blue'; leave it out with data.drop='[c,b]'",
    ),
    (
        "a,b\n1,2024-11-26\n2,2024-11-27\n",
        {},
        "column 'b' of {} holds dates or times, such as '2024-11-26' in row 1; turn them into "
        "numbers, such as days since the first, or leave it out with data.drop='[b]'",
    ),
    (
        "a;b\n1;2\n3;1,5\n",
        {"decimal": "point"},
        "column 'b' of {} is not numeric: row 2 holds '1,5'; is it a number with "
        "data.decimal=comma? Else leave it out",
    ),
    (
        "a,b\n" + "1,2\n3,2\n" * 9,
        {},
        "column 'b' of {} is constant over the training rows, so it has no density; leave it out "
        "with data.drop='[b]'",
    ),
    (
        "a,b\n1,2\n3\n",
        {},
        "table {} has 2 columns, but 1 in row 2 (split by data.delimiter=comma, which may be",
    ),
    ("a,b\n" + "1,2\n" * 300 + "3\n", {}, "table {} has 2 columns, but 1 in row 301 (split"),
    ("a,b\n" + "1,2\n" * 300 + "3,4,5\n", {}, "table {} has 2 columns, but 3 in row 301 (split"),
    (
        "a,b,c\n(m),,kg\n1,2,3\n4,5,6\n",
        {},
        "table {} holds words below its names, such as '(m)', and numbers from there on; if they "
        "are units, delete that line",
    ),
    ("a,b\nm,red\n1,red\n", {}, "column 'a' of {} is not numeric: row 1 holds 'm'"),
    (
        "a;b\n" + "0,5;7\n1\xa0234,5;2\n" * 9,
        {"decimal": "comma"},
        "column 'a' of {} is not numeric: row 2 holds '1\\xa0234,5'; is it a number with "
        "data.decimal=comma data.thousands=blank? Else leave it out",
    ),
    ("a,a\n1,2\n3,4\n", {}, "table {} has two columns called 'a'; rename one"),
    ("a,b\n1,2\n3,4\n", {}, "table {} has 2 rows, too few for three splits"),
    ("a,b\n", {}, "table {} has 0 rows, too few for three splits"),
    ("\n", {}, "table {} is empty"),
    ("# nothing\n", {}, "table {} is empty"),
    ('a,b\n1,"2\n3,4\n', {}, "table {} cannot be read as text: "),
    (
        "a,b\n1,2\n",
        {"columns": ["c"]},
        "column 'c' is not in {}; it has a, b. Name some of these in data.columns, or add it",
    ),
    (
        "a,b\n1,2\n",
        {"drop": ["c"]},
        "column 'c' is not in {}; it has a, b. Name some of these in data.drop, or leave it away",
    ),
    ("a,b\n1,2\n", {"drop": ["ab"]}, "column 'ab' is not in {}; it has a, b"),
    ("a,b\n1,2\n", {"columns": ["a"], "drop": ["a"]}, "data.columns and data.drop keep the col"),
    (b"a\0b\n1\n", {}, "table {} is no text: it holds NUL characters"),
    (b"\xff\xfea\0\n", {}, "table {} cannot be read as text: 'utf-16"),
    (b"a\n\xff\n", {"encoding": "utf-8"}, "table {} cannot be read with data.encoding=utf-8: "),
    (b"a\n1\n", {"encoding": "utf8000"}, "table {} cannot be read with data.encoding=utf8000: "),
]


@pytest.mark.parametrize(("text", "options", "sentence"), BAD)
def test_bad_text(text, options, sentence, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="^" + re.escape(sentence.format(path, path))) as error:
        Table(path, **options).load()
    assert "\n" not in str(error.value)


def test_bad_columns_can_be_dropped(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "".join(f"{i},red,\n" for i in range(20)))
    assert Table(path, drop=["b", "c"]).load().spec.shape == (1,)


HOLED = ROWS.copy()
HOLED[5, 1] = HOLED[7, 0] = np.nan

BAD_ARRAYS = [
    ("t.npy", ROWS[None], {}, "table {} has an array of shape (1, 60, 3); it must be (N, D)"),
    (
        "t.npy",
        HOLED,
        {},
        "column '0' of {} lacks 1 value, the first in row 8; train on the whole rows",
    ),
    ("t.npy", ROWS.astype(object), {}, "table {} cannot be read as an array: Object arrays"),
    (
        "t.npy",
        np.zeros(60, [("a", "f8"), ("v", "f8", (2,))]),
        {},
        "column 'v' of {} is not numeric: its cells are arrays of shape (2,); leave it out with "
        "data.drop='[v]'",
    ),
    (
        "t.npy",
        np.arange("2024-11-26", "2025-01-26", dtype="M8[D]").astype("M8[ns]"),
        {},
        "column '0' of {} holds dates or times, such as '2024-11-26T",
    ),
    ("t.npy", np.arange(60).astype("m8[ns]"), {}, "column '0' of {} is not numeric: row 1 holds"),
    ("t.npy", ROWS, {"array": "a"}, "data.array is 'a'; {} holds"),
    ("t.npz", {"a": ROWS, "b": ROWS}, {}, "table {} holds the arrays a, b; choose one with data."),
    ("t.npz", {"a": ROWS}, {"array": "c"}, "data.array is 'c'; {} holds a"),
    (
        "t.npz",
        dict.fromkeys(PARTS, HOLED),
        {},
        "column '0' of train of {} lacks 1 value, the first in row 8;",
    ),
    ("t.npz", {"train": ROWS[:0], "valid": ROWS, "test": ROWS}, {}, "table {} has no rows to"),
    ("t.npz", b"no archive", {}, "table {} is no npz file by its contents"),
    ("t.npz", b"PK\x03\x04...", {}, "table {} is cut short: its end is missing; fetch it again"),
    ("t.zip", b"PK\x03\x04...", {}, "table {} is cut short: its end is missing; fetch it again"),
    ("t.zip", b"1,2", {}, "table {} cannot be unpacked: File is not a zip file"),
    ("t.csv.gz", b"1,2", {}, "table {} cannot be unpacked: Not a gzipped file"),
    ("t.npy", b"PK\x03\x04...", {}, "table {} is no npy file by its contents"),
    ("t.npy", b"", {}, "table {} cannot be read as an array: "),
    (
        "t.json",
        b"[]",
        {},
        "data.path is {}; its ending must be csv, tsv, txt, data, dat, npy, npz or parquet; text "
        "may be packed as gz or zip",
    ),
    ("t.npy.gz", b"", {}, "data.path is {}; its ending must be csv"),
    ("t", b"", {}, "data.path is {}; its ending must be csv"),
]


@pytest.mark.parametrize(("name", "content", "options", "sentence"), BAD_ARRAYS)
def test_bad_arrays(name, content, options, sentence, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match="^" + re.escape(sentence.format(path))) as error:
        Table(path, **options).load()
    assert "\n" not in str(error.value)


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv does not exist"):
        Table(tmp_path / "none.csv").load()
    for shares, wrong in (
        ({"valid": 0}, "^valid is 0; it must be above 0 and below 1"),
        ({"test": -0.1}, "^test is -0.1; it must be above 0 and below 1"),
        ({"valid": 0.5, "test": 0.5}, "^data.valid is 0.5 and data.test 0.5; together they must"),
    ):
        with pytest.raises(ValueError, match=wrong):
            Table("t.csv", **shares)


def read(path, text, **options):
    """Names and rows of a text, and what is said about it."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    names, arrays = Table(path, **options)._arrays
    return names, arrays[""].tolist()


COMMAS = "".join(f"{i % 7},{i % 9}5\n" for i in range(30))
PAIRS = "".join(f"{i % 7},{i % 9}5;{i},5\n" for i in range(30))
TAGS = "".join(f'{i};{i % 11}.5;"a";{[str(i)] * (1 + i % 2)}\n' for i in range(30))

READ = [
    ("price\n" + COMMAS, {}, ["price"], [2.25], "data.decimal=comma"),
    (COMMAS, {"decimal": "comma"}, ["0"], [2.25], "data.decimal=comma"),
    (COMMAS, {"delimiter": "comma", "header": False}, ["0", "1"], [2, 25], ""),
    (PAIRS, {}, ["0", "1"], [2.25, 2.5], "data.delimiter=semicolon data.decimal=comma"),
    (
        PAIRS.replace(";", "\t"),
        {},
        ["0", "1"],
        [2.25, 2.5],
        "data.delimiter=tab data.decimal=comma",
    ),
    (PAIRS.replace(";", " "), {}, ["0", "1"], [2.25, 2.5], "=blanks data.decimal=comma"),
    ("a;b\n" + "1.234,5;7\n0,5;1\n" * 2, {}, ["a", "b"], [1234.5, 7], "data.thousands=point"),
    ("a,b\n" + '"1,234.5",7\n2,3\n' * 2, {}, ["a", "b"], [1234.5, 7], "data.thousands=comma"),
    ("a\n1 234\n2\n1 234\n", {"thousands": "blank"}, ["a"], [1234], "data.thousands="),
    ("1,234,567\n" * 3, {"thousands": "comma"}, ["0"], [1234567], "data.thousands=comma"),
    ("id;x;q;tags\n" + TAGS, {"drop": ["tags", "q"]}, ["id", "x"], [2, 2.5], ""),
    ("größe,b\n" + "1,2\n" * 3, {}, ["größe", "b"], [1, 2], ""),
    ("größe,b\n".encode("cp1252") + b"1,2\n" * 3, {}, ["größe", "b"], [1, 2], "encoding=cp1252"),
    (
        "größe,b\n".encode("cp437") + b"1,2\n" * 3,
        {"encoding": "cp437"},
        ["größe", "b"],
        [1, 2],
        "",
    ),
    ("2019,2020\n" + "1.5,2.5\n" * 3, {"header": True}, ["2019", "2020"], [1.5, 2.5], ""),
    ("2019,2020\n" + "1.5,2.5\n" * 3, {"header": False}, ["0", "1"], [1.5, 2.5], ""),
    ("2019,2020\n" + "1.5,2.5\n" * 3, {"columns": [2020]}, ["2020"], [2.5], ""),
    ("5.1,7\n2,9\n4.5,8\n" * 9, {}, ["0", "1"], [4.5, 8], ""),
    ("5.1,red\n" * 3, {"drop": [1]}, ["0"], [5.1], ""),
    ("# of 2024\na b\n" + "1 2\n" * 3, {}, ["a", "b"], [1, 2], "comments (#) at its top"),
    ("# a b\n" + "1 2\n" * 3, {}, ["a", "b"], [1, 2], "; the last of them names the columns"),
    ("# a b\n" + "1 2\n" * 3, {"header": False}, ["0", "1"], [1, 2], "comments (#) at its top"),
    (
        "a b\n7 1 2\n8 1 2\n5 1 2\n",
        {},
        ["a", "b"],
        [1, 2],
        "'0' of {} is left out: it has no name",
    ),
    ("a b\n7 1 2\n8 1 2\n5 1 2\n", {"columns": [0, "b"]}, ["0", "b"], [5, 2], ""),
    ("Unnamed: 0,a\n1,1\n2,1\n3,1\n", {}, ["a"], [1], "'0' of {} is left out: it has no name"),
    ("a,b\n" + "1,2,\n" * 3, {}, ["a", "b"], [1, 2], "'2' of {} is left out: it has neither a n"),
    (
        "".join(f"{i},{i}.5,7\n" for i in range(12)),
        {},
        ["1", "2"],
        [2.5, 7],
        "'0' of {} is left out",
    ),
    ("".join(f"{i},{i}.5,7\n" for i in range(5)), {}, ["0", "1", "2"], [2, 2.5, 7], ""),
    ("a,b\n" + "TRUE,false\n" * 3, {}, ["a", "b"], [1, 0], ""),
    ("a,b\r1,2\r1,2\r1,2\r", {}, ["a", "b"], [1, 2], ""),
    ("sep=;\r\na,1;b\r\n" + "1;2\r\n" * 3, {}, ["a,1", "b"], [1, 2], ""),
    ('"sep=|"\n# of 2024\na|b\n' + "1|2\n" * 3, {}, ["a", "b"], [1, 2], "comments (#) at its top"),
    ("sep=;\na,b\n" + "1,2\n" * 3, {"delimiter": "comma"}, ["a", "b"], [1, 2], ""),
    ("a;b\n" + "1'234.5;2\n" * 3, {}, ["a", "b"], [1234.5, 2], "data.thousands=apostrophe"),
    ("a;b\n" + "1’234,5;2\n" * 3, {}, ["a", "b"], [1234.5, 2], "=comma data.thousands=apostrophe"),
    ("a,b\n" + "1'234,7\n2,3\n" * 2, {}, ["a", "b"], [1234, 7], "data.thousands=apostrophe"),
    ("a,b\n" + "\u22120.5,-2\n" * 3, {}, ["a", "b"], [-0.5, -2], ""),
    (
        "a;b\n" + "1\u202f234,5;2\n" * 3,
        {"decimal": "comma", "thousands": "blank"},
        ["a", "b"],
        [1234.5, 2],
        "data.thousands=blank",
    ),
]


@pytest.mark.parametrize(("text", "options", "names", "third", "said"), READ)
def test_text_as_people_have_it(text, options, names, third, said, tmp_path, capsys):
    """What was found out is said in one line; what is plain is not."""
    path = tmp_path / "t.csv"
    found, rows = read(path, text, **options)
    told = capsys.readouterr().out
    assert (found, rows[2 if len(rows) < 40 else 3]) == (names, third)
    assert said.format(path) in told
    assert told.count("\n") == bool(said)


UNLIKE = "its numbers, such as '{}', are unlike those below it; {{}}"

ASKED = [
    (COMMAS, "table {} can be read in two ways: '1,25' is 2 numbers, or one; use "
     "data.delimiter=comma, or data.decimal=comma"),
    ("1,234,567\n" * 9, "table {} can be read in two ways: '1,234,567' is 3 numbers, or one; use "
     "data.delimiter=comma, or data.thousands=comma"),
    ("a;b\n" + "1,234;2\n" * 9, "table {} holds '1,234', whose mark may be of decimals or of "
     "thousands; use data.decimal=comma or data.thousands=comma"),
    ("2019,2020\n" + "1.5,2.5\n" * 9, UNLIKE.format(2019)),
    ("0,1,2\n" + "5,4,2\n" * 9, UNLIKE.format(0)),
    (",0,1\n" + "5,4,2\n" * 9, UNLIKE.format(0)),
    ("410.5,411,411.5\n" + "0.1,2,.3\n" * 10, UNLIKE.format(410.5)),
    ("410.5,411\n" + "0.1,7\n2.5,9\n" * 5, UNLIKE.format(410.5)),
    ("7,12\n" + "0.1,7\n2.5,9\n" * 5, UNLIKE.format(7)),
    ("0\n" + "3\n8\n" * 5, UNLIKE.format(0)),
    (",7,5\n" + "0,2,3\n" * 10, UNLIKE.format(7)),
    ("x1,3,y\n" + "5,4,2\n" * 9, "it holds the number '3' and the word 'x1'; {}"),
    ("name,2019\n" + "a,4\nb,5\n" * 9, "it holds the number '2019' and the word 'name'; {}"),
    ("?,NA\n" + "5,4\n" * 9, "its cells are empty; {}"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), ASKED)
def test_what_cannot_be_told_is_asked(text, sentence, tmp_path):
    path = tmp_path / "t.csv"
    start = f"the first row of table {path} may hold names or values: "
    ways = "use data.header=true or data.header=false"
    expected = sentence.format(path) if "{}" in sentence[:9] else start + sentence.format(ways)
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read(path, text)


def test_marks_that_are_no_delimiter(tmp_path):
    with pytest.raises(ValueError, match="would be split at the mark of its numbers; name its"):
        read(tmp_path / "t.csv", "a,b\n1,2\n", decimal="comma")
    for options, sentence in (
        (
            {"delimiter": "--"},
            "data.delimiter is '--'; choose from tab, semicolon, bar, comma, bl",
        ),
        ({"decimal": "dot"}, "data.decimal is 'dot'; choose from point, comma, blank, apostrophe"),
        ({"decimal": "blank"}, "data.decimal is 'blank'; choose point or comma"),
        ({"decimal": ",", "thousands": "comma"}, "data.decimal and data.thousands are both ','"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(sentence)):
            Table("t.csv", **options)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    """By the size that they state, or where they state another than they have."""
    packed = gzip.compress(b"1,2\n" * 1000)
    np.save(tmp_path / "t.npy", ROWS)
    content = (tmp_path / "t.npy").read_bytes()
    huge = content.replace(b"(60, 3), ", b"(9" + b"0" * 12 + b", 3), ").replace(b" " * 11, b"", 1)
    (tmp_path / "huge.npy").write_bytes(huge)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("a.npy", huge)
    for name in ("huge.npy", "huge.npz"):
        with pytest.raises(ValueError, match="takes 216,000,000,000,000 bytes, and .* are there"):
            Table(tmp_path / name).load()
    monkeypatch.setattr(files, "BOMB", (1000, 10))
    (tmp_path / "t.csv.gz").write_bytes(packed)
    (tmp_path / "lies.csv.gz").write_bytes(packed[:-4] + b"\1\0\0\0")
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", b"1,2\n" * 1000)
    np.savez_compressed(tmp_path / "t.npz", np.zeros((1000, 2)))
    names = ["t.csv.gz", "lies.csv.gz", "t.zip", "t.npz"]
    if importlib.util.find_spec("pyarrow"):
        pandas.DataFrame({"a": np.zeros(100_000)}).to_parquet(tmp_path / "t.parquet")
        names.append("t.parquet")
    for name in names:
        with pytest.raises(ValueError, match=f"table .*{name} of [0-9,]+ bytes would unpack to"):
            Table(tmp_path / name).load()


def test_a_gz_that_is_cut_short_says_so(tmp_path):
    """Its last bytes are no size."""
    packed = gzip.compress(write_text(tmp_path / "t.csv").read_bytes())
    for end in (len(packed) // 2, -8, -1):
        (tmp_path / "t.csv.gz").write_bytes(packed[:end])
        with pytest.raises(ValueError, match="t.csv.gz is cut short: its end is missing; fetch"):
            Table(tmp_path / "t.csv.gz").load()


def test_a_zip_of_several_files_is_refused(tmp_path):
    write_zip(tmp_path / "t.zip", "a.csv", "b.csv")
    with pytest.raises(ValueError, match="t.zip holds 2 files; unpack it, and name one of them$"):
        Table(tmp_path / "t.zip").load()


def test_parquet_of_other_kinds(tmp_path):
    """Nullable numbers, switches and categories of numbers are read, dates refused by name."""
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    frame = pandas.DataFrame(
        {
            "whole": pandas.array([3, None, 5] * 9, dtype="Int64"),
            "on": pandas.array([True, False, None] * 9, dtype="boolean"),
            "class": pandas.Categorical([2.5, 7.0, 2.5] * 9),
            "day": pandas.date_range("2024-11-26", periods=27),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    kept = Table(tmp_path / "t.parquet", drop=["day"])
    np.testing.assert_array_equal(
        kept._arrays[1][""][:3], [[3, 1, 2.5], [np.nan, 0, 7], [5, np.nan, 2.5]]
    )
    with pytest.raises(
        ValueError, match="column 'day' of .* holds dates or times, such as '2024-"
    ):
        Table(tmp_path / "t.parquet").load()


def test_huge_and_tiny_columns(tmp_path):
    """Their squares are no numbers; the usual ones keep every digit that they had."""
    rows = np.random.RandomState(1).randn(60, 3) + 5
    path = tmp_path / "t.npy"
    np.save(path, rows * [1e200, 1e-200, 1])
    spec, train = Table(path).spec, Table(path).load().train.double()
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0, correction=0), 1, atol=1e-6)
    assert spec.log_det == pytest.approx(Table(write_npy(path, rows)).spec.log_det, abs=1e-9)
    (raw, *_) = Table(path)._parts[1]
    assert Table(path).spec.standardization.std == tuple(raw.std(0).tolist())
    np.save(path, rows * [1, 1e-310, 1])
    with pytest.raises(ValueError, match="column '1' of .* has a spread beyond what numbers can"):
        Table(path).load()


def test_columns_that_float32_cannot_hold_are_refused(tmp_path):
    """By name, whether the values no longer differ or are no numbers at all."""
    path, rows = tmp_path / "t.npy", np.random.RandomState(1).rand(60, 3)
    train = np.flatnonzero(np.isin(rows[:, 1], Table(write_npy(path, rows))._parts[1][0][:, 1]))
    lone, repeated = rows.copy(), rows.copy()
    lone[train[0], 1] = 1e300
    repeated[:, 1] = np.arange(60) % 2
    repeated[train[0], 1] = 1e300
    for bad in (lone, repeated):
        told = "column '1' of .*t.npy cannot be standardized: it goes from .* to 1e.300, and most"
        with pytest.raises(ValueError, match=told) as error:
            Table(write_npy(path, bad)).spec  # noqa: B018
        assert str(error.value).endswith("logarithm, or leave it out with data.drop=\"['1']\"")
    huge = rows * [1, 1e308, 1] * np.where(np.arange(60) % 2, 1, -1)[:, None]
    with pytest.raises(ValueError, match="column '1' of .*t.npy has a spread beyond what numbers"):
        Table(write_npy(path, huge)).spec  # noqa: B018
    rest = np.setdiff1d(np.arange(60), train)
    rows[rest[0], 1] = 1e300
    source = Table(write_npy(path, rows))
    told = r"table .*t.npy: column '1' holds 1e\+300, too far from the training rows to be stand"
    with pytest.raises(ValueError, match=told):
        source.load()
    with pytest.raises(ValueError, match="^column '2' holds -1e.200, too far from the training"):
        source.spec.encoded(torch.tensor([[0, 0, 0.5], [0, 0, -1e200]], dtype=torch.double))


def test_columns_that_float32_holds_are_read(tmp_path):
    """Rounding of the last digits, heavy tails and large offsets do not count."""
    draw = np.random.RandomState(2)
    tenths = np.repeat(np.arange(1, 13) / 10, 5)
    noisy = tenths * (1 + draw.choice([0, 1e-16, 2e-16], size=60))
    pareto = np.exp(draw.exponential(2, size=60))
    offset = 1e15 + np.arange(60.0)
    rows = np.stack([noisy, pareto, offset, draw.choice([0, 1], 60)], axis=1)
    train = Table(write_npy(tmp_path / "t.npy", rows), split_seed=1).load().train
    assert [len(np.unique(column)) for column in train.T[2:]] == [48, 2]


def write_npy(path, rows):
    np.save(path, rows)
    return path


BITS = np.random.RandomState(3).randint(2, size=(80, 4))
STARS = np.random.RandomState(4).choice([-1, 2, 3, 9], size=(80, 2))


def test_small_whole_numbers_are_levels(tmp_path, capsys):
    """Exactly: another table of the same columns is read by the same levels, or refused."""
    path = tmp_path / "t.csv"
    spec = Table(write_text(path, BITS, list("abcd")), levels="binary").spec
    assert (spec.levels, spec.measure, spec.log_det) == (2, "probability", 0)
    assert spec.columns == ("a", "b", "c", "d")
    assert re.fullmatch("table-t-[0-9a-f]{8}-L2", spec.name)
    assert (
        "t.csv is of 0 and 1 alone: 2 levels (data.levels=null: real)" in capsys.readouterr().out
    )
    real = Table(path).spec
    assert (real.levels, real.measure) == (None, "density")
    assert spec.name != real.name
    assert Table(path, levels=3).spec.levels == 3

    write_text(path, STARS, list("ab"))
    source = Table(path, levels="auto")
    spec, splits = source.spec, source.load()
    assert spec.coding == Coding(("a", "b"), (-1, 2, 3, 9))
    assert "has 4 levels: -1 to 9 (data.levels=null: real)" in capsys.readouterr().out
    assert DataSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    raw = torch.cat([spec.original(splits.split(part)) for part in PARTS])
    assert sorted(raw.tolist()) == sorted(STARS.tolist())
    assert raw.dtype == torch.int64
    assert Table(path, levels="binary").spec.levels is None
    with pytest.raises(ValueError, match="column 'b' holds 4, which is none of the levels -1, 2"):
        spec.encoded(torch.tensor([[2.0, 4.0]]))
    with pytest.raises(ValueError, match="data.levels=5 takes whole numbers from 0 to 4, but col"):
        Table(path, levels=5).spec  # noqa: B018
    with pytest.raises(ValueError, match="^levels is 1; it must be from 2 to 256"):
        Table(path, levels=1)
    capsys.readouterr()
    for rows, why in ((ROWS, "numbers that are not whole"), (np.arange(300), "300 different num")):
        write_text(path, np.reshape(rows, (-1, 1)), ["a"])
        assert Table(path, levels="auto").spec.levels is None
        assert f"t.csv is real-valued, for it holds {why}" in capsys.readouterr().out


def test_codings_that_are_none():
    for values in ((), (1,), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="a coding needs ascending values"):
            Coding(("a",), values)
    with pytest.raises(ValueError, match="has 3 levels, its coding others"):
        DataSpec("t", "vector", (1,), 3, "probability", coding=Coding(("a",), (0, 1)))


def test_rows_that_lack_cells_may_be_dropped(tmp_path, capsys):
    path = tmp_path / "t.npy"
    np.save(path, HOLED)
    source = Table(path, missing="drop")
    assert sum(len(part) for part in source._parts[1]) == 58
    assert "2 of 60 rows of " in capsys.readouterr().out
    with pytest.raises(ValueError, match="column '0' of .* lacks 1 value, the first in row 8"):
        source.whole()
    np.testing.assert_array_equal(source.whole(missing=True)[1], HOLED)
    with pytest.raises(ValueError, match="^missing is 'fill'; choose refuse or drop"):
        Table(path, missing="fill")


def test_columns_that_look_discrete_are_named(tmp_path, capsys):
    rows = np.random.RandomState(0).randn(100, 3)
    rows[:, 1] = np.arange(100) % 3
    path = write_text(tmp_path / "t.csv", rows, ["a", "b", "c"])
    Table(path).load()
    Table(path).load()  # said once
    told = f"armodels: warning: columns of few distinct values in {path}: b (3); a density on"
    err = capsys.readouterr().err
    assert err.startswith(told)
    assert err.count("warning") == 1
    Table(path, drop=["b"]).load()
    assert capsys.readouterr() == ("", "")


def test_columns_of_names_are_named(tmp_path, capsys):
    """Those that number the rows from anywhere, and those with digits that are lost."""
    values = np.random.RandomState(0).randn(60)
    for first in (0, 1, 1960):
        write_text(tmp_path / "t.csv", np.stack([first + np.arange(60), values], 1), ["id", "x"])
        Table(tmp_path / "t.csv").load()
        told = f"column 'id' numbers the rows of {tmp_path}/t.csv; data.drop='[id]' leaves it out"
        assert capsys.readouterr().err == f"armodels: warning: {told}\n"
    large = [9007199254740993 + 10 * i for i in range(60)]
    pandas.DataFrame({"id": large, "x": values}).to_csv(tmp_path / "ids.csv", index=False)
    Table(tmp_path / "ids.csv").load()
    assert capsys.readouterr().err == (
        f"armodels: warning: column 'id' of {tmp_path}/ids.csv holds whole numbers of too many "
        f"digits, such as 9007199254740993 in row 1, which is read as 9007199254740992; "
        f"data.drop='[id]' leaves it out\n"
    )
    even = np.stack([2.0**60 + 4096 * np.arange(60) ** 2, values], 1)
    Table(write_npy(tmp_path / "even.npy", even)).load()
    pandas.DataFrame({"id": [f"{v:.0f}" for v in even[:, 0]], "x": values}).to_csv(
        tmp_path / "even.csv", index=False
    )
    Table(tmp_path / "even.csv").load()
    assert capsys.readouterr() == ("", "")


def test_levels_are_offered(tmp_path, capsys):
    """In a line, of whole numbers that come again and again, to one that has not chosen."""
    hint = "is read as real numbers, but holds 4 different whole ones: data.levels=auto models"
    path = write_text(tmp_path / "t.csv", STARS, list("ab"))
    assert Table(path, levels="binary").spec.levels is None
    assert hint in capsys.readouterr().out
    assert Table(path).spec.levels is None
    write_text(tmp_path / "u.csv", np.arange(80).reshape(40, 2) // 9, list("ab"))
    Table(tmp_path / "u.csv", levels="binary").spec  # noqa: B018
    assert capsys.readouterr() == ("", "")


def test_standardization_of_a_spec():
    scale = Standardization(("a", "b"), (1.0, -2.0), (0.5, 8.0))
    assert scale.log_det == pytest.approx(-np.log(4))
    spec = DataSpec("t", "vector", (2,), None, "density", scale.log_det, standardization=scale)
    assert DataSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    x = torch.tensor([[2.0, 6.0]])
    assert spec.encoded(x).tolist() == [[2.0, 1.0]]
    assert spec.original(spec.encoded(x)).tolist() == x.tolist()
    plain = dataclasses.replace(spec, standardization=None)
    assert plain.encoded(x) is plain.original(x) is x
    for std in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            Standardization(("a",), (0.0,), (std,))
    with pytest.raises(ValueError, match="needs a name, a mean and a std for each column"):
        Standardization(("a", "b"), (0.0,), (1.0,))


TABLE = ("train", "data=table", "model=independent", *QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on t.csv; ``scaled.csv`` is the same with the mass in units 1000 times smaller."""
    folder = tmp_path_factory.mktemp("table")
    write_text(folder / "t.csv")
    write_text(folder / "scaled.csv", ROWS * [1, 1000, 1])
    write_text(folder / "bare.csv", names=None)
    done(folder, *TABLE, "data.path=t.csv", "out=run")
    return folder


def evaluated(folder, *args):
    done(folder, "eval", "run", "device=cpu", "out=o.json", *args)
    return json.loads((folder / "o.json").read_text())


def test_nats_are_those_of_the_original_units(folder):
    metrics = json.loads((folder / "run/metrics.json").read_text())
    source = Table(folder / "t.csv")
    raw = {part: source.spec.original(source.load().split(part)) for part in PARTS}
    normal = torch.distributions.Normal(raw["train"].mean(0), raw["train"].std(0, correction=0))
    for part in ("valid", "test"):
        expected = float(-normal.log_prob(raw[part]).sum(1).mean())
        assert metrics[part]["nats"] == pytest.approx(expected, abs=1e-5)
    # A column times a has a density a times lower.
    done(folder, *TABLE, "data.path=scaled.csv", "out=scaled")
    scaled = json.loads((folder / "scaled/metrics.json").read_text())
    shift = scaled["test"]["nats"] - metrics["test"]["nats"]
    assert shift == pytest.approx(np.log(1000), abs=1e-5)
    assert scaled["data"] != metrics["data"]


def test_a_run_knows_its_scale(folder):
    """Other tables are standardized by the run's mean and std, which its checkpoint holds."""
    spec = DataSpec(**load_checkpoint(folder / "run/checkpoints/last.pt")["spec"])
    assert spec == Table(folder / "t.csv").spec
    metrics = json.loads((folder / "run/metrics.json").read_text())
    assert evaluated(folder)["nats"] == metrics["test"]["nats"]
    rows = ROWS * [1, 1, 2] + [0, 30, 0]
    write_text(folder / "other.csv", rows)
    other = evaluated(folder, "data=table", "data.path=other.csv")
    source = Table(folder / "other.csv")
    raw = source.spec.original(source.load().test)
    scale = spec.standardization
    normal = torch.distributions.Normal(torch.tensor(scale.mean), torch.tensor(scale.std))
    assert other["nats"] == pytest.approx(float(-normal.log_prob(raw).sum(1).mean()), rel=1e-4)
    told = armodels(folder, "eval", "run", "device=cpu", "data=table", "data.path=bare.csv").error
    assert told == (
        "the model was trained on the columns height, mass, x y and cannot score 0, 1, 2; "
        "choose them with data.columns=\"[height,mass,'x y']\""
    )


def scored(folder, *args):
    """Nats of every row."""
    done(folder, "score", "run", "device=cpu", "split=all", "out=scores.csv", *args)
    return np.loadtxt(folder / "scores.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1]


def test_every_row_is_scored_in_the_order_of_the_file(folder):
    """By the run's own scale; new rows may be few, a column of them constant."""
    scale = Table(folder / "t.csv").spec.standardization
    normal = torch.distributions.Normal(*torch.tensor([scale.mean, scale.std], dtype=torch.double))

    def expected(rows):
        return -normal.log_prob(torch.tensor(rows)).sum(1)

    np.testing.assert_allclose(scored(folder), expected(ROWS), rtol=1e-4)
    rows = ROWS[:2] * [2, 0, 1]
    named = [[i, z, x, y, "red"] for i, (x, y, z) in enumerate(rows)]
    write_text(
        folder / "new.csv",
        np.array(named, dtype=object),
        ["id", "x y", "height", "mass", "hue"],
    )
    new = ("data=table", "data.path=new.csv", "data.columns=[height,mass,x y]")
    np.testing.assert_allclose(scored(folder, *new), expected(rows), rtol=1e-4)
    total = evaluated(folder, *new, "split=all")
    assert total["nats"] == pytest.approx(float(expected(rows).mean()), rel=1e-4)
    assert total["num_examples"] == 2
    told = armodels(folder, "score", "run", "device=cpu", *new[:2], "split=all", "data.drop=[hue]")
    assert told.error == (
        "the model was trained on the columns height, mass, x y and cannot score id, x y, height, "
        "mass; choose them with data.columns=\"[height,mass,'x y']\""
    )
    told = armodels(folder, "score", "run", "device=cpu", "data=toy", "split=all").error
    assert told.startswith("split all is every row of a table, but the data is toy-")
    assert told.endswith("; choose from train, valid, test")
    write_text(folder / "none.csv", ROWS[:0])
    told = armodels(folder, "score", "run", "data=table", "data.path=none.csv", "split=all").error
    assert told == "table none.csv has no rows"


def test_all_of_a_file_with_splits(tmp_path):
    parts = {"test": ROWS[40:], "train": ROWS[:30], "valid": ROWS[30:40]}
    np.savez(tmp_path / "t.npz", **parts)
    spec, rows = Table(tmp_path / "t.npz").whole()
    np.testing.assert_array_equal(rows, ROWS)  # train, valid, test
    assert spec.log_det == 0


def test_a_run_finds_its_table_from_other_directories(folder, tmp_path):
    path = OmegaConf.load(folder / "run/config.yaml").data.path
    assert path == load_checkpoint(folder / "run/checkpoints/best.pt")["config"]["data"]["path"]
    assert path == str(folder / "t.csv")
    done(tmp_path, "eval", str(folder / "run"), "device=cpu")
    done(tmp_path, "train", f"resume={folder}/run")
    done(folder, *TABLE, "data.path='~/t.csv'", "out=home", HOME=str(folder))
    assert OmegaConf.load(folder / "home/config.yaml").data.path == path


def test_samples_are_in_the_original_units(folder):
    done(folder, "sample", "run", "num=500", "device=cpu", "out=drawn")
    with np.load(folder / "drawn/sample-seed0-t1.npz") as drawn:
        x, log_prob = drawn["x"], drawn["log_prob"]
    spec = Table(folder / "t.csv").spec
    mean, std = np.array(spec.standardization.mean), np.array(spec.standardization.std)
    z = (x - mean) / std
    assert abs(z.mean(0)).max() < 5 / np.sqrt(500)
    assert abs(z.std(0) - 1).max() < 0.2
    expected = -0.5 * (z**2 + np.log(2 * np.pi)).sum(1) - np.log(std).sum()
    np.testing.assert_allclose(log_prob, expected, atol=1e-3)
    assert nats(0.0, spec) == pytest.approx(np.log(std).sum())
    done(folder, "complete", "run", "num=2", "keep=0.4", "device=cpu", "out=drawn")
    with np.load(folder / "drawn/complete-top-0.4-seed0.npz") as drawn:
        truth, completions = drawn["truth"], drawn["completions"]
    assert all(abs(row - ROWS).max(1).min() < 1e-3 for row in truth)
    assert (completions[..., 0] == truth[:, None, 0]).all()
    assert abs((completions - mean) / std).max() < 6


def test_a_table_that_has_changed_is_noticed(tmp_path):
    write_text(tmp_path / "t.csv")
    train = ("train", "data=table", "data.path=t.csv", "model=made", "model.hidden_sizes=[4]")
    done(tmp_path, *train, *QUICK, "trainer.max_steps=1", "out=run")
    write_text(tmp_path / "t.csv", ROWS[1:])
    for verb in (("eval", "run", "device=cpu"), ("train", "resume=run", "trainer.max_steps=2")):
        told = armodels(tmp_path, *verb).error
        assert told.startswith("the run was trained on table-t-")
        assert "but its data has changed and is now table-t-" in told


def test_a_path_is_asked_for(tmp_path):
    told = armodels(tmp_path, "train", "data=table", *QUICK).error
    assert told == "data.path=... is missing; see armodels train --help"


# Levels, missing cells and CSV, by the command line


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """A run on whole numbers of four kinds, and tables of the same columns."""
    folder = tmp_path_factory.mktemp("stars")
    write_text(folder / "t.csv", STARS, ["a", "b c"])
    done(folder, *TABLE, "data.path=t.csv", "data.levels=auto", "out=run")
    return folder


def lines(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_levels_of_a_table_are_probabilities(stars):
    metrics = json.loads((stars / "run/metrics.json").read_text())
    assert (metrics["measure"], metrics["levels"]) == ("probability", 4)
    train = Table(stars / "t.csv", levels="auto")._parts[1][0]
    counts = {(i, v): (train[:, i] == v).sum() + 0 for i in (0, 1) for v in (-1, 2, 3, 9)}
    write_text(stars / "new.csv", STARS[:3, ::-1], ["b c", "a"])
    done(stars, "score", "run", "device=cpu", "split=all", "out=s.csv", "data=table",
         "data.path=new.csv", "data.columns=[a,b c]")  # fmt: skip
    scored = [float(line[1]) for line in lines(stars / "s.csv")[1:]]
    smooth = [
        -sum(np.log((counts[i, v] + 1) / (len(train) + 4)) for i, v in enumerate(row))
        for row in STARS[:3].tolist()
    ]
    np.testing.assert_allclose(scored, smooth, atol=0.2)
    write_text(stars / "odd.csv", [[4, 2]], ["a", "b c"])
    told = armodels(stars, "score", "run", "split=all", "data=table", "data.path=odd.csv").error
    assert told == "column 'a' holds 4, which is none of the levels -1, 2, 3, 9"


def test_samples_and_completions_are_tables(stars, folder):
    """Of columns with their names, in the units of the file."""
    done(stars, "sample", "run", "num=5", "device=cpu", "out=drawn")
    names, *rows = lines(stars / "drawn/sample-seed0-t1.csv")
    with np.load(stars / "drawn/sample-seed0-t1.npz") as drawn:
        assert rows == [[str(cell) for cell in row] for row in drawn["x"].tolist()]
    assert names == ["a", "b c"]
    assert {cell for row in rows for cell in row} <= {"-1", "2", "3", "9"}
    done(stars, "complete", "run", "num=2", "num_completions=3", "known=[b c]", "device=cpu",
         "out=drawn")  # fmt: skip
    names, *rows = lines(stars / "drawn/complete-b-c-seed0.csv")
    assert names == ["example", "answer", "a", "b c"]
    assert [row[:2] for row in rows] == [[i, j] for i in "01" for j in "0123"]
    assert all(rows[4 * i + j][3] == rows[4 * i][3] for i in (0, 1) for j in range(4))
    done(folder, "sample", "run", "num=5", "device=cpu", "out=csv")
    with np.load(folder / "csv/sample-seed0-t1.npz") as drawn:
        rows = np.loadtxt(folder / "csv/sample-seed0-t1.csv", delimiter=",", skiprows=1)
        np.testing.assert_array_equal(rows, drawn["x"])


def test_a_table_is_filled(stars, folder):
    """Cells that are there stay to the last digit; those that are not are drawn."""
    rows = [[repr(cell) for cell in row] for row in ROWS[:6].tolist()]
    rows[1][0] = rows[3][0] = rows[3][2] = "NA"
    write_text(folder / "holes.csv", np.array(rows, object))
    told = done(folder, "complete", "run", "table=holes.csv", "num_completions=1", "device=cpu",
                "out=filled")  # fmt: skip
    assert "drawn  2 rows, exact: every answer is a draw from p(unknown | known)" in told
    names, *filled = lines(folder / "filled/holes-filled-seed0.csv")
    assert names == NAMES
    for row, now in zip(rows, filled, strict=True):
        assert all(new == old or old == "NA" for old, new in zip(row, now, strict=True))
    assert "NA" not in {cell for row in filled for cell in row}

    (stars / "holes.csv").write_text("row,b c,a\n1,2,\n2,3,9\n3,,\n")
    done(stars, "complete", "run", "table=holes.csv", "num_completions=200", "device=cpu")
    names, *filled = lines(stars / "run/samples/holes-filled-seed0.csv")
    assert names == ["row", "answer", "a", "b c"]
    assert [row[:2] for row in filled[199:202]] == [["1", "200"], ["2", "1"], ["2", "2"]]
    assert {row[2] for row in filled[:200]} == {"-1", "2", "3", "9"}
    assert {row[3] for row in filled[:200]} == {"2"}
    assert {tuple(row[2:]) for row in filled[200:400]} == {("9", "3")}
    told = armodels(stars, "complete", "run", "table=none.csv", "num_completions=1").error
    assert told == "table none.csv does not exist; name a file with table"
    told = armodels(stars, "complete", "run", "table=t.csv", "num_completions=1").err
    assert "no row of table t.csv lacks a cell" in told
    done(stars, "train", "data=tiny", "model=independent", *QUICK, "out=tiny")
    told = armodels(stars, "complete", "tiny", "table=t.csv").error
    assert told == "table=FILE is for a model of a table, not one of tiny-image"


def test_rows_that_lack_the_same_are_filled_together(tmp_path):
    """Exactly where what they have comes first in the order, else by particles, and said."""
    write_text(tmp_path / "t.csv", BITS, list("abcd"))
    train = ("train", "data=table", "data.path=t.csv", "model=made", "model.hidden_sizes=[8]")
    done(tmp_path, *train, *QUICK, "trainer.max_steps=1", "out=run")
    (tmp_path / "holes.csv").write_text("a,b,c,d\n1,0,,\n,1,1,0\n0,1,,\n1,1,0,\n0,0,0,0\n")
    told = done(tmp_path, "complete", "run", "table=holes.csv", "device=cpu", "out=.")
    assert "drawn  3 rows, exact: every answer" in told
    assert re.search(r"drawn  1 rows, likelihood weighting: effective .* of 100 particles", told)
    _, *filled = lines(tmp_path / "holes-filled-seed0.csv")
    assert len(filled) == 5 * 7
    assert {tuple(row[2:4]) for row in filled[:7]} == {("1", "0")}
    assert {tuple(row[3:]) for row in filled[7:14]} == {("1", "1", "0")}
    assert {tuple(row[2:]) for row in filled[28:]} == {("0", "0", "0", "0")}
    x = torch.from_numpy(BITS[:9].astype(np.uint8))
    known = torch.tensor([[True, False, True, True], [True, True, False, True]]).repeat(5, 1)[:9]
    how = {"num_completions": 3, "num_particles": 1, "temperature": 1.0, "seed": 0}
    answers, _ = fill(restore(tmp_path / "run"), x, known, how, Sampler())
    assert answers.shape == (9, 3, 4)
    assert ((answers == x[:, None]) | ~known[:, None]).all()


def test_a_table_with_holes_is_trained_on_and_filled(tmp_path):
    """By what the refusal says."""
    path = write_text(tmp_path / "my t.csv", HOLED)
    told = armodels(tmp_path, *TABLE, f"data.path={path}", "out=run").error
    command = re.search("then armodels (complete RUN .*) fills the others", told).group(1)
    done(tmp_path, *TABLE, f"data.path={path}", "data.missing=drop", "out=run")
    done(tmp_path, *shlex.split(command.replace("RUN", "run")), "out=filled")
    filled = np.loadtxt(tmp_path / "filled/my t-filled-seed0.csv", delimiter=",", skiprows=1)
    assert filled.shape == HOLED.shape
    assert (filled == HOLED).sum() == HOLED.size - 2


def test_an_empty_line_of_one_column_is_an_unknown_cell(tmp_path):
    (tmp_path / "one.csv").write_text("v\n" + "".join(f"{i / 7:.3f}\n" for i in range(60)))
    done(tmp_path, *TABLE, "data.path=one.csv", "out=run")
    (tmp_path / "holes.csv").write_text("v\n0.5\n\n0.25\n\n\n")  # the last lines end the file
    done(tmp_path, "complete", "run", "table=holes.csv", "num_completions=1", "out=.")
    _, *filled = lines(tmp_path / "holes-filled-seed0.csv")
    assert [row[0] for row in filled[::2]] == ["0.5", "0.25"]
    assert len(filled) == 3


def test_answers_at_a_temperature_say_so_and_have_a_name_of_their_own(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    for heat, end in ((1, ""), (0.5, "-t0.5"), (0, "-t0")):
        told = done(tmp_path, "complete", "run", "num=2", f"temperature={heat}", "out=answers")
        assert (tmp_path / f"answers/complete-top-0.5-seed0{end}.npz").is_file()
        assert ("every answer is a draw from p(unknown | known)" in told) == (heat == 1)
        assert (f"each value drawn at temperature {heat:g}" in told) == (heat != 1)
