"""The exact likelihood of a model on examples, and the sums that every number comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from armodels import lines
from armodels.checks import Count, Positive, require_class, require_types
from armodels.data.arrays import as_numbers
from armodels.data.base import Splits
from armodels.data.rows import Examples, Rows
from armodels.density.base import DensityModel
from armodels.density.stream import ROWS, reads, receptive_field
from armodels.scoring import log_probs, piece_sums
from armodels.spec import DataSpec, bits_per_dim, nats


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
    keep: Path | None = None,
    progress: bool = False,
    name: str = "",
    adapt_lr: float | None = None,
) -> Evaluation:
    """Evaluate every example exactly once, over all processes of ``fabric``.

    Numbers are float64, and every process has them all.

    Args:
        model: Put into evaluation mode.
        examples: What it is evaluated on: such as ``splits.examples("test")`` or, of a model
            without a context, a tensor, an array or a table of pandas (N, *event).
        batch_size: Examples at a time; the numbers do not depend on it.
        fabric: The processes that share the work; None: this one does it all.
        keep: Folder in which what is found is kept until all is, so that an evaluation of the
            same model on the same data goes on if it was stopped; None: nowhere.
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
    alone = fabric is None or fabric.world_size == 1
    if adapt_lr is not None and not (whole and alone):
        raise ValueError(
            f"{model.description} cannot learn from {name or 'the data'} while it is scored: that "
            f"takes a text and a model that reads it whole, without a context, in one process"
        )
    options: dict[str, Any] = {"fabric": fabric, "keep": keep, "progress": progress, "name": name}
    if whole:
        rows = min(batch_size, ROWS)
        sums = piece_sums(model, examples, rows, adapt_lr=adapt_lr, **options)
        found = _of_pieces(sums, model.spec.num_dims, name)
        return replace(found, past=_past(model, examples))
    values = log_probs(model, examples, batch_size, **options)
    if not values.isfinite().all():
        raise NoMean(_without_mean(values, name))
    count, mean = len(values), float(values.mean())
    error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
    return Evaluation(count, mean, error, count * model.spec.num_dims)


def is_whole(model: DensityModel, examples: Examples) -> bool:
    """Whether the model is evaluated on whole sequences, not on their windows."""
    known = model.context is None or examples.piece_context is not None
    return bool(examples.pieces) and reads(model) and known


def _past(model: DensityModel, examples: Examples) -> int:
    """Values before it that each value of whole sequences sees, or all of them."""
    most, field = max(map(len, examples.pieces)) - 1, receptive_field(model)
    return most if field is None else min(most, field)


def _of_pieces(sums: Tensor, length: int, name: str) -> Evaluation:
    """Every symbol of whole sequences once, given all before it in its piece.

    The mean is that of a symbol, times the length of a window. Its error comes from windows one
    after another, as symbols side by side depend on one another.

    Args:
        sums: Of each piece, as ``scoring.piece_sums`` has them.
        length: Of a window.
        name: Of the sequences, for the sentence.

    Raises:
        NoMean: A symbol has no finite log-probability.
    """
    symbols, total, count, of_windows, squares = sums.sum(0).tolist()
    if not math.isfinite(total):
        raise NoMean(f"a symbol of {name or 'the data'} has no finite log-probability")
    spread = max(squares - of_windows**2 / max(count, 1), 0.0)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else math.nan
    some = sums[sums[:, 0] > 0]
    by_piece = float((some[:, 1] / some[:, 0]).mean()) if len(some) > 1 else None
    return Evaluation(int(count), total / symbols * length, error, int(symbols), by_piece=by_piece)


class NoMean(ArithmeticError):
    """An example has no finite log-probability, so that their mean says nothing."""


def _without_mean(values: Tensor, name: str) -> str:
    """Which example spoils the mean: the first, counted from 0."""
    rows = (~values.isfinite()).nonzero()[:, 0]
    value, others = float(values[rows[0]]), len(rows) - 1
    also = f", as {'is' if others == 1 else 'are'} {others} more" if others else ""
    what = "is impossible under the model" if value == -math.inf else "has no number"
    return f"row {int(rows[0])} of {name or 'the data'} {what} (log p = {value}){also}"


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
