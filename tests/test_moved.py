"""Data that has moved since a run was trained: the checksum says that it is the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import QUICK, armodels, done
from PIL import Image

from armodels.checkpoints import load_checkpoint
from armodels.run import RunDirectory

MADE = ("model=made", "model.hidden_sizes=[4]", "trainer.max_steps=2", *QUICK)
VERBS = {
    "eval": ("eval", "run", "device=cpu", "out=report.json"),
    "score": ("score", "run", "device=cpu"),
    "sample": ("sample", "run", "device=cpu", "num=2", "num_neighbours=1"),
    "complete": ("complete", "run", "device=cpu", "num=2", "num_completions=1"),
    "query": ("query", "run", "device=cpu", "of=top"),
    "features": ("features", "run", "device=cpu", "layers=[activation]"),
    "resume": ("train", "resume=run", "trainer.max_steps=3"),
}


def values(change: int) -> np.ndarray:
    """(60, 3, 3) uint8."""
    rows = np.random.default_rng(0).integers(0, 256, (60, 3, 3), dtype=np.uint8)
    rows[7, 0, 0] += change
    return rows


def write(kind: str, path: Path, change: int = 0) -> None:
    rows = values(change)
    if kind == "csv":
        np.savetxt(path, rows.reshape(60, 9) / 7, delimiter=",", header="abcdefghi", comments="")
        text = path.read_text().replace("abcdefghi", ",".join("abcdefghi"))
        path.write_text(text)
    elif kind == "npz":
        np.savez(path, images=rows)
    else:
        path.mkdir()
        for i, one in enumerate(rows):
            Image.fromarray(one).save(path / f"{i}.png")


KINDS = {
    "csv": ("data=table", "data.path=mine.csv"),
    "npz": ("data=folder", "recipe=default", "data.path=mine.npz", "data.size=[3,3]"),
    "folder": ("data=folder", "recipe=default", "data.path=mine", "data.size=[3,3]"),
}


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """The kind of data, and a folder with a run whose data is gone."""
    folder, kind = tmp_path_factory.mktemp("trained"), request.param
    mine = folder / ("mine" if kind == "folder" else f"mine.{kind}")
    write(kind, mine)
    more = () if kind == "csv" else ("data.channels=1", "data.valid=0.2", "data.test=0.2",
                                     "data.cache=cache")  # fmt: skip
    done(folder, "train", *MADE, *KINDS[kind], *more, "out=run")
    if mine.is_dir():
        shutil.rmtree(mine)
    mine.unlink(missing_ok=True)
    return kind, folder


@pytest.fixture
def copied(trained, tmp_path):
    kind, folder = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    return kind, tmp_path


def elsewhere(kind: str, folder: Path, change: int) -> str:
    """The data under another name in another place, as its owner says it."""
    (folder / "other").mkdir()
    path = Path("other") / ("yours" if kind == "folder" else f"yours.{kind}")
    write(kind, folder / path, change)
    return f"data.path={path}"


CASES = [("csv", verb) for verb in VERBS]
CASES += [("npz", "eval"), ("npz", "complete"), ("folder", "sample"), ("folder", "resume")]


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "verb"), CASES, indirect=["trained"])
def test_the_same_data_is_found_where_it_lies_now(verb, copied):
    kind, folder = copied
    told = armodels(folder, *VERBS[verb]).error
    assert "mine" in told
    assert "does not exist" in told
    place = [elsewhere(kind, folder, 0)]
    if kind != "csv":
        place.append("data.cache=new")  # nothing of the first one helps
    done(folder, *VERBS[verb], *place)
    before = RunDirectory(folder / "run").read_metrics()
    if verb == "eval":
        report = json.loads((folder / "report.json").read_text())
        assert report["nats"] == before["test"]["nats"]
        assert report["data"] == report["trained_on"] == before["data"]
    if verb == "resume":
        state = load_checkpoint(folder / "run/checkpoints/last.pt")
        assert state["step"] == 3
        assert state["spec"]["name"] == before["data"]
        assert str(folder / "other") in state["config"]["data"]["path"]
        done(folder, "eval", "run", "checkpoint=last", "device=cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "verb"), CASES, indirect=["trained"])
def test_other_data_is_refused_wherever_it_lies(verb, copied):
    kind, folder = copied
    place = elsewhere(kind, folder, 1)
    cache = () if kind == "csv" else ("data.cache=new",)
    told = armodels(folder, *VERBS[verb], place, *cache).error
    assert told.startswith("the run was trained on ")
    assert "but its data has changed and is now " in told
    assert RunDirectory(folder / "run").read_status()["status"] == "done"
    assert load_checkpoint(folder / "run/checkpoints/last.pt")["step"] == 2


def test_data_that_lies_nowhere(tmp_path):
    toy = ("data=toy", "data.name=uniform", "data.num_train=20", "data.num_valid=9",
           "data.num_test=9")  # fmt: skip
    done(tmp_path, "train", *MADE, *toy, "out=run")
    for verb in ("eval", "sample"):
        told = armodels(tmp_path, verb, "run", "data.path=x", "device=cpu").error
        assert told == (
            "data.path says where the data of the run lies, but Toy lies nowhere: leave it out"
        )
    assert "data.path" in armodels(tmp_path, "train", "resume=run", "data.path=x").error
