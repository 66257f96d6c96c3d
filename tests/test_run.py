"""Run directories: a checkpoint comes back whole, or is refused in one sentence."""

import math
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import TINY, armodels, done, fork, snapshot

from armodels import checkpoints, disk
from armodels.checkpoints import load_checkpoint, load_model, restore
from armodels.run import RunDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds one finished run called ``run``, with an average of its weights."""
    folder = tmp_path_factory.mktemp("shell")
    args = ("trainer.max_steps=9", "trainer.ema=0.9", "model.order=random", "model.order_seed=5")
    done(folder, "train", *TINY, *args, "out=run")
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def refusal(path: Path, verbs: tuple[str, ...] = ("eval",)) -> str:
    """What both Python and the command line say of a checkpoint."""
    with pytest.raises(ValueError, match="checkpoint") as error:
        load_model(path)
    text = str(error.value)
    assert "\n" not in text
    for verb in verbs:
        assert armodels(path.parent, verb, str(path), "device=cpu").error == text
    return text


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9, -1])
def test_truncated(kept, copied):
    path = copied / "checkpoints/best.pt"
    contents = path.read_bytes()
    end = int(kept * len(contents)) if isinstance(kept, float) else kept
    path.write_bytes(contents[:end])
    assert refusal(path) == (
        f"checkpoint {path} is truncated or corrupted; use another, such as last.pt beside it"
    )
    assert load_model(copied, checkpoint="last").training is False


def test_one_flipped_byte_never_passes_for_a_number(copied):
    """Either refused, or the very same model: the byte held nothing."""
    path = copied / "checkpoints/best.pt"
    contents, whole = path.read_bytes(), load_checkpoint(path)["model"]
    for i in range(0, len(contents), len(contents) // 40):
        path.write_bytes(contents[:i] + bytes([contents[i] ^ 0x10]) + contents[i + 1 :])
        try:
            model = load_checkpoint(path)["model"]
        except (ValueError, KeyError):
            continue
        assert all(torch.equal(model[name], value) for name, value in whole.items()), i


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "plain"])
def test_code_is_refused_and_never_executed(how, copied):
    path, trace = copied / "checkpoints/best.pt", copied / "executed"
    content = {**load_checkpoint(path), "state": Code(trace)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Code(trace)))
    told = {"torch": "is refused: it holds more than tensors and plain values (it may run code)",
            "plain": "is not a checkpoint of armodels"}  # fmt: skip
    assert told[how] in refusal(path)
    assert not trace.exists()
    if how == "plain":  # the trap does work
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_torch_itself_runs_no_code(copied, monkeypatch):
    """A second wall, should what looks at the file before torch ever overlook something."""
    path, trace = copied / "checkpoints/best.pt", copied / "executed"
    torch.save({**load_checkpoint(path), "state": Code(trace)}, path)
    monkeypatch.setattr(checkpoints, "_require_honest", lambda path: None)
    assert "is truncated or corrupted" in refusal(path)
    assert not trace.exists()


def test_another_version(copied):
    path = copied / "checkpoints/best.pt"
    torch.save({**load_checkpoint(path), "format": 99, "version": "9.9"}, path)
    told = refusal(path)
    assert told.startswith(f"checkpoint {path} has format 99 (armodels 9.9), but this armodels ")
    assert told.endswith(f"reads format {checkpoints.FORMAT}")


def test_not_a_checkpoint(tmp_path):
    for name, content in (("tensor", torch.zeros(3)), ("weights", {"w": torch.zeros(3)})):
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        assert refusal(path) == f"checkpoint {path} is not a checkpoint of armodels"
    path = tmp_path / "words.pt"
    path.write_text("some words\n")
    assert (
        refusal(path, ("eval", "sample", "score", "complete"))
        == f"checkpoint {path} is not a checkpoint of armodels"
    )


def test_resume_of_a_broken_checkpoint_touches_nothing(copied):
    (copied / "checkpoints/last.pt").write_bytes(b"PK")
    before = snapshot(copied)
    told = armodels(copied.parent, "train", "resume=run", "trainer.max_steps=12").error
    assert "last.pt is truncated or corrupted" in told
    assert snapshot(copied) == before


def test_checkpoints_are_plain(folder):
    for name in ("last", "best"):
        path = folder / f"run/checkpoints/{name}.pt"
        state = torch.load(path, weights_only=True)
        assert set(state) >= {"format", "version", "config", "spec", "model", "ema", "step"}
        assert "optimizer" in state or name == "best"
        for key in [*state["model"], *state["ema"]]:
            assert not key.startswith(("_orig_mod", "module.", "_forward_module", "model."))
        assert state["ema"].keys() <= state["model"].keys()


def test_a_copied_file_is_enough(folder, tmp_path):
    """Another process, another folder: the same distribution."""
    shutil.copy(folder / "run/checkpoints/last.pt", tmp_path / "mine.pt")
    child = fork(tmp_path, "sample", "mine.pt", "num=5", "seed=3", "device=cpu")
    child.join(60)
    assert child.exitcode == 0, (tmp_path / "told").read_text()
    model = load_model(folder / "run", checkpoint="last")
    expected = model.sample_with_log_prob(5, generator=torch.Generator().manual_seed(3))
    # Files about a lone checkpoint go where the shell is.
    with np.load(tmp_path / "sample-seed3-t1.npz") as file:
        for name, value in zip(("x", "log_prob"), expected, strict=True):
            assert np.array_equal(file[name], value.numpy()), name


def test_which_weights(folder):
    state = load_checkpoint(folder / "run/checkpoints/last.pt")
    for weights in ("ema", "raw"):
        restored = restore(folder / "run", checkpoint="last", weights=weights)
        assert restored.weights == weights
        assert restored.step == 9
        held = dict(restored.model.named_parameters())
        expected = state["model"] | (state["ema"] if weights == "ema" else {})
        for name, value in held.items():
            assert torch.equal(value, expected[name])
    assert any(not torch.equal(state["ema"][n], state["model"][n]) for n in state["ema"])
    with pytest.raises(ValueError, match="eval.weights is 'both'; choose ema or raw"):
        restore(folder / "run", weights="both")


def test_runs_without_average_say_raw(tmp_path):
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    assert restore(tmp_path / "run", weights="ema").weights == "raw"


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    """The limit on the size of a file stands for the disk: the second save does not fit."""
    args = ("train", *TINY, "model.hidden_sizes=[300]", "out=run")
    done(tmp_path, *args, "trainer.max_steps=2")
    path = tmp_path / "run/checkpoints/last.pt"
    before = path.read_bytes()
    more = ("train", "resume=run", "trainer.max_steps=4")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN  # as Python leaves it
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        result = armodels(tmp_path, *more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.code == 1
    told = result.error
    assert told.startswith(f"checkpoint {Path('run/checkpoints')}/")
    assert "could not be written" in told
    assert told.endswith("the one before is untouched")
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    status = RunDirectory(tmp_path / "run").read_status()
    assert (status["status"], status["reason"]) == ("failed", told)
    assert load_checkpoint(path)["step"] == 2
    done(tmp_path, *more)
    assert load_checkpoint(path)["step"] == 4


def test_status(folder, tmp_path):
    assert RunDirectory(folder / "run").read_status()["status"] == "done"
    assert RunDirectory(tmp_path).read_status() == {"status": "unknown"}
    child = fork(tmp_path, "train", *TINY, "trainer.max_epochs=100000", "out=run")
    directory = RunDirectory(tmp_path / "run")
    while directory.read_status()["status"] == "unknown":
        assert child.exitcode is None, (tmp_path / "told").read_text()
        child.join(0.01)
    assert directory.read_status()["status"] == "running"
    child.kill()
    child.join(30)
    assert directory.read_status()["status"] == "killed"


def test_two_starts_with_one_out_are_one_run(tmp_path):
    """Whichever comes second, seconds later or at once, is refused before it loads anything."""
    endless = ("train", *TINY, "trainer.max_epochs=100000")
    first, second = (fork(tmp_path, *endless, "out=run", f"seed={i}") for i in (1, 2))
    while first.exitcode is None and second.exitcode is None:
        first.join(0.05)
        second.join(0.05)
    lost, held = (first, second) if first.exitcode is not None else (second, first)
    try:
        assert lost.exitcode == 1
        while RunDirectory(tmp_path / "run").read_status()["status"] == "unknown":
            held.join(0.01)
        for args in ((*TINY, "out=run"), ("resume=run",)):
            told = armodels(tmp_path, "train", *args, "trainer.max_steps=1").error
            assert f"is being trained by process {held.pid}; " in told or "not empty" in told
        assert f"process {held.pid};" in told
    finally:
        held.kill()
        held.join(30)
    done(tmp_path, "train", "resume=run", "trainer.max_epochs=null", "trainer.max_steps=1")


def test_a_start_that_died_early_can_be_started_again(tmp_path):
    run_ = tmp_path / "run"
    (run_ / "checkpoints").mkdir(parents=True)
    for name in (".lock", ".owner", ".config.yaml.4194305.part"):
        (run_ / name).write_text("4194305 here")
    RunDirectory(run_).write_status("running")
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")
    assert not list(run_.rglob("*.part"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "is not empty" in armodels(tmp_path, "train", *TINY, "out=mine").error
    assert snapshot(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_a_refused_start_leaves_nothing(tmp_path):
    told = armodels(tmp_path, "train", *TINY, "model.order=nowhere", "out=a/b").error
    assert "nowhere" in told
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def refused_later():
        run_ = RunDirectory.vacant(tmp_path / "a/c")
        with run_.claimed(new=True):
            assert (tmp_path / "a/c/.lock").exists()
            run_.write_status("running")
            raise ValueError("refused before its config is written")

    with pytest.raises(ValueError, match="refused before"):
        refused_later()
    assert not (tmp_path / "a/c").exists()


def test_parts_of_the_killed_are_removed_and_those_of_the_living_stay(copied):
    gone, alive = copied / ".metrics.csv.4194305.part", copied / f".x.{os.getpid()}.part"
    for path in (gone, alive, copied / "checkpoints/.last.pt.4194305.part"):
        path.write_text("half")
    done(copied.parent, "train", "resume=run", "trainer.max_steps=10")
    assert list(copied.rglob("*.part")) == [alive]


@pytest.mark.parametrize("where", ["samples", "metrics.csv", "checkpoints/last.pt"])
def test_nothing_is_written_through_links_out_of_a_run(where, copied):
    outside = copied.parent / "outside"
    outside.mkdir()
    path = copied / where
    if path.is_dir():
        shutil.rmtree(path)
        path.symlink_to(outside)
    else:
        path.unlink()
        path.symlink_to(outside / "precious")
    for args in (("sample", "run", "num=1"), ("train", "resume=run", "trainer.max_steps=10")):
        told = armodels(copied.parent, *args).error
        assert f"run/{where} is a link to" in told
    assert not list(outside.iterdir())


def test_json_is_json(tmp_path):
    values = {"a": math.nan, "b": [math.inf, np.float32(2)], "c": {"d": np.bool_(True)}}
    disk.write_json(tmp_path / "x.json", values)
    assert disk.read_json(tmp_path / "x.json") == {"a": None, "b": [None, 2], "c": {"d": True}}


def test_metrics_hold_what_a_number_depends_on(folder):
    numbers = RunDirectory(folder / "run").read_metrics()
    assert set(numbers) >= {
        "data", "measure", "num_dims", "levels", "parameters", "seconds", "examples_per_s",
        "seed", "weights", "best_step", "steps", "valid", "test", "environment", "overrides",
    }  # fmt: skip
    assert set(numbers["environment"]) >= {"torch", "python", "git_commit", "armodels", "cores"}
    assert set(numbers["test"]) == {
        "num_examples", "nats", "nats_ci95", "bits_per_dim", "bits_per_dim_ci95"
    }  # fmt: skip
    config = RunDirectory(folder / "run").read_config()
    assert config["model"]["order_seed"] == 5
    assert config["resume"] is None


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_resume_without_the_best_weights_is_refused_before_a_step(how, copied):
    path = copied / "checkpoints/best.pt"
    path.write_bytes(path.read_bytes()[:100]) if how == "cut" else path.unlink()
    before = snapshot(copied)
    told = armodels(copied.parent, "train", "resume=run", "trainer.max_steps=12").error
    assert "checkpoints/best.pt" in told
    assert snapshot(copied) == before


@pytest.mark.parametrize("name", ["metrics.json", "metrics.csv", "train.log", "samples"])
def test_what_lies_in_the_place_of_a_file_is_refused(name, copied):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_text("") if name == "samples" else os.mkfifo(path)
    before = snapshot(copied / "checkpoints")
    told = armodels(copied.parent, "train", "resume=run", "trainer.max_steps=12").error
    kind = "folder" if name == "samples" else "file that can be read and written"
    assert told == f"run/{name} is no {kind}; remove it"
    assert snapshot(copied / "checkpoints") == before


@pytest.mark.parametrize("change", [{"overrides": [0]}, {"choices": None}, {"seed": "x"}])
def test_a_resume_by_a_damaged_config_is_refused(change, copied):
    path = copied / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | change))
    (key,) = change
    told = armodels(copied.parent, "train", "resume=run", "trainer.max_steps=12").error
    assert told == f"run/config.yaml is damaged: {key} is not as armodels wrote it"


def test_a_damaged_table_is_refused_before_anything_is_written(copied):
    path = copied / "metrics.csv"
    whole = path.read_text()
    for text, told in (
        (whole + "soon,1\n", "metrics.csv is damaged: the step in row "),
        (whole + 40 * "1," + "\n", "has more cells than columns"),
        ("\udcff", "metrics.csv is damaged: it is no text"),
    ):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        before = snapshot(copied)
        assert told in armodels(copied.parent, "train", "resume=run", "trainer.max_steps=10").error
        assert snapshot(copied) == before
    path.write_text(whole)
    done(copied.parent, "train", "resume=run", "trainer.max_steps=10")
    assert path.read_text().startswith(whole[: whole.index("\n")])


def test_a_lock_that_leads_out_is_not_taken(copied):
    precious = copied.parent / "precious"
    precious.write_text("mine")
    (copied / ".lock").unlink(missing_ok=True)
    (copied / ".lock").symlink_to(precious)
    told = armodels(copied.parent, "train", "resume=run", "trainer.max_steps=10").error
    assert "run/.lock is a link to" in told
    assert precious.read_text() == "mine"


def test_other_data_that_lacks_a_key_is_refused(folder):
    told = armodels(folder, "eval", "run", "data=table", "device=cpu").error
    assert told == "data.path is missing; give data.path=VALUE"
