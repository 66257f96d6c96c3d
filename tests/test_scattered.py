"""The order of very many rows, of which none is listed."""

import pytest
import torch
from lightning_fabric import Fabric

from armodels.data.base import Splits
from armodels.training import batches
from armodels.training.batches import Batches
from armodels.training.scattered import Scattered

SIZES = [1, 2, 3, 4, 5, 16, 17, 1000, 4097, 65_536, 100_003]


@pytest.mark.parametrize("num", SIZES)
def test_it_is_a_permutation(num):
    for seed in range(3):
        assert Scattered(num, seed)[:].sort().values.equal(torch.arange(num))


def test_a_place_is_computed_by_itself():
    whole, several = Scattered(1001, 5)[:], Scattered(1001, 5)
    assert torch.cat([several[i : i + 90] for i in range(0, 1001, 90)]).equal(whole)
    assert several[1200:1300].shape == (0,)
    assert not Scattered(1001, 6)[:].equal(whole)
    many, others = Scattered(100_003, 5)[:], Scattered(100_003, 5)
    for start in (0, 50_000, 90, 16_380, 99_990):  # one block, another, and two at once
        assert others[start : start + 90].equal(many[start : start + 90])


def test_it_looks_random():
    num = 100_003
    x = Scattered(num, 0)[:].double()
    y = Scattered(num, 1)[:].double()
    for one, other in ((x, torch.arange(num).double()), (x[1:], x[:-1]), (x, y)):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 5 / num**0.5
    counts = torch.bincount((x[:10_000] * 50 / num).long())  # of 50 equal parts, 200 each
    assert ((counts - 200) ** 2 / 200).sum() < 100  # 49 on average, this in one of 30,000


def test_numbers_beyond_those_of_any_file():
    num = 2**60 + 7
    found = Scattered(num, 0)[2**59 : 2**59 + 1000]
    assert ((found >= 0) & (found < num)).all()
    assert len(found.unique()) == 1000
    assert found.double().std() > num / 5


def test_an_epoch_of_many_rows_has_each_once_in_an_order_of_its_own(monkeypatch):
    splits = Splits.of(torch.arange(203)[:, None] % 7, levels=7, seed=0)
    num = len(splits.train)

    def rows():
        drawn = Batches(splits, None, 10, 0, Fabric(accelerator="cpu"))
        steps = drawn.steps_per_epoch
        return [torch.cat([drawn.rows(e * steps + i) for i in range(steps)]) for e in (0, 1)]

    listed = rows()
    monkeypatch.setattr(batches, "MAX_LISTED", num - 1)
    scattered = rows()
    for epoch in (*listed, *scattered):
        assert epoch.sort().values.equal(torch.arange(num))
    assert not scattered[0].equal(scattered[1])
    assert not scattered[0].equal(listed[0])
    monkeypatch.setattr(batches, "MAX_LISTED", num)
    assert rows()[1].equal(listed[1])
