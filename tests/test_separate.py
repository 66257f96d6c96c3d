"""One network for each step, against the same networks written one by one."""

import pytest
import torch

from armodels import construct, heads, orders
from armodels.networks.separate import SeparateMLPs
from armodels.spec import DataSpec

SPEC = DataSpec("tiny", "vector", (5,), None, "density")


def test_equals_networks_written_one_by_one():
    order = orders.make("random", SPEC.shape, seed=3)
    net = SeparateMLPs(SPEC, 4, order, hidden_sizes=[6, 7], activation="tanh").double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    params = net(x)
    flat = order.table.flatten().tolist()
    for s, d in enumerate(flat):
        h = x[:, flat[:s]]
        first = net.weights[0][d][:, flat[:s]]
        h = torch.tanh(h @ first.T + net.biases[0][d])
        h = torch.tanh(h @ net.weights[1][d].T + net.biases[1][d])
        expected = h @ net.weights[2][d].T + net.biases[2][d]
        torch.testing.assert_close(params[:, s], expected)


def test_conditionals_share_nothing():
    """The gradient of one conditional stays in its own network."""
    head = heads.GaussianMixture(SPEC, num_components=3)
    net = SeparateMLPs(
        SPEC, head.num_params, orders.make("reverse", SPEC.shape), hidden_sizes=[6, 7]
    )
    x = torch.randn(8, 5)
    net(x)[:, 2].square().sum().backward()
    for p in net.parameters():
        moved = p.grad.flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [d == 2 for d in range(5)]


def test_one_input_is_bent_in_many_places():
    """The second network sees one value; its units must not all turn at 0."""
    net = SeparateMLPs(SPEC, 1, orders.make("raster", SPEC.shape), hidden_sizes=[16])
    bias, weight = net.biases[0][1].detach(), net.weights[0][1][:, 0].detach()
    assert (bias / weight).std() > 0.3
    assert weight.std() > 0.6  # of one input, not of five


@pytest.mark.parametrize(
    ("network", "keys", "num_components"),
    [
        ("separate.SeparateMLPs", {"num_components": None}, 3),  # the textbook model
        ("separate.SeparateMLPs", {"num_components": 7}, 7),
        ("separate.SeparateMLPs", {}, 10),  # a run of before it was a key
        ("made.MADE", {"num_components": None}, 10),
    ],
)
def test_how_many_gaussians_by_default(network, keys, num_components):
    config = {"_target_": f"armodels.networks.{network}", "hidden_sizes": [4], "context": None}
    config |= {"order": "raster", "order_seed": 0, "num_orders": 1}
    model = construct.model(config, {"_target_": "armodels.heads.auto"} | keys, SPEC)
    assert model.head.num_params == 3 * num_components
