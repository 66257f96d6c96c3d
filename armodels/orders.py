"""Orders: (S, K) tables of the flat event indices that are written at each step.

For an image of shape (C, H, W) the flat index of channel c at row h, column w is
(c * H + h) * W + w. Unless the head takes whole pixels (``joint``), a pixel's channels follow
one another: R, G, B of one pixel, then the next pixel.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def _raster(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width)


def _reverse(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width)[::-1]


def _columns(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width).T.ravel()


def _snake(height: int, width: int, seed: int) -> np.ndarray:
    grid = np.arange(height * width).reshape(height, width)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _spiral(height: int, width: int, seed: int) -> np.ndarray:
    grid = np.arange(height * width).reshape(height, width)
    parts = []
    while grid.size:
        parts.append(grid[0])
        grid = np.rot90(grid[1:])
    return np.concatenate(parts)


def _random(height: int, width: int, seed: int) -> np.ndarray:
    # RandomState: its stream is frozen by NumPy's policy, so a checkpoint that stores the seed
    # stores the order.
    return np.random.RandomState(seed).permutation(height * width)


ORDERS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "raster": _raster,
    "reverse": _reverse,
    "columns": _columns,
    "snake": _snake,
    "spiral": _spiral,
    "random": _random,
}


def make(name: str, shape: tuple[int, ...], *, joint: bool = False, seed: int = 0) -> Tensor:
    """The order called ``name`` for events of ``shape``.

    Args:
        name: A key of ``ORDERS``; vectors and sequences count as one row.
        shape: ``(D,)``, ``(T,)`` or ``(C, H, W)``.
        joint: Write all channels of a pixel in one step (K = C) rather than one by one (K = 1).
        seed: Used by ``"random"`` alone.

    Returns:
        (S, K) int64 table; every flat index stands in it exactly once.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in ORDERS:
        raise ValueError(f"order {name!r} is unknown; choose from {', '.join(ORDERS)}")
    channels, height, width = shape if len(shape) == 3 else (1, 1, shape[0])
    pixels = torch.from_numpy(ORDERS[name](height, width, seed).copy()).long()
    table = pixels[:, None] + torch.arange(channels) * (height * width)  # (H*W, C)
    return table if joint else table.reshape(-1, 1)


def ranks(order: Tensor) -> Tensor:
    """The step at which each flat index is written: (S, K) -> (D,), the inverse of an order."""
    steps, width = order.shape
    out = torch.empty(order.numel(), dtype=torch.long, device=order.device)
    out[order.reshape(-1)] = torch.arange(steps, device=order.device).repeat_interleave(width)
    return out
