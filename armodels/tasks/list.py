"""armodels list: what there is to choose from, one line each."""

import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from armodels import show

GROUPS = ("model", "data", "head", "optimizer", "schedule", "trainer", "recipe", "tune",
          "experiment")  # fmt: skip


def choices(group: str) -> Iterator[tuple[str, str]]:
    """Name and description (the comment on the first line) of every config in a group."""
    roots = [Path(str(files("armodels.configs")))]
    roots += map(Path, filter(None, os.environ.get("ARMODELS_CONFIG_PATH", "").split(":")))
    found = {}
    for root in roots:
        for path in sorted((root / group).rglob("*.yaml")):
            lines = path.read_text().splitlines()
            comment = next((s for s in lines if s.startswith("#") and "@package" not in s), "")
            name = path.relative_to(root / group).with_suffix("").as_posix()
            found[name] = comment.lstrip("# ")
    yield from sorted(found.items())


def main(config: Mapping) -> None:
    """Print the groups.

    Raises:
        ValueError: There is no such group.
    """
    if config["group"] not in (None, *GROUPS):
        raise ValueError(f"group {config['group']} is unknown; choose from {', '.join(GROUPS)}")
    for group in [config["group"]] if config["group"] else GROUPS:
        show.say(f"{group}=")
        for name, text in choices(group):
            show.say(f"  {name:<28} {text}")
        show.say()
