"""PixelCNN++ and PixelSNAIL: against the papers' structure, on odd sizes, and where they start."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import CATEGORICAL, autoregressive, context_values, data, logistics, random_events
from test_invariants import refuses
from walks import walked

from armodels import heads, orders
from armodels.networks.pixel_snail import PixelSNAIL
from armodels.networks.pixelcnn_pp import PixelCNNPP
from armodels.networks.shifted_layers import Convolution, DownConvolution, PointConvolution
from armodels.networks.shifted_runs import InitializationRun, WholeRun
from armodels.spec import ContextSpec

PICTURE = ContextSpec("picture", (2, 3, 4), None)

PP = {"num_channels": 3, "num_resnets": 2}
SNAIL = {"num_channels": 3, "num_blocks": 2, "num_key_channels": 2, "num_value_channels": 3}

NETWORKS = {
    "one-stage": (PixelCNNPP, PP | {"num_stages": 1}),
    "two-stages": (PixelCNNPP, PP | {"num_stages": 2}),
    "three-stages": (PixelCNNPP, PP | {"num_stages": 3, "num_resnets": 1}),
    "snail": (PixelSNAIL, SNAIL),
}
over_networks = pytest.mark.parametrize(("kind", "keys"), NETWORKS.values(), ids=NETWORKS)


# The structure of the papers, in sums over shifted maps


def moved(x, down, right):
    """Maps moved down and to the right, zeros instead."""
    return F.pad(x, (right, -right, down, -down))


def weight(layer):
    """Weight norm by its definition, outputs one by one."""
    dim = 0 if isinstance(layer, Convolution) else 1
    each = zip(layer.direction.unbind(dim), layer.gain, strict=True)
    return torch.stack([direction / direction.norm() * gain for direction, gain in each], dim)


def summed(layer, x, taps, stride=1):
    """Sum over taps {(row, column of the kernel): (rows up, columns left)}."""
    w, total = weight(layer), 0
    for (a, b), (up, left) in taps.items():
        total = total + torch.einsum("fc,bchw->bfhw", w[:, :, a, b], moved(x, up, left))
    return (total + layer.bias[:, None, None])[:, :, ::stride, ::stride]


def down_shifted(layer, x, stride=1):
    taps = {(a, b): (1 - a, 1 - b) for a in range(2) for b in range(3)}
    return summed(layer, x, taps, stride)


def down_right_shifted(layer, x, stride=1):
    return summed(layer, x, {(a, b): (1 - a, 1 - b) for a in range(2) for b in range(2)}, stride)


def nin(layer, x):
    return summed(layer, x, {(0, 0): (0, 0)})


def grown(layer, x, size, first):
    """out[2 i + a, 2 j + b - first] += weight[a, b] x[i, j], cropped."""
    w = weight(layer)
    out = torch.zeros(*x.shape[:2], 2 * x.shape[2] + 2, 2 * x.shape[3] + 3, dtype=x.dtype)
    for a in range(w.shape[2]):
        for b in range(w.shape[3]):
            part = torch.einsum("cf,bchw->bfhw", w[:, :, a, b], x)
            out[:, :, a : a + 2 * x.shape[2] : 2, b : b + 2 * x.shape[3] : 2] += part
    out = out + layer.bias[:, None, None]
    return out[:, :, : size[0], first : first + size[1]]


def act(x):
    return F.elu(torch.cat([x, -x], 1))


def gated(block, conv, x, *others):
    """others: (1x1 layer, what it reads)."""
    c = conv(block.first, act(x))
    for layer, other in others:
        c = c + nin(layer, act(other))
    a, b = conv(block.second, act(c)).chunk(2, 1)
    return x + a * torch.sigmoid(b)


def planes(net, x):
    levels = net.spec.levels
    x = x.double() / (levels - 1) * 2 - 1
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def entrance(net, x):
    """What the rows above and the left say at first, as the down-right stream reads it."""
    above = summed(net.row_above, x, {(0, b): (1, 1 - b) for b in range(3)})
    return above + summed(net.left, x, {(a, 0): (1 - a, 1) for a in range(2)})


def read_out(net, x, h):
    """Features to parameters, one channel after another."""
    each = []
    for c, output in enumerate(net.outputs):
        heard = nin(net.earlier[c - 1], x[:, :c]) if c else 0
        each.append(nin(output, act(h + heard)))
    params = torch.stack(each, 1).permute(0, 3, 4, 1, 2)  # (B, H, W, steps per pixel, P)
    return params.reshape(len(x), net.num_steps, -1) + net.bias


def pixelcnn_pp_by_hand(net, x):
    """The lists of features of the paper's code: all pushed on the way down, popped going up."""
    x = planes(net, x)
    down, right = net.down, net.down_right
    us = [summed(net.above, x, {(a, b): (2 - a, 1 - b) for a in range(2) for b in range(3)})]
    uls = [entrance(net, x)]
    sizes = []
    for k in range(down.num_stages):
        if k:
            sizes.append(us[-1].shape[2:])
            us.append(down_shifted(down.shrink[k - 1], us[-1], 2))
            uls.append(down_right_shifted(right.shrink[k - 1], uls[-1], 2))
        for one, other in zip(down.descent[k], right.descent[k], strict=True):
            us.append(gated(one, down_shifted, us[-1]))
            uls.append(gated(other, down_right_shifted, uls[-1], (one.shared, us[-1])))
    u, ul = us.pop(), uls.pop()
    for k in reversed(range(down.num_stages)):
        for one, other in zip(down.ascent[k], right.ascent[k], strict=True):
            u = gated(one, down_shifted, u, (one.skip, us.pop()))
            ul = gated(other, down_right_shifted, ul, (one.shared, u), (other.skip, uls.pop()))
        if k:
            size = sizes.pop()
            u = grown(down.grow[k - 1], u, size, 1)
            ul = grown(right.grow[k - 1], ul, size, 0)
    assert not us
    assert not uls
    return read_out(net, x, ul)


def attention_by_hand(layer, h, x):
    """Pixel by pixel, over the list of the earlier ones."""
    height, width = h.shape[2:]
    rows = ((torch.arange(height) + 0.5) / height - 0.5).double()
    columns = ((torch.arange(width) + 0.5) / width - 0.5).double()
    at = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
    both = act(torch.cat([h, at.expand(len(h), 2, height, width)], 1))
    query = nin(layer.query, both).flatten(2)
    memory = (nin(layer.memory, both) + nin(layer.written, x)).flatten(2)
    num_keys = layer.num_keys
    found = []
    for n in range(height * width):
        # Nothing has score 0 and value 0.
        scores = torch.einsum("bk,bkm->bm", query[..., n], memory[:, :num_keys, :n])
        odds = (scores / math.sqrt(num_keys)).exp()
        weights = odds / (1 + odds.sum(1, keepdim=True))
        found.append(torch.einsum("bm,bvm->bv", weights, memory[:, num_keys:, :n]))
    return torch.stack(found, -1).unflatten(-1, (height, width))


def pixel_snail_by_hand(net, x):
    x = planes(net, x)
    h = entrance(net, x)
    for block in net.blocks:
        for one in block.resnets:
            h = gated(one, down_right_shifted, h)
        found = attention_by_hand(block.attention, h, x)
        h = gated(block.mix, nin, h, (block.mix.skip, found))
    return read_out(net, x, h)


@over_networks
@torch.no_grad()
def test_forward_is_what_stands_there_by_hand(kind, keys):
    by_hand = {PixelCNNPP: pixelcnn_pp_by_hand, PixelSNAIL: pixel_snail_by_hand}[kind]
    for shape, head in (
        ((1, 5, 6), CATEGORICAL),
        ((3, 3, 5), CATEGORICAL),
        ((3, 4, 3), logistics),
    ):
        case = autoregressive(data("image", *shape, levels=4), head, kind, **keys)
        net, x = case.build(0).net, case.events(2)
        torch.testing.assert_close(net(x), by_hand(net, x), rtol=0, atol=1e-11)


# Any height and width


@over_networks
@pytest.mark.parametrize("context", [None, PICTURE], ids=["alone", "conditioned"])
@torch.no_grad()
def test_cached_step_equals_naive_step_on_odd_sizes(kind, keys, context):
    for shape, head in (((1, 3, 5), CATEGORICAL), ((3, 5, 4), logistics), ((2, 1, 5), CATEGORICAL),
                        ((1, 4, 1), CATEGORICAL), ((1, 1, 1), CATEGORICAL)):  # fmt: skip
        case = autoregressive(data("image", *shape, levels=3), head, kind, **keys)
        net, x = case.build(0, context).net, case.events(3)
        contexts = None if context is None else context_values(context, 3)
        values = x.flatten(1)[:, net.order_table]
        params = walked(net, values, contexts)
        torch.testing.assert_close(params, net(x, contexts), rtol=0, atol=1e-11)


@over_networks
@torch.no_grad()
def test_no_blind_spot(kind, keys):
    """Every pixel of 5 x 5 moves every later one, and none before."""
    case = autoregressive(data("image", 1, 5, 5, levels=2), heads.Bernoulli, kind, **keys)
    net, x = case.build(0).net, case.events(1)
    flipped = x.flatten(1) ^ torch.eye(25, dtype=torch.uint8)
    # A batch of as many: another size may add up in another order.
    moved = net(flipped.view(25, 1, 5, 5)) - net(x.expand(25, 1, 5, 5))
    moved = moved.abs().amax(-1)  # (changed pixel, step)
    later = torch.ones(25, 25).triu(1).bool()
    assert not moved[~later].any()
    assert (moved[later] > 1e-9).all()


# Where training starts


class Noting(WholeRun):
    """Notes each layer's outputs, in units of the scale that they should have."""

    def __init__(self, x):
        super().__init__(x, None)
        self.found = []

    def apply(self, layer, x):
        outputs = layer(x)
        self.found.append(torch.std_mean(outputs / layer.scale, (0, 2, 3), correction=0))
        return outputs

    def read(self, layer):
        return self.apply(layer, self.x)

    def condition(self, layer):
        raise AssertionError("these networks have no context")


@over_networks
@torch.no_grad()
def test_layers_start_with_mean_0_and_their_deviation(kind, keys):
    spec = data("image", 3, 5, 7, levels=4)
    net = autoregressive(spec, CATEGORICAL, kind, dropout=0.5, **keys).build(0).net.train()
    x = random_events(spec, 64)
    net.initialize(x)
    assert net.training
    noting = Noting(net._planes(x))
    net.eval()
    net._whole_outputs(noting)
    assert len(noting.found) == sum(hasattr(module, "direction") for module in net.modules())
    for std, mean in noting.found:
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-6)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    # No dropout, no draw: the same events set the same weights.
    before = net(x[:3])
    net.train().initialize(x)
    torch.testing.assert_close(net.eval()(x[:3]), before, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_output_that_never_moves_keeps_its_gain():
    layer = PointConvolution((2, 2), 1, 2).double()
    layer.direction[0] = 0
    x = torch.randn(4, 1, 2, 2, dtype=torch.double)
    layer.set_gains(x)
    assert layer.gain[0] == 1
    assert layer(x)[:, 0].abs().max() == 0
    assert abs(layer(x)[:, 1].std(correction=0) - 1) < 1e-6


def test_a_weight_of_zero_has_a_gradient():
    layer = DownConvolution((2, 2), 2, 3)
    layer.direction.data.zero_()
    layer(torch.ones(1, 2, 2, 2)).sum().backward()
    assert torch.isfinite(layer.direction.grad).all()


def test_no_context_is_heard_where_gains_are_set():
    assert InitializationRun(torch.zeros(1, 2, 1, 1)).condition(None) == 0


# 3 x 32 x 32, 256 levels

PHOTO = data("image", 3, 32, 32, levels=256)


@torch.no_grad()
def test_conditionals_of_a_photo_sum_to_one_over_256_levels():
    """R, then G given R, then B given both: each summed over its levels, in every pixel."""
    model = autoregressive(
        PHOTO, logistics, PixelCNNPP, num_channels=2, num_resnets=1, num_stages=3, scale=1.0
    ).build(0)
    x = random_events(PHOTO, 1)
    params = model.net(x)[0]  # (S, P)
    pixels = x[0].flatten(1).T  # (S, 3)
    assert params[:, 0].std() > 1e-3
    parts = params.unflatten(1, (-1, 2))  # by component: logits, means, log-scales, coefficients
    levels = torch.arange(256)
    last = torch.zeros(len(params), dtype=torch.double)
    for channels, couplings in ((1, 0), (2, 1), (3, 3)):
        head = heads.DiscretizedLogisticMixture(
            data("image", channels, 1, 1, levels=256), num_components=2
        )
        kept = [parts[:, :1], parts[:, 1 : 1 + channels], parts[:, 4 : 4 + channels]]
        mine = torch.cat([*kept, parts[:, 7 : 7 + couplings]], 1).flatten(1)
        every = pixels[:, None, :channels].repeat(1, 256, 1)
        every[:, :, -1] = levels
        log_prob = head.log_prob(mine[:, None].expand(-1, 256, -1), every)  # (S, 256)
        total = log_prob.logsumexp(1) - last
        assert total.abs().max() < 1e-10
        last = log_prob.gather(1, pixels[:, channels - 1, None].long())[:, 0]
    torch.testing.assert_close(last, model.conditional_log_prob(x)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [PixelCNNPP, PixelSNAIL])
@pytest.mark.parametrize("extreme", [-1e4, -80.0, 80.0, 1e4])
def test_extreme_scales_stay_finite_in_bfloat16(kind, extreme):
    spec = data("image", 3, 4, 5, levels=256)
    model = autoregressive(spec, logistics, kind, num_channels=2).build(0).float().train()
    with torch.no_grad():
        for output in model.net.outputs:
            output.gain.mul_(extreme)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = model(random_events(spec, 4))
    assert log_prob.dtype == torch.float32
    assert torch.isfinite(log_prob).all()
    (-log_prob.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# What cannot work


@pytest.mark.parametrize("kind", [PixelCNNPP, PixelSNAIL])
def test_refusals(kind):
    grey = data("image", 1, 3, 4, levels=2)

    def build(spec=grey, order="raster", **keys):
        return kind(spec, 1, orders.make(order, spec.shape), **keys)

    for order in ("reverse", "columns", "s_curve", "spiral", "random"):
        with refuses(f"model {kind.__name__} follows the raster order only, not {order}"):
            build(order=order)
    with refuses(f"model {kind.__name__} follows one order only; use num_orders=1"):
        build().with_order(orders.make("reverse", grey.shape))
    with refuses(
        f"model {kind.__name__} takes image data, but tiny-vector is vector data; "
        f"use a model that takes it, such as model=made"
    ):
        build(data("vector", 4, levels=2))
    names = {
        PixelCNNPP: ("num_channels", "num_resnets", "num_stages"),
        PixelSNAIL: ("num_channels", "num_blocks", "num_key_channels", "num_value_channels"),
    }
    for name in names[kind]:
        with refuses(f"{name} is 0; it must be at least 1"):
            build(**{name: 0})


@torch.no_grad()
def test_a_walk_keeps_two_rows_and_no_more():
    """What the layers keep must not grow with the height; the values themselves do."""
    sizes = []
    for height in (6, 12):
        spec = data("image", 1, height, 6, levels=2)
        case = autoregressive(spec, heads.Bernoulli, PixelCNNPP, num_channels=2, num_stages=2)
        net = case.build(0).net
        pack = net.pack()
        state = net.start(pack, 2)
        values = torch.zeros(2, 1, dtype=torch.uint8)
        for s in range(net.num_steps):
            _, state = net.step(values if s else None, s, state, pack)
        assert len(state) > 40
        sizes.append(sum(tensor.numel() for name, tensor in state.items() if name != "x"))
    assert sizes[0] == sizes[1]


@torch.no_grad()
def test_a_pack_is_never_written_to():
    """Two walks share it, and what one writes the other must not read."""
    spec = data("image", 1, 5, 5, levels=2)
    net = autoregressive(spec, heads.Bernoulli, PixelCNNPP, num_channels=2).build(0).net
    pack = net.pack()
    before = {name: [tensor.clone() for tensor in one] for name, one in pack.items()}
    state = net.start(pack, 2)
    for s in range(net.num_steps):
        values = torch.ones(2, 1, dtype=torch.uint8) if s else None
        _, state = net.step(values, s, state, pack)
    for name, one in pack.items():
        assert all(map(torch.equal, one, before[name])), name
