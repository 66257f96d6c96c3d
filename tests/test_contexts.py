"""Contexts: what the data offers, which rows they stand beside, and the verbs that take them."""

import numpy as np
import pytest
import torch
from command import QUICK, TINY, armodels, done
from PIL import Image
from sklearn.datasets import load_digits

from armodels import checkpoints, construct, contexts, run
from armodels.data.digits import Digits
from armodels.data.mnist import MNIST
from armodels.spec import DataSpec
from armodels.trust import Trust

RGB = DataSpec("rgb", "image", (3, 3, 5), 256, "probability")


def test_grey_is_the_luminance_rounded_to_a_level():
    x = torch.zeros(4, 3, 3, 5, dtype=torch.uint8)
    x[0], x[1, 0], x[2, 1], x[3, 2] = 255, 255, 255, 255
    grey = contexts.derive("grey", x, RGB)
    assert grey.dtype == torch.uint8
    assert grey.shape == (4, 1, 3, 5)
    assert grey.flatten(1).unique(dim=1).flatten().tolist() == [255, 76, 150, 29]


def test_lowres_is_the_mean_of_squares_also_at_ragged_edges():
    x = torch.arange(15, dtype=torch.uint8).view(1, 1, 3, 5) * 10
    low = contexts.derive("lowres_2", x, DataSpec("x", "image", (1, 3, 5), 256, "probability"))
    # Means of [0 10 50 60], [20 30 70 80], [40 90], [100 110], [120 130], [140].
    assert low.tolist() == [[[[30, 50, 65], [105, 125, 140]]]]


def test_what_data_offers():
    assert list(contexts.available(RGB)) == ["grey", "lowres_2", "lowres_4"]
    assert contexts.available(RGB)["lowres_4"].shape == (3, 1, 2)
    assert list(contexts.available(Digits().spec)) == ["label", "lowres_2", "lowres_4"]
    assert "label" not in contexts.available(MNIST("fixed").spec)
    real = DataSpec("real", "vector", (2,), None, "density")
    assert contexts.find(real, None) is None
    with pytest.raises(ValueError, match="^model.context is 'label', but data real offers no con"):
        contexts.find(real, "label")


def test_labels_stand_beside_their_digits():
    digits = load_digits()
    pairs = zip(digits.images.astype(np.uint8), digits.target, strict=True)
    known = {image.tobytes(): label for image, label in pairs}
    splits = Digits().load()
    wanted = contexts.find(splits.spec, "label")
    for part in ("train", "valid", "test"):
        examples = splits.examples(part, wanted)
        rows = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:50]
        x, labels = examples[rows]
        assert labels.tolist() == [known[image.numpy().tobytes()] for image in x]


def test_a_mixed_up_number_of_labels_is_refused():
    splits = Digits().load()
    read = splits.contexts["label"]
    splits.contexts["label"] = lambda: [values[:-1] for values in read()]
    with pytest.raises(ValueError, match="^context 'label' of 1297 events must have shape"):
        splits.examples("test", splits.spec.contexts[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs given the label, nothing, a small image, and a vector."""
    path = tmp_path_factory.mktemp("contexts")
    given = {"told": "label", "untold": "null", "low": "lowres_2", "vector": "features"}
    for out, context in given.items():
        done(
                path, "train", *TINY, f"out={out}", f"model.context={context}",
                "trainer.max_epochs=8", "trainer.accumulate=2", "optimizer.lr=0.02",
                "samples.num=7", "data.num_train=400",
            )  # fmt: skip
    Image.new("L", (4, 3), 255).save(path / "white.png")
    return path


@pytest.mark.slow
def test_a_label_tells_its_part_of_the_likelihood(folder):
    """The label is the first value: of log 3 nats, nothing is left to be said."""
    told, untold = (run.RunDirectory(folder / name).read_metrics() for name in ("told", "untold"))
    gain = untold["test"]["nats"] - told["test"]["nats"]
    assert 0.8 < gain < 1.8  # of 23 test examples
    assert (told["data"], untold["data"]) == ("tiny-image|label", "tiny-image")


def test_numbers_given_a_context_are_not_ranked_with_others(folder):
    out = done(folder, "compare", ".")
    assert "Not ranked against each other" in out
    assert "tiny-image|label" in out


def test_eval_and_score_use_the_context(folder):
    metrics = run.RunDirectory(folder / "told").read_metrics()
    assert f"{metrics['test']['nats']:.4f}" in done(folder, "eval", "run=told")
    done(folder, "score", "run=told", "out=scores.csv")
    nats = np.loadtxt(folder / "scores.csv", delimiter=",", skiprows=1)[:, 1]
    assert abs(nats.mean() - metrics["test"]["nats"]) < 1e-4


def test_sample_draws_the_label_asked_for_or_each_in_turn(folder):
    done(folder, "sample", "run=told", "label=2", "num=40", "out=drawn")
    x = np.load(folder / "drawn/sample-seed0-t1-label2.npz")["x"]
    assert (x[:, 0, 0, 0] == 2).mean() > 0.8
    done(folder, "sample", "run=told", "num=60", "out=drawn")
    arrays = np.load(folder / "drawn/sample-seed0-t1.npz")
    assert arrays["context"].tolist() == [0, 1, 2] * 20
    with Image.open(folder / "drawn/sample-seed0-t1.png") as picture:  # a column each class
        assert picture.width == 3 * (4 * 16 + 2) + 2
    assert (arrays["x"][:, 0, 0, 0] == arrays["context"]).mean() > 0.8


def test_sample_answers_images_several_times_beside_the_truth(folder):
    done(folder, "sample", "run=low", "num=12", "num_inputs=3", "out=answers")
    arrays = np.load(folder / "answers/sample-seed0-t1.npz")
    assert arrays["x"].shape == (12, 1, 3, 4)
    assert arrays["truth"].shape == (3, 1, 3, 4)
    spec = checkpoints.restore(folder / "low").spec
    low = contexts.derive("lowres_2", torch.from_numpy(arrays["truth"]), spec)
    assert (arrays["context"] == low.repeat_interleave(4, 0).numpy()).all()
    # One row an input: what was given, four answers, the truth; magnified, with borders of 2 and
    # titles of 18.
    tile = (4 * 16 + 2, 3 * 16 + 2)
    with Image.open(folder / "answers/sample-seed0-t1.png") as picture:
        assert picture.size == (6 * tile[0] + 2, 3 * tile[1] + 2 + 18)


def test_every_verb_takes_a_vector(folder):
    metrics = run.RunDirectory(folder / "vector").read_metrics()
    assert metrics["data"] == "tiny-image|features"
    untold = run.RunDirectory(folder / "untold").read_metrics()
    assert metrics["test"]["nats"] < untold["test"]["nats"] - 1  # of the 2 log 3 that it says
    assert f"{metrics['test']['nats']:.4f}" in done(folder, "eval", "run=vector")
    done(folder, "sample", "run=vector", "num=12", "num_inputs=3", "out=vectors")
    arrays = np.load(folder / "vectors/sample-seed0-t1.npz")
    truth = arrays["truth"].reshape(3, 12)[:, :2]
    assert (arrays["context"] == truth.repeat(4, 0)).all()
    assert (arrays["x"].reshape(12, 12)[:, :2] == arrays["context"]).mean() > 0.7
    done(folder, "complete", "run=vector", "num=2", "out=vectors")
    assert (folder / "vectors/complete-top-0.5-seed0.npz").is_file()


def test_sample_shows_the_nearest_training_examples(folder):
    done(folder, "sample", "run=untold", "num=5", "num_neighbours=2", "out=near")
    arrays = np.load(folder / "near/sample-seed0-t1.npz")
    config = checkpoints.restore(folder / "untold").config
    train = (
        construct.source(config["data"], Trust.in_own(config))
        .load()
        .split("train")
        .numpy()
        .astype(float)
    )
    for x, neighbours, told in zip(
        *(arrays[k] for k in ("x", "neighbours", "distances")), strict=False
    ):
        distances = np.sqrt(((train - x) ** 2).reshape(len(train), -1).sum(1))
        assert np.allclose(np.sort(distances)[:2], told, atol=1e-3)
        own = np.sqrt(((neighbours.astype(float) - x) ** 2).reshape(2, -1).sum(1))
        assert np.allclose(own, told, atol=1e-3)
    assert (folder / "near/sample-seed0-t1-neighbours.png").is_file()


def test_complete_uses_the_context(folder):
    done(folder, "complete", "run=told", "keep=0.5", "known=bottom", "num=4",
                  "num_completions=30", "out=completed")  # fmt: skip
    arrays = np.load(folder / "completed/complete-bottom-0.5-seed0.npz")
    first = arrays["completions"][:, :, 0, 0, 0]
    assert (first == arrays["truth"][:, 0, 0, 0][:, None]).mean() > 0.8
    for args in (("run=told", "label=1"), ("run=low",)):
        done(folder, "complete", *args, "image=white.png", "out=completed")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("sample", "run=told", "label=3"), "label is 3; the model knows 0 to 2"),
        (
            ("sample", "run=untold", "label=1"),
            "label is 1, but the model was trained with no context; "
            "leave label out, or train with model.context=label",
        ),
        (
            ("sample", "run=low", "label=1"),
            "label is 1, but the model was trained with model.context=lowres_2; "
            "leave label out, or train with model.context=label",
        ),
        (
            ("complete", "run=vector", "image=white.png"),
            "the model is conditioned on features, which no image file says; complete examples "
            "of the test split instead, without image=...",
        ),
        (("sample", "run=low", "num_inputs=0"), "num_inputs is 0; it must be at least 1"),
        (
            ("complete", "run=told", "image=white.png"),
            "the model is conditioned on a label; give the image's: label=0 to label=2",
        ),
        (
            ("complete", "run=told", "image=white.png", "label=9"),
            "label is 9; the model knows 0 to 2",
        ),
        (
            ("complete", "run=untold", "image=white.png", "label=1"),
            "label is 1, but the model was trained with no context; "
            "leave label out, or train with model.context=label",
        ),
        (
            ("complete", "run=untold", "label=1"),
            "label=1 goes with a prompt or image=FILE, not with examples of the test split; "
            "leave it out",
        ),
        (
            ("complete", "run=told", "label=1"),
            "label=1 goes with a prompt or image=FILE, not with examples of the test split; "
            "leave it out",
        ),
        (("sample", "run=told", "label=one"), "label is 'one'; it must be a whole number or null"),
        (
            ("train", *QUICK, "model.context=colour"),
            "model.context is 'colour', but data digits offers label, lowres_2, lowres_4; "
            "use model.context=null",
        ),
        (
            ("train", *QUICK, "model=gmm", "model.context=label"),
            "model=gmm has no key context, only covariance_type",
        ),
    ],
    ids=lambda a: "-".join(a) if isinstance(a, tuple) and len(a) < 4 else None,
)
def test_what_cannot_be_given_is_refused_in_one_sentence(folder, args, told):
    assert told in armodels(folder, *args).error
