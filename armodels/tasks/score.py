"""armodels score: the log-likelihood of every single example, or of every line of a text."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from armodels import checkpoints, disk, show
from armodels.checkpoints import Restored
from armodels.checks import require_together
from armodels.data.collections import Tree
from armodels.data.midi import MIDIS
from armodels.data.rows import Examples
from armodels.data.sound import CLIPS
from armodels.data.text import files_of, read_symbols
from armodels.density.stream import Contexts, Piece, reads
from armodels.evaluation import is_whole
from armodels.examples import asked_for
from armodels.prompts import given_label, levels_of
from armodels.scoring import log_probs, piece_log_probs
from armodels.spec import DataSpec, bits_per_dim, described, nats

WAYS = {"file=FILE": ("file", "label"), "a split": ("split", "data")}
"""What may be scored, and the keys that say how."""

COLUMNS = ("index", "nats", "bits_per_dim")
OF_PIECES = (*COLUMNS, "symbols", "nats_per_symbol")


def main(config: Mapping) -> None:
    """Write one row an example: index, nats, bits/dim; of a text also symbols and nats of each.

    Raises:
        ValueError: The model cannot score what is named.
    """
    mark, by, label = ",".join(COLUMNS), config["by"], config["label"]
    way = "a split" if config["file"] is None else "file=FILE"
    require_together(config["overrides"], way, WAYS)
    if config["file"] is not None:
        disk.require_place(config["out"], mark=mark)
        restored = checkpoints.from_config(config)
        files = own_files(restored, config)
        context = given_label(restored.model.context, label, len(files), "file")
        pieces = [read_piece(file, restored.spec) for file in files]
        names = [str(file) for file in files] if Path(config["file"]).expanduser().is_dir() else []
        by = "piece" if by == "auto" else by
        _score_pieces(restored, restored.spec, pieces, context, by, config, names)
        return
    restored, spec, examples = asked_for(config, mark=mark)
    if is_whole(restored.model, examples):
        by = "window" if by == "auto" else by
        _score_pieces(restored, spec, examples.pieces, examples.piece_context, by, config)
        return
    if by != "auto":
        raise ValueError(
            f"by={by} is for a text, a sound or music, and a model that reads it whole; leave it "
            f"out: {restored.model.description} is scored on {spec.name} "
            f"example by example"
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
        keep=restored.partial,
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
        show.say(f"mean   {described(mean, spec)}")
    show.say(f"wrote  {path} ({len(values)} examples)")


def _path(restored: Restored, name: str, config: Mapping) -> Path:
    """Where the rows go."""
    what = config["split"] if config["file"] is None else Path(config["file"]).stem
    if config["by"] != "auto":  # beside the rows of another kind
        what += f"-by-{config['by']}"
    folder = restored.folder_for(None).parent
    return Path(config["out"] or folder / f"scores-{name}-{what}.csv")


def own_files(restored: Restored, config: Mapping) -> list[Path]:
    """The user's own files: the one that is named, or all of a folder, by name.

    Args:
        restored: A model of texts, sounds or music.
        config: Of the verb.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The model does not read, or the folder holds no files of its kind.
    """
    spec, path = restored.spec, Path(str(config["file"])).expanduser()
    if spec.alphabet is None and spec.waveform is None and spec.notes is None:
        raise ValueError(
            f"file={path} is a text, a sound or music, but the model is of {spec.name}"
        )
    if not reads(restored.model):
        what = "text" if spec.alphabet else "sound" if spec.waveform else "music"
        raise ValueError(
            f"model {restored.model.description} reads no {what} of any length; "
            f"train one that does, such as model={'frames' if spec.notes else 'rnn'}"
        )
    if not path.exists():
        raise FileNotFoundError(f"file {path} does not exist")
    if not path.is_dir():
        return [path]
    if spec.alphabet is not None:
        every = files_of(path)
        found = [one for one in every if one.stat().st_size]
        if empty := len(every) - len(found):
            show.say(f"in {path}, left out are {empty} empty file{'s' * (empty != 1)}")
    else:
        tree = Tree(path, CLIPS if spec.notes is None else MIDIS)
        found = [path / name for name in tree.names]
        for sentence in tree.left_out:
            show.say(f"in {path}, left out are {sentence}")
    if not found:
        raise ValueError(f"folder {path} holds no file that the model could score")
    return found


def read_piece(file: Path, spec: DataSpec) -> Tensor:
    """Levels (T,) of a file.

    Args:
        file: Of a text, a sound or music.
        spec: What the model is of.

    Raises:
        ValueError: It is empty, cannot be read, or holds a symbol that the model does not know.
    """
    if spec.alphabet is None:
        return torch.from_numpy(levels_of(file, spec, "file"))
    symbols = read_symbols(file, spec.alphabet.unit)
    if not len(symbols):
        raise ValueError(f"file {file} is empty")
    return torch.from_numpy(spec.alphabet.encoded(symbols, f"file {file}"))


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


def _score_pieces(
    restored: Restored,
    spec: DataSpec,
    pieces: Sequence[Piece],
    context: Contexts | None,
    by: str,
    config: Mapping,
    names: Sequence[str] = (),
) -> None:
    """Write a row for each part of sequences that are read whole.

    Args:
        restored: The model.
        spec: What a datum is.
        pieces: (T,) each.
        context: What each of them is conditioned on, if anything.
        by: What a row is of.
        config: Of the verb.
        names: Of the pieces, which the rows then say; none: they say none.
    """
    name = config["split"] if config["file"] is None else config["file"]
    cuts = [ends(piece[:], by, spec) for piece in pieces]
    found: list[list[Tensor]] = [[] for _ in pieces]
    for i, part in piece_log_probs(restored.model, pieces, context, progress=True, name=name):
        found[i].append(part)
    rows: list[tuple[float | str, ...]] = []
    total, number, unit = 0.0, 0, spec.unit
    for i, (parts, places) in enumerate(zip(found, cuts, strict=True)):
        values = torch.cat(parts)
        for part in values.tensor_split(places[:-1]):
            of_part, symbols = -float(part.sum()), len(part) // spec.unit_size
            each = of_part / symbols
            row = (len(rows), of_part, of_part / len(part) / math.log(2), symbols, each)
            rows.append((*row, names[i]) if names else row)
        total, number = total - float(values.sum()), number + len(values) // spec.unit_size
    path = _path(restored, spec.name, config)
    disk.write_csv(path, (*OF_PIECES, "file") if names else OF_PIECES, rows)
    mean = total / number
    perplexity = math.exp(min(mean, 700))
    show.say(f"from   {restored.origin}")
    show.say(
        f"mean   {mean:.4f} nats/{unit}, {mean / math.log(2):.4f} bits/{unit}, perplexity "
        f"{perplexity:{'.4f' if perplexity < 1e6 else '.4g'}} "
        f"({number:,} {unit}s, each given all before it)"
    )
    show.say(f"wrote  {path} ({len(rows):,} row{'s' * (len(rows) != 1)}, by {by})")
