"""armodels score: the log-likelihood of every single example, or of every line of a text."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from armodels import checkpoints, disk, show
from armodels.checkpoints import Restored
from armodels.data.rows import Examples
from armodels.data.text import read_symbols
from armodels.density.stream import Piece, reads
from armodels.evaluation import is_whole, log_probs, piece_log_probs
from armodels.examples import asked_for
from armodels.spec import DataSpec, bits_per_dim, nats

COLUMNS = ("index", "nats", "bits_per_dim")
OF_TEXTS = (*COLUMNS, "symbols", "nats_per_symbol")


def main(config: Mapping) -> None:
    """Write one row an example: index, nats, bits/dim; of a text also symbols and nats of each.

    Raises:
        ValueError: The model cannot score what is named.
    """
    mark, by = ",".join(COLUMNS), config["by"]
    if config["file"] is not None:
        disk.require_place(config["out"], mark=mark)
        restored = checkpoints.from_config(config)
        piece = read_text(restored, config)
        _score_text(restored, restored.spec, [piece], "piece" if by == "auto" else by, config)
        return
    restored, spec, examples = asked_for(config, mark=mark)
    if is_whole(restored.model, examples):
        by = "window" if by == "auto" else by
        _score_text(restored, spec, examples.pieces, by, config)
        return
    if by != "auto":
        raise ValueError(
            f"by={by} is for a text and a model that reads it whole, without a context; leave it "
            f"out: {restored.model.description} is scored on {spec.name} example by example"
        )
    _score_examples(restored, spec, examples, config)


def _score_examples(
    restored: Restored, spec: DataSpec, examples: Examples, config: Mapping
) -> None:
    """Write a row an example.

    Args:
        restored: The model.
        spec: What a datum is.
        examples: Each is scored by itself.
        config: Of the verb.
    """
    values = log_probs(
        restored.model,
        examples,
        config["eval"]["batch_size"],
        progress=True,
        name=config["split"],
    )
    path = _path(restored, spec.name, config)
    rows = [(i, nats(v, spec), bits_per_dim(v, spec)) for i, v in enumerate(values.tolist())]
    disk.write_csv(path, COLUMNS, rows)
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


def _path(restored: Restored, name: str, config: Mapping) -> Path:
    """Where the rows go."""
    what = config["split"] if config["file"] is None else Path(config["file"]).stem
    folder = restored.folder_for(None).parent
    return Path(config["out"] or folder / f"scores-{name}-{what}.csv")


def read_text(restored: Restored, config: Mapping) -> Tensor:
    """Levels (T,) of the user's own file.

    Args:
        restored: A model of texts.
        config: Of the verb.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The model is of no text, or does not read; or the file is empty, cannot be
            read, or holds a symbol that the model does not know.
    """
    path, alphabet = Path(str(config["file"])).expanduser(), restored.spec.alphabet
    if alphabet is None:
        raise ValueError(f"file={path} is a text, but the model is of {restored.spec.name}")
    if "_target_" in config["data"]:
        raise ValueError("file=... and data=... both say what is scored; leave one out")
    if not reads(restored.model) or restored.model.context is not None:
        raise ValueError(
            f"model {restored.model.description} reads no text of any length without a context; "
            f"train one that does, such as model=rnn"
        )
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    symbols = read_symbols(path, alphabet.unit)
    if not len(symbols):
        raise ValueError(f"file {path} is empty")
    return torch.from_numpy(alphabet.encoded(symbols, f"file {path}"))


def ends(piece: Tensor, by: str, spec: DataSpec) -> list[int]:
    """Where the parts of a sequence end, the last at its own end.

    Args:
        piece: (T,).
        by: ``"window"``, ``"line"`` (with the break at its end) or ``"piece"``.
        spec: What a datum is.

    Raises:
        ValueError: It has no lines.
    """
    size, found = len(piece), []
    if by == "window":
        found = list(range(spec.num_dims, size, spec.num_dims))
    elif by == "line":
        if spec.alphabet is None:
            raise ValueError(f"by=line is for texts, but the model is of {spec.name}")
        if ord("\n") in spec.alphabet.symbols:
            breaks = piece == spec.alphabet.symbols.index(ord("\n"))
            found = (breaks.nonzero()[:, 0] + 1).tolist()
    return found if found and found[-1] == size else [*found, size]


def _score_text(
    restored: Restored, spec: DataSpec, pieces: Sequence[Piece], by: str, config: Mapping
) -> None:
    """Write a row for each part of sequences that are read whole.

    Args:
        restored: The model.
        spec: What a datum is.
        pieces: (T,) each.
        by: What a row is of.
        config: Of the verb.
    """
    name = config["split"] if config["file"] is None else config["file"]
    cuts = [ends(piece[:], by, spec) for piece in pieces]
    found: list[list[Tensor]] = [[] for _ in pieces]
    for i, part in piece_log_probs(restored.model, pieces, progress=True, name=name):
        found[i].append(part)
    rows: list[tuple[float, ...]] = []
    total, number = 0.0, 0
    for parts, places in zip(found, cuts, strict=True):
        values = torch.cat(parts)
        for part in values.tensor_split(places[:-1]):
            of_part, size = -float(part.sum()), len(part)
            each = of_part / size
            rows.append((len(rows), of_part, each / math.log(2), size, each))
        total, number = total - float(values.sum()), number + len(values)
    path = _path(restored, spec.name, config)
    disk.write_csv(path, OF_TEXTS, rows)
    mean, unit = total / number, spec.unit
    show.say(f"from   {restored.origin}")
    show.say(
        f"mean   {mean:.4f} nats/{unit}, {mean / math.log(2):.4f} bits/{unit}, perplexity "
        f"{math.exp(min(mean, 700)):.4f} ({number:,} {unit}s, each given all before it)"
    )
    show.say(f"wrote  {path} ({len(rows):,} rows, by {by})")
