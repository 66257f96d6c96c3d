"""PixelCNN, plain and gated: masks by hand, what each pixel sees, and sums written as loops."""

import math
import re

import pytest
import torch
from cases import CASES, context_values, data
from hydra.errors import InstantiationException
from walks import walked

from armodels import construct, heads, masks, orders
from armodels.networks.gated_pixelcnn import GatedPixelCNN
from armodels.networks.pixelcnn import PixelCNN
from armodels.spec import ContextSpec


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# Masks


def test_mask_a_of_one_group():
    one = torch.zeros(1, dtype=torch.long)
    expected = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    mask = masks.convolution_mask(one, one, 3, 5, strict=True)
    assert mask[0, 0].int().tolist() == expected
    expected[2] = [1, 1, 1, 0, 0]
    mask = masks.convolution_mask(one, one, 3, 5, strict=False)
    assert mask[0, 0].int().tolist() == expected


def test_masks_of_red_green_and_blue():
    """At the pixel itself: a row for R, G, B, a column for the plane of ones and R, G, B."""
    inputs, outputs = torch.tensor([-1, 0, 1, 2]), torch.tensor([0, 1, 2])
    a = masks.convolution_mask(inputs, outputs, 2, 3, strict=True)
    assert a[:, :, 1, 1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    b = masks.convolution_mask(inputs, outputs, 2, 3, strict=False)
    assert b[:, :, 1, 1].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    for mask in (a, b):  # other pixels are seen with all their colours, or not at all
        assert mask[:, :, 0].all()
        assert mask[:, :, 1, 0].all()
        assert not mask[:, :, 1, 2].any()


# What a pixel sees


def random_weights(net, scale: float):
    generator = torch.Generator().manual_seed(0)
    for weight in net.double().parameters():
        weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.double))
    return net.eval()


def seen(network, shape, scale=0.5, **keys) -> torch.Tensor:
    """(S, S) bool: does the step of a row depend on the value of a column?"""
    spec = data("image", *shape, levels=2)
    head = heads.Bernoulli(spec)
    net = network(spec, head.num_params, orders.make("raster", shape), activation="tanh", **keys)
    net = random_weights(net, scale)
    x = (torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    before, columns = net(x), []
    for index in net.order_table[:, 0].tolist():
        changed = x.clone()
        changed.flatten(1)[:, index] ^= 1
        columns.append((net(changed) - before).abs().amax((0, 2)) > 1e-13)
    return torch.stack(columns, 1)


SIZES = {"num_channels": 4, "kernel_size": 3, "first_kernel_size": 3}


@pytest.mark.parametrize("residual", [True, False])
def test_the_blind_spot_of_pixelcnn(residual):
    """Above and further right than a 45 degree line nothing is seen, however deep the net."""
    height = width = 5
    found = seen(PixelCNN, (1, 5, 5), num_layers=7, residual=residual, **SIZES)
    for s in range(height * width):
        i, j = divmod(s, width)
        for t in range(height * width):
            k, m = divmod(t, width)
            earlier, blind = t < s, m - j > i - k
            assert found[s, t] == (earlier and not blind), (s, t)
    assert not found[5, 4], "the end of the row before"


def test_the_first_kernel_of_pixelcnn_moves_its_blind_spot():
    """Seven wide, it sees two columns further than the triangle."""
    found = seen(PixelCNN, (1, 2, 6), num_layers=4, num_channels=4, first_kernel_size=7)
    assert found[6].tolist() == [True] * 4 + [False] * 8


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 2, 6), (1, 6, 2), (3, 2, 3)])
def test_gated_pixelcnn_has_no_blind_spot(shape):
    found = seen(GatedPixelCNN, shape, num_layers=6, **SIZES)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


def test_colours_are_conditioned_on_colours_of_the_same_pixel():
    """G sees R and B sees both, in both networks and with one layer: no product of channels."""
    for network in (PixelCNN, GatedPixelCNN):
        found = seen(network, (3, 1, 1), num_layers=1, **SIZES)
        assert found.int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


# The same sums, as loops


def at(maps, k: int, m: int):
    """A pixel's channels; zeros outside of the image."""
    inside = 0 <= k < len(maps) and 0 <= m < len(maps[0])
    return maps[k][m] if inside else [0.0] * len(maps[0][0])


def loop(weight, bias, maps, offset_rows: int, own=None):
    """A convolution, pixel by pixel: maps[row][column][channel].

    The kernel's last row lies ``offset_rows`` above the pixel. ``own(o, c)``, where given, says
    whether output o may see channel c of the pixel; what follows the pixel is then left out.
    """
    outputs, inputs, height, width = weight.shape
    out = []
    for i in range(len(maps)):
        out.append([])
        for j in range(len(maps[0])):
            sums = [0.0 if bias is None else float(bias[o]) for o in range(outputs)]
            for a in range(height):
                for b in range(width):
                    k, m = i - offset_rows - (height - 1 - a), j + b - width // 2
                    if own and k == i and m > j:
                        continue
                    for c, value in enumerate(at(maps, k, m)):
                        for o in range(outputs):
                            if not own or (k, m) != (i, j) or own(o, c):
                                sums[o] += float(weight[o, c, a, b]) * value
            out[i].append(sums)
    return out


def combine(function, *maps):
    """Apply to lists of channels, pixel by pixel."""
    return [[function(*pixels) for pixels in zip(*rows, strict=True)]
            for rows in zip(*maps, strict=True)]  # fmt: skip


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def tanh(a):
    return [math.tanh(x) for x in a]


def halves(a):
    return a[: len(a) // 2], a[len(a) // 2 :]


def gate(u):
    return [math.tanh(a) / (1 + math.exp(-b)) for a, b in zip(*halves(u), strict=True)]


def planes(net, x):
    """The plane of ones, then the values; one-hot where there are three levels or more."""
    channels, height, width = net.spec.shape
    levels = net.spec.levels

    def read(value):
        return [float(value)] if levels == 2 else [float(value == v) for v in range(levels)]

    return [
        [[1.0, *(e for c in range(channels) for e in read(int(x[c, i, j])))] for j in range(width)]
        for i in range(height)
    ]


def colour(net, channel: int, num_channels: int) -> int:
    """The value of the pixel that a hidden channel is about."""
    return channel * net.num_groups // num_channels


def hidden(net, inputs: int, outputs: int, pairs: bool = False):
    """Mask B; ``pairs``: the outputs are a and b of gates."""
    width = outputs // 2 if pairs else outputs

    def own(o, c):
        return colour(net, c, inputs) <= colour(net, o % width, width)

    return own


def values(net, outputs: int, pairs: bool = False):
    """Mask A."""
    features = 1 if net.spec.levels == 2 else net.spec.levels
    width = outputs // 2 if pairs else outputs

    def own(o, c):
        return c == 0 or (c - 1) // features % net.num_groups < colour(net, o % width, width)

    return own


def convolve(net, conv, maps, pairs: bool = False, first: bool = False):
    """A masked convolution of the network, whose masks are made here."""
    outputs, inputs = conv.conv.weight.shape[:2]
    own = values(net, outputs, pairs) if first else hidden(net, inputs, outputs, pairs)
    return loop(conv.conv.weight, conv.conv.bias, maps, 0, own)


def finish(net, maps):
    for conv in net.last:
        maps = convolve(net, conv, combine(tanh, maps))
    rows = torch.tensor(maps, dtype=torch.double)
    return rows.reshape(net.num_steps, net.num_params) + net.bias


def pixelcnn_by_hand(net, x):
    h = convolve(net, net.first, planes(net, x), first=True)
    for layer in net.layers:
        u = h
        for conv in layer:
            u = convolve(net, conv, combine(tanh, u))
        h = combine(add, h, u) if net.residual else u
    return finish(net, h)


def gated_by_hand(net, x):
    v = h = planes(net, x)
    total = None
    for i, (vertical, feed) in enumerate(zip(net.vertical, net.feed, strict=True)):
        rows = loop(vertical.weight, vertical.bias, v, 1 if i == 0 else 0)
        u = convolve(net, net.horizontal[i], h, pairs=True, first=i == 0)
        u = combine(add, u, loop(feed.weight, feed.bias, rows, 0))
        v = combine(gate, rows)
        ends = i == len(net.vertical) - 1
        out = convolve(net, net.out[i], combine(gate, u), pairs=not ends)
        if not ends:
            more = combine(lambda pixel: halves(pixel)[0], out)
            out = combine(lambda pixel: halves(pixel)[1], out)
            h = combine(add, h, more) if i else more
        total = combine(add, total, out) if total else out
    return finish(net, total)


BY_HAND = {
    "pixelcnn": pixelcnn_by_hand,
    "pixelcnn-rgb": pixelcnn_by_hand,
    "pixelcnn-tall": pixelcnn_by_hand,
    "pixelcnn-rgb-joint": pixelcnn_by_hand,
    "gated-pixelcnn": gated_by_hand,
    "gated-pixelcnn-tall": gated_by_hand,
    "gated-pixelcnn-rgb-joint": gated_by_hand,
    "gated-pixelcnn-one-layer": gated_by_hand,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_forward_equals_a_loop_over_pixels(name):
    case = CASES[name]
    net, x = case.build(0).net, case.events(1)
    torch.testing.assert_close(net(x)[0], BY_HAND[name](net, x[0]), rtol=0, atol=1e-12)


# Walks over more rows than the kernels hold


PICTURE = ContextSpec("picture", (2, 2, 3), 4)
"""Says something else of each row and column."""


@pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN])
@pytest.mark.parametrize(
    ("shape", "context"), [((1, 9, 4), None), ((1, 4, 9), PICTURE), ((3, 5, 3), PICTURE)]
)
def test_cached_sampling_of_larger_images(network, shape, context):
    spec = data("image", *shape, levels=2)
    order = orders.make("raster", shape)
    net = network(spec, 1, order, num_layers=4, num_channels=5, context=context)
    net = random_weights(net, 0.3)
    x = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    contexts = None if context is None else context_values(context, 3)
    steps, expected = x.flatten(1)[:, order.table], net(x, contexts)
    if context:
        alike = net(x, contexts[:1].expand_as(contexts))
        assert ((alike - expected)[1:].abs().amax((0, 2)) > 1e-9).all(), "a step hears nothing"
    torch.testing.assert_close(walked(net, steps, contexts), expected, rtol=0, atol=1e-11)


# What is refused

GREY = data("image", 1, 2, 3, levels=2)
RGB = data("image", 3, 1, 2, levels=2)
REFUSALS = {
    "model {} follows the raster order only, not columns": (GREY, "columns", {}),
    "num_layers is 0; it must be at least 1": (GREY, "raster", {"num_layers": 0}),
    "num_channels is 0; it must be at least 1": (GREY, "raster", {"num_channels": 0}),
    "kernel_size is 4; it must be odd and at least 3": (GREY, "raster", {"kernel_size": 4}),
    "first_kernel_size is 1; it must be odd and at least 3": (
        GREY,
        "raster",
        {"first_kernel_size": 1},
    ),
    "num_channels is 2, but a pixel has 3 values; each needs a channel of its own": (
        RGB,
        "raster",
        {"num_channels": 2},
    ),
    "model {} takes image data, but tiny-vector is vector data; "
    "use a model that takes it, such as model=made": (
        data("vector", 6, levels=2),
        "raster",
        {},
    ),
}


@pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN])
@pytest.mark.parametrize("sentence", REFUSALS, ids=lambda s: "-".join(s.split()[:3]))
def test_what_cannot_work_is_refused_in_one_sentence(network, sentence):
    spec, order, keys = REFUSALS[sentence]
    sentence = re.escape(sentence.format(network.__name__))
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        network(spec, 1, orders.make(order, spec.shape), **keys)


def test_configs_with_the_keys_of_an_order_load_where_it_is_the_raster():
    """Runs have them that were trained while they were keys of every network."""
    head = {"_target_": "armodels.heads.auto", "num_components": None}
    keys = {"num_layers": 1, "num_channels": 2, "kernel_size": 3, "first_kernel_size": 3}
    keys = {"_target_": "armodels.networks.pixelcnn.PixelCNN", "context": None} | keys
    old = {"order": "raster", "order_seed": 3, "num_orders": 1, "resample_orders": False}
    one, other = (construct.model(keys | more, head, GREY) for more in ({}, old))
    assert torch.equal(one.net.order_table, other.net.order_table)
    for config in (keys, keys | old):
        assert construct.over_orders(one, config, 1) is one
    with pytest.raises(ValueError, match="^eval.num_orders is 2, but the model was trained on 1 "):
        construct.over_orders(one, keys, 2)
    with pytest.raises(
        ValueError, match="^model PixelCNN follows one order only; use num_orders=1"
    ):
        construct.model(keys | {"num_orders": 2}, head, GREY)
    with pytest.raises(InstantiationException) as told:
        construct.model(keys | {"order": "random"}, head, GREY)
    assert str(told.value.__cause__) == (
        "model PixelCNN follows the raster order only, not random"
    )
