"""Whole sequences under a model that reads: each value once, given all before it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.walk import score
from armodels.networks.stream import CHUNK as CHUNK
from armodels.networks.stream import AfterPrompt, StreamNetwork

ROWS = 64
"""Sequences that are read side by side."""

AT_ONCE = 2**15
"""Values that are read at once, of all of these: of each the parameters lie in memory."""


class Contexts(Protocol):
    """What sequences are conditioned on, (N, *context.shape)."""

    def __getitem__(self, numbers: Tensor, /) -> Tensor:
        """Those of some sequences."""


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
    return reader(model).receptive_field


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
    net = reader(model)
    assert isinstance(model, AutoregressiveModel)
    return AutoregressiveModel(net.with_length(length), model.head).train(model.training)


def after_prompt(model: DensityModel, prompt: Tensor, num_steps: int) -> AfterPrompt:
    """The steps of what follows a prompt, for a walk.

    Args:
        model: It reads.
        prompt: (t,) values.
        num_steps: Values that follow.

    Raises:
        ValueError: The model does not read.
    """
    return AfterPrompt(reader(model), prompt, num_steps)


def reader(model: DensityModel) -> StreamNetwork:
    """The network of a model that reads.

    Raises:
        ValueError: It does not read.
    """
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
    net = reader(model)
    # What has nothing to fit reads none of them: they may be larger than memory.
    return net.learn(piece[:].to(net.order_table.device) for piece in pieces)


def bytes_to_learn(model: DensityModel, pieces: Iterable[Piece]) -> int:
    """Memory at least that ``learn`` takes; 0 of a model that does not read.

    Args:
        model: Of any kind.
        pieces: The sequences of the training split.
    """
    if not reads(model) or not (each := reader(model).bytes_to_learn):
        return 0
    return each * sum(map(len, pieces))


def pieces_log_probs(
    model: DensityModel,
    pieces: Sequence[Piece],
    context: Contexts | None = None,
    *,
    rows: int = ROWS,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, Tensor]]:
    """Log-probability of each value of sequences, given all before it in its own, nats.

    Args:
        model: It reads.
        pieces: (T,) each, of any lengths, read side by side, and from their disk by chunks.
        context: (N, *context.shape) what each of them is conditioned on, if anything.
        rows: Pieces that are read at once, those of similar length together.
        chunk: Values of each that are read at once; fewer where many pieces are.

    Yields:
        Number of a piece, and (t,) of its next values. The numbers depend neither on ``rows`` nor
        on ``chunk``.

    Raises:
        ValueError: The model does not read.
    """
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        heard = None if context is None else context[torch.tensor(some)]
        size = max(1, min(chunk, AT_ONCE // len(some)))
        for i, found in _side_by_side(model, [pieces[i] for i in some], size, heard):
            yield some[i], found


@torch.no_grad()
def _side_by_side(
    model: DensityModel, pieces: Sequence[Piece], chunk: int, context: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """As ``pieces_log_probs``, of pieces that are all read at once, the longest first."""
    net = reader(model)
    assert isinstance(model, AutoregressiveModel)
    device = net.order_table.device
    before, state = net.begin(len(pieces), None if context is None else context.to(device))
    lengths = [len(piece) for piece in pieces]
    for start in range(0, max(lengths, default=0), chunk):
        parts = [piece[start : start + chunk] for piece in pieces if len(piece) > start]
        if len(parts) < len(before):  # the shortest ones are over
            state = state.fork(torch.arange(len(parts), device=device))
            before = before[: len(parts)]
        # What pads the shorter ones comes after their values, and is not scored.
        values = pad_sequence([part.to(device) for part in parts], batch_first=True)[..., None]
        after, state = net.read(values, state)
        params = torch.cat([before[:, None], after[:, :-1]], 1)
        before = after[:, -1]
        scores = score(model.head, params, values)
        for i, part in enumerate(parts):
            yield i, scores[i, : len(part)]
