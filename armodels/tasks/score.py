"""armodels score: the log-likelihood of every single example, or of every line of a text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armodels import anomalies, charts, checkpoints, disk, pictures, show
from armodels.checkpoints import Restored
from armodels.checks import require_together
from armodels.data.collections import Tree
from armodels.data.midi import MIDIS
from armodels.data.rows import Examples
from armodels.data.sound import CLIPS
from armodels.data.text import files_of, read_symbols
from armodels.density.stream import Contexts, Piece, reads
from armodels.evaluation import is_whole
from armodels.examples import asked_for, load_split, load_splits
from armodels.prompts import given_label, levels_of
from armodels.scoring import log_probs, piece_log_probs
from armodels.spec import DataSpec, bits_per_dim, described, nats

WAYS = {
    "file=FILE": ("file", "label", "by"),
    "a split": ("split", "data", "by"),
    "against=SETS": ("against", "background", "split", "data"),
}
"""What may be scored, and the keys that say how."""

COLUMNS = ("index", "nats", "bits_per_dim")
AREA = ("", "_low", "_high")
ROW = ("against", "score", *(f"{area}{end}" for area in ("auroc", "auprc") for end in AREA),
       "num_own", "num_other", "source")  # fmt: skip
"""Columns of what tells data apart."""

BESIDE = (".json", ".png")
"""Endings of what is written beside the CSV of the areas."""

OF_PIECES = (*COLUMNS, "symbols", "nats_per_symbol")


def main(config: Mapping) -> None:
    """Write one row an example: index, nats, bits/dim; of a text also symbols and nats of each.

    With ``against`` the examples are set against other data, and a row is a score.

    Raises:
        ValueError: The model cannot score what is named.
    """
    mark, by, label = ",".join(COLUMNS), config["by"], config["label"]
    way = "a split" if config["file"] is None else "file=FILE"
    way = way if config["against"] is None else "against=SETS"
    require_together(config["overrides"], way, WAYS)
    if config["against"] is not None:
        _detect(config)
        return
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
        raise FileNotFoundError(f"file {path} {disk.trouble(path)}")
    if not path.is_dir():
        disk.require_files([path], "file")
        return [path]
    if spec.alphabet is not None:
        every = files_of(path)
        found = [one for one in every if one.stat().st_size]
        if empty := len(every) - len(found):
            show.say(f"in {path}, left out are {empty} empty file{'s' * (empty != 1)}")
    else:
        tree = Tree(path, CLIPS if spec.notes is None else MIDIS)
        found = [path / name for name in tree.names]
        disk.require_files(found, "file")
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


def _detect(config: Mapping) -> None:
    """Write how well scores tell other data from the model's own: CSV, JSON and histograms.

    Raises:
        ValueError: The other data, or the background, do not suit the model.
    """
    disk.require_place(config["out"], mark=",".join(ROW))
    if config["out"] and Path(config["out"]).suffix in BESIDE:
        raise ValueError(
            f"out={config['out']} is the CSV of the areas, beside which a file of this ending is "
            f"written, too; name it .csv"
        )
    sets = [config["against"]] if isinstance(config["against"], str) else config["against"]
    if not sets or len(sets) != len({*sets}):
        raise ValueError(
            f"against is {sets}; name one or several sets, each once: "
            f"{', '.join((*anomalies.DERIVED, 'data'))}"
        )
    other = "_target_" in config["data"]
    if other != ("data" in sets):
        raise ValueError(
            "against=data and data=... go together: data= names the data that the model's own are "
            f"set against; other sets are {', '.join(anomalies.DERIVED)}"
        )
    if config["split"] == "all":
        raise ValueError("split=all holds what was trained on; against=... takes split=test")
    restored = checkpoints.from_config(config)
    background = _background(restored, config)
    split, spec = str(config["split"]), restored.spec
    _, mine = load_splits(restored, {}, [*{split, "valid"}])
    own, valid = mine[split], mine["valid"]
    others = {}
    for name in sets:
        if name == "data":
            found, examples = load_split(restored, config["data"], config["split"])
            others[found.name] = examples
        else:
            others[name] = anomalies.derived(name, own, spec)
    if min(map(len, [own, *others.values()])) < 2:
        raise ValueError(f"{config['split']} has fewer than 2 examples to tell apart")
    batch_size = config["eval"]["batch_size"]

    def nats_of(one: Restored, examples: Examples, name: str) -> np.ndarray:
        values = log_probs(one.model, examples, batch_size, progress=True, name=name)
        return nats(values, spec).numpy()

    typical = nats_of(restored, valid, "valid")
    entropy = float(typical[np.isfinite(typical)].mean())

    def scores_of(examples: Examples, name: str) -> Mapping[str, np.ndarray]:
        shared = None
        if background is not None:
            alone = background.model.context is None
            heard = replace(examples, context=None) if alone else examples
            shared = nats_of(background, heard, f"{name} (background)")
        return anomalies.scores(
            nats_of(restored, examples, name),
            entropy=entropy,
            background=shared,
            compressed=_compressed(examples, spec),
        )

    scored = {split: scores_of(own, split)}
    scored |= {name: scores_of(examples, name) for name, examples in others.items()}
    _write_detections(restored, background, spec, scored, config)


def _background(restored: Restored, config: Mapping) -> Restored | None:
    """The model of what the data share with others; None: none is named.

    Raises:
        ValueError: It is of other data.
    """
    if config["background"] is None:
        return None
    found = checkpoints.restore(
        config["background"],
        weights=config["eval"]["weights"],
        device=str(restored.device),
        trust=config["trust"],
    )
    own, other = restored.spec, found.spec
    if (own.kind, own.shape, own.levels) != (other.kind, other.shape, other.levels):
        raise ValueError(
            f"background={config['background']} is a model of {other.name} ({other.kind} "
            f"{other.shape}, levels {other.levels}), but the run is of {own.name} ({own.kind} "
            f"{own.shape}, levels {own.levels})"
        )
    context = found.model.context
    if context is not None and context != restored.model.context:
        heard = restored.model.context
        raise ValueError(
            f"background={config['background']} is conditioned on {context.name}, the run on "
            f"{heard.name if heard else 'nothing'}; choose a background that is conditioned on "
            f"the same or on nothing"
        )
    return found


def _compressed(examples: Examples, spec: DataSpec) -> np.ndarray | None:
    """Sizes of examples, nats; None: values are no bytes."""
    if spec.levels is None or spec.levels > 256:
        return None
    return anomalies.compressed_nats(examples.x[:], spec, progress=True)


def _write_detections(
    restored: Restored,
    background: Restored | None,
    spec: DataSpec,
    found: Mapping[str, Mapping[str, np.ndarray]],
    config: Mapping,
) -> None:
    """Write rows, the same as JSON with what they mean, a picture, and the scores of examples.

    Args:
        restored: The model.
        background: Of the likelihood ratio, if there is one.
        spec: What a datum is.
        found: Scores of the own examples, then of each other set, by name.
        config: Of the verb.
    """
    ours = next(iter(found.values()))
    done = [
        anomalies.Detection(name, one, ours[one], theirs[one])
        for name, theirs in [*found.items()][1:]
        for one in ours
    ]
    rows = anomalies.rows(done)
    folder = restored.folder_for(None).parent
    path = Path(config["out"] or folder / f"anomalies-{spec.name}-{config['split']}.csv")
    disk.write_csv(path, ROW, [row.values() for row in rows])
    facts = {"run": restored.origin, "background": background and background.origin}
    facts |= {"data": spec.name, "split": config["split"], "positive": "the other data"}
    disk.write_json(
        path.with_suffix(".json"), {**facts, "intervals": anomalies.INTERVALS, "rows": rows}
    )
    each = path.with_name(f"{path.stem}-examples.csv")
    disk.write_csv(
        each,
        ("set", "index", *ours),
        [
            (name, i, *one)
            for name, scores in found.items()
            for i, one in enumerate(zip(*(scores[score].tolist() for score in ours), strict=True))
        ],
    )
    names = list(dict.fromkeys(one.against for one in done))
    panels = [
        [
            (f"{one.score} against {one.against}, AUROC {row['auroc']:.3f}", one.own, one.other)
            for one, row in zip(done, rows, strict=True)
            if one.against == name
        ]
        for name in names
    ]
    title = f"{spec.name} (blue) and other data (orange), nats: higher is less like the data"
    with disk.atomic(path.with_suffix(".png")) as file:
        pictures.save(charts.histograms(panels, title), file)
    show.say(f"from   {restored.origin}")
    wide = max(len("against"), *map(len, names))
    show.say(f"{'against':<{wide}}  {'score':<10}  AUROC (95 %)             AUPRC (95 %)")
    for row in rows:
        areas = (
            f"{row[name]:.4f} ({row[f'{name}_low']:.4f} to {row[f'{name}_high']:.4f})"
            for name in ("auroc", "auprc")
        )
        show.say(f"{row['against']:<{wide}}  {row['score']:<10}  {'  '.join(areas)}")
    show.say(f"wrote  {path}, and .json and .png beside it")
    show.say(f"wrote  {each} ({sum(len(one['likelihood']) for one in found.values())} examples)")
