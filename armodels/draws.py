"""Random draws of a training step: those of its whole batch, whatever part of it is at hand.

Where processes share a batch, each draws for all of it and takes what belongs to its own examples,
so that a training does not depend on how many there are.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

_at_hand: tuple[int, int, int, int] | None = None
# Start, stop and step of the rows, and their whole number: numbers, as torch.compile makes its
# code anew where another object stands here.


@contextlib.contextmanager
def shared(rows: slice, size: int) -> Iterator[None]:
    """Inside the block, what is drawn is for a batch of which some examples are at hand.

    Args:
        rows: Which of them.
        size: Of the whole batch.
    """
    global _at_hand
    start, stop, step = rows.indices(size)
    _at_hand = None if (start, stop, step) == (0, size, 1) else (start, stop, step, size)
    try:
        yield
    finally:
        _at_hand = None


def drawn(draw: Callable[[int], Tensor], num_examples: int) -> Tensor:
    """What is drawn for each example of a batch, of those at hand.

    Args:
        draw: Number of examples B -> (B, ...), from the global random stream.
        num_examples: Those at hand.
    """
    if _at_hand is None:
        return draw(num_examples)
    start, stop, step, size = _at_hand
    return draw(size)[start:stop:step]


def dropped(x: Tensor, probability: float) -> Tensor:
    """Values (B, ...), of which some are zero at random and the others larger, as in dropout."""
    # Noise is drawn in the order in which values lie in memory, which must be that of the whole.
    x = x.contiguous()
    if _at_hand is None:
        return F.dropout(x, probability)
    shape = x.shape[1:]
    return x * drawn(lambda size: F.dropout(x.new_ones(size, *shape), probability), len(x))
