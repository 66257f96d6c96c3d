"""A trained run as the teacher of another model, and how far the student is from it."""

import copy
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch

from armodels import checkpoints, show
from armodels.density.base import DensityModel
from armodels.flows import InverseFlow
from armodels.objectives import Distillation
from armodels.spec import DataSpec
from armodels.training.learner import Candidate, placed
from armodels.training.settings import Settings

NUM_DRAWS = 10_000
"""Of the student, by which its distance from the teacher is estimated."""

COVERAGE = 0.1
"""Share of log p(data) in what a student learns, where nothing else is asked for."""

DRAWS = (64, 1000)
"""So many events are drawn by both, side by side, to say how much faster the student is."""


@final
@dataclass(frozen=True)
class Teacher:
    """A run that another one learns from.

    Attributes:
        path: Of its checkpoint.
        model: In evaluation mode, without gradients of its own.
        coverage: Share of log p(data) in what its student learns.
    """

    path: str
    model: DensityModel
    coverage: float


@final
@dataclass(frozen=True)
class Gap:
    """How far a student is from its teacher.

    Attributes:
        nats: KL(student || teacher), estimated by draws of the student.
        standard_error: Of that.
        num_draws: So many draws.
    """

    nats: float
    standard_error: float
    num_draws: int


def checksum(model: torch.nn.Module) -> str:
    """A word by which the weights of a model are known again."""
    found = 0
    for name, tensor in sorted(model.state_dict().items()):
        found = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), found)
        found = zlib.crc32(name.encode(), found)
    return f"{found:08x}"


def take_up(
    config: Mapping[str, Any], spec: DataSpec, settings: Settings, device: torch.device
) -> tuple[dict[str, Any], Teacher | None]:
    """The config of a run in which its teacher is known by path and checksum, and the teacher.

    Args:
        config: Of the run that begins or goes on.
        spec: What a datum of it is.
        settings: Of its training.
        device: Where the student is trained.

    Returns:
        Of any other run, the config as it is and None.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: Nothing can be distilled from it, or it has changed since.
    """
    config, named = dict(config), config.get("teacher")
    if named is None:
        return config, None
    known = named if isinstance(named, Mapping) else {"run": named, "coverage": COVERAGE}
    path, coverage = known["run"], known.get("coverage", 0.0)  # older runs had none
    restored = checkpoints.restore(path, trust=config["trust"])
    model, own = restored.model, restored.spec
    if own.levels is not None:
        raise ValueError(
            f"teacher {path} is a model of {own.levels} levels, but a student is distilled from a "
            f"density of real values: its draws are differentiated; choose a run on such data "
            f"(data=toy, red_wine, table)"
        )
    if model.context is not None:
        raise ValueError(
            f"teacher {path} is conditioned on {model.context.name}, but a student on nothing; "
            f"choose a run without model.context"
        )
    if (own.name, own.shape) != (spec.name, spec.shape):
        raise ValueError(
            f"teacher {path} is a model of {own.name}, but the data is {spec.name}; leave the "
            f"data to armodels distill"
        )
    found = checksum(model)
    if found != known.get("checksum", found):
        raise ValueError(
            f"teacher {path} has changed since the student began to learn from it (its weights "
            f"have the checksum {found}, not {known['checksum']}); begin a new student"
        )
    model = placed(model, settings, device).eval().requires_grad_(False)
    _require_gradient(model, path)
    config["teacher"] = {"run": os.path.abspath(path), "coverage": coverage, "checksum": found}
    return config, Teacher(str(path), model, coverage)


def _require_gradient(model: DensityModel, path: str) -> None:
    """Raise ValueError unless a student can learn from what the model says of its draws."""
    x = model.sample(8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_prob = model._log_prob(x, None)
    slope = torch.autograd.grad(log_prob.sum(), x)[0] if log_prob.requires_grad else None
    # A histogram has slopes in its tails alone.
    if slope is None or float((slope != 0).double().mean()) < 0.5:
        raise ValueError(
            f"teacher {path} is {model.description}, whose log-density has no slope to follow; "
            f"choose another teacher, such as model=made or gmm"
        )


def require_student(model: DensityModel) -> None:
    """Raise ValueError unless a model can be trained by what it draws."""
    if not isinstance(model, InverseFlow):
        raise ValueError(
            f"{model.description} cannot be a student, which turns noise into events in one pass; "
            f"use model=inverse_flow"
        )


def taught(candidate: Candidate, teacher: Teacher | None) -> Candidate:
    """A candidate that learns from a teacher; without one, as it is.

    Args:
        candidate: Of a config that ``take_up`` gave.
        teacher: What it found.
    """
    if teacher is None:
        return candidate
    return replace(candidate, objective=partial(_objective, teacher.model, teacher.coverage))


def measured(teacher: Teacher | None) -> Callable[[DensityModel], Distillation] | None:
    """What training maximizes, where its memory is measured: on the CPU; without a teacher, None.

    Args:
        teacher: Of the student.
    """
    if teacher is None:
        return None
    copied = copy.deepcopy(teacher.model).to("cpu", torch.get_default_dtype())
    return partial(_objective, copied, teacher.coverage)


def _objective(teacher: DensityModel, coverage: float, model: DensityModel) -> Distillation:
    require_student(model)
    assert isinstance(model, InverseFlow)
    return Distillation(model, teacher, coverage)


@torch.no_grad()
def gap(
    student: DensityModel, teacher: DensityModel, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Gap:
    """KL(student || teacher), by what both say of draws of the student.

    Args:
        student: In evaluation mode.
        teacher: In evaluation mode.
        num_draws: Of the student.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    apart = []
    for size in [1000] * (num_draws // 1000) + [num_draws % 1000] * (num_draws % 1000 > 0):
        x, own = student.sample_with_log_prob(size, generator=generator)
        apart.append(own.double() - teacher.log_prob(x).double())
    each = torch.cat(apart)
    return Gap(float(each.mean()), float(each.std()) / math.sqrt(num_draws), num_draws)


def seconds_to_draw(model: DensityModel, n: int, repeats: int = 3) -> float:
    """Seconds of the fastest of some draws of n events, after one that is not counted.

    Args:
        model: In evaluation mode.
        n: Events.
        repeats: Draws that are timed.
    """
    found = []
    for i in range(repeats + 1):
        generator = torch.Generator().manual_seed(i)
        began = time.perf_counter()
        model.sample(n, generator=generator)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def report(student: DensityModel, teacher: Teacher) -> dict[str, Any]:
    """Say how far a student is from its teacher and how much faster; what metrics.json has of it.

    Args:
        student: In evaluation mode.
        teacher: Of it.
    """
    found = gap(student, teacher.model)
    error = 1.96 * found.standard_error
    show.say(
        f"gap    KL(student || teacher) {found.nats:.4f} ± {error:.4f} nats, by "
        f"{found.num_draws:,} draws of the student"
    )
    seconds = {n: (seconds_to_draw(student, n), seconds_to_draw(teacher.model, n)) for n in DRAWS}
    for n, (own, theirs) in seconds.items():
        show.say(
            f"speed  {n:,} draws: student {1000 * own:.1f} ms, teacher {1000 * theirs:.1f} ms, "
            f"{theirs / own:.1f} times"
        )
    return {
        "teacher": {
            "run": teacher.path,
            "kl_nats": found.nats,
            "kl_nats_ci95": error,
            "num_draws": found.num_draws,
        }
    }
