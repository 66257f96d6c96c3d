"""``armodels sample``: several temperatures, films of a draw and maps of entropies."""

import numpy as np
import pytest
import torch
from command import QUICK, TINY, armodels, done
from PIL import Image

from armodels import pictures
from armodels.checkpoints import restore


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    steps = ("model.hidden_sizes=[20]", *QUICK, "trainer.max_steps=20")
    done(folder, "train", "data=digits", "model=made", *steps, "out=digits")
    done(folder, "train", "data=digits", "model=made", *steps, "model.context=label", "out=labels")
    done(
        folder,
        "train",
        *TINY,
        "trainer.max_steps=1",
        "out=orders",
        "model.num_orders=2",
        "model.order=random",
    )
    done(folder, "train", "data=digits", "model=uniform", *QUICK, "out=uniform")
    done(folder, "train", "data=toy", "model=made", *steps, "out=toy")
    text = ("data=text", "data.path=verse.txt", "data.length=8", *QUICK, "trainer.max_steps=1")
    (folder / "verse.txt").write_text("the cat sat on the mat, and the dog sat on the log.\n" * 20)
    done(folder, "train", "model=rnn", "model.hidden_size=4", *text, "out=text")
    return folder


def pixels(path) -> torch.Tensor:
    """(3, H, W) of a PNG."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)


def test_temperatures_share_their_noise(runs):
    told = done(runs, "sample", "digits", "num=9", "temperatures=[0,0.5,1]", "out=several")
    alone = done(runs, "sample", "digits", "num=9", "temperature=0.5", "out=one")
    name = "sample-seed0-t0.5.npz"
    several, one = (np.load(runs / out / name) for out in ("several", "one"))
    assert np.array_equal(several["x"], one["x"])
    generator = torch.Generator().manual_seed(0)
    expected = restore(runs / "digits").model.sample(9, temperature=0.5, generator=generator)
    assert np.array_equal(one["x"], expected)
    assert alone.splitlines()[1] in told  # its mean
    drawn = [np.load(runs / f"several/sample-seed0-t{t}.npz")["x"][:8] for t in ("0", "0.5", "1")]
    rows = torch.from_numpy(np.stack(drawn, 1)).flatten(0, 1)
    spec = restore(runs / "digits").spec
    titles = [("t 0", 1), ("t 0.5", 1), ("t 1", 1)]
    expected = pictures.events(rows, spec, columns=3, titles=titles)
    assert pixels(runs / "several/sample-seed0-temperatures.png").equal(expected)
    done(runs, "sample", "digits", "num=9", "temperatures=[0.5,1]", "top_k=3", "out=several")
    assert (runs / "several/sample-seed0-temperatures-top_k3.png").exists()


@pytest.mark.parametrize("keys", [("digits",), ("labels", "label=3")])
def test_the_first_samples_have_a_film_and_entropies(runs, keys):
    out = f"drawn-{keys[0]}"
    done(runs, "sample", *keys, "num=9", "film=4", "entropy=true", f"out={out}")
    (path,) = (runs / out).glob("*.npz")
    restored = restore(runs / keys[0])
    x = torch.from_numpy(np.load(path)["x"][:8])
    model, context = restored.model, None
    if len(keys) > 1:
        context = torch.full((8,), 3)
    film = pictures.film(x, model.steps_of_values, restored.spec, 4)
    assert pixels(path.with_name(f"{path.stem}-film.png")).equal(film)
    with torch.no_grad():
        maps = pictures.entropies(model.entropy_map(x, context), restored.spec.num_levels)
    assert pixels(path.with_name(f"{path.stem}-entropy.png")).equal(maps)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (("digits", "temperatures=[1]"), "temperatures is [1]; name several, each once"),
        (("digits", "temperatures=[1,1]"), "temperatures is [1, 1]; name several, each once"),
        (("digits", "temperatures=[]"), "temperatures is []; name several"),
        (("digits", "temperatures=[0.5,1]", "temperature=0.5"), "and leave temperature out"),
        (("digits", "temperatures=[1,-1]"), "temperatures is [1, -1]; each must be at least 0"),
        (("digits", "temperatures=[1,a]"), "temperatures is [1, 'a']; it must be a list of num"),
        (("digits", "film=0"), "film is 0; it must be from 1 to 100"),
        (("digits", "top_k=0"), "top_k is 0; it must be at least 1"),
        (("digits", "top_p=2"), "top_p is 2; it must be above 0 and at most 1"),
        (("toy", "film=4"), "film shows pictures and rows of levels as one order writes them"),
        (("toy", "entropy=true"), "entropy is drawn of images with levels under one order"),
        (("toy", "top_k=2"), "top_k and top_p choose among the levels of one value a step, but"),
        (("uniform", "top_k=2"), "draws all values at once; leave them out"),
        (("uniform", "film=4"), "film shows pictures and rows of levels as one order writes them"),
        (("orders", "film=4"), "film shows pictures and rows of levels as one order writes them"),
        (("text", "film=4"), "film shows pictures and rows of levels as one order writes them"),
        (("text", "entropy=true"), "entropy is drawn of images with levels under one order"),
    ],
)
def test_what_has_no_such_picture_is_refused(runs, keys, sentence):
    result = armodels(runs, "sample", *keys, "num=4", "out=refused")
    assert sentence in result.error
    assert not (runs / "refused").exists()
