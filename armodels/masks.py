"""Masks: pure functions from ranks to boolean tensors, and the degrees of hidden units."""

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


def convolution_mask(
    in_groups: Tensor, out_groups: Tensor, height: int, width: int, *, strict: bool
) -> Tensor:
    """What a convolution in raster order may see: rows above, then its own row up to the pixel.

    The kernel's last row is the pixel's own. Of the pixel itself, an output sees the channels of
    earlier groups (those written before it); all channels of other pixels are alike.

    Args:
        in_groups: (I,) group of each input channel.
        out_groups: (O,) group of each output channel.
        height: Rows of the kernel, the pixel's own included.
        width: Columns of the kernel, odd; the pixel stands in the middle one.
        strict: True for the values (mask A: group < group), False between hidden layers (mask B:
            group <= group).

    Returns:
        (O, I, height, width) bool.
    """
    mask = torch.ones(len(out_groups), len(in_groups), height, width, dtype=torch.bool)
    mask[:, :, -1, width // 2 + 1 :] = False
    mask[:, :, -1, width // 2] = rank_mask(in_groups, out_groups, strict=strict)
    return mask


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


def window(height: int, width: int, kernel_size: int, dilation: int = 1) -> Tensor:
    """Pixels under a kernel's taps, row by row, at each pixel of an image: (H W, taps).

    Args:
        height: Of the image.
        width: Of the image.
        kernel_size: Of the square kernel, odd.
        dilation: Distance of two taps.

    Returns:
        Flat indices; H W where a tap lies outside.
    """
    reach = (torch.arange(kernel_size) - kernel_size // 2) * dilation
    rows = torch.arange(height)[:, None] + reach  # (H, k)
    columns = torch.arange(width)[:, None] + reach  # (W, k)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    inside = inside & ((columns >= 0) & (columns < width))[None, :, None, :]
    flat = rows[:, None, :, None] * width + columns[None, :, None, :]  # (H, W, k, k)
    return torch.where(inside, flat, height * width).view(height * width, -1)


def local_mask(ranks: Tensor, neighbours: Tensor, *, strict: bool) -> Tensor:
    """Which of its neighbours each pixel may see: (H W, taps) bool.

    Args:
        ranks: (H W,) step at which a pixel is written.
        neighbours: What ``window`` returns; nothing outside is seen.
        strict: True for the values (rank < rank), False between hidden layers (rank <= rank).
    """
    outside = ranks.new_full((1,), len(ranks))
    seen, seer = torch.cat([ranks, outside])[neighbours], ranks[:, None]
    return seen < seer if strict else seen <= seer


def patterns(mask: Tensor, inside: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    """The few different masks of which every pixel has one, as far as its taps lie inside.

    A tap outside reads zero, so that it does not matter whether it is masked.

    Args:
        mask: (N, taps) bool.
        inside: (N, taps) bool.
        limit: The most masks worth having.

    Returns:
        (Q, taps) bool and (N,) which of them a pixel has; None if Q would exceed the limit.
    """
    found: list[Tensor] = []
    which = torch.full((len(mask),), -1)
    # Pixels with the most taps inside come first: they leave the least open.
    ranked = inside.sum(1).argsort(descending=True, stable=True)
    while len(left := ranked[which[ranked] < 0]):
        if len(found) == limit:
            return None
        first = mask[left[0]]
        same = ~((mask != first) & inside).any(1) & (which < 0)
        which[same] = len(found)
        found.append(first)
    return torch.stack(found), which
