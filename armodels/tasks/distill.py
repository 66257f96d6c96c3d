"""armodels distill: train a student on what a trained run says, in place of data."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from armodels import checkpoints, checks, construct, disk, distilling, errors, names, show

Compose = Callable[[Sequence[str], str], dict]
"""Words of a training, its directory -> its config."""

Train = Callable[[Mapping[str, Any]], float]
"""What trains a config."""

Coverage = Annotated[float, checks.Range(0, 1)]
"""A share of what a student learns."""

STUDENT = "model=inverse_flow"


def main(config: Mapping[str, Any], compose: Compose, train: Train) -> None:
    """Train a student, or go on with one.

    Args:
        config: Of the verb.
        compose: From words to the config of a training.
        train: What trains.

    Raises:
        ValueError: There is no teacher, or what was typed does not suit one.
    """
    disk.require_place(config["out"])
    words, coverage = list(config["words"]), config["coverage"]
    checks.require_types(config, {"coverage": Coverage | None})
    if config["resume"]:
        if config["teacher"]:
            raise ValueError("a student's run knows its teacher; leave teacher away")
        if coverage is not None:
            raise ValueError("a student's run knows its coverage; leave coverage away")
        path = os.path.abspath(config["resume"])
        train(_composed(compose, [f"resume={show.hydra(path)}", *words], path))
        return
    if not config["teacher"]:
        raise ValueError(
            "teacher=... is missing; name the run to learn from: armodels distill RUN"
        )
    coverage = distilling.COVERAGE if coverage is None else coverage
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if key.split(".")[0] == "data":
            raise ValueError(f"{key} is no key of armodels distill: a student has its teacher's")
    if not any(word.startswith("model=") for word in words):
        words = [STUDENT, *words]
    teacher = os.path.abspath(config["teacher"])
    first = _composed(compose, [*words, f"teacher={show.hydra(teacher)}"], "outputs")
    taken = checkpoints.restore(teacher, trust=first["trust"])
    # The teacher's run may be a stranger's: its data are not what this command names itself.
    construct.source(taken.config["data"], taken.trust)
    choices = {**first["choices"], "data": taken.config["choices"]["data"]}
    own = [] if config["coverage"] is None else [f"coverage={coverage:g}"]
    typed = [*first["overrides"], *own]
    name = names.run_name(typed, first["seed"], name=first["name"])
    place = config["out"] or os.path.join("outputs", choices["data"], choices["model"], name)
    known = {"run": teacher, "coverage": coverage}
    changed = {"teacher": known, "data": taken.config["data"], "choices": choices}
    train({**first, **changed, "overrides": typed, "directory": place})


def _composed(compose: Compose, words: Sequence[str], directory: str) -> dict:
    """The config of these words; what is wrong with them is said as of a training."""
    try:
        return compose(words, directory)
    except Exception as error:
        sentence = errors.explain(error, "train", [*words])
    raise ValueError(sentence)
