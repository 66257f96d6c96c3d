"""armodels compress: examples as a small file, by the probabilities of a trained model."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from armodels import archive, checkpoints, coding, compression, disk, originals, show
from armodels.checks import require_together
from armodels.compression import Compressed
from armodels.density.stream import reads
from armodels.evaluation import is_whole
from armodels.examples import load_split
from armodels.trust import trusting

WAYS = {"path=PATH": ("path", "resize"), "a split": ("split", "data", "num_examples")}
"""What may be compressed, and the keys that say how."""

RATES = {"adapt=true": ("eval.adapt_lr",)}
"""What reads the rate of learning."""


def main(config: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all.

    Raises:
        ValueError: The model cannot code what is named.
    """
    way = "a split" if config["path"] is None else "path=PATH"
    require_together(config["overrides"], way, WAYS)
    learns = "adapt=true" if config["adapt"] else "a model as it is"
    require_together(config["overrides"], learns, RATES)
    out = _require_new(config["out"] or f"{_stem(config)}.arm")
    restored = checkpoints.from_config({**config, "device": "cpu"})
    model = coding.require_codable(restored.model)
    _require_adaptable(restored, config)
    kind, names, events, raw = _events(restored, config)
    batch = 1 if config["adapt"] else config["batch_size"]
    header = archive.Header(
        kind,
        compression.fingerprint(restored),
        compression.machine_of(model),
        min(batch or compression.batch_for(model, events), archive.LARGEST_BATCH),
        len(events),
        names,
        () if kind == archive.SPLIT else tuple(one.numel() for one in events),
        config["eval"]["adapt_lr"] if config["adapt"] else 0.0,
    )
    show.say(f"from   {restored.origin}")
    found = compression.compress(model, events, header, check=config["check"], progress=True)
    with disk.atomic(out) as file:
        file.write(found.data)
    _report(found, raw)
    show.say(f"wrote  {out} ({len(found.data):,} bytes)")
    if not config["check"]:
        show.warn("what was written was not decoded again (check=false)")
    show.say()
    show.say("Next:")
    again = {"run": config["run"], "path": out, "out": f"{out.stem}-again"}
    chosen = {
        "checkpoint": (config["checkpoint"], "best"),
        "eval.weights": (config["eval"]["weights"], "ema"),
        "eval.num_orders": (config["eval"]["num_orders"], None),
    }
    again |= {key: value for key, (value, usual) in chosen.items() if value != usual}
    show.say(f"  {show.command('decompress', **again, **trusting(restored.config))}")


def _require_new(out: str) -> Path:
    """Raise FileExistsError where something is: it may be all that is left of what was coded."""
    disk.require_place(out, mark=archive.MAGIC[1:].decode())
    if os.path.lexists(out):
        raise FileExistsError(f"out={out} is there already; remove it, or choose another name")
    return Path(out)


def _require_adaptable(restored: checkpoints.Restored, config: Mapping[str, Any]) -> None:
    """Raise ValueError where a model would learn that cannot."""
    if not config["adapt"]:
        return
    if not reads(restored.model):
        raise ValueError(
            f"adapt=true is for a model that reads texts, sounds or music, but "
            f"{restored.model.description} takes events of one length; leave it out"
        )
    if config["batch_size"] not in (None, 1):
        raise ValueError(
            f"batch_size is {config['batch_size']}, but a model that learns (adapt=true) reads "
            f"one sequence after the other; leave batch_size out"
        )


def _stem(config: Mapping[str, Any]) -> str:
    """Name of the file, where the user gives none."""
    return str(config["split"]) if config["path"] is None else Path(str(config["path"])).stem


def _events(
    restored: checkpoints.Restored, config: Mapping[str, Any]
) -> tuple[int, tuple[str, ...], Sequence[Tensor], int | None]:
    """What is compressed: its kind, names, examples, and bytes that the user's files take."""
    model, spec = restored.model, restored.spec
    if config["path"] is not None:
        found = originals.read(
            Path(str(config["path"])).expanduser(), spec, resize=config["resize"]
        )
        for note in found.notes:
            show.say(f"note   {note}")
        events = found.events
        sequences = reads(model)
        if not sequences and any(tuple(one.shape) != spec.shape for one in events):
            raise ValueError(
                f"model {model.description} takes events of one length alone; compress by one "
                f"that reads, such as model=rnn"
            )
        return archive.FILES, found.names, events, found.num_bytes
    _, examples = load_split(restored, config["data"], config["split"])
    most = config["num_examples"]
    if is_whole(model, examples):
        pieces = [piece[:].to(spec.dtype).cpu() for piece in examples.pieces[:most]]
        return archive.PIECES, (config["split"],), pieces, None
    events = [one.to(spec.dtype).cpu() for one in examples.x[:][:most]]
    return archive.SPLIT, (config["split"],), events, None


def _report(found: Compressed, raw: int | None) -> None:
    """Sizes beside what probability theory says, and times."""
    header, size = found.header, len(found.data)
    bits = found.nats / math.log(2)
    chunks = len(header.lengths)
    of_files = "" if raw is None else f" ({raw:,} bytes in files)"
    show.say(
        f"coded  {header.count:,} example{'s' * (header.count != 1)}{of_files} in {chunks} "
        f"chunk{'s' * (chunks != 1)}: {8 * size / max(header.count, 1):,.2f} bits an example"
        + (f", {8 * size / found.num_values:.4f} bits/dim" if found.num_values else "")
    )
    over = size - bits / 8
    exact = f"exact  -log2 p of them is {bits / 8:,.1f} bytes; the file has {abs(over):,.1f} "
    share = f" ({100 * over / (bits / 8):.3f} %)" if bits > 8 and over >= 0 else ""
    show.say(
        exact + ("more" if over >= 0 else "less, as no value costs more than 24 bits") + share
    )
    if over < 0:
        show.warn(
            "the model gives some values less probability than any that is coded, 1 in 16,777,216"
            + ("; it may have learned too fast: lower eval.adapt_lr" if header.adapt else "")
        )
    rate = found.num_values / max(found.encode_seconds, 1e-9)
    again = "" if found.check_seconds is None else (
        f"; every value came back, in {found.check_seconds:.1f} s"
    )  # fmt: skip
    show.say(f"took   {found.encode_seconds:.1f} s, {rate:,.0f} values/s{again}")
