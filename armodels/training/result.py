"""What comes of a training: the best model, and its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from armodels import machine
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.evaluation import is_whole
from armodels.training.state import State


@final
@dataclass(frozen=True)
class Origin:
    """How a training was asked for; stands in its metrics.

    Attributes:
        model: A name for the model.
        seed: Of every random draw.
        started: When; None: it is not known.
        overrides: What was typed.
    """

    model: str
    seed: int = 0
    started: str | None = None
    overrides: Sequence[str] = ()


@final
@dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        model: With the weights that were best on valid, in evaluation mode.
        metrics: As metrics.json has them: nats and bits/dim on valid and test (which
            ``Settings(test=False)`` leaves out), and what they depend on.
        history: The points of the curves by name, such as ``valid/nats``, in order.
        directory: The run directory; None: nothing was written.
    """

    model: DensityModel
    metrics: dict[str, Any]
    history: list[dict[str, float]] = field(repr=False)
    directory: Path | None = None


def final_metrics(
    model: DensityModel,
    splits: Splits,
    reports: Mapping[str, Mapping[str, float]],
    *,
    origin: Origin,
    state: State,
    weights: str,
    epochs: float,
    selected: Mapping[str, Any] | None,
    warning: str | None,
    device: torch.device,
) -> dict[str, Any]:
    """All that metrics.json says of a training.

    Args:
        model: With the best weights.
        splits: The data.
        reports: What it had on ``valid`` and, where it was evaluated on it, on ``test``.
        origin: How it was asked for.
        state: Where its training stands.
        weights: ``"ema"`` or ``"raw"``: which weights these are.
        epochs: Passes over the training split, of all candidates.
        selected: Values that were chosen by valid; None: there was nothing to choose from.
        warning: What is wrong with it; None: nothing.
        device: On which it was trained.
    """
    spec = splits.spec
    metrics = {
        "data": spec.name_with(model.context),
        "kind": spec.kind,
        "shape": list(spec.shape),
        "num_dims": spec.num_dims,
        "levels": spec.levels,
        "measure": model.spec.measure,
        "model": origin.model,
        "parameters": model.num_parameters,
        "seed": origin.seed,
        "started": origin.started,
        "weights": weights,
        "best_step": state.best_step,
        "steps": state.total_step,
        "epochs": epochs,
        "seconds": state.seconds,
        "splits": {one: len(splits.split(one)) for one in ("train", "valid", "test")},
        "examples_per_s": state.examples / max(state.seconds, 1e-9),
        **reports,
    }
    if spec.pieces and is_whole(model, splits.examples("test")):
        # By these, ``compare`` ranks models with windows of other lengths together.
        metrics["sequences"] = spec.name_with(model.context, whole=True)
        metrics["unit"] = spec.unit
    if selected is not None:
        metrics["selected"] = dict(selected)
    if splits.true_log_prob is not None and "test" in reports:
        truth = splits.true_log_prob(splits.test[:]).double().mean()
        metrics["gap_to_truth"] = reports["test"]["nats"] + float(truth)
    metrics |= machine.peak_memory(device)
    if warning is not None:
        metrics["warning"] = warning
    return metrics | {
        "overrides": list(origin.overrides),
        "environment": machine.environment(),
    }
