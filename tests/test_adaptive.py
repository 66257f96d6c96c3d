"""Models that learn while they read: scored first, learned from afterwards, and unchanged."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from command import QUICK, armodels, done, snapshot
from test_kneser_ney import CASES as COUNTED
from test_kneser_ney import fitted as counted
from test_kneser_ney import random_pieces
from walks import stream_log_probs

from armodels.data.rows import Examples, Windows
from armodels.data.text import TinyShakespeare
from armodels.density import adaptive
from armodels.density.adaptive import Adaptive
from armodels.density.autoregressive import AutoregressiveModel
from armodels.evaluation import evaluate
from armodels.networks.kneser_ney import windows
from armodels.networks.ngram import NGram
from armodels.run import RunDirectory

LEARNERS = ("rnn", "rnn-gru", "transformer", "ngram", "blend", "blend-constants")
VERSE = "the cat sat on the mat.\nthe dog ran to the cat.\n" * 60
DATA = ("data=text", "data.path=verse.txt", "data.length=16", *QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_counts_that_grow_are_those_of_the_text_so_far(name):
    """Whatever is known before: each distribution is that of a fit to all symbols until then."""
    levels, order, lengths, unseen = COUNTED[name]
    pieces = random_pieces(levels, lengths, unseen=unseen)
    texts = random_pieces(levels, [40, 1, 9], seed=4)
    growing = counted(levels, order, pieces).growing()
    for i, text in enumerate(texts):
        past, known = np.zeros(order - 1, np.int64), 0
        for end in range(1, len(text) + 1):
            found, known = growing.read(text[end - 1 : end].numpy(), past, known)
            now = counted(levels, order, [*pieces, *texts[:i], text[:end]])
            before, seen = windows(torch.cat([text[:end], text[:1]]), order - 1)
            expected = now.log_probs(before[-1:], seen[-1:])
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-12)


def test_counts_grow_alike_however_a_text_is_cut():
    (train,), (text,) = random_pieces(5, [60]), random_pieces(5, [3000], seed=1)
    found = {}
    for size in (1, 7, 3000):
        growing, past, known = counted(5, 4, [train]).growing(), np.zeros(3, np.int64), 0
        parts = []
        for part in text.split(size):
            said, known = growing.read(part.numpy(), past, known)
            parts.append(said)
        found[size] = np.concatenate(parts)
    assert np.array_equal(found[1], found[7])
    assert np.array_equal(found[1], found[3000])


def piece_of(case, length: int) -> torch.Tensor:
    return case.events(length).flatten()[:length]


@pytest.mark.parametrize("name", LEARNERS)
def test_what_comes_later_moves_no_number(name):
    """A symbol is scored before it is learned from, also at the end of a chunk."""
    case = CASES[name]
    model, piece = case.build(0), piece_of(case, 80)
    whole = torch.cat(list(Adaptive(model, 0.01).log_probs(piece)))
    assert len(whole) == 80
    other = piece.clone()
    other[64:] = (other[64:] + 1) % case.spec.levels
    changed = torch.cat(list(Adaptive(model, 0.01).log_probs(other)))
    torch.testing.assert_close(changed[:64], whole[:64], rtol=0, atol=0)
    assert not torch.equal(changed[64:], whole[64:])


@pytest.mark.parametrize("name", LEARNERS)
def test_every_symbol_has_a_distribution(name):
    """Over all that a symbol may be, given what was learned so far, probabilities sum to one."""
    case = CASES[name]
    model, piece = case.build(0), piece_of(case, 50)
    total = 0
    for level in range(case.spec.levels):
        ends = torch.cat([piece[:49], torch.tensor([level], dtype=piece.dtype)])
        total += torch.cat(list(Adaptive(model, 0.01).log_probs(ends)))[-1].exp()
    assert float(total) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_copy_learns_and_the_model_stays(name):
    case = CASES[name]
    model, piece = case.build(0), piece_of(case, 9).repeat(60)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    grads = [one.requires_grad for one in model.parameters()]
    still = torch.cat(list(stream_log_probs(model, piece)))
    learner = Adaptive(model, 0.01)
    found = torch.cat(list(learner.log_probs(piece)))
    assert float(found.mean()) > float(still.mean()) + 0.1
    assert float(found[-100:].mean()) > float(found[:100].mean())
    again = torch.cat(list(learner.log_probs(piece)))  # a second piece goes on from the first
    assert float(again.mean()) > float(found.mean())
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert [one.requires_grad for one in model.parameters()] == grads
    assert torch.equal(torch.cat(list(stream_log_probs(model, piece))), still)


def test_a_step_follows_the_gradient_of_what_was_scored(monkeypatch):
    monkeypatch.setattr(adaptive, "STEP", 5)
    case = CASES["rnn"]
    model, piece = case.build(0), piece_of(case, 5)
    learner = Adaptive(model, 1e-3)
    list(learner.log_probs(piece))
    model.requires_grad_(True)
    with torch.no_grad():
        first, state = model.net.begin(1)
    params, _ = model.net.read(piece[None, :, None], state)
    params = torch.cat([first[:, None], params[:, :-1]], 1)
    (-model.head.log_prob(params, piece[None, :, None]).mean()).backward()
    for one, moved in zip(model.parameters(), learner.model.parameters(), strict=True):
        if one.grad is not None:
            step = 1e-3 * one.grad / (one.grad.abs() + 1e-8)
            torch.testing.assert_close(moved.detach(), one.detach() - step)


def test_an_evaluation_goes_on_from_piece_to_piece():
    case = CASES["ngram"]
    model, piece = case.build(0), piece_of(case, 90)
    examples = Examples(Windows(piece, 4), pieces=[piece, piece])
    found = evaluate(model, examples, adapt_lr=0.01)
    learner = Adaptive(model, 0.01)
    sums = [float(torch.cat(list(learner.log_probs(piece))).sum()) for _ in range(2)]
    assert found.num_symbols == 180
    assert found.log_prob == pytest.approx(sum(sums) / 180 * 4)
    assert found.log_prob > evaluate(model, examples).log_prob + 0.1
    with pytest.raises(ValueError, match="cannot learn from the data while it is scored"):
        evaluate(model, Examples(Windows(piece, 4)), adapt_lr=0.01)
    with pytest.raises(ValueError, match="adapt_lr is 0"):
        evaluate(model, examples, adapt_lr=0.0)


# From the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adaptive")
    (folder / "verse.txt").write_text(VERSE)
    done(folder, "train", "model=ngram", "model.n=3", *DATA, "out=counts")
    done(folder, "train", "model=rnn", "model.hidden_size=8", "trainer.max_steps=2",
         "trainer.batch_size=8", *DATA, "out=network")  # fmt: skip
    done(folder, "train", "data=tiny", "model=made", "model.hidden_sizes=[4]",
         "trainer.max_steps=1", *QUICK, "out=image")  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ["counts", "network"])
def test_the_number_has_a_name_of_its_own(name, run):
    before = json.loads((run / name / "metrics.json").read_text())
    files = snapshot(run / name / "checkpoints")
    told = done(run, "eval", name, "adapt=true", "device=cpu", "out=report.json")
    assert "each symbol was scored before a copy of the model learned from it" in told
    report = json.loads((run / "report.json").read_text())
    assert "nats" not in report
    after = json.loads((run / name / "metrics.json").read_text())
    found = after.pop("test_adapted")
    assert after == {key: one for key, one in before.items() if key != "test_adapted"}
    assert found["nats"] == report["adapted"]["nats"] != before["test"]["nats"]
    assert found["adapt_lr"] == 0.0001
    assert snapshot(run / name / "checkpoints") == files
    (cells,) = csv.DictReader(io.StringIO(done(run, "compare", name, "--csv")))
    assert float(cells["adapted nats"]) == pytest.approx(found["nats_per_symbol"], abs=1e-3)
    per_symbol = before["test"]["nats_per_symbol"]
    assert float(cells["test nats"]) == pytest.approx(per_symbol, abs=1e-3)


def test_a_run_that_goes_on_as_it_was_keeps_the_number(run):
    """The model is the same, and so is what it had; another model has no such number."""
    shutil.copytree(run / "network", run / "again")
    done(run, "eval", "again", "adapt=true", "device=cpu")
    path = run / "again/metrics.json"
    found = json.loads(path.read_text())["test_adapted"]
    done(run, "train", "resume=again")
    assert json.loads(path.read_text())["test_adapted"] == found
    done(run, "train", "resume=again", "trainer.max_steps=9")
    assert "test_adapted" not in json.loads(path.read_text())


def test_a_step_is_taken_after_frames(monkeypatch):
    """A gradient between the keys of one chord would be one of a third of a frame."""
    case = CASES["frames"]
    values = case.events(40).flatten()
    learner = Adaptive(case.build(0), 0.01)
    parts = [len(part) for part in learner.log_probs(values)]
    assert set(parts[:-1]) == {32 * case.spec.unit_size}
    assert case.spec.unit_size > 1


def test_a_run_that_is_being_trained_keeps_its_metrics(run):
    """The number is said, and the file stays as the process has it that holds the run."""
    before = (run / "counts/metrics.json").read_bytes()
    words = ("eval", "counts", "adapt=true", "split=valid", "device=cpu")
    with RunDirectory.open(run / "counts").claimed(new=False):
        told = armodels(run, *words)
    assert "is being trained by process" in told.error
    assert "nats/char" in told.out
    assert (run / "counts/metrics.json").read_bytes() == before
    done(run, *words)
    assert "valid_adapted" in json.loads((run / "counts/metrics.json").read_text())
    assert not (run / "counts/.owner").exists()


def test_tables_are_ranked_by_what_did_not_learn(run):
    """The better number of a model that learned moves no row."""
    for name, nats in (("counts", 0.001), ("network", 99.0)):
        path = run / name / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["test_adapted"] = {"nats": nats, "nats_per_symbol": nats}
        metrics["test"]["nats_per_symbol"] = {"counts": 3.0, "network": 2.0}[name]
        path.write_text(json.dumps(metrics))
    lines = done(run, "compare", "counts", "network").splitlines()
    assert "adapted nats" in lines[0]
    assert "rnn" in lines[1]
    assert "ngram" in lines[2]


def test_what_cannot_learn_is_refused(run):
    told = armodels(run, "eval", "image", "adapt=true", "device=cpu")
    assert "cannot learn from test while it is scored" in told.error
    told = armodels(run, "eval", "network", "adapt=true", "eval.adapt_lr=0", "device=cpu")
    assert told.error == "eval.adapt_lr is 0; it must be above 0"


REAL = Path(os.environ.get("ARMODELS_DATA", ""))


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "text/tinyshakespeare.txt").exists(), reason="needs text in $ARMODELS_DATA"
)
def test_counts_that_grow_reach_the_reference_on_tiny_shakespeare():
    """Adaptive Kneser-Ney of order 7: 1.407 nats a character, in seconds."""
    splits = TinyShakespeare(root=str(REAL)).load()
    model = AutoregressiveModel.of(NGram, splits.spec)
    model.net.learn([splits.pieces["train"][0][:]])
    found = evaluate(model, splits.examples("valid"), adapt_lr=1e-3)
    assert found.num_symbols == 111_540
    assert found.report(splits.spec)["nats_per_symbol"] == pytest.approx(1.407, abs=5e-4)
