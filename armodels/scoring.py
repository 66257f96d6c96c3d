"""Exact log-probabilities of examples and of whole sequences, by one process or several.

What is found is kept in files, where a folder for them is named, until all of it is: an evaluation
of hours that was stopped goes on where it stood.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from armodels import show
from armodels.data.rows import Examples
from armodels.density.adaptive import Adaptive
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.causal import require_causal
from armodels.density.stream import CHUNK, ROWS, Contexts, Piece, pieces_log_probs, with_length
from armodels.partial import ROWS_SEEN, VALUES_SEEN, LogSums, Partial, Places, fingerprint, kept

OF_PIECE = 5
"""Numbers that are found of a piece: its values and their log p; its whole windows, the sum of
their log p, and that of the squares."""


@torch.no_grad()
def log_probs(
    model: DensityModel,
    examples: Examples,
    batch_size: int = 500,
    *,
    fabric: Fabric | None = None,
    keep: Path | None = None,
    progress: bool = False,
    name: str = "",
    check: bool = True,
) -> Tensor:
    """Exact log p of every example, nats: (N,) float64 on the CPU.

    Computed in the model's own precision without autocast or TF32: a number that is published
    should not carry the rounding of half precision. The orders of a mixture are computed one
    after another; examples and orders are dealt out to the processes, each pair to one of them.

    Args:
        model: Put into evaluation mode.
        examples: N of them, wherever they lie: batches are brought to the model's device.
        batch_size: Examples at a time; the numbers do not depend on it.
        fabric: The processes that share the work, and all get its numbers; None: this one does
            it all.
        keep: Folder in which what is found is kept until all is; None: nowhere.
        progress: Show a bar.
        name: Of the examples, for the bar.
        check: Look first whether the network hears a value before its step, which takes as long
            as some dozens of examples.

    Raises:
        ValueError: The batch size is below 1, a value lies outside the support, or the network
            hears values before their step.
        RuntimeError: The processes together found more or fewer numbers than there are.
    """
    if batch_size < 1:
        raise ValueError(f"eval.batch_size is {batch_size}; it must be at least 1")
    model.eval()
    num, terms, device = len(examples), model.num_terms, _device_of(model)
    partial = _partial(keep, name, model, examples, fabric)
    before = LogSums(num, terms)
    for content in partial.load() if partial else []:
        before.take_in(content)
    _tell(before.num_found, before.total, name, partial)
    _wait(fabric)  # none writes before all have read
    rank, world = _place(fabric)
    share = before.share(rank, world)
    own = before if rank == 0 else LogSums(num, terms)  # what was found counts once
    bar = tqdm(
        total=sum(stop - start for start, stop in share), desc=f"evaluating {name}",
        unit="ex" if terms == 1 else "ex x order", leave=False,
        disable=None if progress else True,  # None: where there is no terminal
        # The first batch of a model for all orders may take minutes: its bar is there at once.
        delay=0 if model.any_order else 1,
    )  # fmt: skip
    convolutions = torch.backends.cudnn
    exact = convolutions.flags(enabled=convolutions.enabled, allow_tf32=False)
    with kept(partial, lambda: own.content if own.num_found else None) as found_some, bar, exact:
        number, term = -1, model
        for start, stop in _batches(share, num, batch_size):
            if start // num != number:
                number = start // num
                term = model.term(number).eval()
            x, context = examples[start - number * num : stop - number * num].to(device)
            if check:  # first: what is kept of a network that is refused would go on without
                check = False
                _require_causal(model, x[:1], None if context is None else context[:1])
            own.add(start, term.log_prob(x, context))
            bar.update(stop - start)
            found_some()
        sums, found = _added_up(own, fabric)  # where another process may be lost
    if found != before.total:
        raise RuntimeError(f"evaluated {found} of {before.total} examples")
    if partial and rank == 0:
        partial.remove()
    return sums - math.log(terms)


def _device_of(model: DensityModel) -> torch.device:
    """Where a model computes; one without numbers of its own on the CPU."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _place(fabric: Fabric | None) -> tuple[int, int]:
    """Which of the processes this is, and how many there are."""
    return (fabric.global_rank, fabric.world_size) if fabric else (0, 1)


def _wait(fabric: Fabric | None) -> None:
    """Wait for all processes."""
    if fabric and fabric.world_size > 1:
        fabric.barrier()


def _tell(found: int, total: int, name: str, partial: Partial | None) -> None:
    """Say how much of an evaluation was done before."""
    if found and partial:
        share = f"{100 * found / total:.0f} %"
        show.say(f"going on with an evaluation of {name} that was stopped, {share} of it done")


def _batches(share: Sequence[Places], num: int, size: int) -> Iterator[Places]:
    """Places from which to which examples are scored at once, under one term."""
    for start, last in share:
        while start < last:
            stop = min(start + size, (start // num + 1) * num, last)
            yield start, stop
            start = stop


def _added_up(own: LogSums, fabric: Fabric | None) -> tuple[Tensor, int]:
    """The sums of all processes, (N,), and how many places they found."""
    sums, found = own.log_sums, own.num_found
    if fabric and fabric.world_size > 1:
        sums = sums.to(fabric.device)
        most: Any = fabric.all_reduce(sums.clone(), reduce_op="max")
        # One term of one process stays as it is: the others have none, whose exponential is 0.
        most = torch.where(most.isfinite(), most, 0.0)
        total: Any = fabric.all_reduce((sums - most).exp(), reduce_op="sum")
        places: Any = fabric.all_reduce(torch.tensor(found, device=fabric.device), reduce_op="sum")
        return (total.log() + most).cpu(), int(places)
    return sums, found


def _require_causal(model: DensityModel, x: Tensor, context: Tensor | None) -> None:
    """Raise ValueError where a network hears values before their step."""
    for part in model.modules():
        if isinstance(part, AutoregressiveModel):
            require_causal(part, x, context)


# Whole sequences


@torch.no_grad()
def piece_log_probs(
    model: DensityModel,
    pieces: Sequence[Piece],
    context: Contexts | None = None,
    *,
    rows: int = ROWS,
    progress: bool = False,
    name: str = "",
    adapt_lr: float | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Exact log p of every symbol of whole sequences, each given all before it in its piece.

    Args:
        model: It reads; put into evaluation mode.
        pieces: (T,) each.
        context: (N, *context.shape) what each of them is conditioned on, if anything.
        rows: Pieces that are read at once; the numbers do not depend on it.
        progress: Show a bar.
        name: Of the sequences, for the bar.
        adapt_lr: Rate at which a copy of the model learns from each symbol once it is scored
            (``Adaptive``), which gives another number than the model as it is. None: none learns.

    Yields:
        Number of a piece, and (t,) nats of its next symbols, float64 on the CPU.

    Raises:
        ValueError: The model does not read, or hears values before their step.
    """
    one = with_length(model, 1)  # refuses what does not read
    model.eval()
    size, unit = model.spec.unit_size, model.spec.unit
    bar = tqdm(
        total=sum(map(len, pieces)) // size, desc=f"evaluating {name}", unit=unit, leave=False,
        disable=None if progress else True, delay=1,
    )  # fmt: skip
    convolutions = torch.backends.cudnn
    with bar, convolutions.flags(enabled=convolutions.enabled, allow_tf32=False):
        if any(map(len, pieces)):
            _require_causal_pieces(model, pieces, context, one.net.order_table.device)
        found: Iterator[tuple[int, Tensor]]
        if adapt_lr is None:
            chunk = CHUNK * model.spec.unit_size
            found = pieces_log_probs(model, pieces, context, rows=rows, chunk=chunk)
        else:
            learner = Adaptive(model, adapt_lr)  # which goes on from piece to piece
            found = (
                (i, part) for i, piece in enumerate(pieces) for part in learner.log_probs(piece)
            )
        for number, part in found:
            bar.update(len(part) / size)
            yield number, part.double().cpu()


def _require_causal_pieces(
    model: DensityModel, pieces: Sequence[Piece], context: Contexts | None, device: torch.device
) -> None:
    """As ``_require_causal``, on the beginning of the first piece that has one."""
    i = next(i for i, piece in enumerate(pieces) if len(piece))
    some = pieces[i][: min(model.spec.num_dims, len(pieces[i]))][None]
    heard = (
        None if context is None or model.context is None else context[torch.tensor([i])].to(device)
    )
    _require_causal(with_length(model, some.shape[1]), some.to(device), heard)


def piece_sums(
    model: DensityModel,
    examples: Examples,
    rows: int,
    *,
    fabric: Fabric | None = None,
    keep: Path | None = None,
    progress: bool = False,
    name: str = "",
    adapt_lr: float | None = None,
) -> Tensor:
    """Of each of M whole sequences the numbers that a mean needs: (M, OF_PIECE) float64.

    Windows are one after another, as long as an event of the model.

    Args:
        model: It reads; put into evaluation mode.
        examples: Of M pieces.
        rows: Pieces that are read at once; the numbers do not depend on it.
        fabric: The processes that share the work, each piece to one, and all get the numbers.
        keep: Folder in which what is found of whole pieces is kept until all is; None: nowhere.
        progress: Show a bar.
        name: Of the sequences, for the bar.
        adapt_lr: As in ``piece_log_probs``.

    Raises:
        ValueError: The model does not read, or hears values before their step.
        RuntimeError: The processes together found more or fewer values than there are.
    """
    pieces, length = examples.pieces, model.spec.num_dims
    # A model that learns as it reads would have to be kept, too.
    partial = None if adapt_lr else _partial(keep, name, model, examples, fabric)
    sums = torch.zeros(len(pieces), OF_PIECE, dtype=torch.double)
    whole = np.array([not len(piece) for piece in pieces])  # of empty ones all is known
    for content in partial.load() if partial else []:
        _take_in(sums, whole, content)
    known = sum(len(piece) for piece, there in zip(pieces, whole, strict=True) if there)
    _tell(known, max(sum(map(len, pieces)), 1), name, partial)
    _wait(fabric)
    rank, world = _place(fabric)
    # Long ones first, so that none is left to one process when the others have ended.
    todo = sorted((i for i in range(len(pieces)) if not whole[i]), key=lambda i: -len(pieces[i]))
    todo = (todo if adapt_lr is None else sorted(todo))[rank::world]
    if rank:  # what was found counts once
        sums.zero_()
    context = examples.piece_context
    heard = None if context is None else context[torch.tensor(todo, dtype=torch.long)]
    rests = {i: torch.zeros(0, dtype=torch.double) for i in todo}  # of a window, not yet whole

    def kept_so_far() -> dict[str, np.ndarray] | None:
        return {"sums": sums.numpy(), "whole": whole} if sums.any() else None

    with kept(partial, kept_so_far) as found_some:
        for number, values in piece_log_probs(
            model,
            [pieces[i] for i in todo],
            heard,
            rows=rows,
            progress=progress,
            name=name,
            adapt_lr=adapt_lr,
        ):
            i = todo[number]
            rest = torch.cat([rests[i], values])
            size = len(rest) // length * length
            rests[i] = rest[size:].clone()
            windows = rest[:size].view(-1, length).sum(1)
            more = [len(values), values.sum(), len(windows), windows.sum(), windows.square().sum()]
            sums[i] += torch.tensor(more, dtype=torch.double)
            whole[i] = sums[i, 0] == len(pieces[i])  # from here on it is kept
            found_some()
        if fabric and world > 1:
            of_all: Any = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")
            sums = of_all.cpu()
    if (found := int(sums[:, 0].sum())) != (number := sum(map(len, pieces))):
        raise RuntimeError(f"evaluated {found} of {number} values")
    if partial and rank == 0:
        partial.remove()
    return sums


def _take_in(sums: Tensor, whole: np.ndarray, content: dict[str, np.ndarray]) -> None:
    """Take in what was found of whole pieces."""
    if content.keys() == {"sums", "whole"} and content["sums"].shape == sums.shape:
        if content["whole"].shape == whole.shape and content["whole"].dtype == bool:
            more = content["whole"] & ~whole
            sums[more] = torch.from_numpy(content["sums"]).double()[more]
            whole |= more


# What is kept


def _partial(
    keep: Path | None, name: str, model: DensityModel, examples: Examples, fabric: Fabric | None
) -> Partial | None:
    """The files of an evaluation; None: it keeps nothing."""
    if keep is None:
        return None
    return Partial(keep, name, lambda: _fingerprint(model, examples), _place(fabric)[0])


def _fingerprint(model: DensityModel, examples: Examples) -> str:
    """Of a model, its orders and the data, and of the code by which they meet."""
    own = [part for part in model.modules() if isinstance(part, AutoregressiveModel)]
    several = [*getattr(model, "orders", []), *(part.net.order for part in own)]
    kinds = {type(part) for part in (*model.modules(), *(one.head for one in own))}
    sources = {getattr(sys.modules[kind.__module__], "__file__", None) for kind in kinds}
    code = [Path(one).read_bytes() for one in sorted(filter(None, sources)) if Path(one).is_file()]
    sizes = [len(examples), *map(len, examples.pieces)]
    about = f"{model.spec} {model.description} {_device_of(model)} {sizes}"
    about += str([order.seed for order in several])
    most = max(ROWS_SEEN, VALUES_SEEN // max(1, model.spec.num_dims))
    spread = torch.linspace(0, len(examples) - 1, min(most, len(examples)), dtype=torch.double)
    rows = examples[spread.round().long()] if len(examples) else None
    values = [rows.x] if rows else []
    values += [rows.context] if rows and rows.context is not None else []
    values += [] if examples.piece_context is None else [examples.piece_context[:]]
    values += [piece[: VALUES_SEEN // len(examples.pieces)] for piece in examples.pieces]
    return fingerprint(model, [order.table for order in several], about, values, code)
