"""armodels eval: the exact likelihood of a split, and the sums that every number comes from."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from armodels import build, checkpoints, checks, contexts, lines, run, show
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.spec import DataSpec, bits_per_dim, nats


@torch.no_grad()
def log_probs(
    model: DensityModel,
    x: Tensor,
    batch_size: int,
    *,
    context: Tensor | None = None,
    progress: bool = False,
    name: str = "",
) -> Tensor:
    """Exact log p of every example, nats: (N, *event) -> (N,) float64 on the CPU.

    Computed in the model's own precision without autocast or TF32: a number that is published
    should not carry the rounding of half precision.
    """
    if batch_size < 1:
        raise ValueError(f"eval.batch_size is {batch_size}; it must be at least 1")
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), x.device)
    model.eval()
    bar = tqdm(
        total=len(x), desc=f"evaluating {name}", unit="ex", leave=False,
        disable=None if progress else True,  # None: where there is no terminal
        delay=0 if model.any_order else 1,  # whose first batch may take minutes: shown at once
    )  # fmt: skip
    parts = []
    convolutions = torch.backends.cudnn
    with bar, convolutions.flags(enabled=convolutions.enabled, allow_tf32=False):
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            batch = x[rows].to(device)
            given = None if context is None else context[rows].to(device)
            parts.append(model.log_prob(batch, given).double().cpu())
            bar.update(len(batch))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.double)


@dataclass(frozen=True)
class Evaluation:
    """Mean log-probability of a split.

    Attributes:
        num_examples: How many examples were counted, each once.
        log_prob: Mean, nats per example.
        standard_error: Of the mean, nats; NaN for a single example.
    """

    num_examples: int
    log_prob: float
    standard_error: float

    def report(self, spec: DataSpec) -> dict[str, float]:
        """Numbers for metrics.json: nats and bits/dim, with 95 % half-widths."""
        half = 1.96 * self.standard_error
        return {
            "num_examples": self.num_examples,
            "nats": nats(self.log_prob, spec),
            "nats_ci95": half,
            "bits_per_dim": bits_per_dim(self.log_prob, spec),
            "bits_per_dim_ci95": half / (spec.num_dims * math.log(2)),
        }


def evaluate(
    model: DensityModel,
    x: Tensor,
    batch_size: int,
    *,
    context: Tensor | None = None,
    fabric: Fabric | None = None,
    progress: bool = False,
    name: str = "",
) -> Evaluation:
    """Evaluate every example of ``x`` exactly once, over all processes of ``fabric``.

    Rank r takes ``x[r::world]``; sums are float64 and divided once.

    Raises:
        NoMean: Some example has no finite log-probability.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    if context is not None:
        context = context[rank::world]
    values = log_probs(
        model, x[rank::world], batch_size, context=context, progress=progress, name=name
    )
    sums = torch.stack(
        [torch.tensor(len(values), dtype=torch.double), values.sum(), values.square().sum()]
    )
    if world > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    count, total, squares = sums.tolist()
    assert count == len(x), f"evaluated {count} of {len(x)} examples"
    if not math.isfinite(total):
        raise NoMean(_without_mean(values, fabric, name))
    mean = total / count
    variance = max(squares - count * mean * mean, 0.0) / (count - 1) if count > 1 else math.nan
    return Evaluation(int(count), mean, math.sqrt(variance / count))


class NoMean(ArithmeticError):
    """An example has no finite log-probability, so that their mean says nothing."""


def _without_mean(values: Tensor, fabric: Fabric | None, name: str) -> str:
    """Which row of a split spoils its mean: the first over all processes, counted from 0."""
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    rows = (~values.isfinite()).nonzero()[:, 0]
    first = torch.tensor([float(rank + world * rows[0]) if len(rows) else math.inf, len(rows)])
    found = torch.tensor([0.0 if not len(rows) else float(values[rows[0]])])
    both = torch.cat([first, found])[None].double()
    if world > 1:
        both = fabric.all_gather(both.to(fabric.device)).view(-1, 3).cpu()
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
    train = splits.split("train")[:100_000].flatten(1).double()
    mean, std = train.mean(0), train.std(0)
    if len(train) < 2 or not bool((std > 0).all()):
        return None
    z = (splits.split("valid").flatten(1).double() - mean) / std
    log_prob = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(1).mean()
    return "independent Gaussians", nats(float(log_prob), spec)


def describe(name: str, report: Mapping[str, float]) -> str:
    """One line: nats and bits/dim with their intervals."""
    nats, bits = (
        lines.interval(report[key], report[f"{key}_ci95"], "{:.4f}".format)
        for key in ("nats", "bits_per_dim")
    )
    return f"{name:<6} {nats} nats   {bits} bits/dim   ({report['num_examples']} examples)"


def load_split(
    restored: checkpoints.Restored, data: Mapping, split: str
) -> tuple[DataSpec, Tensor, Tensor | None]:
    """A split of the run's own data, or of other data of the same shape and levels.

    Values are as the model knows them: a table is standardized by the run's own mean and standard
    deviation, which are in its checkpoint, whatever those of the table are.

    Args:
        restored: The model.
        data: The ``data`` of a verb's config: other data, or none, which is the run's own.
        split: ``"train"``, ``"valid"`` or ``"test"``; of a table also ``"all"``: every row, in
            the order of the file.

    Returns:
        What a datum is, the values, and what the model is conditioned on, if anything.

    Raises:
        ValueError: The model cannot score such data.
    """
    own, other = restored.spec, "_target_" in data
    if other:
        absent = {key for key in checks.PATH_KEYS if data.get(key) is None}  # as the verb has them
        data = {key: value for key, value in data.items() if key not in absent}
        source = build.source(data, build.Trust.in_own({"data": data}))
    else:
        source = build.source(restored.config["data"], restored.trust)
        found = build.same_data(own, source.spec)
    if split == "all":  # which may be too few rows to be split
        spec, rows = source.whole()
    else:
        spec, rows = source.spec if other else found, None
    given = spec
    if None not in (spec.columns, own.columns):
        if spec.columns != own.columns:
            raise ValueError(
                f"the model was trained on the columns {', '.join(own.columns)} and cannot "
                f"score {', '.join(spec.columns)}; choose them with "
                f"{show.override('data.columns', own.columns)}"
            )
        spec = spec.coded_like(own)
    if (spec.kind, spec.shape, spec.levels) != (own.kind, own.shape, own.levels):
        raise ValueError(
            f"the model was trained on {own.name} ({own.kind} {own.shape}, levels {own.levels}) "
            f"and cannot score {spec.name} ({spec.kind} {spec.shape}, levels {spec.levels})"
        )
    wanted = restored.model.context
    if wanted is not None and contexts.available(spec).get(wanted.name) != wanted:
        raise ValueError(f"the model is conditioned on {wanted.name}, which {spec.name} lacks")
    x, context = rows, None
    if rows is None:
        splits = source.load()
        if not other:
            build.same_data(own, splits.spec)
        x = splits.split(split)
        context = splits.context(wanted, split, x, slice(None))
    if (given.standardization, given.coding) != (own.standardization, own.coding):
        x = own.encoded(given.original(x)).to(own.dtype)
    return spec, x, context


def draw_examples(
    restored: checkpoints.Restored, num: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """``num`` examples of the run's own test split, and what the model is conditioned on there."""
    _, x, context = load_split(restored, {}, "test")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:num]
    return x[rows], None if context is None else context[rows]


def main(config: Mapping) -> None:
    """Evaluate a run or checkpoint on one split."""
    run.require_place(config["out"], mark='"trained_on"')
    restored = checkpoints.from_config(config)
    spec, x, context = load_split(restored, config["data"], config["split"])
    started = time.monotonic()
    try:
        result = evaluate(
            restored.model,
            x,
            config["eval"]["batch_size"],
            context=context,
            progress=True,
            name=config["split"],
        )
    except NoMean as error:
        every = show.command("score", run=config["run"], split=config["split"])
        raise ValueError(f"{error}, so there is no mean; see every row with: {every}") from error
    measure = restored.model.spec.measure
    report = {
        "data": spec.given(restored.model.context),
        "trained_on": restored.spec.name,
        "model": restored.model.description,
        "split": config["split"],
        "measure": measure,
        "num_dims": spec.num_dims,
        "levels": spec.levels,
        "weights": restored.weights,
        "checkpoint": str(restored.path),
        **result.report(spec),
        "seconds": time.monotonic() - started,
        "overrides": config["overrides"],
        "environment": checkpoints.environment(),
    }
    about = f"D = {spec.num_dims}, levels {spec.levels}, {measure}"
    show.say(f"data   {report['data']} ({about})")
    show.say(f"model  {report['model']}")
    show.say(f"from   {restored.origin}")
    show.say(describe(config["split"], report))
    if config["out"]:
        run.write_json(Path(config["out"]), report)
        show.say(f"wrote  {config['out']}")
