"""SigmaGPT against a loop over its tokens, written by hand, and under every order."""

import math

import pytest
import torch
from cases import CASES
from torch import Tensor

from armodels import orders
from armodels.networks.sigma_gpt import Places


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt()


def attended(queries: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What the last token asks of all so far, by heads (heads, D) each."""
    read = []
    for head in range(len(queries)):
        asked = unit(queries[head])
        scores = [float(asked @ unit(key[head])) / math.sqrt(len(asked)) for key in keys]
        shares = torch.tensor(scores, dtype=torch.double).softmax(0)
        read.append(sum(share * value[head] for share, value in zip(shares, values, strict=True)))
    return torch.cat(read)


def by_hand(net, x: Tensor) -> Tensor:
    """Parameters of one event of single values, token by token: (D,) -> (S, P)."""
    order = net.order_table[:, 0].tolist()
    tokens = []
    for s, place in enumerate(order):
        token = net.begins.clone()
        if s > 0:
            token = net.written(torch.tensor([order[s - 1]]))[0]
            token = token + net.embed[0].weight[int(x[order[s - 1]])]
        tokens.append(token + net.next(torch.tensor([place]))[0])
    for block in net.blocks:
        parts = [(block.heads.weight @ unit(one)).view(3, net.num_heads, -1) for one in tokens]
        keys, values = [part[1] for part in parts], [part[2] for part in parts]
        for s, part in enumerate(parts):
            read = attended(part[0], keys[: s + 1], values[: s + 1])
            tokens[s] = tokens[s] + block.mixed.weight @ read
        for s, one in enumerate(tokens):
            wide = block.wide.weight @ unit(one)
            wide = torch.nn.functional.gelu(wide)
            tokens[s] = one + block.narrow.weight @ wide
    last = [net.params.weight @ unit(one) for one in tokens]
    return torch.stack([one + net.bias[place] for one, place in zip(last, order, strict=True)])


@pytest.mark.parametrize("name", ["sigma-gpt", "sigma-gpt-rgb"])
def test_the_network_is_the_loop(name):
    case = CASES[name]
    net, x = case.build(0).net, case.events(1)
    torch.testing.assert_close(net(x)[0], by_hand(net, x.flatten()), rtol=0, atol=1e-11)


def test_every_order_is_one_pass_of_the_same_weights():
    case = CASES["sigma-gpt-resampled"]
    model, x = case.build(0), case.events(3)
    calls = []
    model.net.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    found = []
    for seed in range(4):
        order = orders.make("random", case.spec.shape, seed=seed)
        view = model.with_order(order)
        found.append(view.log_prob(x))
        assert len(calls) == seed + 1
        assert torch.equal(view.net.order_table, order.table)
        params = by_hand(view.net, x[0].flatten())
        torch.testing.assert_close(view.net(x)[0], params, rtol=0, atol=1e-11)
        calls.pop()
    assert torch.stack(found).std(0).min() > 1e-6


def test_places_of_a_picture_are_channel_row_column_and_own():
    places = Places((3, 2, 4), 5)
    every = places(torch.arange(24)).view(3, 2, 4, 5)
    for channel in range(3):
        for row in range(2):
            for column in range(4):
                at = (channel * 2 + row) * 4 + column
                parts = (channel, row, column, at)
                total = sum(table[i] for table, i in zip(places.tables, parts, strict=True))
                torch.testing.assert_close(every[channel, row, column], total)
    assert [len(table) for table in Places((7,), 5).tables] == [7]
