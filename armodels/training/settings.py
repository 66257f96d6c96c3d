"""How long, in what steps and on what a model is trained, and what is shown meanwhile."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final, get_type_hints

from armodels import checks, show
from armodels.checks import Between, Count, NotNegative, Number, Positive, Range

MAX_THREADS = max(256, os.cpu_count() or 1)
"""More threads than this are no help to anybody, and some systems die of starting them."""

LIMITS = ("max_epochs", "max_steps", "max_minutes")
"""Settings that end a training, whichever comes first."""


@final
@dataclass
class Settings:
    """The ``trainer`` part of a run; configs/trainer/default.yaml says what each key means.

    Examples:
        >>> import armodels
        >>> armodels.Settings(max_epochs=None)
        Traceback (most recent call last):
        ValueError: set max_epochs, max_steps or max_minutes

    Raises:
        ValueError: A value is of the wrong kind or range, or two of them contradict each other.
    """

    max_epochs: Number | None = 50
    max_steps: Number | None = None
    max_minutes: Positive | None = None
    batch_size: Count = 100
    accumulate: Count = 1
    max_grad_norm: Positive | None = None
    ema: Between | None = None
    patience: Count | None = None
    eval_every: Positive | None = 1
    test: bool = True
    log_every: Count = 20
    checkpoint_every: NotNegative = 30
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    compile: bool = False
    cuda_graphs: bool = False
    threads: Annotated[int, Range(1, MAX_THREADS)] | None = None
    progress: bool = True
    select: dict[str, list] | None = None

    def __post_init__(self) -> None:
        with in_python():
            require_settings(vars(self))

    def combinations(self) -> list[dict[str, Any]]:
        """All combinations of the values that ``select`` names, the last key's fastest."""
        keys = self.select or {}
        return [dict(zip(keys, one, strict=True)) for one in itertools.product(*keys.values())]

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Steps after which a training ends; None: they are not limited."""
        limits = []
        if self.max_steps is not None:
            limits.append(self.max_steps)
        if self.max_epochs is not None:
            limits.append(self.max_epochs * steps_per_epoch)
        return min(limits) if limits else None


def in_python() -> contextlib.AbstractContextManager[None]:
    """Inside which lines and errors name settings as Python does, without ``trainer.``."""
    return show.in_python(f"trainer.{field.name}" for field in dataclasses.fields(Settings))


def require_settings(values: Mapping[str, Any]) -> None:
    """Raise ValueError, in the words of a config, unless settings can be made of the values.

    Args:
        values: By the name of the field; those that lack have their defaults.
    """
    fields = dataclasses.fields(Settings)
    own = {field.name: values.get(field.name, field.default) for field in fields}
    checks.require_types(own, get_type_hints(Settings, include_extras=True), "trainer.")
    if all(own[name] is None for name in LIMITS):
        raise ValueError("set trainer.max_epochs, trainer.max_steps or trainer.max_minutes")
    if own["accumulate"] > own["batch_size"]:
        raise ValueError(
            f"trainer.accumulate is {own['accumulate']}, but a batch of trainer.batch_size="
            f"{own['batch_size']} cannot be split into more parts than it has examples"
        )
    if own["cuda_graphs"] and not own["compile"]:
        raise ValueError(
            "trainer.cuda_graphs=true replays compiled code: set trainer.compile=true"
        )
    if own["strategy"] == "fsdp" and own["precision"] not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision={own['precision']} is not for trainer.strategy=fsdp; choose "
            f"32-true or bf16-mixed"
        )
    _require_select(own["select"])


def _require_select(select: Any) -> None:
    if not isinstance(select, Mapping | None):
        raise ValueError(
            f"trainer.select is {select!r}; it must be null, or lists of values by key, "
            f"such as {{optimizer.weight_decay: [0.01, 0.1]}}"
        )
    for key, values in (select or {}).items():
        if key.split(".")[0] not in ("model", "head", "optimizer", "schedule"):
            raise ValueError(
                f"trainer.select names {key}; it chooses values of model, head, optimizer and "
                f"schedule, whose keys begin with these words"
            )
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"trainer.select.{key} is {values!r}; it must be a list of values to try"
            )


@final
@dataclass(frozen=True)
class Watching:
    """What is evaluated and drawn beside the steps; it changes no weight.

    Attributes:
        weights: Which weights are evaluated where a moving average is kept.
        batch_size: Examples evaluated at a time; the numbers do not depend on it.
        num_samples: Samples drawn at each evaluation; 0: none.
        temperature: Of the samples.

    Raises:
        ValueError: A value is of the wrong kind or range.
    """

    weights: Literal["ema", "raw"] = "ema"
    batch_size: Count = 500
    num_samples: Number = 64
    temperature: NotNegative = 1.0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        checks.require_types(vars(self), hints)
