"""armodels score: the log-likelihood of every single example."""

from collections.abc import Mapping
from pathlib import Path

from armodels import disk, show
from armodels.evaluation import log_probs
from armodels.examples import asked_for
from armodels.spec import bits_per_dim, nats


def main(config: Mapping) -> None:
    """Write one row an example: index, nats, bits/dim."""
    restored, spec, examples = asked_for(config, mark="index,nats,bits_per_dim")
    values = log_probs(
        restored.model,
        examples,
        config["eval"]["batch_size"],
        progress=True,
        name=config["split"],
    )
    path = Path(
        config["out"]
        or restored.folder_for(None).parent / f"scores-{spec.name}-{config['split']}.csv"
    )
    rows = [(i, nats(v, spec), bits_per_dim(v, spec)) for i, v in enumerate(values.tolist())]
    disk.write_csv(path, ["index", "nats", "bits_per_dim"], rows)
    show.say(f"from   {restored.origin}")
    possible = values[values.isfinite()]
    if len(possible) < len(values):
        first = int((~values.isfinite()).nonzero()[0])
        show.warn(
            f"row {first} of {config['split']} is impossible under the model "
            f"(log p = {float(values[first])}); of such rows there are "
            f"{len(values) - len(possible)}, and the mean is that of the others"
        )
    if len(possible):
        mean = float(possible.mean())
        show.say(f"mean   {nats(mean, spec):.4f} nats, {bits_per_dim(mean, spec):.4f} bits/dim")
    show.say(f"wrote  {path} ({len(values)} examples)")
