"""Units: what a number about the data means."""

import dataclasses
import json
import math
import re

import pytest
import torch
from cases import Least, data

from armodels import heads, orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.made import MADE
from armodels.spec import DataSpec, bits_per_dim, nats


def zeroed(spec: DataSpec, head) -> AutoregressiveModel:
    """MADE with every weight 0: each conditional is the head's at zero parameters."""
    order = orders.make("raster", spec.shape, joint=head.joint)
    model = AutoregressiveModel(MADE(spec, head.num_params, order, hidden_sizes=[1]), head)
    with torch.no_grad():
        for weight in model.double().parameters():
            weight.zero_()
    return model.eval()


def test_uniform_over_256_levels_is_8_bits_by_both_roads():
    discrete = data("image", 3, 4, 5, levels=256)
    x = torch.randint(256, (7, 3, 4, 5), dtype=torch.uint8)
    for model in (zeroed(discrete, heads.Categorical(discrete)), Least(discrete)):
        bits = bits_per_dim(model.log_prob(x), discrete)
        torch.testing.assert_close(bits, torch.full_like(bits, 8), rtol=0, atol=1e-12)
    # z = (x + u) / 256 is uniform on the unit cube: log p(z) = 0, and log|dz/dx| = -D log 256.
    road = DataSpec("dequantized", "image", (3, 4, 5), None, "bound", -60 * math.log(256))
    bits = bits_per_dim(torch.zeros(7, dtype=torch.double), road)
    torch.testing.assert_close(bits, torch.full_like(bits, 8), rtol=0, atol=1e-12)


def test_fair_coins_on_28_by_28():
    spec = data("image", 1, 28, 28, levels=2)
    log_prob = zeroed(spec, heads.Bernoulli(spec)).log_prob(
        torch.randint(2, (3, 1, 28, 28), dtype=torch.uint8)
    )
    assert [f"{v:.3f}" for v in nats(log_prob, spec).tolist()] == ["543.427"] * 3
    assert [f"{v:.4f}" for v in bits_per_dim(log_prob, spec).tolist()] == ["1.0000"] * 3


@pytest.mark.parametrize("a", [0.1, 3.0])
def test_scaling_by_a_shifts_by_log_a_per_dimension(a):
    """A model of z = a x, reported in units of x, is the model of x."""
    raw = DataSpec("raw", "vector", (4,), None, "density")
    scaled = dataclasses.replace(raw, name="scaled", log_det=4 * math.log(a))
    head = heads.GaussianMixture(raw, num_components=2)
    model, stretched = zeroed(raw, head), zeroed(scaled, head)
    with torch.no_grad():
        model.net.bias[:] = torch.tensor([-1.0, 2.0, 0.3, -0.5, 0.0, 1.0])
        stretched.net.bias.copy_(model.net.bias)
        stretched.net.bias[:, :2] *= a
        stretched.net.bias[:, 2:4] += math.log(a)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    log_prob, log_prob_z = model.log_prob(x), stretched.log_prob(a * x)
    torch.testing.assert_close(log_prob_z, log_prob - 4 * math.log(a), rtol=0, atol=1e-12)
    torch.testing.assert_close(nats(log_prob_z, scaled), nats(log_prob, raw), rtol=0, atol=1e-12)
    bits = bits_per_dim(log_prob_z, scaled)
    torch.testing.assert_close(bits, -log_prob / (4 * math.log(2)), rtol=0, atol=1e-12)


def test_numbers_pass_as_well_as_tensors():
    spec = data("vector", 4, levels=2)
    assert nats(-2.5, spec) == 2.5
    assert bits_per_dim(-4 * math.log(2), spec) == 1.0


def test_sizes_and_types():
    assert data("image", 3, 4, 5, levels=256).num_dims == 60
    assert data("vector", 3, levels=256).dtype == torch.uint8
    assert data("vector", 3, levels=257).dtype == torch.int32
    assert data("vector", 3, levels=None).dtype == torch.float32
    spec = data("image", 1, 2, 3, levels=2)
    assert DataSpec(**json.loads(json.dumps(spec.to_dict()))) == spec


LEVELS, REALS = data("vector", 3, levels=4), data("vector", 3, levels=None)

OUTSIDE = [
    (LEVELS, torch.tensor([[0, 1, 4]]), "has levels 0..3, got values in 0..4"),
    (LEVELS, torch.tensor([[-1, 1, 3]]), "has levels 0..3, got values in -1..3"),
    (LEVELS, torch.rand(2, 3), "has 4 levels, given as integers, got torch.float32"),
    (LEVELS, torch.zeros(2, 4).long(), "has examples of shape (3,), got (4,)"),
    (LEVELS, torch.zeros(3).long(), "has examples of shape (3,), got ()"),
    (REALS, torch.zeros(2, 3).long(), "is real-valued, got torch.int64"),
    (REALS, torch.tensor([[0, math.nan, 0]]), "holds NaN or infinite values"),
    (REALS, torch.tensor([[0, -math.inf, 0]]), "holds NaN or infinite values"),
]


@pytest.mark.parametrize(("spec", "x", "sentence"), OUTSIDE)
def test_check_refuses(spec, x, sentence):
    with pytest.raises(ValueError, match=re.escape(f"data 'tiny-vector' {sentence}") + "$"):
        spec.check(x)


def test_check_takes_what_is_inside():
    LEVELS.check(torch.tensor([[0, 1, 3]]))
    LEVELS.check(torch.tensor([[0, 1, 3]], dtype=torch.uint8))
    LEVELS.check(torch.zeros(0, 3).long())
    REALS.check(torch.randn(2, 3).double())


NONSENSE = [
    ({"kind": "video"}, "kind 'video' of data 'd' is not one of"),
    ({"measure": "likelihood"}, "measure 'likelihood' of data 'd' is not one of"),
    ({"shape": (2, 3)}, "shape (2, 3) of data 'd' is no vector"),
    ({"shape": (0,)}, "shape (0,) of data 'd' is no vector"),
    ({"kind": "image"}, "shape (3,) of data 'd' is no image"),
    ({"levels": 1}, "data 'd' needs at least 2 levels, not 1"),
    ({"levels": None}, "data 'd' with levels=None cannot have measure probability"),
    ({"measure": "density"}, "data 'd' with levels=4 cannot have measure density"),
]


@pytest.mark.parametrize(("change", "sentence"), NONSENSE)
def test_a_spec_that_makes_no_sense_is_refused(change, sentence):
    facts = {"name": "d", "kind": "vector", "shape": (3,), "levels": 4, "measure": "probability"}
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        DataSpec(**(facts | change))


def test_only_what_has_levels_has_a_number_of_them():
    assert data("vector", 2, levels=3).num_levels == 3
    with pytest.raises(ValueError, match="real-valued, so it has no levels"):
        _ = data("vector", 2, levels=None).num_levels


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [(256, torch.uint8), (257, torch.int32), (2**31, torch.int32), (2**31 + 1, torch.int64)],
)
def test_the_type_of_values_holds_every_level(levels, dtype):
    assert DataSpec("some", "vector", (2,), levels, "probability").dtype == dtype
    assert torch.iinfo(dtype).max >= levels - 1
