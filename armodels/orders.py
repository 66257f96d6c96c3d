"""Orders: (S, K) tables of the flat event indices that are written at each step.

For an image of shape (C, H, W) the flat index of channel c at row h, column w is
(c * H + h) * W + w. Unless the head takes whole pixels (``joint``), a pixel's channels follow
one another: R, G, B of one pixel, then the next pixel.

``s_curve`` runs to and fro, row by row (Jain et al., 2020, https://arxiv.org/abs/2006.12486).
``subscale`` writes one interleaved sub-image after another (Menick & Kalchbrenner, 2019,
https://arxiv.org/abs/1812.01608).
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from armodels.checks import Seed, checked

OrderName = Literal[
    "raster", "reverse", "columns", "spiral", "s_curve", "hilbert", "subscale", "random"
]

SUBSCALE = 4
"""Every so many rows and columns make a sub-image: there are 16, of 28 x 28 with 7 x 7 each."""


@final
@dataclass(frozen=True, eq=False)
class Order:
    """Which values are written at each step.

    Attributes:
        table: (S, K) int64 flat indices; every one stands in it exactly once.
        name: A key of ``ORDERS``, or ``"permuted"``.
        seed: That it was made with.
    """

    table: Tensor
    name: OrderName | Literal["permuted"] = "permuted"
    seed: int = 0

    @property
    def width(self) -> int:
        """Values of a step, K."""
        return self.table.shape[1]

    @property
    def joint(self) -> bool:
        """Whether a step writes all channels of a pixel, of which there are several."""
        return self.width > 1

    @property
    def fingerprint(self) -> str:
        """A word or two by which it is known again, whatever it is called."""
        table = self.table.cpu().numpy().tobytes()
        return f"{self.name}, seed {self.seed}, checksum {zlib.crc32(table):08x}"

    def permuted(self, steps: Tensor) -> "Order":
        """The same steps in another sequence: ``steps`` (S,) are their numbers."""
        return Order(self.table[steps.to(self.table.device)])


def _raster(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width)


def _reverse(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width)[::-1]


def _columns(height: int, width: int, seed: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width).T.ravel()


def _spiral(height: int, width: int, seed: int) -> np.ndarray:
    grid = np.arange(height * width).reshape(height, width)
    parts = []
    while grid.size:
        parts.append(grid[0])
        grid = np.rot90(grid[1:])
    return np.concatenate(parts)


def _random(height: int, width: int, seed: int) -> np.ndarray:
    # NumPy's policy freezes the stream of RandomState, so a checkpoint that stores the seed stores
    # the order.
    return np.random.RandomState(seed).permutation(height * width)


def _s_curve(height: int, width: int) -> np.ndarray:
    grid = np.arange(height * width).reshape(height, width)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _hilbert(height: int, width: int) -> np.ndarray:
    """Hilbert's curve for any height and width: quarters that are rectangles.

    After https://github.com/jakubcerveny/gilbert: neighbours follow one another, save one
    diagonal step where the longer side is odd and the other even.
    """

    def curve(at: np.ndarray, along: np.ndarray, across: np.ndarray) -> list[np.ndarray]:
        # The rectangle that the two axes span is filled from ``at`` to the other end of ``along``.
        length, depth = abs(along.sum()), abs(across.sum())
        step, side = np.sign(along), np.sign(across)
        if depth == 1:
            return [at + i * step for i in range(length)]
        if length == 1:
            return [at + i * side for i in range(depth)]
        half, half_across = along // 2, across // 2
        if 2 * length > 3 * depth:  # long: halves side by side, the first of even length
            if abs(half.sum()) % 2 and length > 2:
                half = half + step
            return curve(at, half, across) + curve(at + half, along - half, across)
        if abs(half_across.sum()) % 2 and depth > 2:
            half_across = half_across + side
        return (
            curve(at, half_across, half)
            + curve(at + half_across, along, across - half_across)
            + curve(at + along - step + half_across - side, -half_across, half - along)
        )

    down, right = np.array([height, 0]), np.array([0, width])
    axes = (right, down) if width >= height else (down, right)
    positions = np.array(curve(np.array([0, 0]), *axes))
    return positions @ [width, 1]


def _subscale(height: int, width: int, seed: int) -> np.ndarray:
    """Every fourth pixel of every fourth row, then the same from the next column on, and so forth.

    A side of fewer pixels has as many offsets as pixels, so that nothing is written twice.
    """
    grid = np.arange(height * width).reshape(height, width)
    offsets = np.ndindex(min(SUBSCALE, height), min(SUBSCALE, width))
    return np.concatenate([grid[i::SUBSCALE, j::SUBSCALE].ravel() for i, j in offsets])


def _symmetric(curve: Callable[[int, int], np.ndarray]) -> Callable[..., np.ndarray]:
    """The eight symmetries of a curve, by the seed's last three bits; 0 is the curve itself."""

    def order(height: int, width: int, seed: int) -> np.ndarray:
        grid = np.arange(height * width).reshape(height, width)
        if seed & 4:
            grid = grid.T
        if seed & 2:
            grid = grid[::-1]
        if seed & 1:
            grid = grid[:, ::-1]
        return grid.ravel()[curve(*grid.shape)]

    return order


ORDERS: dict[OrderName, Callable[[int, int, int], np.ndarray]] = {
    "raster": _raster,
    "reverse": _reverse,
    "columns": _columns,
    "spiral": _spiral,
    "s_curve": _symmetric(_s_curve),
    "hilbert": _symmetric(_hilbert),
    "subscale": _subscale,
    "random": _random,
}


@checked
def make(name: OrderName, shape: tuple[int, ...], *, joint: bool = False, seed: Seed = 0) -> Order:
    """The order called ``name`` for events of ``shape``.

    Args:
        name: A key of ``ORDERS``; vectors and sequences count as one row.
        shape: ``(D,)``, ``(T,)`` or ``(C, H, W)``.
        joint: Write all channels of a pixel in one step (K = C) rather than one by one (K = 1).
        seed: Of ``"random"``; of ``"s_curve"`` and ``"hilbert"``, which of the eight symmetries
            (modulo 8): +1 mirrors left and right, +2 top and bottom, +4 swaps rows and columns.

    Raises:
        ValueError: There is no such name, or the seed is out of range.

    Examples:
        >>> from armodels import orders
        >>> orders.make("s_curve", (1, 2, 3)).table.flatten()
        tensor([0, 1, 2, 5, 4, 3])
        >>> orders.make("raster", (3, 1, 2), joint=True).table  # R, G and B at once
        tensor([[0, 2, 4],
                [1, 3, 5]])
    """
    channels, height, width = shape if len(shape) == 3 else (1, 1, shape[0])
    pixels = torch.from_numpy(ORDERS[name](height, width, seed).copy()).long()
    table = pixels[:, None] + torch.arange(channels) * (height * width)  # (H*W, C)
    return Order(table if joint else table.reshape(-1, 1), name, seed)


def ranks(table: Tensor) -> Tensor:
    """The step at which each flat index is written: (S, K) -> (D,), the inverse of an order."""
    steps, width = table.shape
    out = torch.empty(table.numel(), dtype=torch.long, device=table.device)
    out[table.reshape(-1)] = torch.arange(steps, device=table.device).repeat_interleave(width)
    return out
