"""Orders and masks against matrices written by hand."""

from typing import get_args

import pytest
import torch

from armodels import masks, orders


@pytest.mark.parametrize("name", orders.ORDERS)
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 3, 4), (3, 2, 3)])
@pytest.mark.parametrize("joint", [False, True])
def test_every_order_writes_each_index_once(name, shape, joint):
    order = orders.make(name, shape, joint=joint, seed=3).table
    assert sorted(order.flatten().tolist()) == list(range(torch.Size(shape).numel()))
    assert torch.equal(orders.ranks(order)[order[:, 0]], torch.arange(len(order)))


def test_orders_by_hand():
    def pixels(name):
        return orders.make(name, (1, 3, 3)).table.flatten().tolist()

    assert pixels("raster") == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert pixels("reverse") == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert pixels("columns") == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert pixels("s_curve") == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert pixels("spiral") == [0, 1, 2, 5, 8, 7, 6, 3, 4]


def test_orders_of_a_wide_image_by_hand():
    def pixels(name):
        return orders.make(name, (1, 2, 3)).table.flatten().tolist()

    assert pixels("columns") == [0, 3, 1, 4, 2, 5]
    assert pixels("s_curve") == [0, 1, 2, 5, 4, 3]
    assert pixels("spiral") == [0, 1, 2, 5, 4, 3]


def ranks_by_place(name, height, width, seed=0):
    """The step at which each pixel is written, as a picture."""
    order = orders.make(name, (1, height, width), seed=seed).table
    return orders.ranks(order).view(height, width).tolist()


def test_eight_s_curves_by_hand():
    pictures = [ranks_by_place("s_curve", 2, 3, seed) for seed in range(8)]
    assert pictures == [
        [[0, 1, 2], [5, 4, 3]],
        [[2, 1, 0], [3, 4, 5]],
        [[5, 4, 3], [0, 1, 2]],
        [[3, 4, 5], [2, 1, 0]],
        [[0, 3, 4], [1, 2, 5]],
        [[1, 2, 5], [0, 3, 4]],
        [[4, 3, 0], [5, 2, 1]],
        [[5, 2, 1], [4, 3, 0]],
    ]
    assert ranks_by_place("s_curve", 2, 3, 8) == pictures[0]


def test_hilbert_by_hand():
    assert ranks_by_place("hilbert", 4, 4) == [
        [0, 1, 14, 15],
        [3, 2, 13, 12],
        [4, 7, 8, 11],
        [5, 6, 9, 10],
    ]
    assert ranks_by_place("hilbert", 2, 3) == [[0, 5, 4], [1, 2, 3]]
    assert ranks_by_place("hilbert", 4, 4, 1)[0] == [15, 14, 1, 0]


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (5, 9), (9, 4), (4, 9), (1, 7), (7, 6)])
def test_hilbert_goes_from_neighbour_to_neighbour(size):
    flat = orders.make("hilbert", (1, *size)).table.flatten()
    moves = torch.stack([flat // size[1], flat % size[1]]).diff().abs()
    far = moves.sum(0) > 1
    assert int(far.sum()) <= (max(size) % 2 == 1 and min(size) % 2 == 0)
    assert int(moves.max()) == 1


def test_subscale_by_hand():
    assert ranks_by_place("subscale", 5, 6) == [
        [0, 4, 8, 10, 1, 5],
        [12, 14, 16, 17, 13, 15],
        [18, 20, 22, 23, 19, 21],
        [24, 26, 28, 29, 25, 27],
        [2, 6, 9, 11, 3, 7],
    ]
    assert ranks_by_place("subscale", 1, 6) == [[0, 2, 4, 5, 1, 3]]
    assert ranks_by_place("subscale", 2, 1) == [[0], [1]]
    colours = orders.make("subscale", (3, 1, 5)).table.flatten().tolist()
    assert colours == [0, 5, 10, 4, 9, 14, 1, 6, 11, 2, 7, 12, 3, 8, 13]


def test_colour_values_follow_one_another():
    # Channel planes of a 1 x 2 image: R at 0 1, G at 2 3, B at 4 5.
    assert orders.make("raster", (3, 1, 2)).table.flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert orders.make("raster", (3, 1, 2), joint=True).table.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_random_order_is_the_same_for_ever():
    # Checkpoints store the seed alone: another permutation here would be another distribution.
    assert orders.make("random", (8,), seed=1).table.flatten().tolist() == [7, 2, 1, 6, 0, 4, 3, 5]


def test_every_order_has_its_name_in_the_type():
    assert get_args(orders.OrderName) == tuple(orders.ORDERS)


def test_unknown_order():
    with pytest.raises(ValueError, match="name is 'zigzag'; choose raster, reverse"):
        orders.make("zigzag", (4,))


def test_masks_by_hand():
    inputs, hidden, outputs = (
        torch.tensor([0, 1, 2]),
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2]),
    )
    assert masks.rank_mask(inputs, hidden, strict=False).int().tolist() == [[1, 0, 0], [1, 1, 0]]
    assert masks.rank_mask(hidden, outputs, strict=True).int().tolist() == [[0, 0], [1, 0], [1, 1]]


def test_degrees():
    assert masks.even_degrees(6, 4).tolist() == [0, 0, 1, 1, 2, 2]
    assert masks.even_degrees(2, 5).tolist() == [0, 2]
    assert masks.even_degrees(3, 1).tolist() == [0, 0, 0]
    drawn = masks.random_degrees(200, 6, lowest=2, seed=0)
    assert set(drawn.tolist()) == {2, 3, 4}  # none below the layer before, none at S - 1
    assert torch.equal(drawn, masks.random_degrees(200, 6, lowest=2, seed=0))
    assert masks.random_degrees(3, 1, lowest=0, seed=0).tolist() == [0, 0, 0]
