"""The multi-scale network: its levels by hand, and what a pass draws."""

import itertools

import pytest
import torch
from cases import BERNOULLI, CASES, CATEGORICAL, data, logistics, multiscale

from armodels import orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.grouped import walk_groups
from armodels.density.walk import Scored, draw, draw_noise, walk
from armodels.networks.multiscale import MultiScale

CASES_HERE = [name for name in CASES if name.startswith("multiscale") and "given" not in name]


def net_of(shape, head, levels=2, **keys) -> MultiScale:
    spec = data("image", *shape, levels=levels)
    return multiscale(spec, head, 4, **keys).build(0).net


def test_levels_by_hand():
    """Every second pixel of every second row first; to the right, below, and both, of it."""
    net = net_of((1, 3, 4), BERNOULLI, base_size=2)
    ranks = orders.ranks(net.order_table).view(3, 4)
    assert ranks.tolist() == [[0, 4, 1, 5], [8, 10, 9, 11], [2, 6, 3, 7]]
    assert net.group_starts == (0, 1, 2, 3, 4, 8, 10)


def test_levels_of_a_row_by_hand():
    net = net_of((1, 1, 5), BERNOULLI)
    assert orders.ranks(net.order_table).tolist() == [0, 3, 2, 4, 1]
    assert net.group_starts == (0, 1, 2, 3)


def test_channels_by_hand():
    """Channel planes of a 1 x 3 image: R at 0 1 2, G at 3 4 5, B at 6 7 8."""
    one_by_one = net_of((3, 1, 3), BERNOULLI, base_size=2)
    assert one_by_one.order_table.flatten().tolist() == [0, 3, 6, 2, 5, 8, 1, 4, 7]
    assert one_by_one.group_starts == tuple(range(9))
    wide = net_of((3, 1, 4), BERNOULLI, base_size=2)
    assert wide.order_table.flatten().tolist() == [0, 4, 8, 2, 6, 10, 1, 3, 5, 7, 9, 11]
    assert wide.group_starts == (0, 1, 2, 3, 4, 5, 6, 8, 10)
    whole = net_of((3, 1, 4), logistics, base_size=2)
    assert whole.order_table.tolist() == [[0, 4, 8], [2, 6, 10], [1, 5, 9], [3, 7, 11]]
    assert whole.group_starts == (0, 1, 2)


def test_a_phase_reads_what_stands_around_it():
    """The planes of the last phase, pixel by pixel, through its convolutions."""
    net = net_of((1, 5, 4), CATEGORICAL, levels=3, base_size=3)
    x = torch.randint(3, (2, 1, 5, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    planes = torch.zeros(2, 10, 3, 2, dtype=torch.double)
    planes[:, 9] = 1
    for event, i, j in itertools.product(range(2), range(3), range(2)):
        for place, (down, right) in enumerate([(0, 0), (0, 1), (1, 0)]):
            if 2 * i + down < 5:
                level = int(x[event, 0, 2 * i + down, 2 * j + right])
                planes[event, 3 * place + level, i, j] = 1
    between = net.between["level_0_phase_2"]
    h = between.first(planes)
    for first, second in between.blocks:
        h = h + second(torch.tanh(first(torch.tanh(h))))
    params = between.output[0](torch.tanh(between.mix[0](torch.tanh(h))))
    found = net(x)
    for step, flat in enumerate(net.order_table.flatten().tolist()):
        i, j = divmod(flat, 4)
        if i % 2 and j % 2:
            expected = params[:, :, i // 2, j // 2] + net.bias[step - net.base.num_steps]
            torch.testing.assert_close(found[:, step], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES_HERE)
def test_a_pass_draws_what_the_walk_draws(name):
    model = CASES[name].build(0)
    shape = (7, model.net.num_steps, model.head.num_noise)
    noise = draw_noise(shape, torch.Generator().manual_seed(0), torch.device("cpu"))
    with torch.no_grad():
        chooser = Scored(model.head, draw(model.head, noise, 0.7))
        looped = walk(model.net, 7, chooser)
        values, log_probs = walk_groups(model.net, model.head, 7, draw(model.head, noise, 0.7))
    assert torch.equal(values, looped)
    torch.testing.assert_close(log_probs, chooser.log_probs(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES_HERE)
def test_a_completion_by_groups_is_that_of_the_walk(name, monkeypatch):
    """With known values in the middle of groups, and as many passes as there are groups."""
    case = CASES[name]
    model, x = case.build(0), case.events(5)
    known = (torch.arange(case.spec.shape[-1]) % 3 == 0).expand(case.spec.shape)
    steps: list[int] = []
    one_step = MultiScale.group_params

    def counted(self, *args):
        steps.append(args[1])
        return one_step(self, *args)

    monkeypatch.setattr(MultiScale, "group_params", counted)
    found = {}
    for sampler in ("cached", "auto"):
        steps.clear()
        generator = torch.Generator().manual_seed(0)
        options = {"num_particles": 3, "temperature": 0.8, "generator": generator}
        found[sampler] = model.complete(x, known, sampler=sampler, **options)
        assert steps == list(range(len(model.net.groups)))
    assert torch.equal(found["auto"].values, found["cached"].values)
    assert torch.equal(found["auto"].values[:, known], x[:, known])
    torch.testing.assert_close(
        *(one.effective_sample_size for one in found.values()), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(("head", "num_passes"), [(logistics, 28), (CATEGORICAL, 84)])
def test_passes_of_a_colour_picture(head, num_passes, monkeypatch):
    """64 x 64 x 3: 16 pixels one by one, then three phases at each of four levels."""
    spec = data("image", 3, 64, 64, levels=8)
    sizes = {"base_layers": 1, "base_channels": 3, "num_blocks": 1, "num_channels": 2}
    made = head(spec)
    order = orders.make("raster", spec.shape, joint=made.joint)
    net = MultiScale(spec, made.num_params, order, **sizes)
    passes = []
    one_pass = MultiScale.group_params

    def counted(self, *args):
        passes.append(args[1])
        return one_pass(self, *args)

    monkeypatch.setattr(MultiScale, "group_params", counted)
    x = AutoregressiveModel(net, made).sample(2, generator=torch.Generator().manual_seed(0))
    assert x.shape == (2, 3, 64, 64)
    assert passes == list(range(num_passes))


def test_a_base_as_large_as_the_picture_is_a_gated_pixelcnn():
    model = CASES["multiscale-base"].build(0)
    x = CASES["multiscale-base"].events(5)
    assert torch.equal(model.net(x), model.net.base(x))
