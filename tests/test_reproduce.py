"""The tables of docs/results.md are what the records of runs give; pictures of several runs."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from command import QUICK, TINY, done
from PIL import Image

import armodels

ROOT = Path(armodels.__file__).resolve().parents[1]


def load(name: str):
    """A script, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reproduce():
    return load("reproduce")


@pytest.fixture
def page(reproduce, tmp_path, monkeypatch):
    """An empty page and no records; rows of one table."""
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results.json")
    monkeypatch.setattr(reproduce, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(reproduce, "ROWS", tmp_path / "results.yaml")
    (tmp_path / "results.md").write_text("# Results\n\n<!-- begin a -->\n<!-- end a -->\n\nend\n")
    (tmp_path / "results.yaml").write_text(
        "a:\n"
        "  - {model: NADE, run: experiment=nade_x, published: 10.5, source: a paper}\n"
        "  - {model: folds, run: 'model=made data.fold=0,1', note: two folds}\n"
    )
    (tmp_path / "configs/experiment").mkdir(parents=True)
    (tmp_path / "configs/experiment/nade_x.yaml").write_text(
        "# x\ndefaults:\n  - override /model: nade\nmodel:\n  hidden_size: 5\n  sizes: [3, 4]\n"
    )
    return tmp_path / "results.md"


def finished(folder: Path, *overrides, seed=0, nats=10.0, half=0.3, **status):
    """What a run leaves behind."""
    folder.mkdir(parents=True)
    environment = {"processor": "a CPU", "threads": 1, "torch": "2.15", "git_commit": "abc"}
    split = {"nats": nats, "nats_ci95": half, "bits_per_dim": nats / 8}
    metrics = {
        "overrides": [*overrides, "trainer.progress=false", f"out={folder}", f"seed={seed}"],
        "seed": seed, "data": "some-data", "measure": "probability", "test": split, "valid": split,
        "parameters": 7, "seconds": 12.3, "environment": environment,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "status.json").write_text(
        json.dumps({"status": "done", "pid": 1, "host": "here"} | status)
    )


def lines(page: Path) -> list[list[str]]:
    """Cells of the rows of the table."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in rows[2:]]


def test_the_published_tables_are_what_the_records_give(reproduce):
    page = reproduce.PAGE.read_text()
    again = reproduce.fill(page, reproduce.read_sections(), reproduce.read_records())
    assert again == page, "run python scripts/reproduce.py tables"


def test_every_row_is_a_row_of_an_experiment_that_exists(reproduce):
    for rows in reproduce.read_sections().values():
        for row in rows:
            known = {"model", "run", "eval", "published", "published_ci95", "source", "note"}
            assert set(row) <= known
            assert ("published" in row) == ("source" in row)
            chosen = dict(item.split("=", 1) for item in row["run"].split())
            group = "experiment" if "experiment" in chosen else "model"
            assert (ROOT / f"configs/{group}/{chosen[group]}.yaml").is_file(), row["run"]
            assert reproduce.arguments(row["run"].split()) == sorted(row["run"].split())


def test_rows_without_runs_say_so(reproduce, page):
    reproduce.main(["tables"])
    assert [row[1] for row in lines(page)] == ["not run", "not run"]
    assert lines(page)[0][2:4] == ["", "10.50 (a paper)"]
    assert lines(page)[1][-1] == "`armodels train -m model=made data.fold=0,1`"
    assert "- folds: two folds" in page.read_text()
    assert page.read_text().startswith("# Results\n")
    assert page.read_text().endswith("\n\nend\n")


def test_one_seed_and_several(reproduce, page, tmp_path):
    finished(tmp_path / "runs/a", "experiment=nade_x", nats=10.0)
    finished(tmp_path / "runs/other", "experiment=nade_x", "optimizer.lr=1", nats=1.0)
    finished(tmp_path / "runs/failed", "experiment=nade_x", seed=5, nats=1.0, status="failed")
    reproduce.main(["collect", str(tmp_path / "runs")])
    assert lines(page)[0][1:7] == [
        "10.00 ± 0.30", "1.2500", "10.50 (a paper)", "-0.50", "12", "a CPU, 1 thread"
    ]  # fmt: skip
    finished(tmp_path / "runs/b", "experiment=nade_x", seed=1, nats=11.0, half=0.5)
    reproduce.main(["collect", str(tmp_path / "runs")])
    assert lines(page)[0][1] == f"10.50 ± 0.40 (2 seeds, std {math.sqrt(0.5):.2f})"
    assert lines(page)[0][2] == "1.3125"
    # The same seed again takes the place of the run before.
    finished(tmp_path / "again", "experiment=nade_x", nats=12.0)
    reproduce.main(["collect", str(tmp_path / "again")])
    assert lines(page)[0][1].startswith("11.50")
    assert len(reproduce.read_records()) == 3


def test_what_an_experiment_says_itself_is_no_difference(reproduce, page, tmp_path):
    same = ("model.hidden_size=5", "model.sizes=[3,4]")
    finished(tmp_path / "runs/a", "experiment=nade_x", *same)
    finished(tmp_path / "runs/b", "experiment=nade_x", "model.hidden_size=6", seed=1)
    reproduce.main(["collect", str(tmp_path / "runs")])
    kept = [item["arguments"] for item in reproduce.read_records()]
    assert kept == [["experiment=nade_x"], ["experiment=nade_x", "model.hidden_size=6"]]


def test_a_mean_over_folds_needs_all_of_them(reproduce, page, tmp_path):
    finished(tmp_path / "runs/0", "data.fold=0", "model=made", nats=8.0)
    reproduce.main(["collect", str(tmp_path / "runs")])
    assert lines(page)[1][1] == "not run"
    finished(tmp_path / "runs/1", "data.fold=1", "model=made", nats=9.0)
    reproduce.main(["collect", str(tmp_path / "runs")])
    # The half-width of the mean of two independent test sets; seconds are those of both.
    assert lines(page)[1][1] == f"8.50 ± {0.3 / math.sqrt(2):.2f}"
    assert lines(page)[1][5] == "25"
    assert reproduce.missing(()) == [(["experiment=nade_x"], [])]
    assert reproduce.missing(("made",)) == []


def test_run_trains_what_is_missing(reproduce, page, tmp_path, monkeypatch):
    finished(tmp_path / "runs/0", "data.fold=0", "model=made", nats=8.0)
    reproduce.main(["collect", str(tmp_path / "runs")])
    asked = []

    def train(command, check):
        *asked_for, out = command[4:]
        asked.append(asked_for)
        finished(Path(out.removeprefix("out=")), *asked_for, nats=9.0)

    monkeypatch.setattr(reproduce.subprocess, "run", train)
    reproduce.main(["run", "fold"])
    assert asked == [["data.fold=1", "model=made"]]
    assert [row[1] for row in lines(page)] == ["not run", f"8.50 ± {0.3 / math.sqrt(2):.2f}"]
    reproduce.main(["run"])
    assert asked[1:] == [["experiment=nade_x"]]


def evaluated(folder: Path, *overrides, split="test", data="some-data", nats=8.0, name="a"):
    """What armodels eval leaves in the directory of a run."""
    report = {
        "split": split, "data": data, "nats": nats, "nats_ci95": 0.2, "bits_per_dim": nats / 8,
        "seconds": 5.0, "overrides": [f"run={folder}", *overrides, "eval.batch_size=7"],
        "environment": {"processor": "a CPU", "threads": 2, "git_commit": "def"},
    }  # fmt: skip
    (folder / f"eval-{split}-{data}-{name}.json").write_text(json.dumps(report))


def test_a_row_of_eval_reads_its_report_and_leaves_the_run_alone(
    reproduce, page, tmp_path, monkeypatch
):
    with open(tmp_path / "results.yaml", "a") as file:
        file.write("  - {model: many, run: experiment=nade_x, eval: eval.num_orders=128}\n")
    finished(tmp_path / "runs/a", "experiment=nade_x")
    evaluated(tmp_path / "runs/a", "eval.num_orders=128", split="valid", nats=1.0)
    evaluated(tmp_path / "runs/a", "eval.num_orders=128", data="other", nats=1.0)
    evaluated(tmp_path / "runs/a", "eval.num_orders=128", "checkpoint=last", nats=1.0, name="b")
    evaluated(tmp_path / "runs/a", nats=1.0, name="c")  # asks for nothing: the run's own number
    (tmp_path / "runs/a/eval-old.json").write_text('{"split": "test"}')
    reproduce.main(["collect", str(tmp_path / "runs")])
    assert [row[1] for row in lines(page)] == ["10.00 ± 0.30", "not run", "not run"]
    pair = (["experiment=nade_x"], ["eval.num_orders=128"])
    assert reproduce.missing(("nade",)) == [pair]
    asked = []

    def run(command, check):
        verb, *given, out = command[3:]
        asked.append((verb, given[-1]))
        out = Path(out.removeprefix("out="))
        if verb == "train":
            finished(out, *given, nats=9.0)
        else:
            evaluated(out.parent, *given[1:])

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    reproduce.main(["run", "nade"])
    assert asked == [("train", "experiment=nade_x"), ("eval", "eval.num_orders=128")]
    assert [row[1] for row in lines(page)] == ["9.00 ± 0.30", "not run", "8.00 ± 0.20"]
    # Training and evaluation together, on what the evaluation ran.
    assert lines(page)[2][4:] == [
        "", "17", "a CPU, 2 threads",
        "`armodels train experiment=nade_x && armodels eval run=... eval.num_orders=128`",
    ]  # fmt: skip
    assert reproduce.missing(("nade",)) == []


def test_a_section_without_markers_is_refused(reproduce, page):
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for a: write <!-- begin a --> and <!-- end a"):
        reproduce.main(["tables"])


def test_samples_side_by_side(tmp_path, monkeypatch):
    script = load("side_by_side")
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=made")
    baseline = ("data=tiny", "model=independent", *QUICK)
    done(tmp_path, "train", *baseline, "out=independent")
    done(tmp_path, "train", *baseline, "data.kind=vector", "data.shape=[4]", "out=vector")
    made, independent, vector = (
        str(tmp_path / name) for name in ("made", "independent", "vector")
    )
    out = tmp_path / "a.png"
    titles, grids = script.panels([independent, made], 4, 0, ["tiny.Tiny"])
    assert [title.split(",")[0] for title in titles] == ["test images", "independent", "made"]
    test = json.loads((tmp_path / "made/metrics.json").read_text())["test"]["nats"]
    assert titles[2] == f"made, {test:.1f} nats"
    own = ("--trust", "tiny.Tiny", "--out", str(out))
    script.main([independent, made, "--num", "4", *own])
    with Image.open(out) as picture:
        assert picture.width >= sum(grid.shape[-1] for grid in grids)
        wide = picture.width
    script.main([independent, made, "--num", "4", "--samples-only", *own])
    with Image.open(out) as picture:  # two of the three
        assert picture.width < 0.7 * wide
    script.main([made, "--titles", "a name", *own])
    for argv, sentence in (
        ([made, vector], "was trained on tiny-image, but .* on tiny-vector; choose runs of the s"),
        ([vector], "tiny-vector holds no images but a vector each"),
        ([made, "--titles", "a", "b"], "2 titles name 1 runs"),
        ([str(tmp_path / "none")], "run .*none does not exist"),
    ):
        with pytest.raises(SystemExit, match=f"^side_by_side: error: .*{sentence}"):
            script.main([*argv, *own])
    with pytest.raises(SystemExit, match="names the class tiny.Tiny, which is none of armodels"):
        script.main([made, "--out", str(out)])
    before = out.read_bytes()
    monkeypatch.setattr(script, "LARGEST", 10)
    with pytest.raises(SystemExit, match="a.png would take .* bytes; draw fewer with --num"):
        script.main([made, *own])
    assert out.read_bytes() == before


def test_the_gallery_has_every_data_set(tmp_path, monkeypatch):
    script = load("gallery")
    entries = script.entries(tmp_path)
    drawn = {word.removeprefix("data=") for one in entries for word in one.data if "=" in word}
    shipped = {path.stem for path in (ROOT / "configs/data").glob("*.yaml")}
    # The user's own, what is no picture, and what an experiment draws.
    own = {"folder", "audio", "fsdd", "music", "sine", "text", "tinyshakespeare", "toy"}
    assert shipped - drawn == own
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "armodels", lambda *words: "it is not here")
    script.main(["digits", "--runs", str(tmp_path / "runs")])
    assert "the data is not here: digits, mnist," in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit, match="gallery: error: digit is unknown; choose from digits"):
        script.main(["digit"])
