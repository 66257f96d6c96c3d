"""Whole sequences under a model that reads: each value once, given all before it."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.walk import score
from armodels.networks.stream import StreamNetwork

CHUNK = 1024
"""Values that are read at once."""


class Piece(Protocol):
    """A sequence (T,), in memory or on disk."""

    def __len__(self) -> int:
        """T."""

    def __getitem__(self, values: slice, /) -> Tensor:
        """Some of its values."""


def reads(model: DensityModel) -> bool:
    """Whether the model takes sequences of any length, however they are chopped."""
    return isinstance(model, AutoregressiveModel) and isinstance(model.net, StreamNetwork)


def receptive_field(model: DensityModel) -> int | None:
    """So many values before one change what a model that reads says of it; None: all.

    Raises:
        ValueError: The model does not read.
    """
    return _network(model).receptive_field


def describe_past(model: DensityModel) -> str:
    """How far a model that reads looks back, in words; "" of any other."""
    if not reads(model):
        return ""
    field = receptive_field(model)
    if field is None:
        return ", looks back at all symbols"
    return f", looks back {field:,} symbol{'' if field == 1 else 's'}"


def with_length(model: DensityModel, length: int) -> AutoregressiveModel:
    """A model that reads, over events of another length, with the same weights.

    Args:
        model: It reads.
        length: Of an event.

    Raises:
        ValueError: It does not read.
    """
    net = _network(model)
    assert isinstance(model, AutoregressiveModel)
    return AutoregressiveModel(net.with_length(length), model.head).train(model.training)


def _network(model: DensityModel) -> StreamNetwork:
    if isinstance(model, AutoregressiveModel) and isinstance(model.net, StreamNetwork):
        return model.net
    raise ValueError(f"{model.description} takes events of one length alone; choose model=rnn")


def learn(model: DensityModel, pieces: Iterable[Piece]) -> bool:
    """Fit in closed form what a model that reads has of the kind, such as counts.

    Args:
        model: It reads.
        pieces: The sequences of the training split.

    Returns:
        Whether that was all that the model starts from.

    Raises:
        ValueError: The model does not read.
    """
    net = _network(model)
    # What has nothing to fit reads none of them: they may be larger than memory.
    return net.learn(piece[:].to(net.order_table.device) for piece in pieces)


@torch.no_grad()
def stream_log_probs(
    model: DensityModel, piece: Piece, chunk: int = CHUNK, context: Tensor | None = None
) -> Iterator[Tensor]:
    """Log-probability of each value of a sequence, given all before it, nats.

    Args:
        model: It reads.
        piece: (T,); one on disk is read chunk after chunk.
        chunk: Values that are read at once; the numbers do not depend on it.
        context: (1, *context.shape) what the sequence is conditioned on, if anything.

    Yields:
        (t,), of a chunk after the other.

    Raises:
        ValueError: The model does not read.
    """
    net = _network(model)
    assert isinstance(model, AutoregressiveModel)
    before, state = net.begin(1, context)
    for start in range(0, len(piece), chunk):
        values = piece[start : start + chunk].to(before.device)[None, :, None]
        after, state = net.read(values, state)
        params = torch.cat([before[:, None], after[:, :-1]], 1)
        before = after[:, -1]
        yield score(model.head, params, values)[0]
