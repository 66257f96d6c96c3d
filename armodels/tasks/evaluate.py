"""armodels eval: the exact likelihood of a split."""

import time
from collections.abc import Mapping
from pathlib import Path

from armodels import disk, machine, show
from armodels.density.stream import describe_past
from armodels.evaluation import NoMean, describe, evaluate
from armodels.examples import asked_for


def main(config: Mapping) -> None:
    """Evaluate a run or checkpoint on one split.

    Raises:
        ValueError: An example has no finite log-probability, so that there is no mean.
    """
    restored, spec, examples = asked_for(config, mark='"trained_on"')
    started = time.monotonic()
    try:
        result = evaluate(
            restored.model,
            examples,
            config["eval"]["batch_size"],
            progress=True,
            name=config["split"],
        )
    except NoMean as error:
        every = show.command("score", run=config["run"], split=config["split"])
        raise ValueError(f"{error}, so there is no mean; see every row with: {every}") from error
    measure = restored.model.spec.measure
    report = {
        "data": spec.name_with(restored.model.context),
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
        "environment": machine.environment(),
    }
    about = f"D = {spec.num_dims}, levels {spec.levels}, {measure}"
    show.say(f"data   {report['data']} ({about})")
    show.say(f"model  {report['model']}{describe_past(restored.model)}")
    show.say(f"from   {restored.origin}")
    show.say(describe(config["split"], report, spec))
    if config["out"]:
        disk.write_json(Path(config["out"]), report)
        show.say(f"wrote  {config['out']}")
