"""Anomaly detection: areas and their intervals, scores by hand, and the verb."""

import csv
import json
import math
import zlib

import numpy as np
import pytest
import torch
from command import QUICK, TINY, armodels, done
from PIL import Image
from scipy.stats import norm
from tiny import Tiny

from armodels import anomalies, load_model
from armodels.data.rows import Examples
from armodels.spec import DataSpec

GREY = DataSpec("grey", "image", (1, 8, 8), 256, "probability")
BITS = DataSpec("bits", "image", (1, 16, 16), 2, "probability")
RGB = DataSpec("rgb", "image", (3, 16, 16), 256, "probability")


def pairs(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, M): 1 where the other example has the higher score, half of a tie."""
    return np.heaviside(other[None] - own[:, None], 0.5)


def test_auroc_and_delong_by_pairs():
    """With ties; the variance by the definition of the paper, over all pairs."""
    draws = np.random.default_rng(0)
    own, other = draws.integers(0, 9, 40) / 2, draws.integers(2, 11, 25) / 2
    found, each = anomalies.auroc(own, other), pairs(own, other)
    assert found.value == pytest.approx(each.mean(), abs=1e-12)
    variance = each.mean(1).var(ddof=1) / 40 + each.mean(0).var(ddof=1) / 25
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), abs=1e-9)
    assert anomalies.auroc(-own, -other).value == pytest.approx(1 - found.value, abs=1e-12)


def test_delongs_interval_covers():
    """Of normals one deviation apart, in 95 % of 200 draws."""
    draws, truth = np.random.default_rng(1), norm.cdf(1 / math.sqrt(2))
    found = [anomalies.auroc(draws.normal(size=70), draws.normal(1, size=50)) for _ in range(200)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.91 < covered < 0.985


def test_the_interval_of_auprc_by_hand():
    """A quarter of 40 by chance: the logit of 1/4 moves by 1.96 / sqrt(10 x 3/16)."""
    found = anomalies.auprc(np.zeros(30), np.zeros(10))
    odds = math.exp(1.96 / math.sqrt(10 * 3 / 16))
    low, high = 1 / (1 + 3 * odds), odds / (odds + 3)
    assert found == pytest.approx((0.25, low, high))
    assert anomalies.auprc(np.zeros(30), np.ones(10)) == pytest.approx((1, 1, 1))
    assert anomalies.auprc(np.arange(500) - 1000.0, np.arange(10)) == (1, 1, 1)  # though sums err
    apart = anomalies.auprc(np.arange(30) + 20.0, np.arange(10))  # on the wrong side, all
    assert 0 < apart.low < apart.value < apart.high < 1


def test_the_interval_of_auprc_covers():
    """Of normals one deviation apart, in about 95 % of 200 draws."""
    draws = np.random.default_rng(1)
    truth = anomalies.auprc(draws.normal(size=100_000), draws.normal(1, size=50_000)).value
    found = [
        anomalies.auprc(draws.normal(size=200), draws.normal(1, size=100)) for _ in range(200)
    ]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.91 < covered <= 1


def test_derived_data_by_hand():
    x = torch.tensor([[[[0, 1], [2, 2]], [[5, 5], [5, 0]]]], dtype=torch.uint8)
    spec = DataSpec("tiny", "image", (2, 2, 2), 6, "probability")
    assert anomalies.derive("inverted", x, spec).tolist() == (5 - x.long()).tolist()
    constant = anomalies.derive("constant", x, spec)
    assert constant.tolist() == [[[[1, 1], [1, 1]], [[5, 5], [5, 5]]]]
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[0, 0, 10, 10] = 255
    blurred = anomalies.derive("blurred", point, DataSpec("p", "image", (1, 21, 21), 256, "bound"))
    assert blurred[0, 0, 10, 10] == round(255 / (2 * math.pi * 4))
    ratio = float(blurred[0, 0, 10, 12]) / float(blurred[0, 0, 10, 10])
    assert ratio == pytest.approx(math.exp(-0.5), abs=0.05)
    for one in (constant, blurred):
        assert one.dtype == torch.uint8
    labels = torch.tensor([3])
    kept = anomalies.derived("inverted", Examples(x, labels), spec)
    assert kept[:1].context.tolist() == [3]


def test_the_least_size_counts():
    """Of zlib by hand; of pictures no more than their PNG; what is simple is small."""
    row = DataSpec("row", "vector", (40,), 5, "probability")
    x = torch.arange(40, dtype=torch.uint8)[None] % 5
    size = len(zlib.compress(x.numpy().tobytes(), 9))
    assert anomalies.compressed_nats(x, row).tolist() == pytest.approx([8 * size * math.log(2)])
    noise = torch.randint(0, 256, (2, *RGB.shape), generator=torch.Generator().manual_seed(0))
    for spec, bits in ((RGB, 8), (BITS, 1), (GREY, 8)):
        random = (noise[:, : spec.shape[0], : spec.shape[1], : spec.shape[2]] % 2**bits).byte()
        flat = torch.zeros_like(random)
        simple = anomalies.compressed_nats(flat, spec) / math.log(2)
        complex_ = anomalies.compressed_nats(random, spec) / math.log(2)
        assert (complex_ >= bits * random[0].numel()).all()
        assert (complex_ < 1.1 * bits * random[0].numel() + 120).all()
        assert (simple < complex_ / 2).all()
    with pytest.raises(ValueError, match="^the values of real are no bytes"):
        anomalies.compressed_nats(x, DataSpec("real", "vector", (40,), None, "density"))


def test_a_picture_that_png_likes_is_as_small_as_its_png(tmp_path):
    """Rows that rise by one: PNG's filters make them constant."""
    spec = DataSpec("ramp", "image", (1, 64, 64), 256, "probability")
    x = (torch.arange(64)[:, None] * 3 + torch.arange(64) * 2).to(torch.uint8)[None, None]
    Image.fromarray(x[0, 0].numpy()).save(tmp_path / "a.png", optimize=True)
    png = (tmp_path / "a.png").stat().st_size
    found = float(anomalies.compressed_nats(x, spec)[0]) / 8 / math.log(2)
    assert found <= png < len(zlib.compress(x.numpy().tobytes(), 9))


def test_scores_by_hand():
    """Higher is less like the data, in each of them."""
    found = anomalies.scores(
        np.array([3.0, 9.0, np.inf]),
        entropy=5.0,
        background=np.array([4.0, 7.0, 8.0]),
        compressed=np.array([1.0, 2.0, 3.0]),
    )
    assert (
        list(found) == ["likelihood", "ratio", "complexity", "typicality"] == [*anomalies.PAPERS]
    )
    assert found["likelihood"][:2].tolist() == [3, 9]
    assert found["ratio"][:2].tolist() == [-1, 2]
    assert found["complexity"][:2].tolist() == [2, 7]
    assert found["typicality"][:2].tolist() == [2, 4]
    assert all(one[2] > 1e299 for one in found.values())
    assert list(anomalies.scores(np.ones(2), entropy=1.0)) == ["likelihood", "typicality"]
    with pytest.raises(ValueError, match="impossible under the model and under the background"):
        anomalies.scores(np.array([np.inf]), entropy=5.0, background=np.array([np.inf]))


# The verb

PICTURES = ("data.kind=image", "data.shape=[1,4,3]", "data.levels=3")


def read(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A MADE of pictures, a background, and a model of other data."""
    folder = tmp_path_factory.mktemp("anomalies")
    done(folder, "train", *TINY, *PICTURES, "trainer.max_steps=30", "out=run")
    words = [word for word in TINY if "hidden" not in word]
    done(folder, "train", *words, *PICTURES, "model=independent", *QUICK, "out=background")
    done(folder, "train", *words, "data.kind=vector", "data.shape=[4]", "data.levels=null",
         "model=gmm", "model.num_components=2", "out=real")  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_split_is_set_against_other_data(folder):
    words = ("against=[constant,inverted,data]", "background=background", "device=cpu")
    shown = done(folder, "score", "run", *words, "data=tiny", *PICTURES, "data.seed=3",
                 "out=found.csv")  # fmt: skip
    rows = read(folder / "found.csv")
    each = read(folder / "found-examples.csv")
    sets = {name: [one for one in each if one["set"] == name] for name in ("test", "inverted")}
    areas = (
        anomalies.auroc(*(np.array([float(x["ratio"]) for x in part]) for part in sets.values())),
        *(
            float(row["auroc"])
            for row in rows
            if (row["against"], row["score"]) == ("inverted", "ratio")
        ),
    )
    assert areas[0].value == pytest.approx(areas[1])
    assert [one["index"] for one in sets["test"]] == [*map(str, range(len(sets["test"])))]
    assert [(row["against"], row["score"]) for row in rows] == [
        (against, score)
        for against in ("constant", "inverted", "tiny-image")
        for score in anomalies.PAPERS
    ]
    assert {row["num_own"] for row in rows} == {"23"} == {row["num_other"] for row in rows}
    facts = json.loads((folder / "found.json").read_text())
    assert [float(row["auroc"]) for row in rows] == [row["auroc"] for row in facts["rows"]]
    assert facts["intervals"] == anomalies.INTERVALS
    with Image.open(folder / "found.png") as picture:
        assert picture.size[0] > 400
    assert f"{'inverted':<10}  likelihood  {float(rows[4]['auroc']):.4f} (" in shown


def test_typicality_compares_with_valid(folder):
    """Not with test: the numbers of the file are those that its definition gives."""
    done(folder, "score", "run", "against=inverted", "device=cpu", "out=typical.csv")
    done(folder, "score", "run", "device=cpu", "split=valid", "out=valid.csv")
    done(folder, "score", "run", "device=cpu", "out=test.csv")
    valid, test = (
        np.array([float(row["nats"]) for row in read(folder / name)])
        for name in ("valid.csv", "test.csv")
    )
    model = load_model(folder / "run")
    x = Tiny("image", (1, 4, 3), 3, False, 50, None, 0).load().test[:]
    with torch.no_grad():
        assert -model.log_prob(x).double().numpy() == pytest.approx(test)
        other = -model.log_prob(2 - x).double().numpy()
    truth = anomalies.auroc(abs(test - valid.mean()), abs(other - valid.mean()))
    assert abs(truth.value - anomalies.auroc(test, other).value) > 1e-3
    rows = {row["score"]: float(row["auroc"]) for row in read(folder / "typical.csv")}
    assert rows["typicality"] == pytest.approx(truth.value)


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("run", ("against=[noise]",),
         "against is 'noise'; choose from constant, blurred, inverted, data"),
        ("run", ("against=data",), "against=data and data=... go together: data= names the data "
         "that the model's own are set against; other sets are constant, blurred, inverted"),
        ("run", ("against=[]",),
         "against is []; name one or several sets, each once: constant, blurred, inverted, data"),
        ("run", ("against=[blurred,blurred]",), "against is ['blurred', 'blurred']; name one or "
         "several sets, each once: constant, blurred, inverted, data"),
        ("run", ("against=inverted", "out=no.json"), "out=no.json is the CSV of the areas, beside "
         "which a file of this ending is written, too; name it .csv"),
        ("run", ("against=inverted", "by=line"),
         "by=line goes with file=FILE or a split, not with against=SETS; leave it out"),
        ("run", ("against=inverted", "split=all"),
         "split=all holds what was trained on; against=... takes split=test"),
        ("run", ("background=run",),
         "background=run goes with against=SETS, not with a split; leave it out"),
        ("run", ("against=inverted", "background=real"), "background=real is a model of "
         "tiny-vector (vector (4,), levels None), but the run is of tiny-image (image (1, 4, 3), "
         "levels 3)"),
        ("real", ("against=blurred",),
         "against=blurred is for pictures with levels, but the model is of tiny-vector"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(folder, run, words, message):
    out = () if "out=no.json" in words else ("out=no.csv",)
    assert armodels(folder, "score", run, *words, "device=cpu", *out).error == message
    assert not list(folder.glob("no.*"))
