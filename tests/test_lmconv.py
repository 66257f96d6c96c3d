"""Locally masked convolutions: masks by hand, convolutions against sums, what can be seen."""

import pytest
import torch
from walks import walked

from armodels import masks, orders
from armodels.networks import lmconv
from armodels.networks.lmconv import LMConv, LocalConv
from armodels.spec import ContextSpec, DataSpec


def ranks(name, height, width, seed=0):
    return orders.ranks(orders.make(name, (1, height, width), seed=seed).table)


def test_windows_and_local_masks_by_hand():
    places = masks.window(2, 3, 3)
    assert places[0].tolist() == [6, 6, 6, 6, 0, 1, 6, 3, 4]
    assert places[4].tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert masks.window(3, 3, 3, dilation=2)[0].tolist() == [9, 9, 9, 9, 0, 2, 9, 6, 8]
    # The S-curve 0 1 2 / 5 4 3 at its place of rank 4, then at that of rank 0.
    seen = masks.local_mask(ranks("s_curve", 2, 3), places, strict=True)
    assert seen[4].int().tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 0]
    assert not seen[0].any()
    seen = masks.local_mask(ranks("s_curve", 2, 3), places, strict=False)
    assert seen[4].int().tolist() == [1, 1, 1, 0, 1, 1, 0, 0, 0]
    assert seen[0].int().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_an_s_curve_has_two_patterns():
    places = masks.window(4, 5, 3)
    inside = places < 20
    mask = masks.local_mask(ranks("s_curve", 4, 5), places, strict=True)
    found, which = masks.patterns(mask, inside, 4)
    assert found.int().tolist() == [[1, 1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert which.view(4, 5).tolist() == [[1] * 5, [0] * 5] * 2
    assert ((found[which] == mask) | ~inside).all()
    assert masks.patterns(mask, inside, 1) is None


@pytest.mark.parametrize("most", [0, 99], ids=["places", "patterns"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("name", ["raster", "s_curve", "random"])
def test_a_local_convolution_is_a_sum(monkeypatch, name, dilation, most):
    monkeypatch.setattr(lmconv, "MOST_PATTERNS", most)
    torch.manual_seed(0)
    size, order = (4, 5), orders.make(name, (1, 4, 5), seed=1).table.flatten().tolist()
    make = lmconv._local_mask.__wrapped__
    made = make(tuple(order), size, 3, dilation, True)
    assert (made.kernels is None) == (most == 0)
    mask = lmconv.LocalMask(*(None if part is None else part.double() for part in made))
    layer = LocalConv(1, 2, 3, 3, dilation).double()
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(layer.tap_bias)
    x = torch.randn(2, 2, *size, dtype=torch.double)
    expected = torch.empty(2, 3, *size, dtype=torch.double)
    for n in range(20):
        total = layer.bias.expand(2, -1)
        for tap in range(9):
            row = n // 5 + (tap // 3 - 1) * dilation
            column = n % 5 + (tap % 3 - 1) * dilation
            if not (0 <= row < 4 and 0 <= column < 5):
                continue
            if order.index(row * 5 + column) <= order.index(n):
                seen = x[:, :, row, column] @ layer.weight[:, :, tap].T
                total = total + seen + layer.tap_bias[:, tap]
        expected[:, :, n // 5, n % 5] = total
    torch.testing.assert_close(layer(x, torch.ones(1, 1), mask), expected, rtol=0, atol=1e-12)


def seen_by_the_last_step(order, size=(4, 5), step=-1):
    """Which values move the parameters of a step."""
    spec = DataSpec("tiny", "image", (1, *size), 2, "probability")
    net = LMConv(spec, 1, order, num_blocks=10, num_channels=4, dilations=[1]).double()
    torch.nn.init.normal_(net.output.weight)
    x = torch.zeros(1, *spec.shape, dtype=torch.uint8)
    with torch.no_grad():
        base = net(x)[0, step]
        seen = []
        for i in range(spec.num_dims):
            changed = x.clone()
            changed.view(-1)[i] = 1
            seen.append(bool((net(changed)[0, step] != base).any()))
    return torch.tensor(seen).view(size)


@pytest.mark.parametrize("name", ["s_curve", "hilbert"])
def test_curves_have_no_blind_spot(name):
    order = orders.make(name, (1, 4, 5), seed=3)
    seen = seen_by_the_last_step(order)
    assert int((~seen).sum()) == 1
    assert not seen.view(-1)[order.table[-1, 0]]


def test_raster_has_a_blind_spot_above_to_the_right():
    # The place in row 3, column 1, marked 2 here.
    place = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 2, 0, 0, 0]])
    seen = seen_by_the_last_step(orders.make("raster", (1, 4, 5)), step=16)
    assert torch.equal(seen, place == 1)


@pytest.mark.parametrize("joint", [False, True])
def test_the_cached_step_hears_what_a_picture_says_of_each_place(joint):
    torch.manual_seed(0)
    spec = DataSpec("tiny", "image", (3, 3, 2), 2, "probability")
    picture = ContextSpec("picture", (2, 2, 1), 3)
    order = orders.make("hilbert", spec.shape, joint=joint, seed=5)
    net = LMConv(spec, 2, order, num_channels=3, dilations=[1], context=picture).double()
    x, said = torch.randint(2, (5, *spec.shape)), torch.randint(3, (5, *picture.shape))
    with torch.no_grad():
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        expected = net(x, said)
        params = walked(net, x.flatten(1)[:, order.table], said)
        torch.testing.assert_close(params, expected, rtol=0, atol=1e-11)


def test_a_head_may_take_the_channels_of_a_pixel_in_any_order():
    torch.manual_seed(0)
    spec = DataSpec("tiny", "image", (3, 2, 3), 4, "probability")
    order = orders.make("s_curve", spec.shape, joint=True)
    net = LMConv(spec, 2, order, num_channels=3, dilations=[1]).double()
    x = torch.randint(4, (5, *spec.shape))
    with torch.no_grad():
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        expected = net(x)
        turned = net.with_order(orders.Order(order.table[:, [2, 0, 1]]))
        torch.testing.assert_close(turned(x), expected, rtol=0, atol=0)
        params = walked(turned, x.flatten(1)[:, turned.order_table])
        torch.testing.assert_close(params, expected, rtol=0, atol=1e-11)


def test_refusals():
    spec = DataSpec("tiny", "image", (3, 1, 2), 2, "probability")
    planes = orders.Order(torch.arange(6)[:, None])  # all reds first
    with pytest.raises(ValueError, match="writes a pixel's channels one after another"):
        LMConv(spec, 1, planes, dilations=[1])
    raster = orders.make("raster", spec.shape)
    with pytest.raises(ValueError, match="kernel_size is 2; it must be odd and at least 3"):
        LMConv(spec, 1, raster, kernel_size=2, dilations=[1])
    with pytest.raises(ValueError, match=r"dilations is \[0\]; each must be at least 1"):
        LMConv(spec, 1, raster, dilations=[0])
    with pytest.raises(ValueError, match=r"dilations is \[\]; give at least one"):
        LMConv(spec, 1, raster, dilations=[])


@pytest.mark.parametrize("num_blocks", [4, 16])
def test_gradients_of_deep_networks_start_moderate(num_blocks):
    """Also at the place written first, which reads nothing but biases."""
    spec = DataSpec("bits", "image", (1, 6, 6), 2, "probability")
    torch.manual_seed(0)
    order = orders.make("s_curve", spec.shape)
    net = LMConv(spec, 1, order, num_blocks=num_blocks, num_channels=32, dilations=[1, 2])
    x = torch.zeros(4, 1, 6, 6, dtype=torch.uint8)
    net(x).sum(1).mean().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
    assert norm < 1000
