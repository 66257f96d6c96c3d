"""armodels eval: the exact likelihood of a split."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from armodels import disk, machine, show
from armodels.checkpoints import Restored
from armodels.checks import num_processes
from armodels.density.stream import describe_past
from armodels.evaluation import NoMean, describe, evaluate
from armodels.examples import asked_for
from armodels.run import RunDirectory
from armodels.training.processes import make_fabric, together
from armodels.training.settings import Settings


def main(config: Mapping) -> None:
    """Evaluate a run or checkpoint on one split.

    Raises:
        ValueError: An example has no finite log-probability, so that there is no mean.
    """
    fabric = make_fabric(Settings(accelerator=config["device"])) if num_processes() > 1 else None
    restored, spec, examples = asked_for(config, mark='"trained_on"')
    split, adapt = config["split"], config["adapt"]
    started = time.monotonic()
    try:
        with together(fabric) if fabric else contextlib.nullcontext():
            result = evaluate(
                restored.model,
                examples,
                config["eval"]["batch_size"],
                fabric=fabric,
                keep=restored.partial,
                progress=not show.muted,
                name=split,
                adapt_lr=config["eval"]["adapt_lr"] if adapt else None,
            )
    except NoMean as error:
        every = show.command("score", run=config["run"], split=split)
        raise ValueError(f"{error}, so there is no mean; see every row with: {every}") from error
    if fabric and not fabric.is_global_zero:
        return
    measure = restored.model.spec.measure
    report = {
        "data": spec.name_with(restored.model.context),
        "trained_on": restored.spec.name,
        "model": restored.model.description,
        "split": split,
        "measure": measure,
        "num_dims": spec.num_dims,
        "levels": spec.levels,
        "weights": restored.weights,
        "checkpoint": str(restored.path),
        **({"adapted": result.report(spec)} if adapt else result.report(spec)),
        "seconds": time.monotonic() - started,
        "overrides": config["overrides"],
        "environment": machine.environment(),
    }
    about = f"D = {spec.num_dims}, levels {spec.levels}, {measure}"
    show.say(f"data   {report['data']} ({about})")
    show.say(f"model  {report['model']}{describe_past(restored.model)}")
    show.say(f"from   {restored.origin}")
    show.say(describe(split, result.report(spec), spec))
    if config["out"]:
        disk.write_json(Path(config["out"]), report)
        show.say(f"wrote  {config['out']}")
    if adapt:
        _keep(restored, config, f"{split}_adapted", report)


def _keep(restored: Restored, config: Mapping, name: str, report: Mapping) -> None:
    """Say what the number of a model that learns is, and keep it beside those of its run.

    Args:
        restored: The model, as it was before.
        config: Of the verb.
        name: Of the number in metrics.json.
        report: What was found.

    Raises:
        BlockingIOError: The run is being trained.
    """
    show.say(
        "       adapted: each symbol was scored before a copy of the model learned from it, so "
        "that this is no number of the model as it stays"
    )
    own = "_target_" not in config["data"] and restored.path.name == "best.pt"
    folder = restored.path.parent.parent
    if not own or restored.path.parent.name != "checkpoints":
        return
    run = RunDirectory(folder)
    if run.read_metrics() is None:
        return
    with run.claimed(new=False):  # or what a training writes meanwhile would be lost
        about = {"adapt_lr": config["eval"]["adapt_lr"], "seconds": report["seconds"]}
        run.write_metrics({**(run.read_metrics() or {}), name: {**report["adapted"], **about}})
    show.say(f"wrote  {folder / 'metrics.json'} ({name})")
