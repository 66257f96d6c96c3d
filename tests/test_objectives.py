"""Objectives: what training maximizes, apart from the model."""

import pytest
import torch
from cases import CASES, LABEL

from armodels.objectives import AllOrders, Canonical, Likelihood, MixtureOrder, RandomOrder
from armodels.spec import ContextSpec, DataSpec

NAMED = {
    "made": Likelihood,
    "gmm": Likelihood,
    "deep-nade": AllOrders,
    "orders-deep-nade": AllOrders,
    "deep-nade-canonical": Canonical,
    "orders-deep-nade-canonical": Canonical,
    "made-resampled": RandomOrder,
    "sigma-gpt-resampled": RandomOrder,
    "orders-made-resampled": RandomOrder,
    "orders-made": MixtureOrder,
}


@pytest.mark.parametrize("name", NAMED)
def test_a_model_names_its_objective(name):
    model = CASES[name].build(0)
    objective = model.default_objective()
    assert type(objective) is NAMED[name]
    # An optimizer, and DDP, that is given the objective moves the model's own weights.
    pairs = zip(objective.parameters(), model.parameters(), strict=True)
    assert all(a is b for a, b in pairs)


def test_the_likelihood_is_log_prob():
    model, x = CASES["made"].build(0), CASES["made"].events(5)
    assert torch.equal(model.default_objective()(x), model.log_prob(x))


def test_training_reads_no_values(monkeypatch):
    """Reading them would synchronize the device each step."""

    def read(*args):
        raise AssertionError("values are read")

    case = CASES["made"]
    model, x = case.build(0, LABEL), case.events(3)
    labels = torch.tensor([0, 1, 2])
    expected = model.log_prob(x, labels)
    for spec in (DataSpec, ContextSpec):
        monkeypatch.setattr(spec, "check", read)
    assert torch.equal(model.default_objective()(x, labels), expected)
