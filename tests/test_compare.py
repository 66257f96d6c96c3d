"""The verbs on finished runs: compare, eval, score, sample, complete, list."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import stat
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from command import QUICK, TINY, armodels, done
from PIL import Image
from tiny import Tiny

from armodels import baselines
from armodels.checkpoints import load_model
from armodels.density.completion import DISTRUST, Completion
from armodels.parts import KNOWN, known_part, read_image, read_mask
from armodels.run import RunDirectory
from armodels.spec import DataSpec, Standardization, bits_per_dim
from armodels.tasks import complete
from armodels.tasks.complete import distrusted

VECTOR = ("data.kind=vector", "data.shape=[4]", "data.levels=null")
REAL = [item for item in TINY if "hidden" not in item]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Finished runs on two kinds of data, and runs that failed, were killed or still run."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3):
        args = (*TINY, "trainer.max_steps=8", f"seed={seed}", f"out=all/made-{seed}")
        done(folder, "train", *args)
    done(folder, "train", *TINY, "model.order=reverse", "trainer.max_steps=8", "seed=1",
         "out=all/reverse")  # fmt: skip
    for seed in (1, 2):
        args = (*REAL, *VECTOR, "model=gmm", "model.num_components=2", f"seed={seed}")
        done(folder, "train", *args, f"out=all/gmm-{seed}")
    done(folder, "train", *TINY, *VECTOR, "trainer.max_steps=8", "out=all/real")
    done(folder, "train", *QUICK, "data=toy", "data.name=uniform", "data.num_train=99",
         "data.num_valid=50", "data.num_test=60", "model.hidden_sizes=[4]",
         "trainer.max_steps=2", "out=all/toy")  # fmt: skip
    for name, status in (("killed", "running"), ("failed", "failed"), ("stopped", "interrupted")):
        shutil.copytree(folder / "all/made-1", folder / "all" / name)
        (folder / "all" / name / "metrics.json").unlink()
        reason = None if status == "running" else f"the reason of {name}"
        directory = RunDirectory(folder / "all" / name)
        directory.write_status(status, reason)
        if name == "killed":  # by a process that is gone
            text = (directory.path / "status.json").read_text()
            content = json.loads(text) | {"pid": 2**22 + 1}
            (directory.path / "status.json").write_text(json.dumps(content))
    return folder


def table(folder: Path, *args: str) -> list[dict]:
    text = done(folder, "compare", *(args or ("all",)), "--csv")
    return list(csv.DictReader(io.StringIO(text)))


def number(run: Path, *keys: str):
    value = RunDirectory(run).read_metrics()
    for key in keys:
        value = value[key]
    return value


@pytest.mark.slow
def test_seeds_are_one_row(folder):
    rows = [row for row in table(folder) if row["seeds"] == "1,2,3"]
    assert len(rows) == 1
    row = rows[0]
    values = [number(folder / f"all/made-{seed}", "test", "nats") for seed in (1, 2, 3)]
    assert row["test nats"] == f"{statistics.fmean(values):.3f}"
    assert row["std"] == f"{statistics.stdev(values):.3f}"
    bits = [number(folder / f"all/made-{seed}", "test", "bits_per_dim") for seed in (1, 2, 3)]
    assert row["bits/dim"] == f"{statistics.fmean(bits):.4f}"
    assert re.fullmatch("done, (.*nothing, )?std of 3 seeds", row["status"])
    assert row["run"] == "all/made-1 and 2 more"
    assert row["parameters"] == f"{number(folder / 'all/made-1', 'parameters'):,}"
    # A baseline whose own seed follows the run's is grouped, too.
    assert [row["model"].split()[0] for row in table(folder) if row["seeds"] == "1,2"] == ["gmm"]


def test_one_run_has_an_interval(folder):
    row = next(row for row in table(folder) if row["run"] == "all/reverse")
    assert row["± 95 %"] == f"{number(folder / 'all/reverse', 'test', 'nats_ci95'):.3f}"
    assert re.fullmatch("done, (.*nothing, )?95 % interval", row["status"])
    assert "order=reverse" in row["model"]
    assert "samples" not in row["model"]
    assert float(row["seconds"]) == pytest.approx(
        number(folder / "all/reverse", "seconds"), abs=0.51
    )


def test_one_seed_twice_is_not_two_seeds(folder, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(folder / "all/made-1", tmp_path / name)
    (row,) = table(tmp_path, ".")
    assert row["seeds"] == "1"
    assert re.fullmatch("done, (.*nothing, )?std of 2 runs of seed 1", row["status"])
    assert row["± 95 %"] == ""
    shutil.copytree(folder / "all/made-2", tmp_path / "third")
    (row,) = table(tmp_path, ".")
    assert re.fullmatch("done, (.*nothing, )?std of 3 runs of 2 seeds", row["status"])


def test_a_run_that_learned_nothing_says_so(folder, tmp_path):
    for name in ("made-1", "made-2"):
        shutil.copytree(folder / "all" / name, tmp_path / name)
    directory, other = (RunDirectory(tmp_path / f"made-{i}") for i in (1, 2))
    for run, warning in ((directory, "diverged: 9 nats; lower"), (other, None)):
        run.write_metrics(run.read_metrics() | {"warning": warning})
    (row,) = table(tmp_path, "made-1")
    assert row["status"] == "done, diverged, 95 % interval"
    (row,) = table(tmp_path, ".")
    assert row["status"] == "done, 1 diverged, std of 2 seeds"
    directory.write_metrics(directory.read_metrics() | {"warning": [1]})
    told = [row["status"] for row in table(tmp_path, ".")]
    assert any(one.startswith("unreadable: ") and "its warning is" in one for one in told)


LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(30))
DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "a number": lambda text: "5",
    "deep": lambda text: "[" * 100_000,
    "binary": lambda text: "\udcff\udc90\x00\udcfe",
    "laughs": lambda text: LAUGHS,
    "no keys": lambda text: "{}",
    "words": lambda text: re.sub(r": -?[0-9][0-9.e-]*", ": nine", text),
    "NaN": lambda text: re.sub(r": -?[0-9][0-9.e-]*", ": NaN", text),
    "huge": lambda text: re.sub(r": -?[0-9][0-9.e-]*", ": 1" + 30 * "0", text),
    "long": lambda text: re.sub(r": -?[0-9][0-9.e-]*", ": 1" + 5000 * "0", text, count=1),
    "a pipe": None,
    "a folder": None,
    "a link to itself": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["status.json", "metrics.json", "config.yaml"])
def test_a_damaged_run_hides_no_other(name, damage, folder, tmp_path):
    for run in ("broken", "whole"):
        shutil.copytree(folder / "all/made-1", tmp_path / run)
    path = tmp_path / "broken" / name
    text = path.read_text()
    path.unlink()
    if damage == "a pipe":
        os.mkfifo(path)
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a link to itself":
        path.symlink_to(path)
    else:
        path.write_bytes(DAMAGE[damage](text).encode("utf-8", "surrogateescape"))
    result = armodels(tmp_path, "compare", ".", "--csv")
    assert result.code == 0
    assert "Traceback" not in result.err
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(result.out))}
    whole = next(row for run, row in rows.items() if "whole" in run or "1 more" in run)
    assert float(whole["test nats"])
    if "broken" in rows and rows["broken"]["status"].startswith("unreadable: "):
        assert f"broken/{name}" in rows["broken"]["status"]
        assert "1 of 2 runs cannot be read" in result.err
    else:  # such as a config whose sizes are words: a run of its own
        assert (name, damage) in {("config.yaml", one) for one in ("words", "NaN", "huge")} | {
            ("config.yaml", "no keys"), ("config.yaml", "empty"), ("config.yaml", "cut"),
            ("metrics.json", "huge"), ("status.json", "huge"),
        }  # fmt: skip


def test_a_name_makes_no_row_of_its_own(folder, tmp_path):
    shutil.copytree(folder / "all/made-1", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.write_metrics(run.read_metrics() | {"data": "\x1b[31mred\nbest  probability  mine  0.000"})
    head, row = done(tmp_path, "compare", ".").splitlines()
    assert row.startswith("\\x1b[31mred\\nbest  probability  mine  0.000")


def test_runs_without_a_number_say_why(folder):
    rows = {row["run"]: row for row in table(folder)}
    assert rows["all/killed"]["status"] == "killed"
    assert rows["all/failed"]["status"] == "failed: the reason of failed"
    assert rows["all/stopped"]["status"] == "interrupted: the reason of stopped"
    for name in ("killed", "failed", "stopped"):
        assert rows[f"all/{name}"]["test nats"] == ""


def test_a_run_that_is_being_trained_says_so(folder, tmp_path):
    shutil.copytree(folder / "all/made-1", tmp_path / "run")
    (tmp_path / "run/metrics.json").unlink()
    RunDirectory(tmp_path / "run").write_status("running")
    (row,) = table(tmp_path, "run")
    assert (row["status"], row["test nats"]) == ("running", "")


def test_data_and_measures_are_never_ranked_together(folder):
    text = done(folder, "compare", "all")
    assert text.rstrip().endswith("different data or different measures.")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("data ")]
    kinds = [{tuple(line.split()[:2]) for line in block[1:]} for block in blocks]
    assert kinds[:3] == [
        {("tiny-image", "probability")},
        {("tiny-vector", "density")},
        {("toy-uniform", "density")},
    ]
    assert len(blocks) == 4  # the last: runs without a number
    assert all("gap" not in block[0] for block in blocks if "toy" not in block[1])
    assert "gap" in blocks[2][0]
    ranked = [float(row["test nats"]) for row in table(folder) if row["data"] == "tiny-image"]
    assert ranked == sorted(ranked)
    assert len(ranked) == 2
    assert "ranked" not in done(folder, "compare", "all/made-1", "all/reverse")


def test_whole_sequences_are_ranked_whatever_a_window_is(tmp_path):
    """By nats a symbol; models of windows apart have a table of their own, by nats a window."""
    (tmp_path / "verse.txt").write_text("to be or not to be that is the question " * 40)
    text = ["data=text", "data.path=verse.txt", "data.valid=0.2", "data.test=0.2"]
    for name, model, length in (("a", "rnn", 8), ("b", "ngram", 16), ("c", "independent", 16)):
        done(tmp_path, "train", *text, f"data.length={length}", f"model={model}", f"out={name}",
             "trainer.max_steps=2", *QUICK)  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(done(tmp_path, "compare", ".", "--csv"))))
    found = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in "abc"
    }
    assert [(row["run"], row["data"], row["per"]) for row in rows] == [
        ("b", "text-verse-split0.2-0.2-char", "char"),
        ("a", "text-verse-split0.2-0.2-char", "char"),
        ("c", "text-verse-split0.2-0.2-char-16", ""),
    ]
    for row, key in zip(rows, ("nats_per_symbol", "nats_per_symbol", "nats"), strict=True):
        assert float(row["test nats"]) == pytest.approx(found[row["run"]][key], abs=1e-3)
        half = found[row["run"]][f"{key}_ci95"]
        assert float(row["± 95 %"]) == pytest.approx(half, abs=1e-3)
    assert found["a"]["num_symbols"] == found["b"]["num_symbols"] == 320


def test_formats_and_files(folder):
    text = done(folder, "compare", "all/made-1", "--markdown")
    lines = text.strip().splitlines()
    assert lines[0].startswith("| data")
    assert set(lines[1]) <= set("|- ")
    assert len({line.count("|") for line in lines}) == 1
    done(folder, "compare", "all/made-1", "--csv", "out=table.csv")
    assert (folder / "table.csv").read_text() == done(folder, "compare", "all/made-1", "--csv")


# eval and score


def test_eval_and_score_agree_with_the_report(folder):
    run = folder / "all/made-1"
    told = done(folder, "eval", "all/made-1", "device=cpu", "out=eval.json")
    report = json.loads((folder / "eval.json").read_text())
    for key, value in number(run, "test").items():
        assert report[key] == pytest.approx(value, rel=1e-6)
    assert f"{report['nats']:.4f}" in told
    assert report["overrides"][1:] == ["device=cpu", "out=eval.json"]
    assert report["seconds"] > 0
    trained = json.loads((folder / run / "metrics.json").read_text())["environment"]
    assert report["environment"]["processor"] == trained["processor"]
    done(folder, "score", "all/made-1", "device=cpu", "out=scores.csv")
    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(23))
    for column, key in (("nats", "nats"), ("bits_per_dim", "bits_per_dim")):
        mean = statistics.fmean(float(row[column]) for row in rows)
        assert mean == pytest.approx(number(run, "test", key), rel=1e-6)
    source = Tiny("image", [1, 3, 4], 3, False, 50, None, 0)
    log_prob = load_model(run).log_prob(source.load().test)
    for row, value in zip(rows, log_prob.double().tolist(), strict=True):
        assert float(row["nats"]) == pytest.approx(-value, rel=1e-6)
        assert float(row["bits_per_dim"]) == pytest.approx(
            bits_per_dim(value, source.spec), rel=1e-6
        )


def test_eval_of_other_splits_and_data(folder):
    done(folder, "eval", "all/made-1", "split=train", "device=cpu", "out=r.json")
    assert json.loads((folder / "r.json").read_text())["num_examples"] == 50
    done(folder, "eval", "all/made-1", "data=tiny", "data.seed=5", "device=cpu", "out=o.json")
    other = json.loads((folder / "o.json").read_text())
    assert other["nats"] != number(folder / "all/made-1", "test", "nats")
    assert other["trained_on"] == "tiny-image"
    done(folder, "score", "all/made-1", "split=valid", "device=cpu")
    assert (folder / "all/made-1/scores-tiny-image-valid.csv").is_file()


# sample


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("made-1", np.uint8), ("real", np.float32), ("gmm-1", np.float32)],
)
def test_samples(name, dtype, folder):
    run = f"all/{name}"
    told = done(folder, "sample", run, "num=6", "seed=4", "device=cpu")
    path = folder / run / "samples/sample-seed4-t1.npz"
    assert str(path.relative_to(folder)) in told
    with np.load(path) as file:
        x, log_prob = file["x"], file["log_prob"]
    restored = load_model(folder / run)
    assert x.shape == (6, *restored.spec.shape)
    assert x.dtype == dtype
    restored.spec.check(torch.from_numpy(x))
    again = restored.log_prob(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-4)
    before = path.read_bytes()
    done(folder, "sample", run, "num=6", "seed=4", "device=cpu")
    assert path.read_bytes() == before
    done(folder, "sample", run, "num=6", "seed=5", "device=cpu")
    with np.load(folder / run / "samples/sample-seed5-t1.npz") as file:
        assert not np.array_equal(file["x"], x)
    assert path.with_suffix(".png").is_file()


def test_the_mode_is_one_sample(folder):
    told = done(folder, "sample", "all/made-1", "num=5", "temperature=0", "device=cpu", "out=to")
    assert "expect (nearly) equal samples" in told
    with np.load(folder / "to/sample-seed0-t0.npz") as file:
        assert len(np.unique(file["x"], axis=0)) == 1


# complete


@pytest.mark.parametrize(
    ("args", "method"),
    [
        (("known=top",), "exact"),
        (("known=bottom",), "clamped"),
        (("known=bottom", "num_particles=50"), "likelihood weighting"),
    ],
)
def test_completions_keep_what_is_known(args, method, folder, tmp_path):
    told = done(folder, "complete", "all/made-1", *args, "num=3", "num_completions=4",
                "device=cpu", f"out={tmp_path}")  # fmt: skip
    reported = "effective sample size" if method == "likelihood weighting" else method
    assert f"method {method}" in told
    assert reported in told
    known = args[0].removeprefix("known=")
    with np.load(tmp_path / f"complete-{known}-0.5-seed0.npz") as file:
        truth, observed, answers = file["truth"], file["known"], file["completions"]
    assert truth.shape == (3, 1, 3, 4)
    assert answers.shape == (3, 4, 1, 3, 4)
    assert observed.shape == (1, 3, 4)
    assert 0 < observed.sum() < 12
    for i in range(4):
        assert np.array_equal(answers[:, i][:, observed], truth[:, observed])
    assert len(np.unique(answers.reshape(12, -1), axis=0)) > 3
    assert (tmp_path / f"complete-{known}-0.5-seed0.png").is_file()


@pytest.fixture
def narrow(folder, tmp_path):
    """A finished run after which the box of its model shrinks, so that rows fall out of it."""
    keys = ("model=uniform", "data=tiny", *VECTOR, "model.margin=2", "data.num_train=50")
    done(tmp_path, "train", *QUICK, *keys, "out=narrow")
    path = tmp_path / "narrow/checkpoints/best.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"]["width"] *= 0.6
    torch.save(saved, path)
    return tmp_path


def test_an_impossible_row_is_named(narrow):
    done(narrow, "score", "narrow", "device=cpu", "out=all.csv")
    with open(narrow / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    out = [i for i, row in enumerate(rows) if row["nats"] == "inf"]
    assert out == [i for i, row in enumerate(rows) if row["bits_per_dim"] == "inf"]
    assert len(out) == 2
    assert len(rows) == 23
    first = f"row {out[0]} of test is impossible under the model (log p = -inf)"
    told = armodels(narrow, "score", "narrow", "device=cpu", "out=all.csv")
    assert told.err == (
        f"armodels: warning: {first}; of such rows there are 2, and the mean is that of "
        f"the others\n"
    )
    for size in (1, 7, 500):
        told = armodels(narrow, "eval", "narrow", "device=cpu", f"eval.batch_size={size}",
                        "out=report.json").error  # fmt: skip
        assert told == (
            f"{first}, as is 1 more, so there is no mean; see every row with: "
            f"armodels score run=narrow split=test"
        )
        assert not (narrow / "report.json").exists()
    # Of a run that ends with it, the weights stay.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines.Uniform, "_fit", lambda *_: None)
        code = armodels(narrow, "train", "resume=narrow")
    assert first in code.error
    assert "so the run has no result; see every row with: armodels score run=narrow" in code.error


def test_particles_that_contradict_each_other_are_warned_of(folder, tmp_path, monkeypatch):
    result = Completion(torch.zeros(4, 2), "likelihood weighting", torch.ones(4), 30, None)
    assert distrusted(result, 10) is None
    result = dataclasses.replace(result, disagreement=torch.tensor([0.1, DISTRUST, 0.0, 1.9]))
    assert distrusted(result, 10) is None
    result = dataclasses.replace(result, disagreement=torch.tensor([0.1, 4.25, 0.0, 2.5]))
    assert distrusted(result, 10) == (
        "of 2 of 4 answers, halves of the particles differ by up to 4.2 nats in the probability "
        "of what is known, so their effective sample size cannot be trusted and answers may miss "
        "what is likeliest; raise num_particles, which is 10"
    )
    # Those of this run agree; under a bound of nothing they do not.
    for bound in (DISTRUST, 0.0):
        monkeypatch.setattr(complete, "DISTRUST", bound)
        run = armodels(folder, "complete", "all/made-1", "known=bottom", "num=2",
                       "num_particles=5", "device=cpu", f"out={tmp_path}")  # fmt: skip
        assert run.err.startswith("armodels: warning: of ") == (bound == 0)


def test_a_users_image_is_completed(folder, tmp_path):
    # Twice the size of the data, in 256 levels: resized and quantized to three.
    pixels = np.kron(np.array([[0, 100, 200, 255]] * 3, np.uint8), np.ones((2, 2), np.uint8))
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    told = done(folder, "complete", "all/made-1", f"image={tmp_path}/mine.png", "keep=1",
                "device=cpu", f"out={tmp_path}")  # fmt: skip
    assert "resized from 8x6 to 4x3" in told
    with np.load(tmp_path / "complete-top-1-seed0.npz") as file:
        assert file["truth"].tolist() == [[[[0, 1, 2, 2]] * 3]]
        assert (file["completions"] == file["truth"]).all()


@pytest.mark.parametrize("kind", ["png", "npy", "npy-plane"])
def test_any_part_may_be_known(kind, folder, tmp_path):
    known = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]], bool)
    if kind == "png":  # of twice the size
        pixels = np.kron(known, np.ones((2, 2), bool)).astype(np.uint8) * 255
        Image.fromarray(pixels).save(tmp_path / "my mask.png")
    else:
        np.save(tmp_path / "my mask.npy", known if kind == "npy-plane" else known[None])
    mask = f"mask={tmp_path}/my mask.{kind[:3]}"
    told = done(folder, "complete", "all/made-1", mask, "num=3", "num_completions=2",
                "device=cpu", f"out={tmp_path}")  # fmt: skip
    assert f"known  my mask.{kind[:3]}, 50% of tiny-image" in told
    with np.load(tmp_path / "complete-my-mask-seed0.npz") as file:
        truth, observed, answers = file["truth"], file["known"], file["completions"]
    assert np.array_equal(observed, known[None])
    assert np.array_equal(answers[:, 0][:, observed], truth[:, observed])


def test_masks_that_do_not_fit_are_refused(tmp_path):
    image = Tiny("image", [1, 3, 4], 3, False, 50, None, 0).spec
    vector = Tiny("vector", [6], 3, False, 50, None, 0).spec
    file, picture = tmp_path / "a.npy", tmp_path / "a.png"
    picture.write_bytes(b"no picture")
    for values, spec, told in (
        (np.ones((2, 2)), image, r"has shape \(2, 2\), the events \(1, 3, 4\)$"),
        (np.full((3, 4), 0.5), image, "holds other values than True and False$"),
        (None, vector, "is no .npy file, and tiny-vector is no image data$"),
        (None, image, "cannot be read: "),
    ):
        if values is not None:
            np.save(file, values)
        with pytest.raises(ValueError, match=told):
            read_mask(picture if values is None else file, spec)
    bomb = io.BytesIO()  # which states ten terabytes
    shape = {"descr": "|b1", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_2_0(bomb, shape)
    for contents in (b"no array", b"", bomb.getvalue()):
        file.write_bytes(contents)
        with pytest.raises(ValueError, match="cannot be read: "):
            read_mask(file, image)
    Image.new("1", (20_000, 20_000)).save(picture)  # 400 million pixels in 50 kB
    for read, what in ((read_mask, "mask"), (read_image, "image")):
        with pytest.raises(ValueError, match=rf"^{what} .* cannot be read: Image size \(4000000"):
            read(picture, image)


def test_an_image_is_read_as_for_training(tmp_path):
    """Of 16 bits the upper count, and what is transparent lies on white."""
    spec = DataSpec("grey", "image", (1, 1, 3), 256, "probability")
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", spec).flatten().tolist() == [0, 1, 255]
    Image.new("RGBA", (3, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", spec).flatten().tolist() == [255] * 3


def test_known_columns_of_a_table():
    scale = Standardization(("alcohol", "pH", "2"), (0.0,) * 3, (1.0,) * 3)
    spec = DataSpec("wine", "vector", (3,), None, "density", standardization=scale)
    assert known_part(["pH", 2], 0.5, spec, 0).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="^known names 'ph'; the columns are alcohol, pH, 2$"):
        known_part(["ph"], 0.5, spec, 0)
    with pytest.raises(ValueError, match=r"random, or names: known='\[alcohol\]'$"):
        known_part("pH", 0.5, spec, 0)


def test_known_parts():
    spec = Tiny("image", [1, 4, 6], 3, False, 50, None, 0).spec
    top = known_part("top", 0.5, spec, 0)[0]
    assert top.tolist() == 2 * [6 * [True]] + 2 * [6 * [False]]
    assert torch.equal(known_part("bottom", 0.5, spec, 0)[0], top.flip(0))
    left = known_part("left", 0.5, spec, 0)[0]
    assert left.tolist() == 4 * [3 * [True] + 3 * [False]]
    assert torch.equal(known_part("right", 0.5, spec, 0)[0], left.flip(1))
    border = known_part("border", 0.5, spec, 0)[0]
    assert border[[0, -1]].all()
    assert border[:, [0, -1]].all()
    assert not border[1:3, 1:5].any()
    assert torch.equal(known_part("random", 0.5, spec, 3), known_part("random", 0.5, spec, 3))
    vector = Tiny("vector", [6], 3, False, 50, None, 0).spec
    assert known_part("top", 0.5, vector, 0).tolist() == 3 * [True] + 3 * [False]
    for name in KNOWN:
        for shape in (spec, vector):
            assert known_part(name, 1.0, shape, 0).all()
            assert not known_part(name, 0.0, shape, 0).any()
            assert known_part(name, 0.5, shape, 0).shape == shape.shape


# list


def test_list(folder):
    text = done(folder, "list")
    for line in ("model=", "data=", "experiment="):
        assert line in text.splitlines()
    assert "MADE: masked multi-layer perceptron" in text
    only = done(folder, "list", "group=head")
    assert "bernoulli" in only
    assert "model=" not in only


def test_verbs_refuse_what_the_model_cannot_do(folder):
    told = armodels(folder, "complete", "all/real", "image=x.png", "device=cpu").error
    assert told == "the model was trained on tiny-vector, which is no image with levels"


# Where files go


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("score", "all/made-1", "out=all"), "out is all, which is a folder; name a file in it"),
        (("eval", "all/made-1", "out=no/x.json"), "but there is no folder no; make it first"),
        (("compare", "all", "out=no/x.md"), "but there is no folder no; make it first"),
        (("score", "all/made-1", "out=mine.csv"), "a file that this command has not written"),
        (("eval", "all/made-1", "out=mine.csv"), "a file that this command has not written"),
        (("sample", "all/made-1", "out=file"), "which is no folder; name one for the files"),
        (("complete", "all/made-1", "out=file"), "which is no folder; name one for the files"),
        (("sample", "all/made-1", f"out={'x' * 300}"), "with a name of 300 bytes; none may have"),
        (
            ("score", "all/made-1", "out=~nobodyx.csv"),
            "no home directory is known of ~nobodyx.csv",
        ),
        (("sample", "all/made-1", "out=~/x"), "no shell has put a home directory in place of ~"),
        (("compare", "all", "out=/proc/x.md"), "but no file can be made in /proc ("),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(args, told, folder):
    (folder / "file").touch()
    (folder / "mine.csv").write_text("a,b\n1,2\n")
    result = armodels(folder, *args)
    assert told in result.error
    assert result.out == ""
    assert (folder / "mine.csv").read_text() == "a,b\n1,2\n"


def test_a_verb_writes_over_its_own_file(folder, tmp_path):
    for verb in ("score", "eval", "compare"):
        for _ in range(2):
            done(folder, verb, "all/made-1", f"out={tmp_path}/{verb}")


def test_a_device_is_written_to_and_stays(folder, tmp_path):
    os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    told = armodels(folder, "score", "all/made-1", f"out={tmp_path}/full").error
    assert told == f"{tmp_path}/full could not be written: No space left on device"
    assert (tmp_path / "full").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
