"""A user's own table: every format alike, original units, one clear sentence for a bad file."""

import csv
import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from command import QUICK, armodels, done
from omegaconf import OmegaConf

from armodels.data.files import PARTS
from armodels.data.tables import Table
from armodels.run import load_checkpoint
from armodels.spec import DataSpec, Standardization, nats

NAMES = ["height", "mass", "x y"]
ROWS = np.random.RandomState(0).randn(60, 3).round(4) * [1, 50, 1e-3] + [0, 2000, 5]


def write_text(path, rows=ROWS, names=NAMES, delimiter=",", **options):
    with open(path, "w", newline="", **options) as file:
        writer = csv.writer(file, delimiter=delimiter)
        if names:
            writer.writerow(names)
        writer.writerows(np.asarray(rows).tolist())
    return path


def write_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")
    table = pytest.importorskip("pyarrow").table(dict(zip(NAMES, ROWS.T, strict=True)))
    parquet.write_table(table, path)


WRITERS = {
    "comma.csv": write_text,
    "semicolon.csv": lambda path: write_text(path, delimiter=";"),
    "tab.csv": lambda path: write_text(path, delimiter="\t"),
    "bar.csv": lambda path: write_text(path, delimiter="|"),
    "windows.CSV": lambda path: write_text(path, encoding="utf-8-sig"),
    "t.tsv": lambda path: write_text(path, delimiter="\t"),
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
    assert spec.standardization.columns == (("0", "1", "2") if bare else tuple(NAMES))
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
    torch.testing.assert_close(spec.standardized(raw["test"]), splits.test)


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
    assert Table(path, drop="height").spec == Table(path, columns=["mass", "x y"]).spec
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


BAD = [
    (
        "a,b\n1,2\n3,\n5,NA\n",
        {},
        "column 'b' of {} cannot be used: 2 values are missing, the first in row 2;",
    ),
    (
        "a,b\n1,2\n3,inf\n",
        {},
        "column 'b' of {} cannot be used: 1 value is infinite, the first in row 2;",
    ),
    ("a,b\n1,2\n3,red\n", {}, "column 'b' of {} is not numeric: row 2 holds 'red'; leave it out"),
    ("a,b\n1,2\n3,1_0\n", {}, "column 'b' of {} is not numeric: row 2 holds '1_0'; leave it"),
    ("a,b\n" + "1,2\n3,2\n" * 9, {}, "column 'b' of {} is constant over the training rows"),
    ("a,b\n1,2\n3\n", {}, "table {} has 2 columns, but 1 in row 2 (delimiter ','"),
    ("a,a\n1,2\n3,4\n", {}, "table {} has two columns called 'a'; rename one"),
    ("a,b\n1,2\n3,4\n", {}, "table {} has 2 rows, too few for three splits"),
    ("a,b\n", {}, "table {} has 0 rows, too few for three splits"),
    ("\n", {}, "table {} is empty"),
    ("a,b\n1,2\n", {"columns": ["c"]}, "column 'c' is not in {}; it has a, b"),
    ("a,b\n1,2\n", {"drop": ["c"]}, "column 'c' is not in {}; it has a, b"),
    ("a,b\n1,2\n", {"drop": "ab"}, "column 'ab' is not in {}; it has a, b"),
    ("a,b\n1,2\n", {"columns": "a", "drop": "a"}, "data.columns and data.drop keep the col"),
    ("a,b\n1,2\n", {"delimiter": "--"}, "table {} cannot be read as text: "),
    (b"a\n\xff\n", {}, "table {} cannot be read as text: 'utf-8'"),
]


@pytest.mark.parametrize(("text", "options", "sentence"), BAD)
def test_bad_text(text, options, sentence, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="^" + re.escape(sentence.format(path))) as error:
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
        "column '0' of {} cannot be used: 1 value is missing, the first in row 8;",
    ),
    ("t.npy", ROWS.astype(object), {}, "table {} cannot be read as arrays: "),
    ("t.npy", ROWS, {"array": "a"}, "data.array is 'a'; {} holds"),
    ("t.npz", {"a": ROWS, "b": ROWS}, {}, "table {} holds the arrays a, b; choose one with data."),
    ("t.npz", {"a": ROWS}, {"array": "c"}, "data.array is 'c'; {} holds a"),
    (
        "t.npz",
        dict.fromkeys(PARTS, HOLED),
        {},
        "column '0' of train of {} cannot be used: 1 value is missing",
    ),
    ("t.npz", {"train": ROWS[:0], "valid": ROWS, "test": ROWS}, {}, "table {} has no rows to"),
    ("t.npz", b"no archive", {}, "table {} cannot be read as arrays: "),
    ("t.npy", b"", {}, "table {} cannot be read as arrays: "),
    ("t.json", b"[]", {}, "data.path is {}; its ending must be csv, tsv, npy, npz or parquet"),
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
    for sizes in ({"valid": 0}, {"test": -0.1}, {"valid": 0.5, "test": 0.5}):
        with pytest.raises(ValueError, match="both must be above 0, and leave rows to train on"):
            Table("t.csv", **sizes)


def test_columns_that_look_discrete_are_named(tmp_path, capsys):
    rows = np.random.RandomState(0).randn(100, 3)
    rows[:, 1] = np.arange(100) % 3
    path = write_text(tmp_path / "t.csv", rows, ["a", "b", "c"])
    Table(path).load()
    told = "armodels: warning: columns of few distinct values: b (3); a density on"
    assert capsys.readouterr().err.startswith(told)
    Table(path, drop="b").load()
    assert capsys.readouterr() == ("", "")


def test_standardization_of_a_spec():
    scale = Standardization(("a", "b"), (1.0, -2.0), (0.5, 8.0))
    assert scale.log_det == pytest.approx(-np.log(4))
    spec = DataSpec("t", "vector", (2,), None, "density", scale.log_det, standardization=scale)
    assert DataSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    x = torch.tensor([[2.0, 6.0]])
    assert spec.standardized(x).tolist() == [[2.0, 1.0]]
    assert spec.original(spec.standardized(x)).tolist() == x.tolist()
    plain = dataclasses.replace(spec, standardization=None)
    assert plain.standardized(x) is plain.original(x) is x
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
        "choose them with data.columns"
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
        "mass; choose them with data.columns"
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
