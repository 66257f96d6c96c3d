"""armodels export: a trained model as files that others read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armodels import card, checkpoints, checks, exported, search, show
from armodels.run import RunDirectory
from armodels.trust import trusting

_HERE = ("directory", "resume", "out", "trust", "logger", "skip_done", "on_error")
"""Keys of a run's config that say where it was, and nothing of the model."""

_UNTYPED = ("out=", "resume=", "skip_done=", "on_error=", "logger=", "hydra.")
"""What a command that trains the model again does not say."""


def main(config: Mapping[str, Any]) -> None:
    """Write the folder.

    Raises:
        FileNotFoundError: There is no such run.
        FileExistsError: The folder holds something.
        ValueError: The run is damaged or names a class that is not trusted, or the folder cannot
            be made.
    """
    out, weights = Path(config["out"]), config["eval"]["weights"]
    exported.require_vacant(out)
    checkpoints.check_weights(weights)
    file = checkpoints.find_checkpoint(config["run"], config["checkpoint"])
    if file.name == exported.WEIGHTS:
        raise ValueError(f"{file.parent} is exported already; copy the folder")
    state = checkpoints.load_checkpoint(file)
    saved, spec = state["config"], checkpoints.spec_of(state, file)
    exported.require_tensors(state["model"])
    model = None
    if saved.get("model"):  # else armodels.fit got it ready made
        options = {"weights": weights, "trust": config["trust"]}
        model = checkpoints.restore(file, **options).model
    average = state["ema"] if weights == "ema" else None
    used = "ema" if average else "raw"
    metrics = _metrics(file, state, used)
    kept = {key: value for key, value in saved.items() if key not in _HERE}
    name = str((saved.get("choices") or {}).get("model", "model"))
    about = card.About(
        name=name,
        description=name if model is None else model.description,
        config=saved,
        spec=spec,
        weights=used,
        step=state["step"],
        metrics=metrics,
        commands=[] if model is None else _commands(saved),
        folder=str(config["out"]),
        context=model.context.name if model is not None and model.context else None,
        trust={} if model is None else trusting(saved),
    )
    exported.write(
        out,
        exported.merged(state["model"], average),
        {
            "weights": used,
            "checkpoint": file.stem,
            "step": state["step"],
            "config": kept,
            "spec": spec.to_dict(),
        },
        card.card(about),
    )
    for one in (exported.WEIGHTS, exported.CONFIG, exported.CARD):
        show.say(f"wrote  {out / one}")
    if places := sorted(_places(kept)):
        show.say(f"note   {exported.CONFIG} names {', '.join(places)}; so will who publishes it")
    if model is not None:
        show.say()
        show.say("Next:")
        show.say(f"  {show.command('eval', run=out, split='test', **about.trust)}")


def _commands(config: Mapping[str, Any]) -> list[str]:
    """By which a run was trained: one, or more where it went on under other values."""
    resumed = config.get("resumed") or []
    begun = resumed[0]["overrides"] if resumed else config.get("overrides") or []
    begun = [one for one in begun if not one.lstrip("+").startswith(_UNTYPED)]
    if not resumed:
        return [search.command(begun)]
    changes = [search.command(["resume=again", *one["changes"]]) for one in resumed]
    return [search.command([*begun, "out=again"]), *changes]


def _metrics(file: Path, state: Mapping[str, Any], weights: str) -> dict | None:
    """The numbers of a run, where they are of these very weights; else None."""
    if file.parent.name != "checkpoints" or file.stem != "best":
        return None
    metrics = RunDirectory(file.parent.parent).read_metrics() or {}
    best = (state.get("state") or {}).get("best_step")
    same = best is not None and metrics.get("best_step") == best
    return metrics if same and metrics.get("weights") == weights else None


def _places(node: Any, key: str = "") -> set[str]:
    """Absolute paths that a config names."""
    if isinstance(node, Mapping):
        return set().union(*(_places(value, str(name)) for name, value in node.items()))
    if isinstance(node, (list, tuple)):
        return set().union(*(_places(value, key) for value in node))
    named = key in (*checks.PATH_KEYS, "run") and isinstance(node, str)
    return {show.clean(node)} if named and os.path.isabs(node) else set()
