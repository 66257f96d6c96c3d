"""The exact likelihood of a model on examples, and the sums that every number comes from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from armodels import lines
from armodels.checks import Count, Positive, require_class, require_types
from armodels.data.arrays import as_numbers
from armodels.data.base import Splits
from armodels.data.rows import Examples, Rows
from armodels.density.adaptive import Adaptive
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.stream import (
    CHUNK,
    ROWS,
    Contexts,
    Piece,
    pieces_log_probs,
    reads,
    receptive_field,
    with_length,
)
from armodels.spec import DataSpec, bits_per_dim, nats


@torch.no_grad()
def log_probs(
    model: DensityModel,
    examples: Examples,
    batch_size: int = 500,
    *,
    progress: bool = False,
    name: str = "",
    check: bool = True,
) -> Tensor:
    """Exact log p of every example, nats: (N,) float64 on the CPU.

    Computed in the model's own precision without autocast or TF32: a number that is published
    should not carry the rounding of half precision.

    Args:
        model: Put into evaluation mode.
        examples: N of them, wherever they lie: batches are brought to the model's device.
        batch_size: Examples at a time; the numbers do not depend on it.
        progress: Show a bar.
        name: Of the examples, for the bar.
        check: Look first whether the network hears a value before its step, which takes as long
            as some dozens of examples.

    Raises:
        ValueError: The batch size is below 1, a value lies outside the support, or the network
            hears values before their step.
    """
    if batch_size < 1:
        raise ValueError(f"eval.batch_size is {batch_size}; it must be at least 1")
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    model.eval()
    bar = tqdm(
        total=len(examples), desc=f"evaluating {name}", unit="ex", leave=False,
        disable=None if progress else True,  # None: where there is no terminal
        # The first batch of a model for all orders may take minutes: its bar is there at once.
        delay=0 if model.any_order else 1,
    )  # fmt: skip
    parts = []
    convolutions = torch.backends.cudnn
    with bar, convolutions.flags(enabled=convolutions.enabled, allow_tf32=False):
        for batch in examples.batches(batch_size):
            x, context = batch.to(device)
            parts.append(model.log_prob(x, context).double().cpu())
            if check and len(parts) == 1:
                _require_causal(model, x[:1], None if context is None else context[:1])
            bar.update(len(batch.x))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.double)


def _require_causal(model: DensityModel, x: Tensor, context: Tensor | None) -> None:
    """Raise ValueError where a network hears values before their step."""
    for part in model.modules():
        if isinstance(part, AutoregressiveModel):
            part.require_causal(x, context)


@dataclass(frozen=True)
class Evaluation:
    """Mean log-probability of a split.

    Attributes:
        num_examples: How many examples were counted, each once.
        log_prob: Mean, nats per example.
        standard_error: Of the mean, nats; NaN for a single example.
        num_symbols: Values that were scored, each once. Of a model that reads, all of the split,
            each given all before it; an example is then as many of them as a window has.
        past: So many values before it each value saw, or all of its sequence where there were
            fewer, as a sequence is read from its own beginning; 0: windows are scored apart, so
            that the first value of each saw none.
        by_piece: Mean over several pieces of the mean log-probability of a value of each, nats;
            None where there are not several.
    """

    num_examples: int
    log_prob: float
    standard_error: float
    num_symbols: int
    past: int = 0
    by_piece: float | None = None

    def report(self, spec: DataSpec) -> dict[str, float]:
        """Numbers for metrics.json: nats and bits/dim, with 95 % half-widths."""
        half = 1.96 * self.standard_error
        report = {
            "num_examples": self.num_examples,
            "nats": nats(self.log_prob, spec),
            "nats_ci95": half,
            "bits_per_dim": bits_per_dim(self.log_prob, spec),
            "bits_per_dim_ci95": half / (spec.num_dims * math.log(2)),
        }
        if spec.num_units:
            report["num_symbols"] = self.num_symbols // spec.unit_size
            report["past_symbols_or_all"] = self.past // spec.unit_size
            report["nats_per_symbol"] = report["nats"] / spec.num_units
            report["nats_per_symbol_ci95"] = half / spec.num_units
            report["bits_per_symbol"] = report["bits_per_dim"] * spec.unit_size
        if self.by_piece is not None:
            report["nats_per_symbol_by_piece"] = -self.by_piece * spec.unit_size
        return report


def evaluate(
    model: DensityModel,
    examples: Any,
    batch_size: int = 500,
    *,
    fabric: Fabric | None = None,
    progress: bool = False,
    name: str = "",
    adapt_lr: float | None = None,
) -> Evaluation:
    """Evaluate every example exactly once, over all processes of ``fabric``.

    Rank r takes examples r, r + world, ...; sums are float64 and divided once.

    Args:
        model: Put into evaluation mode.
        examples: What it is evaluated on: such as ``splits.examples("test")`` or, of a model
            without a context, a tensor, an array or a table of pandas (N, *event).
        batch_size: Examples at a time; the numbers do not depend on it.
        fabric: The processes that share the work; None: this one does it all.
        progress: Show a bar.
        name: Of the examples, for the bar and for sentences.
        adapt_lr: Rate at which a copy of the model learns from each symbol once it is scored
            (``Adaptive``), which gives another number than the model as it is. None: none learns.

    Raises:
        ValueError: There are no examples, no such batches, or no whole texts to learn from.
        TypeError: They are no such values, or the model is none.
        NoMean: Some example has no finite log-probability.
        RuntimeError: The processes together counted more or fewer examples than there are.

    Examples:
        >>> import armodels
        >>> splits = armodels.load_data("digits")
        >>> model = armodels.build("uniform", splits.spec)
        >>> model.initialize([splits.train])
        >>> report = armodels.evaluate(model, splits.examples("test")).report(splits.spec)
        >>> round(report["bits_per_dim"], 4)  # log2 of 17 levels
        4.0875
    """
    example = "such as armodels.AutoregressiveModel(net, head)"
    require_class("model", model, DensityModel, example)
    require_types(
        {"batch_size": batch_size, "adapt_lr": adapt_lr},
        {"batch_size": Count, "adapt_lr": Positive | None},
    )
    examples = examples if isinstance(examples, Examples) else Examples(as_numbers(examples))
    whole = is_whole(model, examples)
    if not len(examples) and not whole:
        raise ValueError(f"{name or 'the data'} has no examples, and so no mean")
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    share = examples.share(rank, world)
    if adapt_lr is not None and (not whole or world > 1):
        raise ValueError(
            f"{model.description} cannot learn from {name or 'the data'} while it is scored: that "
            f"takes a text and a model that reads it whole, without a context, in one process"
        )
    if whole:
        rows = min(batch_size, ROWS)
        found = _evaluate_pieces(
            model, share, rows, fabric, progress=progress, name=name, adapt_lr=adapt_lr
        )
        return replace(found, past=_past(model, examples))
    values = log_probs(model, share, batch_size, progress=progress, name=name)
    sums = torch.stack(
        [torch.tensor(len(values), dtype=torch.double), values.sum(), values.square().sum()]
    )
    if fabric and world > 1:
        sums = cast(Tensor, fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")).cpu()
    count, total, squares = sums.tolist()
    if count != len(examples):
        raise RuntimeError(f"evaluated {count:.0f} of {len(examples)} examples")
    if not math.isfinite(total):
        raise NoMean(_without_mean(values, fabric, name))
    mean = total / count
    variance = max(squares - count * mean * mean, 0.0) / (count - 1) if count > 1 else math.nan
    symbols = int(count) * model.spec.num_dims
    return Evaluation(int(count), mean, math.sqrt(variance / count), symbols)


def is_whole(model: DensityModel, examples: Examples) -> bool:
    """Whether the model is evaluated on whole sequences, not on their windows."""
    known = model.context is None or examples.piece_context is not None
    return bool(examples.pieces) and reads(model) and known


def _past(model: DensityModel, examples: Examples) -> int:
    """Values before it that each value of whole sequences sees, or all of them."""
    most, field = max(map(len, examples.pieces)) - 1, receptive_field(model)
    return most if field is None else min(most, field)


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
        adapt_lr: As in ``evaluate``.

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


def _evaluate_pieces(
    model: DensityModel,
    share: Examples,
    rows: int,
    fabric: Fabric | None,
    *,
    progress: bool,
    name: str,
    adapt_lr: float | None,
) -> Evaluation:
    """Every symbol of whole sequences once, given all before it in its piece.

    The mean is that of a symbol, times the length of a window. Its error comes from windows one
    after another, as symbols side by side depend on one another.
    """
    length = model.spec.num_dims
    sums = torch.zeros(5, dtype=torch.double)  # symbols, log p; windows, their log p and squares
    rests = [torch.zeros(0, dtype=torch.double)] * len(share.pieces)  # of a window, not yet whole
    of_pieces = torch.zeros(len(share.pieces), dtype=torch.double)
    for number, values in piece_log_probs(
        model,
        share.pieces,
        share.piece_context,
        rows=rows,
        progress=progress,
        name=name,
        adapt_lr=adapt_lr,
    ):
        of_pieces[number] += values.sum()
        sums[:2] += torch.tensor([len(values), values.sum()], dtype=torch.double)
        rest = torch.cat([rests[number], values])
        whole = len(rest) // length * length
        rests[number] = rest[whole:].clone()
        windows = rest[:whole].view(-1, length).sum(1)
        found = [len(windows), windows.sum(), windows.square().sum()]
        sums[2:] += torch.tensor(found, dtype=torch.double)
    lengths = torch.tensor([len(piece) for piece in share.pieces])
    means_of_pieces = (of_pieces / lengths)[lengths > 0]
    more = [len(means_of_pieces), means_of_pieces.sum()]  # pieces, their means
    sums = torch.cat([sums, torch.tensor(more, dtype=torch.double)])
    if fabric and fabric.world_size > 1:
        sums = cast(Tensor, fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")).cpu()
    symbols, total, count, of_windows, squares, pieces, means = sums.tolist()
    if not math.isfinite(total):
        raise NoMean(f"a symbol of {name or 'the data'} has no finite log-probability")
    spread = max(squares - of_windows**2 / max(count, 1), 0.0)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else math.nan
    by_piece = means / pieces if pieces > 1 else None
    return Evaluation(int(count), total / symbols * length, error, int(symbols), by_piece=by_piece)


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


class NoMean(ArithmeticError):
    """An example has no finite log-probability, so that their mean says nothing."""


def _without_mean(values: Tensor, fabric: Fabric | None, name: str) -> str:
    """Which example spoils the mean: the first over all processes, counted from 0."""
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    rows = (~values.isfinite()).nonzero()[:, 0]
    first = torch.tensor([float(rank + world * rows[0]) if len(rows) else math.inf, len(rows)])
    found = torch.tensor([0.0 if not len(rows) else float(values[rows[0]])])
    both = torch.cat([first, found])[None].double()
    if fabric and world > 1:
        both = cast(Tensor, fabric.all_gather(both.to(fabric.device))).view(-1, 3).cpu()
    row, _, value = both[both[:, 0].argmin()].tolist()
    others = int(both[:, 1].sum()) - 1
    also = f", as {'is' if others == 1 else 'are'} {others} more" if others else ""
    what = "is impossible under the model" if value == -math.inf else "has no number"
    return f"row {int(row)} of {name or 'the data'} {what} (log p = {value}){also}"


def knowing_nothing(splits: Splits) -> tuple[str, float] | None:
    """A model that knows nothing, and its nats on valid; None: there is none.

    Of levels, the uniform distribution; of real values, independent Gaussians with the mean and
    the standard deviation of (the first rows of) the training split.
    """
    spec = splits.spec
    if spec.levels is not None:
        return "the uniform distribution", nats(-spec.num_dims * math.log(spec.levels), spec)
    train = _first(splits.split("train")).flatten(1).double()
    mean, std = train.mean(0), train.std(0)
    if len(train) < 2 or not bool((std > 0).all()):
        return None
    valid = splits.split("valid")
    valid = valid if isinstance(valid, Tensor) else _first(valid)
    z = (valid.flatten(1).double() - mean) / std
    log_prob = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(1).mean()
    return "independent Gaussians", nats(float(log_prob), spec)


def _first(rows: Rows) -> Tensor:
    """At most 100,000 rows, and of a memory map no more than 16 million values."""
    fit = 100_000 if isinstance(rows, Tensor) else 2**24 // math.prod(rows.shape[1:])
    return rows[: max(2, min(fit, 100_000))]


def describe(name: str, report: Mapping[str, float], spec: DataSpec) -> str:
    """One line: nats and bits/dim with their intervals; of a sequence, those of a symbol.

    Args:
        name: Of the split.
        report: As ``Evaluation.report`` gives it.
        spec: Of the data.
    """
    size, unit = (spec.num_units, spec.unit) if spec.num_units else (1, "")
    nats, bits = (
        lines.interval(report[key] / one, report[f"{key}_ci95"] / one, "{:.4f}".format)
        for key, one in (("nats", size), ("bits_per_dim", 1 / spec.unit_size))
    )
    if unit:
        number = f"{report['num_symbols']:,} {unit}s"
        if (by_piece := report.get("nats_per_symbol_by_piece")) is not None:
            number += f"; the mean of the pieces' means {by_piece:.4f} nats"
        return f"{name:<6} {nats} nats/{unit}   {bits} bits/{unit}   ({number})"
    return f"{name:<6} {nats} nats   {bits} bits/dim   ({report['num_examples']} examples)"
