"""Names of runs: what was typed, as the last part of a directory's name."""

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence

LONGEST = 60
"""Characters of a run's name at most: TensorBoard's list of runs shows about so many."""

_ASIDE = (
    "seed=",
    "resume=",
    "out=",
    "skip_done=",
    "on_error=",
    "name=",
    "tags=",
    "trust=",
    "logger=",
    "eval.batch_size=",
    "hydra.",
    "samples.",
    "trainer.progress=",
    "trainer.accelerator=",
    "trainer.threads=",
    "trainer.checkpoint_every=",
    "trainer.log_every=",
    "trainer.test=",
)


def what_was_trained(overrides: Iterable[str]) -> list[str]:
    """Overrides that change what is trained: not where, which seed, or what is shown."""
    return [item for item in overrides if not item.startswith(_ASIDE)]


def run_name(
    overrides: Sequence[str],
    seed: object,
    *,
    name: object = None,
    swept: Iterable[str] = (),
) -> str:
    """``<what differs>-seed<k>-<suffix>``: a random suffix keeps simultaneous runs apart.

    Args:
        overrides: As typed, such as ``model.hidden_sizes=[500,500]``, of one job.
        seed: Of the run.
        name: Stands in the place of the overrides, except of those that a sweep varies.
        swept: Keys that a sweep varies; they come first, since a long name is cut.

    Returns:
        At most LONGEST characters out of letters, digits, dot, underscore and hyphen.

    Raises:
        ValueError: The name is none.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}", str(name)):
        raise ValueError(
            f"name is {str(name)!r}; it becomes a part of the directory's name: up to 30 letters, "
            f"digits, dots, underscores and hyphens, with a letter or digit first"
        )
    varied = {*swept} - {"data", "model", "seed"}
    first = [item for item in overrides if _key(item) in varied]
    rest = [item for item in what_was_trained(overrides) if item not in first]
    rest = [item for item in rest if _key(item) not in ("data", "model")]
    words = [_word(item) for item in first]
    words = [str(name), *words] if name is not None else words + [_word(item) for item in rest]
    # Forty bits: among a thousand runs of one name, two share them once in two million times.
    suffix = base64.b32encode(os.urandom(5)).decode().lower()
    end = f"seed{_safe(str(seed))[:20]}-{suffix}"
    start = "-".join(filter(None, words))[: LONGEST - len(end) - 1].strip("-._")
    return f"{start}-{end}" if start else end


def sizes(model: Mapping) -> dict[str, object]:
    """Keys of a ``model`` config that say how large it is."""
    return {
        key: value
        for key, value in model.items()
        if key.startswith(("hidden_", "num_")) and key != "num_orders" and value is not None
    }


def read_tags(tags: object) -> list[str]:
    """The words of a ``tags`` key.

    Raises:
        ValueError: It is no list, or one of them is no tag.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ValueError(f"tags is {tags!r}; it must be a list, such as tags=[first]")
    for tag in map(str, tags):
        if not tag.isprintable() or not 0 < len(tag) <= 40 or "," in tag:
            raise ValueError(
                f"tags has {tag!r}; a tag is up to 40 printable characters without a comma"
            )
    return [str(tag) for tag in tags]


def _key(item: str) -> str:
    return item.partition("=")[0].lstrip("+~")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _word(item: str) -> str:
    """An override, readable at a glance: ``lr0.01``, ``hidden_sizes500x500``, ``random``."""
    key, _, value = item.partition("=")
    key, value = key.lstrip("+"), value.strip("'\"")
    if key.startswith("~") or value in ("", "null"):
        return _safe(f"no_{key.lstrip('~').rpartition('.')[2]}")
    if "." not in key:  # one of a group's choices
        return _safe(value)
    last = key.rpartition(".")[2]
    if value in ("true", "false"):
        return _safe(last if value == "true" else f"no_{last}")
    parts = [part.strip().strip("'\"") for part in value.strip("[]").split(",")]
    if all(re.fullmatch(r"[-+]?\.?[0-9][0-9.]*(e[-+]?[0-9]+)?", part, re.I) for part in parts):
        return _safe(last + "x".join(parts))
    return _safe("-".join(part.rstrip("/").rpartition("/")[2] for part in parts))
