"""MADE and the FVSBN against loops written by hand."""

import math

import pytest
import torch
from cases import BITS, CASES, RGB
from torch.distributions import Bernoulli

from armodels import orders
from armodels.networks.made import MADE


def by_hand(net: MADE, x) -> torch.Tensor:
    """Parameters of every step of one real or binary event, unit by unit: (D,) -> (S, P)."""
    order = net.order_table.flatten().tolist()
    steps, width = len(order), net.num_params
    known_at = {index: t for t, index in enumerate(order)}
    inputs = [float(v) for v in x]
    seen, degrees = inputs, [known_at[i] for i in range(steps)]
    for layer in net.hidden:
        units, unit_degrees = [], []
        for j in range(layer.out_features):
            degree = j * (steps - 1) // layer.out_features
            total = float(layer.bias[j])
            for i, value in enumerate(seen):
                if degrees[i] <= degree:
                    total += float(layer.weight[j, i]) * value
            units.append(math.tanh(total))
            unit_degrees.append(degree)
        seen, degrees = units, unit_degrees
    params = torch.empty(steps, width, dtype=torch.double)
    for s, index in enumerate(order):
        for p in range(width):
            total = float(net.bias[index, p])
            if net.output is not None:
                for i, value in enumerate(seen):
                    if degrees[i] < s:
                        total += float(net.output.weight[index * width + p, i]) * value
            if net.direct is not None:
                for i, value in enumerate(inputs):
                    if known_at[i] < s:
                        total += float(net.direct.weight[index * width + p, i]) * value
            params[s, p] = total
    return params


HANDS = ["made", "made-permuted", "made-deep", "made-direct", "made-mog-deep", "made-mog-direct"]


@pytest.mark.parametrize("name", [*HANDS, "fvsbn"])
def test_made_equals_a_loop_over_its_units(name):
    case = CASES[name]
    net, x = case.build(0).net.requires_grad_(False), case.events(3)
    expected = torch.stack([by_hand(net, event) for event in x])
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_fvsbn_is_a_chain_of_logistic_regressions():
    case = CASES["fvsbn"]
    model, x = case.build(0), case.events(1)[0]
    net, total = model.net, 0.0
    order = net.order_table.flatten().tolist()
    for s, index in enumerate(order):
        logit = net.bias[index, 0]
        for earlier in order[:s]:
            logit = logit + net.direct.weight[index, earlier] * x[earlier].double()
        total = total + Bernoulli(logits=logit).log_prob(x[index].double())
    torch.testing.assert_close(model.log_prob(x[None])[0], total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("connectivity", ["even", "random"])
def test_no_hidden_unit_is_dead(connectivity):
    """Degrees below the smallest of the layer before would leave a unit without an input."""
    order = orders.make("raster", BITS.shape)
    net = MADE(BITS, 1, order, hidden_sizes=[2, 20, 3], connectivity=connectivity)
    for seed in range(20):
        view = net.with_order(order, seed=seed)
        for mask in (view.mask_0, view.mask_1, view.mask_2):
            assert mask.any(1).all()


def test_masked_weights_get_no_gradient():
    net = CASES["made-deep"].build(0).net
    net(CASES["made-deep"].events(8)).square().sum().backward()
    for weight, mask in (
        (net.hidden[0].weight, net.mask_0),
        (net.hidden[1].weight, net.mask_1),
        (net.output.weight, net.mask_output),
    ):
        assert not weight.grad[mask == 0].any()
        assert weight[mask == 0].any(), "masks are multiplied, never written into weights"


def test_random_connectivity_follows_the_seed():
    def masks_of(seed):
        order = orders.make("raster", (6,))
        net = CASES["made-random"].build(0).net.with_order(order, seed=seed)
        return torch.cat([net.mask_0.flatten(), net.mask_1.flatten(), net.mask_output.flatten()])

    assert torch.equal(masks_of(1), masks_of(1))
    assert not torch.equal(masks_of(1), masks_of(2))


def test_dropout_is_on_in_training_alone():
    case = CASES["made-deep"]
    net, x = case.build(0).net, case.events(4)
    assert torch.equal(net(x), net(x))
    net.train()
    torch.manual_seed(0)
    assert not torch.equal(net(x), net(x))


def test_a_pixel_written_whole_has_its_parameters_with_its_first_value():
    net = CASES["made-rgb-joint"].build(0).net
    order = orders.make("reverse", RGB.shape, joint=True)
    x = CASES["made-rgb-joint"].events(3)
    first = net.with_order(order)(x)[:, 0]  # sees nothing: its bias
    torch.testing.assert_close(first, net.bias[1].expand(3, -1), rtol=0, atol=0)
