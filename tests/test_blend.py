"""Blends of trained runs: probabilities are mixed, weights come from what is not scored."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import BIT_TEXT, CASES, TEXT, random_events
from command import QUICK, armodels, done

from armodels import construct
from armodels.checkpoints import load_checkpoint, load_model
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.blend import Blend, constants
from armodels.spec import ContextSpec

VERSE = "the cat sat on the mat.\nthe dog ran to the cat.\n" * 60
DATA = ("data=text", "data.path=verse.txt", "data.length=16", *QUICK)
SHORTER = ("data.valid=0.15",)  # so that members have not seen the end of train
RNN = ("model=rnn", "model.hidden_size=8", "trainer.max_steps=20", "trainer.batch_size=8")


def model(spec, *names: str, **keys) -> AutoregressiveModel:
    return AutoregressiveModel.of(Blend, spec, runs=[CASES[n].build(0) for n in names], **keys)


@torch.no_grad()
def test_probabilities_are_mixed():
    weights, x = [0.5, 0.2, 0.3], random_events(BIT_TEXT, 9)
    blend = CASES["blend-constants"].build(0)
    # The members themselves, by what the blend is made of.
    members = [
        AutoregressiveModel(net, head)
        for net, head in zip(blend.net.members, blend.net.heads, strict=True)
    ]
    each = torch.stack([member.conditional_log_prob(x) for member in members], -1).double()
    expected = (each.exp() * torch.tensor(weights, dtype=torch.double)).sum(-1).log()
    torch.testing.assert_close(blend.conditional_log_prob(x), expected, rtol=0, atol=1e-7)


def test_constants_are_the_best_there_are():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.rand(500, 3, generator=generator, dtype=torch.double).log()
    weights = constants(log_probs)
    assert float(weights.sum()) == pytest.approx(1)

    def nats(one):
        return -float(torch.logsumexp(log_probs + one.log(), -1).mean())

    for move in ([0.02, -0.02, 0], [0, 0.02, -0.02], [-0.02, 0, 0.02]):
        moved = (weights + torch.tensor(move)).clamp_min(1e-9)
        assert nats(moved / moved.sum()) > nats(weights)
    assert constants(torch.tensor([[-1.0, -9.0]]))[0] > 0.99


def uneven(kind: str, **keys) -> tuple[AutoregressiveModel, torch.Tensor]:
    """A blend that was fitted to a text whose two halves are not alike."""
    blend = model(TEXT, "rnn", "ngram", weights=kind, **keys)
    piece = random_events(TEXT, 300, 3).flatten()
    blend.net.learn([piece])
    return blend, piece


@pytest.mark.parametrize("kind", ["fit", "gate"])
@torch.no_grad()
def test_weights_are_fitted_on_the_end_with_counts_of_what_lies_before(kind):
    torch.manual_seed(0)
    blend, piece = uneven(kind, held_out=0.25)
    last = piece[900:]
    alone = CASES["ngram"].build(0).net
    alone.learn([piece])
    found = blend.net.members[1].counts.state_dict()  # afterwards it knows all of train
    assert all(torch.equal(found[key], one) for key, one in alone.counts.state_dict().items())
    blend.net.members[1].learn([piece[:900]])

    def nats(one):
        longer = AutoregressiveModel(one.net.with_length(len(last)), one.head)
        return -float(longer.log_prob(last[None]).mean()) / len(last)

    even = model(TEXT, "rnn", "ngram", weights=[0.5, 0.5])
    even.net.members[1].load_state_dict(blend.net.members[1].state_dict())
    assert nats(blend) < nats(even) - 0.01
    if kind == "fit":
        members = [AutoregressiveModel(net, blend.head) for net in blend.net.members]
        assert nats(blend) < min(map(nats, members))


def test_given_weights_read_no_text_and_leave_the_counts():
    blend = model(TEXT, "rnn", "ngram", weights=[0.9, 0.1])

    def untouched():
        raise AssertionError("a text may be larger than memory")
        yield

    before = {key: one.clone() for key, one in blend.state_dict().items()}
    assert blend.net.learn(untouched())
    assert all(torch.equal(before[key], one) for key, one in blend.state_dict().items())


MISFITS = {
    "one length": (["rnn-gru", "made-sequence"], BIT_TEXT, {}, "takes events of one length alone"),
    "one": (["rnn"], TEXT, {}, "names 1 runs; a blend needs two or more"),
    "levels": (["rnn", "rnn-gru"], TEXT, {}, "whose 2 levels are not the 5 levels of"),
    "count": (["rnn", "ngram"], TEXT, {"weights": [0.5, 0.3, 0.2]}, "has 3 weights for 2 runs"),
    "sum": (["rnn", "ngram"], TEXT, {"weights": [0.5, 0.6]}, "they must sum to 1"),
    "sign": (["rnn", "ngram"], TEXT, {"weights": [1.5, -0.5]}, "weights is"),
    "real": (["rnn-mog", "rnn-mog"], TEXT, {}, "whose real values are not the 5 levels"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_cannot_be_blended_is_refused(name):
    names, spec, keys, sentence = MISFITS[name]
    with pytest.raises(ValueError, match=sentence):
        model(spec, *names, **keys)


def test_a_blend_has_no_context():
    label = ContextSpec("label", (), 3)
    with pytest.raises(ValueError, match="conditioned on label, but a blend has no context"):
        AutoregressiveModel.of(Blend, TEXT, runs=[CASES["rnn"].build(0, label)] * 2)
    keys = {"_target_": "armodels.networks.ngram.NGram", "n": 2}
    head = {"_target_": "armodels.heads.Categorical"}
    for older in ({}, {"context": None}):  # as runs from before the key went have it
        assert construct.model({**keys, **older}, head, TEXT).context is None
    with pytest.raises(ValueError, match="model NGram is not conditioned on anything; leave out"):
        construct.model({**keys, "context": "label"}, head, TEXT)


# From the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two members, trained on less of the text, and a blend of them on more; then only that."""
    folder = tmp_path_factory.mktemp("blend")
    (folder / "verse.txt").write_text(VERSE)
    done(folder, "train", *RNN, *DATA, *SHORTER, "out=a")
    done(folder, "train", "model=ngram", "model.n=2", *DATA, *SHORTER, "out=b")
    told = done(folder, "train", "model=blend", "model.runs=[a,b]", *DATA, "out=both")
    (folder / "told.txt").write_text(told)
    done(folder, "train", "model=blend", "model.runs=[both,b]", "model.weights=[0.75,0.25]",
         *DATA, "out=nested")  # fmt: skip
    for name in ("a", "b"):
        shutil.move(folder / name, folder / f"gone-{name}")
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_blend_holds_its_members(run):
    told = (run / "told.txt").read_text()
    assert "weights 0." in told
    assert "warning" not in told
    before = json.loads((run / "both/metrics.json").read_text())["test"]
    done(run, "eval", "both", "device=cpu", "out=report.json")
    report = json.loads((run / "report.json").read_text())
    assert report["nats"] == pytest.approx(before["nats"], abs=1e-9)
    done(run, "sample", "both", "num=2", "device=cpu")
    done(run, "complete", "both", "prompt=the c", "length=9", "device=cpu")
    done(run, "train", "resume=both", "trainer.max_steps=3")
    done(run, "eval", "nested", "device=cpu")
    blend, member = load_model(run / "both"), load_model(run / "gone-a")
    found = dict(blend.net.members[0].state_dict())
    assert all(torch.equal(found[key], one) for key, one in member.net.state_dict().items())
    assert not any(one.requires_grad for one in blend.parameters())


def test_a_network_that_saw_the_end_of_train_is_told(run):
    for name in ("a", "b"):
        shutil.move(run / f"gone-{name}", run / name)
    told = armodels(run, "train", "model=blend", "model.runs=[a,b]", *DATA, *SHORTER, "out=seen")
    assert "was trained on all of train, also on its end" in told.err
    keys = ("model.weights=[0.5,0.5]", "out=given")
    given = armodels(run, "train", "model=blend", "model.runs=[a,b]", *DATA, *SHORTER, *keys)
    assert given.code == 0
    assert "also on its end" not in given.err


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (("model.runs=[both,no]",), "run no does not exist"),
        (("model.runs=[both]",), "names 1 runs; a blend needs two or more"),
        (("model.runs=both",), "it must be a list of runs"),
        ((), "model.runs"),
        (("model.runs=[both,other]",), "whose 14 symbols are not the 15 symbols of"),
    ],
)
def test_runs_that_cannot_be_blended_leave_nothing(keys, sentence, run):
    if "other" in str(keys):
        (run / "other.txt").write_text(VERSE.replace("o", "e"))
        done(run, "train", "model=ngram", *DATA, "data.path=other.txt", "out=other")
    told = armodels(run, "train", "model=blend", *keys, *DATA, "out=new")
    assert sentence in told.error
    assert not (run / "new/config.yaml").exists()


def test_a_members_class_is_data_too(run):
    path = run / "both/checkpoints/best.pt"
    content = load_checkpoint(path)
    for wrong in ({"_target_": "os.system", "command": "touch hacked"}, "/etc", None):
        changed = json.loads(json.dumps(content["config"]))
        changed["model"]["runs"][0]["model"] = wrong
        torch.save({**content, "config": changed}, path)
        told = armodels(run, "eval", "both", "device=cpu").error
        assert "whose code would run" in told or "is no member of a blend" in told
    changed["model"]["runs"] = ["/etc/passwd", 3]
    torch.save({**content, "config": changed}, path)
    assert "which is no member of a blend" in armodels(run, "eval", "both", "device=cpu").error
    assert not (run / "hacked").exists()
