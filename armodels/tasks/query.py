"""armodels query: the log-probability of part of every example, given another part or nothing."""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from armodels import disk, imputation, show
from armodels.checkpoints import Restored
from armodels.checks import require_together
from armodels.data.rows import Batch, Examples
from armodels.density.query import FEW
from armodels.examples import asked_for, load_split
from armodels.parts import KNOWN, known_part, read_mask, require_word
from armodels.spec import DataSpec

COLUMNS = ("index", "nats", "standard_error", "method", "effective_particles")
OF_CELLS = ("method", "rmse", "nats_per_cell", "standard_error", "seconds", "effective_particles")

LARGEST_BATCH = 10_000_000
"""So many values, each as often as it has particles, are asked about at a time: noise of 80 MB."""

LONGEST = 200
"""Bytes of a file's name, beside its ending."""

DOUBTFUL = 0.5
"""Nats. A standard error above it says that few particles hold most of the weight."""

Row = tuple[int, float, float, str, float | str]
"""Of an example: its cells under ``COLUMNS``; an exact answer is by no particles."""

WAYS = {
    "of=PART": ("of", "given", "keep"),
    "impute=SHARE": ("impute", "num_completions"),
}
"""What may be asked, and the keys that say how."""


def main(config: Mapping) -> None:
    """Write a row an example: its nats, their standard error, and how they were found.

    Raises:
        ValueError: What is asked does not go together, or with the model.
    """
    way = "of=PART" if config["impute"] is None else "impute=SHARE"
    require_together(config["overrides"], way, WAYS)
    if way == "of=PART" and config["of"] is None and config["given"] is None:
        raise ValueError(
            "nothing is asked: say of what, such as of=[alcohol] given=[pH] of a table, "
            "of=bottom given=top of pictures, or given=top alone, which asks for all the rest"
        )
    cells = config["impute"] is not None
    mark = ",".join(OF_CELLS if cells else COLUMNS)
    restored, spec, examples = asked_for(config, mark=mark)
    examples = _first(examples, config["num_examples"])
    if cells:
        _impute(restored, spec, examples, config)
    else:
        _ask(restored, spec, examples, config)


def part_of(named: object, key: str, config: Mapping, spec: DataSpec) -> tuple[Tensor, list[str]]:
    """Boolean mask (*event) of a part, and the names that it has.

    Args:
        named: Names, a word, or the path of a mask.
        key: ``of`` or ``given``.
        config: Of the verb: keep and seed.
        spec: What a datum is.

    Raises:
        ValueError: There is no such part.
    """
    if isinstance(named, str) and named not in KNOWN:
        if named in (spec.names or ()):
            named = [named]
        elif Path(named).suffix:
            path = Path(named).expanduser()
            return read_mask(path, spec), [path.stem]
    elif isinstance(named, int):
        named = [named]
    assert isinstance(named, (str, list))
    mask = known_part(named, config["keep"], spec, config["seed"], key=key)
    if isinstance(named, list):
        return mask, [*map(str, named)]
    return mask, [named, f"{config['keep']:g}"]


def _ask(restored: Restored, spec: DataSpec, examples: Examples, config: Mapping) -> None:
    """Write the answers to one question about every example."""
    known, condition = torch.zeros(spec.shape, dtype=torch.bool), list[str]()
    if config["given"] is not None:
        known, condition = part_of(config["given"], "given", config, spec)
    asked, what = ~known, ["rest"]
    if config["of"] is not None:
        asked, what = part_of(config["of"], "of", config, spec)
    require_word(config["overrides"], (config["of"], config["given"]))
    _require_apart(asked, known, config)
    size = max(1, LARGEST_BATCH // (config["num_particles"] * spec.num_dims))
    generator = torch.Generator().manual_seed(config["seed"])
    log_det = spec.log_det_of(asked)
    rows: list[Row] = []
    for batch in _batches(examples, size):
        x, context = batch.to(restored.device)
        found = restored.model.log_prob_of(
            x,
            asked.to(x.device),
            known.to(x.device),
            context=context,
            num_particles=config["num_particles"],
            generator=generator,
        )
        each = (-(found.log_prob.cpu() + log_det)).tolist()
        errors, sizes = found.standard_error.tolist(), found.effective_sample_size.tolist()
        exact = found.method == "exact"
        rows += [
            (len(rows) + i, nats, error, found.method, "" if exact else size)
            for i, (nats, error, size) in enumerate(zip(each, errors, sizes, strict=True))
        ]
    words = [*what, "given", *condition] if condition else what
    path = _path(restored, "-".join(words), spec, config)
    disk.write_csv(path, COLUMNS, rows)
    parts = " | ".join(", ".join(one) for one in (what, condition) if one)
    _tell(restored, f"p({parts})", asked, rows, found.num_particles)
    show.say(f"wrote  {path} ({len(rows)} examples)")


def _first(examples: Examples, num: int | None) -> Examples:
    """The first examples alone; None: all."""
    if num is None or num >= len(examples):
        return examples
    context = None if examples.context is None else examples.context[:num]
    return replace(examples, x=examples.x[:num], context=context, pieces=(), piece_context=None)


def _batches(examples: Examples, size: int) -> Iterator[Batch]:
    bar = tqdm(total=len(examples), desc="asking", unit="ex", delay=1, disable=None, leave=False)
    with bar:
        for batch in examples.batches(size):
            yield batch
            bar.update(len(batch.x))


def _require_apart(asked: Tensor, known: Tensor, config: Mapping) -> None:
    """Raise ValueError where the parts overlap, or nothing is asked."""
    if not asked.any() and config["of"] is None:
        raise ValueError(
            f"given={config['given']} is all of an example, so that nothing is left to ask; give "
            f"less of it, or name what is asked by of="
        )
    if not asked.any():
        raise ValueError(
            f"of={config['of']} is no value of an example, so that nothing is asked; "
            f"of a word, keep={config['keep']:g} says how much it stands for"
        )
    if both := int((asked & known).sum()):
        raise ValueError(
            f"of and given share {both} value{'s' * (both != 1)} of an example, and what is given "
            f"has probability 1; name other parts, or choose a smaller keep"
        )


def _tell(
    restored: Restored, title: str, asked: Tensor, rows: list[Row], num_particles: int
) -> None:
    """The mean of the answers, and how far it can be trusted."""
    values = torch.tensor([row[1] for row in rows], dtype=torch.double)
    errors = torch.tensor([row[2] for row in rows], dtype=torch.double)
    sizes = torch.tensor(
        [float(row[4]) if row[4] != "" else torch.inf for row in rows], dtype=torch.double
    )
    show.say(f"from   {restored.origin}")
    possible = values.isfinite()
    if not possible.all():
        show.warn(
            f"of {int((~possible).sum())} examples what is asked is impossible as far as the "
            f"model, or its particles, tell; the mean is that of the others"
        )
    if possible.any():
        mean, number = float(values[possible].mean()), int(asked.sum())
        how, by = "exact", sizes[possible & sizes.isfinite()]
        if len(by):
            error = float(errors[possible].square().sum().sqrt() / possible.sum())
            how = (
                f"estimated by particles, standard error {error:.4f} nats, effective particles "
                f"{by.mean():.1f} (least {by.min():.1f}) of {num_particles}"
            )
        show.say(
            f"mean   {mean:.4f} nats of {title}, {number} value{'s' * (number != 1)} of an "
            f"example ({how})"
        )
    _warn(int((possible & ((errors > DOUBTFUL) | (sizes < FEW))).sum()))


def _warn(doubtful: int) -> None:
    """Say how many answers hang on few particles."""
    if doubtful:
        show.warn(
            f"of {doubtful} example{'s' * (doubtful != 1)} fewer than {FEW:g} particles count, or "
            f"the standard error is above {DOUBTFUL:g} nats, so that it cannot be trusted itself: "
            f"particles may have missed what is likeliest; raise num_particles, or ask a model "
            f"that is trained for all orders"
        )


def _path(restored: Restored, what: str, spec: DataSpec, config: Mapping) -> Path:
    """Where the rows go."""
    name = f"query-{what}-{spec.name}-{config['split']}"
    if config["num_examples"] is not None:
        name += f"-first{config['num_examples']}"
    plain = re.sub(r"[^\w.-]+", "-", name)
    if plain != name or len(plain.encode()) > LONGEST:  # another question may have made the same
        start = plain.encode()[:LONGEST].decode(errors="ignore")
        plain = f"{start}-{zlib.crc32(name.encode()):08x}"
    name = plain
    return Path(config["out"] or restored.folder_for(None).parent / f"{name}.csv")


def _impute(restored: Restored, spec: DataSpec, examples: Examples, config: Mapping) -> None:
    """Hide cells of rows, and write how well they are filled and what they cost.

    Raises:
        ValueError: The model is of no table, or has a context.
    """
    if spec.kind != "vector" or restored.model.context is not None:
        raise ValueError(
            f"impute={config['impute']:g} hides cells of a table's rows, but the model is of "
            f"{spec.name_with(restored.model.context)}"
        )
    draws = 100 if config["num_completions"] is None else config["num_completions"]
    config = {**config, "num_completions": draws}
    _, others = load_split(restored, {}, "train")
    train, x = others.x[:], examples.x[:]
    known = imputation.hide(x, config["impute"], config["seed"])
    place = restored.device
    own = imputation.by_model(
        restored.model, spec, x.to(place), known.to(place), train.to(place), config
    )
    done = [own, *imputation.by_imputers(x, known, train)]
    path = _path(restored, f"impute-{config['impute']:g}", spec, config)
    disk.write_csv(
        path, OF_CELLS, [["" if v is None else v for v in one[: len(OF_CELLS)]] for one in done]
    )
    show.say(f"from   {restored.origin}")
    show.say(
        f"hidden {int((~known).sum())} of {x.numel()} cells of {config['split']}, seed "
        f"{config['seed']}; RMSE is in standard deviations of train"
    )
    _warn(own.doubtful)
    for one in done:
        cost = "" if one.nats is None else f"   {one.nats:.4f} nats a cell"
        error = ""
        if one.effective_particles is not None:
            error = (
                f" (standard error {one.standard_error:.4f}, effective particles at least "
                f"{one.effective_particles:.1f} of {one.num_particles})"
            )
        show.say(f"{one.method:<17} RMSE {one.rmse:.4f}   {one.seconds:6.1f} s{cost}{error}")
    show.say(f"wrote  {path}")
