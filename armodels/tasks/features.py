"""armodels features: hidden activations of a network for each example, and linear probes."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from armodels import checkpoints, disk, features, show
from armodels.checks import require_together
from armodels.data.base import PARTS
from armodels.data.rows import Examples, Rows
from armodels.examples import load_splits
from armodels.networks.base import Network
from armodels.spec import ContextSpec, DataSpec

COLUMNS = ("features", "width", "C", "valid_accuracy", "test_accuracy", "interval95")

WAYS = {
    "layers=[...]": ("out", "target", "probe", "num_examples", "eval.batch_size"),
    "the list of layers": (),
}
"""What is written or shown, and the keys that say how."""


def main(config: Mapping) -> None:
    """Write a file of features a layer, and the accuracy of a probe of each.

    Raises:
        ValueError: The model has no network, a layer is none, the data has no such label, or what
            is asked for does not go together.
    """
    disk.require_place(config["out"])
    if not config["probe"] and config["target"] is not None:
        raise ValueError(
            f"target={config['target']} is what probes predict, and probe=false makes none; leave "
            f"one of them out"
        )
    if config["layers"] and len(config["layers"]) != len({*config["layers"]}):
        raise ValueError(f"layers is {config['layers']}; name each layer once")
    way = "layers=[...]" if config["layers"] else "the list of layers"
    require_together(config["overrides"], way, WAYS)
    restored = checkpoints.from_config(config)
    if restored.model.context is not None:
        raise ValueError(
            f"{restored.model.description} is conditioned on {restored.model.context.name}, which "
            f"its features would hold; train one without a context"
        )
    net = features.network_of(restored.model)
    name = config["target"]
    spec, splits = load_splits(
        restored, config["data"], PARTS, beside=lambda spec: _target(spec, name)
    )
    target = _target(spec, name)
    chosen = _chosen(net, splits["valid"], config["layers"])
    if chosen is None:
        return
    values = {part: _values(one, config["num_examples"]) for part, one in splits.items()}
    labels = {part: _labels(one, len(values[part])) for part, one in splits.items()}
    found = {
        part: features.extract(
            net, each, chosen, batch_size=config["eval"]["batch_size"], name=part
        )
        for part, each in values.items()
    }
    folder = Path(config["out"] or restored.folder_for(None).parent / "features")
    folder.mkdir(parents=True, exist_ok=True)
    show.say(f"from   {restored.origin}")
    for layer in chosen:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{spec.name}-{layer}")
        each = {part: found[part][layer] for part in PARTS}
        held = {part: one for part, one in labels.items() if one is not None}
        with disk.atomic(folder / f"{name}.npz") as file:
            np.savez_compressed(file, **features.as_arrays(each, held))  # type: ignore[arg-type]
        sizes = " / ".join(f"{len(one):,}" for one in each.values())
        show.say(
            f"wrote  {folder / name}.npz ({sizes} examples of train / valid / test, "
            f"{each['train'].shape[1]} features)"
        )
    if config["probe"]:
        _probe(folder, spec, found, values, labels, target)


def _target(spec: DataSpec, name: str | None) -> ContextSpec | None:
    """The label that probes predict; None: the data has none.

    Raises:
        ValueError: The data has no such label.
    """
    there = [one for one in spec.contexts if not one.shape and one.levels is not None]
    if name is None:
        return there[0] if there else None
    for one in there:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in there)
    raise ValueError(
        f"target is {name!r}, but {spec.name} has "
        + (f"the labels {names}" if names else "no labels")
    )


def _chosen(
    net: Network, examples: Examples, named: Sequence[str] | None
) -> dict[str, int] | None:
    """The layers that are named, as ``features.layers`` has them; None: all were listed.

    Raises:
        ValueError: One of them is no layer.
    """
    there = features.layers(net, examples[:3].x.to(net.order_table.device))
    if not there:
        raise ValueError(
            f"network {type(net).__name__} has no module with activations to listen to"
        )
    if not named:
        show.say(f"layers of {type(net).__name__}, of which layers=[...] names some:")
        for name in there:
            show.say(f"  {name}")
        return None
    for name in named:
        if name not in there:
            close = difflib.get_close_matches(name, there, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"layers names {name!r}; {hint}choose from {', '.join(there)}")
    return {name: there[name] for name in named}


def _values(examples: Examples, num: int | None) -> Rows | Sequence[Rows]:
    """Events of a split, or its whole sequences where these have labels; the first ``num``."""
    if examples.pieces and examples.piece_context is not None:
        return [piece[:] for piece in examples.pieces[:num]]
    return examples.x if num is None else examples.x[:num]


def _labels(examples: Examples, num: int) -> Tensor | None:
    """Of the first ``num`` events or sequences; None: there are none."""
    labels = examples.piece_context if examples.pieces else examples.context
    return None if labels is None else labels[:num].long()


def _probe(
    folder: Path,
    spec: DataSpec,
    found: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Rows | Sequence[Rows]],
    labels: Mapping[str, Tensor | None],
    target: ContextSpec | None,
) -> None:
    """Write and print the accuracy of each layer, of the values, and of their components.

    Args:
        folder: For the file.
        spec: What a datum is.
        found: Split -> layer -> features.
        values: Split -> events or sequences.
        labels: Split -> labels.
        target: What they are.
    """
    held = [one for one in labels.values() if one is not None]
    if target is None or len(held) < len(labels):
        show.warn(f"{spec.name} has no labels here, so that nothing is probed")
        return
    if len(held[0].unique()) < 2:
        raise ValueError(f"the training examples have one {target.name} alone; take more of them")
    each = {layer: [found[part][layer] for part in PARTS] for layer in found["train"]}
    plain = [features.raw(values[part], spec) for part in PARTS]
    for name in plain[0]:
        own = [one[name] for one in plain]
        each[name] = own
        for width in sorted(
            {one[0].shape[1] for one in list(each.values())[: len(found["train"])]}
        ):
            parts = features.pca(own, width)
            each[f"{name}, {parts[0].shape[1]} principal components"] = parts
    done = [features.probe(name, parts, held) for name, parts in each.items()]
    path = folder / f"probes-{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.name)}-{target.name}.csv"
    disk.write_csv(path, COLUMNS, done)
    wide = max(len(one.features) for one in done)
    classes = target.num_classes
    show.say(f"accuracy of {target.name} ({classes} classes) on test, C chosen on valid:")
    for one in done:
        show.say(
            f"  {one.features:<{wide}}  {one.width:>5} wide  {one.test:.4f} ± {one.interval:.4f}  "
            f"(valid {one.valid:.4f}, C={one.strength:g})"
        )
    show.say(f"wrote  {path}")
