"""armodels sample: a grid and the values of samples from a trained model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armodels import charts, checkpoints, construct, contexts, disk, pictures, roads, show, views
from armodels.data.rows import Examples
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.mixture import OrderMixture
from armodels.density.stream import with_length
from armodels.examples import draw_examples, load_split
from armodels.prompts import num_values
from armodels.spec import ContextSpec, DataSpec, described

MAX_ROWS = 8
"""Samples that are shown in several columns: of temperatures, or of moments of their draw."""

MAX_ACROSS = 16
"""Classes that are drawn one beside the other."""


def labels(wanted: ContextSpec | None, label: int | None, num: int) -> Tensor | None:
    """One label for each of ``num`` samples, every class in turn where none is given.

    Args:
        wanted: The context of the model; None: it has none.
        label: The only class; None: all in turn.
        num: Samples.

    Raises:
        ValueError: A label is given to a model that knows none, or there is no such class.
    """
    if label is not None:
        return torch.full((num,), contexts.label(wanted, label))
    return None if wanted is None or wanted.shape else torch.arange(num) % wanted.num_classes


def nearest(x: Tensor, train: Examples, num: int) -> tuple[Tensor, Tensor]:
    """Training examples nearest to each sample, by Euclidean distance.

    Args:
        x: (N, *event).
        train: M of them.
        num: How many of them.

    Returns:
        Their rows (N, num) and distances (N, num), nearest first.
    """
    flat = x.flatten(1).float()
    parts = [torch.cdist(flat, part.x.flatten(1).float()) for part in train.batches(10_000)]
    distances, rows = torch.cat(parts, 1).topk(num, largest=False)
    return rows, distances


def main(config: Mapping) -> None:
    """Draw samples; write NPZ, and what else the kind of data is shown as.

    Raises:
        ValueError: What is asked for does not go together, or with the model.
    """
    disk.require_place(config["out"])
    several = config["temperatures"]
    alone = several is None or config["temperature"] == 1
    if not alone or (several is not None and not 1 < len(several) == len(set(several))):
        raise ValueError(
            f"temperatures is {several}; name several, each once, and leave temperature out"
        )
    restored = checkpoints.from_config(config)
    _require_pictures(restored, config)
    drawn = [_draw_at(restored, config, one) for one in several or [config["temperature"]]]
    if len(drawn) > 1 and restored.spec.kind == "image":
        beside(drawn, several, restored, config)


def stem(config: Mapping, middle: str, spec: DataSpec) -> str:
    """Name of the files of a draw, without their ending: what draws other samples is part of it.

    Args:
        config: Of the verb.
        middle: What the files are of: a temperature, or several.
        spec: Of the events.
    """
    name = f"sample-seed{config['seed']}-{middle}"
    if config["sampler"] == "speculative":  # other samples, of the same distribution
        name += "-speculative"
    for key in ("top_k", "top_p"):
        if config[key] is not None:
            name += f"-{key}{config[key]:g}"
    if (num_orders := config["eval"]["num_orders"]) is not None:
        name += f"-orders{num_orders}"
    if config["label"] is not None:
        name += f"-label{config['label']}"
    if config["length"] is not None:
        name += f"-length{spec.num_dims // spec.unit_size}"
    return name


def _require_pictures(restored: checkpoints.Restored, config: Mapping) -> None:
    """Raise ValueError unless the model has the pictures that are asked for."""
    spec, steps = restored.spec, restored.model.steps_of_values
    drawn = spec.levels is not None and not (spec.alphabet or spec.waveform or spec.notes)
    if config["film"] is not None and not (drawn and steps is not None):
        raise ValueError(
            f"film shows pictures and rows of levels as one order writes them, but the model is "
            f"{restored.model.description} of {spec.name}; leave it out"
        )
    if config["entropy"] and not (spec.kind == "image" and spec.levels and steps is not None):
        raise ValueError(
            f"entropy is drawn of images with levels under one order, but the model is "
            f"{restored.model.description} of {spec.name}; leave it out"
        )


def beside(
    drawn: Sequence[Tensor],
    temperatures: Sequence[float],
    restored: checkpoints.Restored,
    config: Mapping,
) -> None:
    """A picture of the first samples, a column each temperature, a row each noise.

    Args:
        drawn: (N, *event) of each temperature.
        temperatures: Of them.
        restored: The model.
        config: Of the verb.
    """
    spec, titles = restored.spec, [(f"t {one:g}", 1) for one in temperatures]
    rows = torch.stack([x[:MAX_ROWS] for x in drawn], 1).flatten(0, 1)
    picture = pictures.events(rows, spec, columns=len(drawn), titles=titles)
    path = restored.folder_for(config["out"]) / f"{stem(config, 'temperatures', spec)}.png"
    _draw(picture, path, " (a column each temperature, a row each noise)")


def _draw_at(restored: checkpoints.Restored, config: Mapping, temperature: float) -> Tensor:
    """Draw samples at a temperature, write them, and return them."""
    num, inputs = config["num"], config["num_inputs"]
    if temperature == 0:
        show.say("temperature 0 follows the mode: expect (nearly) equal samples")
    model, wanted = restored.model, restored.model.context
    sampler = roads.sampler_of(config, restored)
    if config["length"] is not None:
        if config["num_neighbours"]:
            raise ValueError(
                "num_neighbours compares samples with windows of the data, which have one length; "
                "leave out length"
            )
        model = with_length(model, num_values(config["length"], model.spec))
    spec = model.spec
    context, truth = labels(wanted, config["label"], num), None
    if wanted is not None and wanted.shape:
        drawn = draw_examples(restored, min(inputs, num), config["seed"])
        truth, times = drawn.x, num // len(drawn.x)
        num = len(truth) * times
        context = drawn.repeat_interleave(times).context
    x, log_prob = model.sample_with_log_prob(
        num,
        context=None if context is None else context.to(restored.device),
        temperature=temperature,
        generator=torch.Generator().manual_seed(config["seed"]),
        progress=True,
        **roads.options(sampler),
        **likely(config, restored),
    )
    x, log_prob = x.cpu(), log_prob.cpu()
    folder = restored.folder_for(config["out"])
    name = stem(config, f"t{temperature:g}", spec)
    found: dict[str, Tensor | None] = {
        "x": spec.original(x),
        "log_prob": log_prob + spec.log_det,
        "context": context,
        "truth": None if truth is None else spec.original(truth),
    }
    neighbours = None
    if config["num_neighbours"]:
        _, train = load_split(restored, {}, "train")
        rows, found["distances"] = nearest(x, train, config["num_neighbours"])
        neighbours = train[rows.flatten()].x.unflatten(0, rows.shape)
        found["neighbours"] = spec.original(neighbours.flatten(0, 1)).view_as(neighbours)
    arrays: dict[str, Any]  # NumPy declares that each may be allow_pickle
    arrays = {key: value.numpy() for key, value in found.items() if value is not None}
    arrays |= roads.numbers(sampler)
    with disk.atomic(folder / f"{name}.npz") as file:
        np.savez_compressed(file, **arrays)
    show.say(f"from   {restored.origin}")
    mean = float(log_prob.double().mean())
    show.say(f"mean   {described(mean, spec)}")
    roads.tell(sampler)
    show.say(f"wrote  {folder / name}.npz")
    if spec.columns is not None:
        disk.write_csv(folder / f"{name}.csv", spec.columns, arrays["x"].tolist())
        show.say(f"wrote  {folder / name}.csv")
    path = folder / f"{name}.png"
    if truth is not None and context is not None and wanted is not None:
        _draw(answers(truth, context, x, wanted, spec), path, " (context, drawn, true)")
    else:
        titles, classes = views.titles(wanted, context), 0
        if wanted is not None and wanted.num_classes <= MAX_ACROSS and config["label"] is None:
            classes = wanted.num_classes
        about = reference(restored) if config["length"] is None else {}
        shown = views.view(x, spec, titles=titles, classes=classes, **about)
        views.tell(views.save(shown, folder / name))
    if neighbours is not None:
        show.say(f"nearest training examples: mean distance {arrays['distances'].mean():.3f}")
        rows = torch.cat([x[:, None], neighbours.to(x.dtype)], 1)
        each = rows.shape[1]
        times = 4 if each <= 4 and spec.kind == "image" else 1
        spans = [("sample", 1), ("nearest", each - 1)] * times
        picture = pictures.events(rows.flatten(0, 1), spec, columns=each * times, titles=spans)
        _draw(picture, folder / f"{name}-neighbours.png", " (sample, nearest training examples)")
    _draw_steps(x, context, restored, config, folder / name)
    return x


def likely(config: Mapping, restored: checkpoints.Restored) -> dict[str, Any]:
    """Which levels may be drawn, as far as something is said of it.

    Args:
        config: Of the verb.
        restored: The model.

    Raises:
        ValueError: The model draws by no levels.
    """
    found = {key: config[key] for key in ("top_k", "top_p") if config[key] is not None}
    if found and not isinstance(restored.model, (AutoregressiveModel, OrderMixture)):
        raise ValueError(
            f"top_k and top_p choose among the levels of a step, but {restored.model.description} "
            f"draws all values at once; leave them out"
        )
    return found


def _draw_steps(
    x: Tensor,
    context: Tensor | None,
    restored: checkpoints.Restored,
    config: Mapping,
    stem: Path,
) -> None:
    """How the first samples came to be, and where the model was open, where it is asked for."""
    spec, steps = restored.spec, restored.model.steps_of_values
    if config["film"] is not None and steps is not None:
        film = pictures.film(x[:MAX_ROWS], steps, spec, config["film"])
        _draw(film, stem.with_name(f"{stem.name}-film.png"), " (after so many of the steps)")
    if config["entropy"]:
        some = x[:MAX_ROWS].to(restored.device)
        heard = None if context is None else context[:MAX_ROWS].to(restored.device)
        with torch.no_grad():
            entropy = restored.model.entropy_map(some, heard)
        if entropy is not None:
            path = stem.with_name(f"{stem.name}-entropy.png")
            maps = pictures.entropies(entropy, spec.num_levels)
            _draw(maps, path, " (entropy of each pixel given those before it)")


def reference(restored: checkpoints.Restored) -> dict:
    """What samples of the model are drawn beside, as far as its data is here."""
    if not charts.is_table(restored.spec):
        return {}
    try:
        _, examples = load_split(restored, {}, "train")
        data = examples.x[:]
        splits = construct.source(restored.config["data"], restored.trust).load()
    except (OSError, ValueError) as error:
        show.warn(f"samples are drawn without the data beside them: {error}")
        return {}
    if splits.box is None or restored.model.context is not None:
        return {"data": data}

    def log_prob(points: Tensor) -> Tensor:
        return restored.model.log_prob(points.to(restored.device)) + restored.spec.log_det

    return {"box": splits.box, "true_log_prob": splits.true_log_prob, "log_prob": log_prob}


def answers(
    truth: Tensor, context: Tensor, x: Tensor, condition: ContextSpec, spec: DataSpec
) -> Tensor | None:
    """A picture of the conditions, several answers, and the truth, a row each.

    Args:
        truth: (N, *event).
        context: (N A, *context).
        x: (N A, *event), those of one input side by side.
        condition: What the context is; one that is no image is left out.
        spec: Of the events.
    """
    x = x.unflatten(0, (len(truth), -1))
    image = pictures.as_event(context[:: x.shape[1]], condition, spec)
    parts = [x, truth[:, None]] if image is None else [image[:, None], x, truth[:, None]]
    titles = [("context", 1), ("drawn", x.shape[1]), ("true", 1)][image is None :]
    rows = torch.cat(parts, 1)
    return pictures.events(rows.flatten(0, 1), spec, columns=rows.shape[1], titles=titles)


def _draw(picture: Tensor | None, path: Path, caption: str = "") -> None:
    """Write a picture, where the kind of data has one."""
    if picture is not None:
        with disk.atomic(path) as file:
            pictures.save(picture, file)
        show.say(f"wrote  {path}{caption}")
