"""Trained runs as the members of a blend: their configs and their weights, copied from them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from armodels import checkpoints, checks, construct, show
from armodels.checkpoints import Restored
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.networks.blend import Blend, reader
from armodels.spec import DataSpec
from armodels.training.learner import Candidate


def take_up(config: Mapping[str, Any], spec: DataSpec) -> tuple[dict[str, Any], list[Restored]]:
    """The config of a run in which the runs that a blend names are configs of models.

    A run of a blend so holds all that its model is built of, and its checkpoints hold the weights:
    those runs are never read again.

    Args:
        config: Of the run that begins.
        spec: What a datum of it is.

    Returns:
        The config, and the members; of any other model, the config as it is and none.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: There are none, or one cannot be blended on these data.
    """
    config, model = dict(config), config["model"]
    if model.get("_target_") != construct.BLEND:
        return config, []
    runs = model["runs"]
    if isinstance(runs, (list, tuple)) and runs and all(isinstance(run, Mapping) for run in runs):
        raise ValueError(
            "the run was stopped before the runs that it blends were copied; begin it anew"
        )
    if not isinstance(runs, (list, tuple)) or not all(isinstance(run, str) for run in runs):
        raise ValueError(
            f"model.runs is {runs!r}; it must be a list of runs, such as [outputs/a,outputs/b]"
        )
    found = []
    for run in runs:
        restored = checkpoints.restore(run, trust=config["trust"])
        reader(restored.model, spec, f"run {run}")
        found.append(restored)
    members = [
        {"run": str(one.path.absolute()), "model": one.config["model"], "head": one.config["head"]}
        for one in found
    ]
    return {**config, "model": {**model, "runs": members}}, found


def warn(config: Mapping[str, Any], spec: DataSpec, members: Sequence[Restored]) -> None:
    """Say where a network among the members has seen what the weights are fitted on.

    Args:
        config: Of the blend's run.
        spec: What a datum of it is.
        members: What ``take_up`` found.
    """
    if not members or not isinstance(config["model"]["weights"], str):
        return
    for one in members:
        same = one.spec.checksum == spec.checksum and _cut(one.config) == _cut(config)
        if same and any(True for _ in one.model.parameters()):
            show.warn(
                f"{one.path} was trained on all of train, also on its end, which the weights are "
                f"fitted on: they will trust it too much. Train it on less of the text (more of "
                f"it valid), or give the weights: {show.override('model.weights', [0.5, 0.5])}"
            )


def _cut(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says which part of a text is train, wherever it lies and however long windows are."""
    aside = (*checks.PATH_KEYS, "length")
    return {key: value for key, value in config["data"].items() if key not in aside}


def fill(model: DensityModel, members: Sequence[Restored]) -> DensityModel:
    """Copy the weights of runs into the members of a blend; without any, nothing happens.

    Args:
        model: The blend, or any other model; changed in place.
        members: What ``take_up`` found.
    """
    if members:
        assert isinstance(model, AutoregressiveModel)
        assert isinstance(model.net, Blend)
        for net, one in zip(model.net.members, members, strict=True):
            own: Any = one.model
            net.load_state_dict(own.net.state_dict())
    return model


def filled(candidate: Candidate, members: Sequence[Restored]) -> Candidate:
    """A candidate whose model begins with the weights of runs.

    Args:
        candidate: Of a config that ``take_up`` gave.
        members: What it found.
    """
    return replace(candidate, model=lambda: fill(candidate.model(), members))
