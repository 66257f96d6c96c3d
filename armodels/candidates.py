"""From a run's config to what is trained: its settings, and its candidates.

With ``trainer.select`` a config describes several candidates, else one.
"""

import contextlib
import copy
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from armodels import checks, construct, memory
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.density.stream import bytes_to_learn
from armodels.spec import DataSpec
from armodels.training.learner import Candidate
from armodels.training.settings import Settings, require_settings
from armodels.training.streams import WEIGHTS, stream
from armodels.trust import Trust


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which dotted keys have other values.

    Raises:
        ValueError: It has no such key.
    """
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        node: Any = changed
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            near = difflib.get_close_matches(last, node or (), 1)
            hint = f"; did you mean {'.'.join([*path, *near])}?" if near else ""
            raise ValueError(f"trainer.select names {key}, which the config does not have{hint}")
        node[last] = value
    return changed


def without_typed(select: Any, overrides: list[str]) -> Any:
    """``trainer.select`` without the keys that the command line gives a value of its own."""
    if not isinstance(select, Mapping):
        return select
    typed = {item.partition("=")[0].lstrip("+") for item in overrides}
    return {key: values for key, values in select.items() if key not in typed} or None


def settings_of(config: Mapping[str, Any], trust: Trust) -> Settings:
    """The settings of a run's config, after whatever can be refused before data are read.

    Raises:
        ValueError: A key or a value is wrong.
    """
    checks.require_keys(config)
    checks.require_fields(Settings, config["trainer"], "trainer.", optional=("select", "test"))
    require_settings(config["trainer"])
    settings = Settings(**config["trainer"])
    for values in settings.combinations():
        tried = with_values(config, values)
        construct.schedule(tried["schedule"], trust)
        construct.optimizer(tried["optimizer"], [torch.nn.Parameter(torch.zeros(1))], trust)
    return settings


def new_model(config: Mapping[str, Any], spec: DataSpec, trust: Trust) -> DensityModel:
    """The model of a config, its weights drawn by the seed.

    Args:
        config: Of the run.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.
    """
    torch.manual_seed(stream(WEIGHTS, config["seed"]))
    return construct.model(config["model"], config["head"], spec, trust)


def affordable(
    config: Mapping[str, Any],
    settings: Settings,
    device: torch.device,
    spec: DataSpec,
    trust: Trust,
    guard: contextlib.AbstractContextManager,
    objective: memory.Objective | None = None,
) -> DensityModel:
    """The model of the config, unless it is above the budget of the machine.

    Args:
        config: Of the run.
        settings: Of its training.
        device: Where it is trained.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.
        guard: Inside which it is built.
        objective: What is maximized; None: what the model names itself.

    Raises:
        memory.TooLarge: It is above the budget.
    """
    free, advice = config["model"].get("allow_large", False), memory.way_out(config["model"])
    most = memory.MOST if device.type == "cpu" and not free else None
    with memory.at_most(most, advice), guard:
        model = new_model(config, spec, trust)
    if not free:
        part = -(-settings.batch_size // settings.accumulate)
        averaged = settings.ema is not None
        needed = memory.of_training(model, part, averaged=averaged, objective=objective)
        memory.require(needed, device, advice)
    return model


def require_learnable(
    config: Mapping[str, Any], model: DensityModel, splits: Splits, device: torch.device
) -> None:
    """Refuse a model whose counts of the training split do not fit into memory.

    Args:
        config: Of the run.
        model: Built.
        splits: What it is trained on.
        device: Where it is trained.

    Raises:
        memory.TooLarge: They do not.
    """
    if not config["model"].get("allow_large", False):
        needed = bytes_to_learn(model, splits.pieces.get("train", ()))
        memory.require(needed, device, memory.way_out(config["model"]))


def first_model(
    config: Mapping[str, Any],
    settings: Settings,
    device: torch.device,
    spec: DataSpec,
    trust: Trust,
    guard: Callable[[Mapping[str, Any]], contextlib.AbstractContextManager],
    objective: memory.Objective | None = None,
) -> DensityModel:
    """The first candidate's model; every candidate that cannot be trained is refused.

    Args:
        config: Of the run.
        settings: Of its training.
        device: Where it is trained.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.
        guard: Config -> inside what its model is built, where weights say how large it is.
        objective: What is maximized; None: what each model names itself.

    Raises:
        memory.TooLarge: A candidate is above the budget of the machine.
        ValueError: A candidate does not suit the data.
    """
    several = settings.combinations()
    for values in reversed(several):  # the first one is built last, and kept
        tried = with_values(config, values)
        # Of several candidates, only one has weights there to say how large it is.
        inside = guard(tried) if len(several) == 1 else contextlib.nullcontext()
        model = affordable(tried, settings, device, spec, trust, inside, objective)
    return model


def candidates(
    config: Mapping[str, Any], settings: Settings, spec: DataSpec, trust: Trust
) -> list[Candidate]:
    """What a run's config describes, each as if its values had been typed.

    Args:
        config: Of the run.
        settings: Of its training.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.
    """
    found = []
    for values in settings.combinations():
        tried = with_values(config, values)
        optimizer = dict(tried["optimizer"])
        if settings.precision == "16-mixed":
            # A fused optimizer unscales the gradients itself, after their norm is wanted.
            optimizer.pop("fused", None)
        found.append(
            Candidate(
                model=functools.partial(new_model, tried, spec, trust),
                optimizer=functools.partial(construct.optimizer, optimizer, trust=trust),
                schedule=construct.schedule(tried["schedule"], trust),
                values=values,
                config=tried,
            )
        )
    return found
