"""What pictures and charts show: values known, unknown, true and drawn, and in which units."""

import numpy as np
import pytest
import torch
from command import QUICK, done
from PIL import Image
from torch import Tensor

from armodels import charts, pictures
from armodels.spec import DataSpec, Standardization

IMAGE = DataSpec("grey", "image", (1, 3, 4), 2, "probability")
BITS = DataSpec("bits", "vector", (5,), 2, "probability")
SCALE = Standardization(("a", "b$"), (100.0, -5.0), (10.0, 0.5))
TABLE = DataSpec("wine", "vector", (2,), None, "density", standardization=SCALE)
HATCH = {(64, 158, 163), (172, 216, 219)}


def colours(picture: Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, picture.flatten(1).T.tolist()))


def shows(picture: Tensor, colour: str) -> bool:
    """Is much of a picture, or some of it, of one colour?"""
    wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)]).view(3, 1, 1)
    return bool(((picture.int() - wanted).abs().amax(0) < 30).sum() > 20)


@pytest.fixture
def figures(monkeypatch):
    """Charts as figures, whose axes and words can be read."""
    monkeypatch.setattr(charts, "_drawn", lambda figure: figure)


def test_unknown_pixels_look_like_no_pixel():
    known = torch.zeros(2, 1, 3, 4, dtype=torch.bool)
    known[1] = True
    black = torch.zeros(2, 1, 3, 4, dtype=torch.uint8)
    picture = pictures.events(black, IMAGE, columns=2, known=known)
    side = 4 * 16  # of a pixel in the picture, and of the grid
    assert colours(picture[:, 2:-2, 2 : 2 + side]) == HATCH
    assert colours(picture[:, 2:-2, 4 + side : 4 + 2 * side]) == {(0, 0, 0)}
    ours = pictures.colour(torch.arange(99.0)[None], 0, 98)
    greys = {(g, g, g) for g in range(256)} | colours(ours)
    assert not HATCH & greys
    # Of a pixel of which only red is known, that is what every other stripe shows.
    rgb = DataSpec("rgb", "image", (3, 3, 4), 256, "probability")
    known = torch.tensor([True, False, False]).view(1, 3, 1, 1).expand(1, 3, 3, 4)
    x = known.to(torch.uint8) * 200
    inside = pictures.events(x, rgb, columns=1, known=known)[:, 2:-2, 2:-2]
    assert (200, 0, 0) in colours(inside)
    assert len(colours(inside) & HATCH) == 1


def test_titles_stand_over_their_columns():
    x = torch.zeros(6, 1, 3, 4, dtype=torch.uint8)
    bare = pictures.events(x, IMAGE, columns=3)
    picture = pictures.events(x, IMAGE, columns=3, titles=[("", 1), ("known", 1), ("", 1)])
    above = picture.shape[1] - bare.shape[1]
    assert torch.equal(picture[:, above:], bare)
    inked = (picture[:, :above] < 128).any(0).any(0).nonzero()
    pitch = 4 * 16 + 2
    assert pitch <= inked.min()
    assert inked.max() <= 2 * pitch


def test_vectors_stand_below_their_titles():
    """Rows of three: the first, the second and the third of each stand together."""
    x = torch.tensor([[0] * 5, [1] * 5, [0, 1, 0, 1, 0]] * 2, dtype=torch.uint8)
    known = torch.ones(6, 5, dtype=torch.bool)
    known[1::3, :2] = False
    picture = pictures.events(
        x, BITS, columns=3, titles=[("a", 1), ("b", 1), ("c", 1)], known=known
    )
    dark, bright = (
        tuple(c) for c in pictures.colour(torch.tensor([[0.0, 1.0]]), 0, 1)[:, 0].T.tolist()
    )
    panels = picture.split(picture.shape[1] // 3, 1)
    assert [colours(panel[:, 25:-3, 3:-3]) for panel in panels] == [
        {dark}, HATCH | {bright}, {dark, bright}
    ]  # fmt: skip


def test_a_density_is_drawn_the_right_way_up(figures):
    """More at the right and at the bottom; the model's has the scale of the true one."""
    spec = DataSpec("toy", "vector", (2,), None, "density")
    box = ((0.0, 1.0), (-2.0, 2.0))
    x = torch.tensor([[0.9, -1.0]]).expand(7, 2)
    figure = charts.samples(
        x,
        spec,
        box=box,
        true_log_prob=lambda x: 3 * x[:, 0] - x[:, 1],
        log_prob=lambda x: 0 * x[:, 0],
    )
    true, learned, over = figure.axes[:3]
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "true density", "learned density", "7 samples over the true density"
    ]  # fmt: skip
    shown = true.images[0]
    assert shown.get_extent() == [0.0, 1.0, -2.0, 2.0]
    assert shown.origin == "lower"
    values = shown.get_array()
    assert np.unravel_index(values.argmax(), values.shape) == (0, charts.LATTICE - 1)
    assert learned.images[0].get_clim() == shown.get_clim() == (0.0, values.max())
    assert over.lines[0].get_xydata().round(5).tolist() == [[0.9, -1.0]] * 7
    assert (true.get_xlabel(), true.get_ylabel()) == ("x0", "x1")


def test_a_table_is_drawn_in_its_own_units(figures):
    data = torch.randn(400, 2)
    figure = charts.samples(torch.randn(50, 2) + 9, TABLE, data=data)
    first, second, pair = (axes for axes in figure.axes if axes.axison)
    assert (first.get_title(), second.get_title()) == ("a", r"b\$")
    for axes, mean, std in ((first, 100.0, 10.0), (second, -5.0, 0.5)):
        beside, drawn = (patch.get_data() for patch in axes.patches)
        middle = (beside.edges[1:] + beside.edges[:-1]) / 2
        assert (beside.values * middle).sum() / beside.values.sum() == pytest.approx(mean, abs=std)
        assert drawn.values[:-1].sum() == 0  # far above the data: in the last bin, not left out
    assert (pair.get_xlabel(), pair.get_ylabel()) == ("a", r"b\$")
    values = [line.get_xydata() for line in pair.lines]
    assert [len(one) for one in values] == [400, 50]
    assert values[0].mean(0) == pytest.approx([100, -5], abs=2)
    assert "50 samples (orange) beside the data (blue)" in figure.get_suptitle()


def test_completions_of_a_table_say_what_is_known(figures):
    truth = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    values = torch.stack([truth, truth + 1], 1)
    values[..., 0] = truth[:, None, 0]
    figure = charts.completions(truth, torch.tensor([True, False]), values, TABLE)
    unknown, known = figure.axes
    assert (unknown.get_title(), known.get_title()) == (r"b\$, unknown", "a, known")
    dots, bars = (line.get_xydata().tolist() for line in unknown.lines)
    assert dots == [[-5.0, 1], [-4.5, 1], [-5.0, 2], [-4.5, 2]]
    assert bars == [[-5.0, 1], [-5.0, 2]]
    (squares,) = known.lines
    assert squares.get_xdata().tolist() == [110.0, 120.0]


@pytest.mark.slow
def test_charts_are_pictures():
    both = charts.table(torch.randn(500, 2), TABLE, torch.randn(500, 2))
    assert both.dtype == torch.uint8
    assert both.shape[0] == 3
    assert shows(both, charts._DATA)
    assert shows(both, charts._DRAWN)
    assert not shows(charts.table(torch.randn(500, 2), TABLE), charts._DATA)
    one = DataSpec("one", "vector", (1,), None, "density")
    many = DataSpec("many", "vector", (40,), None, "density")
    for spec in (one, many):  # constant, too
        x = torch.zeros(9, spec.num_dims)
        assert charts.table(x, spec).shape[0] == 3
        assert charts.completions(x, x[0] > 0, x[:, None], spec).shape[0] == 3
    assert charts.samples(torch.zeros(8, 5, dtype=torch.uint8), BITS).shape == (3, 128, 80)


def test_bins_stand_around_few_values():
    assert charts._edges(np.array([3.0, 1.0, 2.0, 2.0])).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert len(charts._edges(np.arange(100.0))) == 31


@pytest.mark.slow
def test_verbs_draw_tables(tmp_path):
    rows = np.random.RandomState(0).randn(60, 2) * 3 + 50
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b", comments="")
    done(tmp_path, "train", *QUICK[::2], "samples.num=1", "data=table", "data.path=t.csv",
         "model.hidden_sizes=[4]", "trainer.max_steps=1", "out=run")  # fmt: skip
    with Image.open(tmp_path / "run/samples/step-0000001.png") as picture:
        assert picture.width > 300
    done(tmp_path, "complete", "run", "known=[a]", "num=2", "out=out")
    assert (tmp_path / "out/complete-a-seed0.png").is_file()
    assert "without the data" not in done(tmp_path, "sample", "run", "num=9", "out=out")
    (tmp_path / "t.csv").unlink()
    beside = (tmp_path / "out/sample-seed0-t1.png").read_bytes()
    told = done(tmp_path, "sample", "run", "num=9", "out=out")
    assert (tmp_path / "out/sample-seed0-t1.png").read_bytes() != beside
    assert not list(tmp_path.rglob(".*part"))
    assert told
