"""Toy distributions: each log-density is one distribution, and the draws follow it."""

import math
import typing

import pytest
import torch
from command import CONFIGS

from armodels.data.toy import CODES, DENSITIES, Name, Toy

CONFIG = CONFIGS / "data/toy.yaml"


def test_every_name_is_a_choice():
    assert typing.get_args(Name) == (*DENSITIES, *CODES)


def test_config_lists_every_name():
    line = next(x for x in CONFIG.read_text().splitlines() if x.startswith("name:"))
    assert line.split("#")[1].split(" | ") == [" eight_gaussians", *[*DENSITIES, *CODES][1:]]


def _grid(box, num: int) -> tuple[torch.Tensor, float]:
    """Midpoints of num x num cells of the box, (num^2, 2), and the area of a cell."""
    (x0, x1), (y0, y1) = box
    middle = (torch.arange(num, dtype=torch.double) + 0.5) / num
    points = torch.cartesian_prod(x0 + (x1 - x0) * middle, y0 + (y1 - y0) * middle)
    return points, (x1 - x0) * (y1 - y0) / num**2


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSITIES)
def test_density_is_one_distribution(name):
    """The log-density integrates to one over the box, and the draws follow it cell by cell."""
    num_draws, num_cells, fine = 20_000, 20, 40
    source = Toy(name, num_train=num_draws, num_valid=10, num_test=10, seed=1)
    splits = source.load()
    points, area = _grid(splits.box, num_cells * fine)
    mass = splits.true_log_prob(points).exp() * area
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)

    probability = mass.view(num_cells, fine, num_cells, fine).sum((1, 3)).flatten()
    low = torch.tensor([side[0] for side in splits.box])
    width = torch.tensor([side[1] - side[0] for side in splits.box]) / num_cells
    cell = ((splits.train - low) / width).floor().long()
    inside = ((cell >= 0) & (cell < num_cells)).all(1)
    assert float(inside.double().mean()) > 0.998
    index = (cell[inside, 0] * num_cells + cell[inside, 1]).bincount(minlength=num_cells**2)
    expected = probability * num_draws
    often = expected > 5
    observed = torch.cat([index[often], num_draws - index[often].sum().view(1)]).double()
    expected = torch.cat([expected[often], num_draws - expected[often].sum().view(1)])
    chi2 = float(((observed - expected) ** 2 / expected.clamp_min(1)).sum())
    freedom = len(expected) - 1
    assert abs(chi2 - freedom) < 4.5 * math.sqrt(2 * freedom)
    assert torch.isfinite(splits.true_log_prob(splits.train)).all()


def test_known_entropies():
    """Densities of which the entropy is a textbook formula."""

    def entropy(name):
        splits = Toy(name, num_train=10, num_valid=10, num_test=50_000).load()
        return -float(splits.true_log_prob(splits.test).mean())

    normal = 0.5 * math.log(2 * math.pi * math.e)
    assert entropy("uniform") == pytest.approx(math.log(16), abs=1e-12)
    assert entropy("checkerboard") == pytest.approx(math.log(8), abs=1e-12)
    assert entropy("banana") == pytest.approx(2 * normal + math.log(1.2 * 0.4), abs=0.02)
    assert entropy("funnel") == pytest.approx(2 * normal + math.log(1.2), abs=0.02)


@pytest.mark.parametrize(
    ("name", "centre"),
    [(name, (0, 0)) for name in ("rings", "two_spirals", "swiss_roll", "pinwheel")]
    + [("two_moons", (-1, -0.5))],
)
def test_log_density_is_finite_where_polar_coordinates_are_not(name, centre):
    density = Toy(name).load().true_log_prob(torch.tensor([centre], dtype=torch.float)).exp()
    assert 0 <= float(density) < 0.1


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("num_dims", [1, 2, 5])
def test_code_sums_to_one(name, num_dims):
    splits = Toy(name, num_dims=num_dims, num_train=4000).load()
    x = torch.cartesian_prod(*[torch.arange(2, dtype=torch.uint8)] * num_dims).view(-1, num_dims)
    probability = splits.true_log_prob(x).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    words = x[probability > 0]
    counts = (splits.train[:, None] == words).all(-1).sum(0).double()
    assert int(counts.sum()) == 4000
    expected = 4000 * probability[probability > 0]
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < len(words) + 4.5 * math.sqrt(2 * len(words))


def test_code_by_hand():
    copy_chain, parity = (Toy(name, num_dims=4).load().true_log_prob for name in CODES)
    x = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    ln2 = math.log(2)
    assert copy_chain(x).tolist() == [-ln2, -ln2, -math.inf, -math.inf]
    assert parity(x).tolist() == [-3 * ln2, -3 * ln2, -3 * ln2, -math.inf]


def test_toy_splits():
    small, large = Toy(num_train=10).load(), Toy(num_train=2000).load()
    assert torch.equal(small.test, large.test)
    assert torch.equal(small.valid, large.valid)
    assert not torch.equal(small.valid, small.test)
    assert not torch.equal(Toy(seed=1).load().test, small.test)


def test_toy_refusals():
    with pytest.raises(ValueError, match="^name is 'rngs'; choose eight_gaussians, .* or parity$"):
        Toy("rngs")
    with pytest.raises(ValueError, match="toy data rings has 2 dimensions"):
        Toy("rings", num_dims=3)
    with pytest.raises(ValueError, match="must be at least 1"):
        Toy("rings", num_valid=0)
    with pytest.raises(ValueError, match="num_dims is 0; it must be at least 1"):
        Toy("parity", num_dims=0)
    with pytest.raises(ValueError, match="NaN"):
        Toy("rings").load().true_log_prob(torch.tensor([[0.0, math.nan]]))


def test_tails_keep_their_digits():
    # Nine scales outside the flat part, where 1 minus a rounded 1 would give log 0.
    log_prob = Toy("cosine").load().true_log_prob(torch.tensor([[3.9, 0.0], [-3.9, 0.0]]))
    assert torch.isfinite(log_prob).all()
    assert float(log_prob[0]) == float(log_prob[1])
