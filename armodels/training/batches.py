"""Batches of the training split: what a step is trained on, a function of (seed, step)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from armodels.data.base import Splits
from armodels.data.rows import Batch, take
from armodels.spec import ContextSpec
from armodels.training.scattered import Scattered
from armodels.training.streams import EPOCH, NOISE, stream

BLOCK_VALUES, BLOCK_STEPS = 2**20, 20
"""Fresh values are drawn for so many steps at once, as far as they are no more than so many."""

MAX_LISTED = 2**22
"""Rows of a training split whose order is listed; that of more is computed, place by place."""


@final
@dataclass(frozen=True)
class Part:
    """What a process computes at once of a batch that is split into parts.

    Attributes:
        batch: This process's examples of a part.
        rows: Which examples of the whole part they are.
        size: Examples of the whole part.
        counts: False: the process has no share of a part that is smaller than the processes are
            many. It computes an example that is another's, and leaves it uncounted, as all must
            compute together.
    """

    batch: Batch
    rows: slice
    size: int
    counts: bool = True


@final
class Batches:
    """Batches of the training split, by step.

    Args:
        splits: The data.
        context: What the model is conditioned on; None: nothing.
        batch_size: Rows of the global batch of a step; the last one of an epoch may be smaller.
        seed: Of the order of the rows and of fresh values.
        fabric: The processes that share a batch, and the device.
    """

    def __init__(
        self,
        splits: Splits,
        context: ContextSpec | None,
        batch_size: int,
        seed: int,
        fabric: Fabric,
    ):
        self.batch_size = batch_size
        self.steps_per_epoch = math.ceil(len(splits.train) / batch_size)
        # Fresh values are drawn for some steps at once: less to do for each.
        fit = BLOCK_VALUES // (batch_size * splits.spec.num_dims)
        self.block_steps = max(1, min(fit, BLOCK_STEPS))
        self._splits = splits
        self._train = splits.to_train(context, fabric.device)
        self._seed = seed
        self._fabric = fabric
        self._order: tuple[int, Tensor | Scattered] = (-1, torch.empty(0))
        self._block: tuple[tuple[int, int], Tensor] = ((-1, -1), torch.empty(0))

    def rows(self, step: int) -> Tensor:
        """Rows of the training split that the global batch of ``step`` holds."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size = self.batch_size
        return self._rows_of(epoch, slice(index * size, (index + 1) * size))

    def _rows_of(self, epoch: int, places: slice) -> Tensor:
        """Rows at some places of an epoch's order."""
        if self._order[0] != epoch:
            self._order = epoch, self._order_of(stream(EPOCH, self._seed, epoch))
        rows, raw = self._order[1][places], self._train.x
        return rows.to(raw.device) if isinstance(raw, Tensor) else rows

    def _order_of(self, seed: int) -> Tensor | Scattered:
        if (num := len(self._train)) > MAX_LISTED:
            return Scattered(num, seed)
        rows = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
        raw = self._train.x
        return rows.to(raw.device) if isinstance(raw, Tensor) else rows

    def parts(self, step: int, num_parts: int) -> Iterator[Part]:
        """What this process computes at ``step``: its share of each part of the batch.

        Args:
            step: Of the training.
            num_parts: Of nearly equal sizes; fewer where a batch has fewer examples.
        """
        rank, world = self._fabric.global_rank, self._fabric.world_size
        number = len(self.rows(step))
        size, larger = divmod(number, num_parts)
        first = 0
        for i in range(min(num_parts, number)):
            end = first + size + (i < larger)
            counts = first + rank < end
            rows = slice(rank, end - first, world) if counts else slice(0, 1, 1)
            places = slice(first + rows.start, first + rows.stop, rows.step)
            yield Part(self.batch(step, places), rows, end - first, counts)
            first = end

    def batch(self, step: int, places: slice = slice(None)) -> Batch:
        """What the model is trained on at ``step``.

        Args:
            step: Of the training.
            places: Which examples of the batch; all of them where none are named.
        """
        rows = self.rows(step)
        mine = rows[places]
        if self._splits.transform is None:
            x = take(self._train.x, mine).to(self._fabric.device)
            return self._train.beside(x, mine)
        epoch, index = divmod(step, self.steps_per_epoch)
        block, index = divmod(index, self.block_steps)
        size = self.batch_size
        if self._block[0] != (epoch, block):
            first = block * self.block_steps * size
            several = self._rows_of(epoch, slice(first, first + self.block_steps * size))
            noise = torch.Generator(self._fabric.device)
            noise.manual_seed(stream(NOISE, self._seed, epoch, block))
            raw = take(self._train.x, several).to(self._fabric.device)
            self._block = ((epoch, block), self._splits.transform(raw, noise))
        x = self._block[1][index * size : (index + 1) * size][places]
        return self._train.beside(x, mine)
