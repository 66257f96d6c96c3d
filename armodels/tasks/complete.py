"""armodels complete: draw the unknown part of examples given the known part."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armodels import charts, checkpoints, construct, contexts, disk, pictures, roads, show, views
from armodels.checks import require_together
from armodels.data.rows import Batch
from armodels.density.completion import DISTRUST, Completion
from armodels.density.samplers import Sampler
from armodels.density.stream import reads
from armodels.examples import draw_examples
from armodels.parts import known_names, known_part, read_image, read_mask, require_word
from armodels.prompts import go_on, name_of, num_values, read_prompt
from armodels.spec import ContextSpec, DataSpec

LARGEST_BATCH = 100_000
"""So many events, each as often as it has particles, are completed at a time."""

TABLE_PARTICLES = 100
"""Of a table, whose rows are short; pictures take as many only where it is said."""


def _context_of(
    x: Tensor, label: int | None, wanted: ContextSpec | None, spec: DataSpec
) -> Tensor | None:
    """What the model is conditioned on where it completes the image ``x`` (1, *event)."""
    if label is not None:
        return torch.full((1,), contexts.label(wanted, label))
    if wanted is not None and not wanted.shape:
        raise ValueError(
            f"the model is conditioned on a label; give the image's: label=0 to "
            f"label={wanted.num_classes - 1}"
        )
    return None if wanted is None else contexts.derive(wanted.name, x, spec)


def fill(
    restored: checkpoints.Restored,
    x: Tensor,
    known: Tensor,
    config: Mapping,
    sampler: Sampler,
) -> tuple[Tensor, list[Completion]]:
    """Draw the unknown cells of rows, each given its own known ones.

    Rows that lack the same cells are completed together: what is known of them may come first in
    the order, which is then exact.

    Args:
        restored: The model.
        x: (N, D).
        known: (N, D) boolean.
        config: Of the verb: num_completions, num_particles, temperature and seed.
        sampler: Which walk is taken.

    Returns:
        (N, A, D) for A answers, and how each batch of rows was completed.
    """
    answers, particles = config["num_completions"], config["num_particles"]
    filled, done = x[:, None].repeat(1, answers, 1), []
    generator = torch.Generator().manual_seed(config["seed"])
    patterns, which = known.unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        if pattern.all():
            continue
        rows = (which == i).nonzero().flatten()
        for batch in rows.split(max(1, LARGEST_BATCH // (answers * particles))):
            result = restored.model.complete(
                filled[batch].flatten(0, 1).to(restored.device),
                pattern.to(restored.device),
                num_particles=particles,
                temperature=config["temperature"],
                generator=generator,
                progress=True,
                **roads.options(sampler),
            )
            filled[batch] = result.values.cpu().unflatten(0, (-1, answers))
            done.append(result)
    return filled, done


def fill_table(config: Mapping, restored: checkpoints.Restored) -> None:
    """Fill the cells that rows of a table lack; write the table as CSV, what is there as it is.

    Raises:
        ValueError: The model is of no table, or the file does not suit it.
    """
    spec, answers = restored.spec, config["num_completions"]
    config = _with_particles(config, spec)
    if spec.columns is None or restored.model.context is not None:
        raise ValueError(f"table=FILE is for a model of a table, not one of {spec.name}")
    if not (path := Path(config["table"])).is_file():
        raise FileNotFoundError(f"table {path} {disk.trouble(path)}; name a file with table")
    source = {**restored.config["data"], "path": config["table"]}
    source |= {"columns": list(spec.columns), "drop": []}
    _, rows = construct.source(source, restored.trust).whole(missing=True)
    known = ~rows.isnan()
    # Any value in the support may stand where none is known.
    anything = spec.original(torch.zeros(1, spec.num_dims, dtype=spec.dtype)).double()
    sampler = roads.sampler_of(config, restored)
    x, done = fill(
        restored, spec.encoded(torch.where(known, rows, anything)), known, config, sampler
    )
    show.say(f"from   {restored.origin}")
    roads.tell(sampler)
    for method in sorted({one.method for one in done}):
        same = [one for one in done if one.method == method]
        apart = [one.disagreement for one in same if one.disagreement is not None]
        _tell(
            f"drawn  {sum(len(one.values) for one in same) // answers} rows,",
            replace(
                same[0],
                effective_sample_size=torch.cat([one.effective_sample_size for one in same]),
                disagreement=torch.cat(apart) if apart else None,
                order_chosen=any(one.order_chosen for one in same),
            ),
            config,
        )
    if not done:
        show.warn(f"no row of table {config['table']} lacks a cell")
    whole = torch.where(known[:, None], rows[:, None], spec.original(x.flatten(0, 1)).view_as(x))
    cells = (whole if spec.levels is None else whole.long()).flatten(0, 1).tolist()
    names = [*spec.columns]
    if answers > 1:
        names = ["row", "answer", *names]
        cells = [[i // answers + 1, i % answers + 1, *row] for i, row in enumerate(cells)]
    stem = Path(config["table"]).name.split(".")[0]
    name = f"{stem}-filled-seed{config['seed']}{_drawn(config)}.csv"
    path = restored.folder_for(config["out"]) / name
    disk.write_csv(path, names, cells)
    show.say(f"wrote  {path} ({len(rows)} rows, {int((~known).sum())} cells filled)")


def complete_tune(config: Mapping, restored: checkpoints.Restored, tune: Tensor) -> None:
    """Draw what a user's tune lacks, by a model of windows: what follows it, or other voices.

    Of a tune that goes on, the model hears as many of the last frames as its window has room for.

    Args:
        config: Of the verb; where ``known`` names voices, the tune has these alone.
        restored: The model.
        tune: Frames (t, F).

    Raises:
        ValueError: The tune, or what is asked for, does not fit into a window.
    """
    spec, known, answers = restored.spec, config["known"], config["num_completions"] or 1
    config, size = _with_particles(config, spec), spec.unit_size
    window, total = spec.num_dims // size, len(tune)
    if config["top_k"] is not None or config["top_p"] is not None:
        raise ValueError("top_k and top_p go with a model that reads, such as model=frames")
    if isinstance(known, str):
        length = num_values(config["length"], spec) // size if config["length"] else window // 2
        if not 0 < length < window:
            raise ValueError(
                f"length is {length} frames, but the model draws windows of {window}: choose "
                f"fewer, or train it with a larger data.length"
            )
        heard, columns, parts = min(total, window - length), [*range(size)], ["prompt"]
    else:
        if total > window:
            raise ValueError(
                f"the prompt has {total} frames, but the model draws windows of {window}: cut it, "
                f"or train the model with a larger data.length"
            )
        length, heard, parts = 0, total, ["prompt", *known]
        columns = [spec.names.index(name) for name in known]
    x = torch.zeros(window, size, dtype=spec.dtype)
    mask = torch.zeros(window, size, dtype=torch.bool)
    x[:heard, columns], mask[:heard, columns] = tune[total - heard :].to(spec.dtype), True
    sampler = roads.sampler_of(config, restored)
    result = restored.model.complete(
        x.view(1, *spec.shape).repeat_interleave(answers, 0).to(restored.device),
        mask.view(spec.shape).to(restored.device),
        num_particles=config["num_particles"],
        temperature=config["temperature"],
        generator=torch.Generator().manual_seed(config["seed"]),
        progress=True,
        **roads.options(sampler),
    )
    drawn = result.values.cpu().view(answers, window, size)[:, : heard + length]
    whole, there = drawn, mask[: heard + length]
    if unheard := total - heard:
        before = tune[:unheard].to(spec.dtype)
        whole = torch.cat([before.expand(answers, -1, -1), drawn], 1)
        there = torch.cat([torch.ones_like(before, dtype=torch.bool), there])
    shape = spec.shape[:-2] + (len(there), size) if spec.names else (there.numel(),)
    longer = replace(spec, shape=shape)
    show.say(f"from   {restored.origin}")
    if unheard:
        show.say(f"heard  the last {heard} of {total} frames, as a window has {window} of them")
    _tell("method", result, config)
    roads.tell(sampler)
    shown = views.view(
        whole.view(answers, *shape), longer, known=there.view(shape), most_played=answers
    )
    folder = restored.folder_for(config["out"])
    views.tell(views.save(shown, folder / name_of(config, spec, parts)))


def _with_particles(config: Mapping, spec: DataSpec) -> Mapping:
    wanted = config["num_particles"]
    number = TABLE_PARTICLES if spec.columns is not None else 1
    return {**config, "num_particles": number if wanted is None else wanted}


ALL = ("temperature", "num_completions", "num_particles", "seed", *roads.KEYS)
WAYS = {
    "a prompt": (*ALL, "prompt", "prompt_file", "length", "label", "top_k", "top_p"),
    "voices of a prompt": (*ALL, "prompt", "prompt_file", "known"),
    "table=FILE": (*ALL, "table"),
    "image=FILE": (*ALL, "image", "label", "keep", "known", "mask"),
    "examples of the test split": (*ALL, "num", "keep", "known", "mask"),
}
"""What may be completed, and the keys that say how."""


def main(config: Mapping) -> None:
    """Complete examples; write a picture (truth, known part, answers) and NPZ.

    Raises:
        ValueError: What is asked for does not go together, or with the model.
    """
    disk.require_place(config["out"])
    restored = checkpoints.from_config(config)
    notes = restored.spec.notes
    if notes and notes.voices and not isinstance(config["known"], str):
        known_names(config["known"], restored.spec)  # refuses what is no voice
        named = tuple(config["known"])
        notes = replace(notes, size=len(named), voices=named)
    prompt = read_prompt(config, restored.spec, notes)
    if prompt is None and config["length"] is not None and reads(restored.model):
        prompt = np.zeros(0, np.uint8)  # it goes on from nothing
    file = next((f"{key}=FILE" for key in ("table", "image") if config[key]), None)
    way = file or "examples of the test split"
    if prompt is not None:
        voices = notes and notes.voices and not isinstance(config["known"], str)
        way = "voices of a prompt" if voices else "a prompt"
    require_together(config["overrides"], way, WAYS)
    if prompt is not None:
        if notes is None or reads(restored.model):
            go_on(restored, prompt, config)
        else:
            complete_tune(config, restored, torch.from_numpy(prompt).view(-1, notes.size))
        return
    answers = 7 if config["num_completions"] is None else config["num_completions"]
    if config["table"]:
        fill_table({**config, "num_completions": answers}, restored)
        return
    spec, seed = restored.spec, config["seed"]
    config = _with_particles(config, spec)
    known = config["known"]
    if isinstance(known, int):  # a column of a table without names
        known = [known]
    if config["mask"]:
        path = Path(str(config["mask"]))
        mask, known, what = read_mask(path, spec), path.name, path.stem
    else:
        require_word(config["overrides"], [known])
        mask = known_part(known, config["keep"], spec, seed)
        parts = [known, f"{config['keep']:g}"] if isinstance(known, str) else known
        what = "-".join(map(str, parts))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"complete-{what}-seed{seed}{_drawn(config)}")
    if config["image"]:
        truth = read_image(Path(config["image"]), spec)
        context = _context_of(truth, config["label"], restored.model.context, spec)
    else:
        truth, context = draw_examples(restored, config["num"], seed)
    sampler = roads.sampler_of(config, restored)
    repeated = Batch(truth, context).repeat_interleave(answers).to(restored.device)
    result = restored.model.complete(
        repeated.x,
        mask.to(restored.device),
        num_particles=config["num_particles"],
        context=repeated.context,
        temperature=config["temperature"],
        generator=torch.Generator().manual_seed(seed),
        progress=True,
        **roads.options(sampler),
    )
    values = result.values.cpu().unflatten(0, (-1, answers))  # (B, answers, *event)
    show.say(f"from   {restored.origin}")
    show.say(f"known  {known}, {mask.double().mean():.0%} of {spec.name}")
    _tell("method", result, config)
    roads.tell(sampler)
    folder = restored.folder_for(config["out"])
    arrays: dict[str, Any] = roads.numbers(sampler)  # NumPy declares that each may be allow_pickle
    with disk.atomic(folder / f"{name}.npz") as file:
        np.savez_compressed(
            file,
            truth=spec.original(truth).numpy(),
            known=mask.numpy(),
            completions=spec.original(values).numpy(),
            **arrays,
        )
    show.say(f"wrote  {folder / name}.npz")
    if spec.columns is not None:
        table = torch.cat([truth[:, None], values], 1)
        cells = spec.original(table.flatten(0, 1)).tolist()
        disk.write_csv(
            folder / f"{name}.csv",
            ["example", "answer", *spec.columns],
            [[i // (answers + 1), i % (answers + 1), *row] for i, row in enumerate(cells)],
        )
        show.say(f"wrote  {folder / name}.csv (answer 0 is the truth)")
    if spec.notes is not None:
        heard = [views.tune(x, mask, each, spec) for x, each in zip(truth, values, strict=True)]
        views.tell(views.save_each(heard, folder / name))
        return
    if spec.waveform is not None or spec.alphabet is not None:
        shown = [replace(views.view(each, spec), picture=None) for each in values]
        views.tell(views.save_each(shown, folder / name))
    picture, caption = draw(truth, mask, values, spec)
    if picture is not None:
        with disk.atomic(folder / f"{name}.png") as file:
            pictures.save(picture, file)
        show.say(f"wrote  {folder / name}.png ({caption})")


def draw(truth: Tensor, mask: Tensor, values: Tensor, spec: DataSpec) -> tuple[Tensor | None, str]:
    """A picture of answers (N, A, *event) beside what is true and known, and what it shows.

    Args:
        truth: Events (N, *event).
        mask: True where a value is known, (*event) or (N, *event).
        values: Answers (N, A, *event).
        spec: What a datum is.
    """
    picture: Tensor | None
    if charts.is_table(spec):
        picture = charts.completions(truth, mask, values, spec)
        return picture, "drawn, known and true values of each column"
    rows = torch.cat([truth[:, None], truth[:, None], values], 1)
    known = torch.ones_like(rows, dtype=torch.bool)
    known[:, 1] = mask
    picture = pictures.events(
        rows.flatten(0, 1),
        spec,
        columns=rows.shape[1],
        titles=[("true", 1), ("known", 1), ("drawn", values.shape[1])],
        known=known.flatten(0, 1),
    )
    return picture, "true, known with the rest hatched, drawn"


def _drawn(config: Mapping) -> str:
    """End of the name of what is drawn at another temperature, of other orders, or by a draft."""
    heat, num_orders = config["temperature"], config["eval"]["num_orders"]
    name = "" if heat == 1 else f"-t{heat:g}"
    name += "" if num_orders is None else f"-orders{num_orders}"
    return name + "-speculative" * (config["sampler"] == "speculative")


def _tell(what: str, result: Completion, config: Mapping) -> None:
    particles, heat = config["num_particles"], config["temperature"]
    heated = "" if heat == 1 else f", each value drawn at temperature {heat:g}"
    show.say(f"{what} {result.method}{_meaning(result, heated)}")
    if heat == 0:
        show.say("temperature 0 follows the mode: expect (nearly) equal answers")
    if (doubt := distrusted(result, particles)) is not None:
        show.warn(doubt)


def _meaning(result: Completion, heated: str) -> str:
    if result.method == "clamped":
        return (
            ": known values that come late in the order did not inform the earlier ones; "
            "raise num_particles"
        )
    if result.method == "exact":
        chosen = ", under the order that was chosen for it (the known part first)"
        answer = (
            f"is given all that is known{heated}"
            if heated
            else "is a draw from p(unknown | known)"
        )
        return f": every answer {answer}" + chosen * result.order_chosen
    effective = result.effective_sample_size
    chosen = ", under orders that were chosen to put most of what is known first"
    return (
        f": effective sample size {effective.mean():.1f} (least {effective.min():.1f}) "
        f"of {result.num_particles} particles{heated}" + chosen * result.order_chosen
    )


def distrusted(result: Completion, particles: int) -> str | None:
    """What to warn of where the particles contradict each other; None: they do not."""
    apart = result.disagreement
    if apart is None or not (apart > DISTRUST).any():
        return None
    return (
        f"of {int((apart > DISTRUST).sum())} of {len(apart)} answers, halves of the particles "
        f"differ by up to {apart.max():.1f} nats in the probability of what is known, so their "
        f"effective sample size cannot be trusted and answers may miss what is likeliest; raise "
        f"num_particles, which is {particles}"
    )
