"""Masks: pure functions from ranks to boolean matrices, and the degrees of hidden units."""

import numpy as np
import torch
from torch import Tensor


def rank_mask(in_ranks: Tensor, out_ranks: Tensor, *, strict: bool) -> Tensor:
    """Which inputs each output may see.

    Args:
        in_ranks: (I,) step at which an input is known, or degree of a hidden unit.
        out_ranks: (O,) step that an output describes, or degree of a hidden unit.
        strict: True for outputs (rank < rank), False between hidden layers (rank <= rank).

    Returns:
        (O, I) bool, as the weight of a linear layer.
    """
    seen, seer = in_ranks[None, :], out_ranks[:, None]
    return seen < seer if strict else seen <= seer


def even_degrees(num_units: int, num_steps: int) -> Tensor:
    """Degrees 0 .. S-2 spread as evenly as the number of units allows, sorted: (H,).

    A unit of degree m sees the values of steps 0..m; degree S-1 would see a value that no
    output may use. With S = 1 every unit gets degree 0 and no output sees it.
    """
    top = max(num_steps - 1, 1)
    return torch.arange(num_units) * top // num_units


def random_degrees(num_units: int, num_steps: int, lowest: int, seed: int) -> Tensor:
    """Degrees drawn uniformly from lowest .. S-2: (H,).

    Args:
        num_units: H.
        num_steps: S.
        lowest: Smallest degree of the layer before: a unit below it would be dead.
        seed: Of a frozen random stream, so that a checkpoint that stores the seed stores the mask.
    """
    top = max(num_steps - 1, 1)
    drawn = np.random.RandomState(seed).randint(min(lowest, top - 1), top, size=num_units)
    return torch.from_numpy(drawn).long()
