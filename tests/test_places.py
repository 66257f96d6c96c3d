"""What ``out=`` means to each verb: a file or a folder, and never one in the other's name."""

import os

import pytest
import torch
import yaml
from command import CONFIGS, TINY, armodels, done, snapshot

from armodels import cli, disk
from armodels.data.base import Splits
from armodels.named import build
from armodels.training.fit import fit

FOLDERS = {
    "train": TINY,
    "tune": ("data=tiny", "num_trials=1"),
    "distill": ("missing",),
    "sample": ("missing",),
    "complete": ("missing",),
    "features": ("missing", "layers=[activation]"),
    "decompress": ("missing", "path=missing.arm"),
    "export": ("missing",),
}
"""Verbs that write several files, and a command that has work to do before it writes them."""

FILES = {
    "eval": ("missing",),
    "score": ("missing",),
    "query": ("missing", "of=[0]"),
    "compress": ("missing",),
    "compare": ("missing",),
}
"""Verbs that write one file."""


def test_every_verb_that_writes_is_asked():
    """A verb whose YAML has ``out`` is one of the two kinds, as its comment says."""
    comments = {}
    for verb in cli.VERBS:
        text = (CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8")
        if "out" in yaml.safe_load(text):
            (line,) = (line for line in text.splitlines() if line.startswith("out:"))
            comments[verb] = line
    assert comments.keys() == FOLDERS.keys() | FILES.keys()
    for verb, comment in comments.items():
        assert ("folder" in comment or "directory;" in comment) == (verb in FOLDERS), comment


@pytest.mark.parametrize("verb", FOLDERS)
@pytest.mark.parametrize("name", ["s.npz", "new/pictures.PNG", "a.b.csv"])
def test_a_folder_gets_no_name_of_a_file(verb, name, tmp_path):
    result = armodels(tmp_path, verb, *FOLDERS[verb], f"out={name}")
    assert result.error == (
        f"out is {name}, which has a file's ending, but several files go into a folder of that "
        f"name; name one without the ending: out={name.rpartition('.')[0]}"
    )
    assert result.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", FILES)
@pytest.mark.parametrize("name", ["there", "there/", "new/"])
def test_a_file_gets_no_name_of_a_folder(verb, name, tmp_path):
    (tmp_path / "there").mkdir()
    result = armodels(tmp_path, verb, *FILES[verb], f"out={name}")
    assert result.error == f"out is {name}, which is a folder; name a file in it"
    assert result.out == ""
    assert os.listdir(tmp_path) == ["there"]
    assert not list((tmp_path / "there").iterdir())


def test_every_ending_that_verbs_write_is_one_of_a_file():
    written = {".npz", ".png", ".csv", ".wav", ".txt", ".mid", ".arm", ".json", ".md", ".pt"}
    assert written | {".safetensors", ".yaml"} <= disk.ENDINGS


def test_other_dots_are_no_endings_and_a_folder_that_is_there_is_one(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=lr0.5")
    assert (tmp_path / "lr0.5/metrics.json").is_file()
    (tmp_path / "mine.npz").mkdir()
    done(tmp_path, "sample", "lr0.5", "num=2", "device=cpu", "out=mine.npz")
    assert (tmp_path / "mine.npz/sample-seed0-t1.npz").is_file()


def test_a_sweep_and_fit_get_no_name_of_a_file(tmp_path, monkeypatch):
    told = armodels(tmp_path, "train", "-m", *TINY, "seed=0,1", "out=all.csv").error
    assert told.startswith("out is all.csv, which has a file's ending")
    monkeypatch.chdir(tmp_path)
    splits = Splits.of(torch.tensor([[0, 1], [1, 0]] * 5))
    with pytest.raises(ValueError, match="^directory is run.pt, .*: directory=run$"):
        fit(build("made", splits.spec, hidden_sizes=[3]), splits, directory="run.pt")
    assert not snapshot(tmp_path)


def test_where_features_would_go_is_not_asked_where_layers_are_listed(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    for words in ("out=x", "num_examples=3", "eval.batch_size=9", "target=label", "probe=true"):
        assert armodels(tmp_path, "features", "run", words, "device=cpu").error == (
            f"{words} goes with layers=[...], not with the list of layers; leave it out"
        )
    assert not (tmp_path / "x").exists()
    assert "layers of MADE" in done(tmp_path, "features", "run", "device=cpu")
