"""armodels compare: an honest table over run directories.

Runs are ranked within one data name and one measure only: a table for each, never one for all.
Runs that differ in nothing but the seed are one row, mean ± standard deviation over seeds.
"""

import csv
import io
import json
import math
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armodels import names, show
from armodels.run import RunDirectory

COLUMNS = ("data", "measure", "model", "parameters", "seeds", "test nats", "±", "bits/dim",
           "gap", "seconds", "tags", "status", "run")  # fmt: skip
# What says where or which seed, not what was trained.
_IGNORED = ("seed", "resume", "out", "directory", "overrides", "choices", "samples", "name",
            "tags", "started", "trust")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: a run, or the runs of several seeds."""

    data: str
    measure: str
    model: str
    parameters: int | None
    seeds: str
    nats: float
    spread: float
    bits_per_dim: float
    gap: float | None
    seconds: float
    tags: str
    status: str
    run: str

    def cells(self) -> list[str]:
        """As text, in the order of COLUMNS."""

        def number(value: float | None, places: int) -> str:
            return "" if value is None or math.isnan(value) else f"{value:.{places}f}"

        return [
            self.data, self.measure, self.model,
            "" if self.parameters is None else f"{self.parameters:,}",
            self.seeds, number(self.nats, 3), number(self.spread, 3),
            number(self.bits_per_dim, 4), number(self.gap, 4), number(self.seconds, 0),
            self.tags, self.status, self.run,
        ]  # fmt: skip


def find_runs(folders: Sequence[str]) -> list[RunDirectory]:
    """Every run directory in or below the folders.

    Raises:
        FileNotFoundError: A folder does not exist, or there is no run.
    """
    found: dict[Path, RunDirectory] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist; name folders that hold runs")
        for path in sorted(folder.rglob("status.json")):
            found[path.parent.resolve()] = RunDirectory(path.parent)
    if not found:
        raise FileNotFoundError(f"no run in {', '.join(map(str, folders))}; train something first")
    return list(found.values())


def _tags(config: Mapping) -> list[str]:
    """The user's own words about a run."""
    return [str(tag) for tag in config.get("tags") or []]


def tagged(runs: Sequence[RunDirectory], tags: Sequence[str]) -> list[RunDirectory]:
    """Those of the runs that have all of the tags.

    Raises:
        ValueError: None has.
    """
    wanted = {str(tag) for tag in tags}
    if not wanted:
        return list(runs)
    of = {run: _tags(run.read_config()) for run in runs if (run.path / "config.yaml").is_file()}
    if not (found := [run for run, own in of.items() if wanted <= {*own}]):
        known = sorted({tag for own in of.values() for tag in own})
        raise ValueError(
            f"no run has the tags {', '.join(sorted(wanted))}; "
            f"{'there are ' + ', '.join(known) if known else 'none of the runs has any'}"
        )
    return found


def label(config: Mapping) -> str:
    """Model, and what was overridden besides model, data and seed."""
    choice = config.get("choices", {}).get("model", "?")
    chosen = names.what_was_trained(config.get("overrides", []))
    extra = [item for item in chosen if not item.startswith(("model=", "data="))]
    return " ".join([choice, *(item.removeprefix("model.") for item in extra)])


def summarize(values: Sequence[float], half: float) -> tuple[float, float]:
    """Mean over seeds and their standard deviation; of one seed its 95 % half-width ``half``."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else half


def _what_counts(config: Mapping, key: str) -> object:
    """One part of a config without what changes no number, nor a seed that follows the run's."""
    part = config[key]
    if not isinstance(part, Mapping):
        return part
    aside = {"allow_large"} | ({"seed"} if part.get("seed") == config["seed"] else set())
    return {name: value for name, value in part.items() if name not in aside}


def rows(runs: Sequence[RunDirectory]) -> Iterator[Row]:
    """One row for each group of runs that differ in the seed alone."""
    groups: dict[str, list[tuple[RunDirectory, dict, dict | None, dict]]] = defaultdict(list)
    for run in runs:
        status, metrics = run.read_status(), run.read_metrics()
        has_config = (run.path / "config.yaml").is_file()
        config = run.read_config() if has_config else {}
        same = {key: _what_counts(config, key) for key in config if key not in _IGNORED}
        if not has_config or status["status"] != "done" or metrics is None:
            same = {"alone": str(run.path)}  # has no number to average
            metrics = None
        groups[json.dumps(same, sort_keys=True)].append((run, config, metrics, status))
    for group in groups.values():
        run, config, first, status = group[0]
        if first is None:
            data = config.get("choices", {}).get("data", "?")
            reason = textwrap.shorten(status.get("reason", ""), 60, placeholder=" ...")
            told = f"{status['status']}: {reason}" if reason else status["status"]
            nothing = [math.nan] * 3
            yield Row(data, "", label(config), None, str(config.get("seed", "")), *nothing, None,
                      math.nan, ",".join(_tags(config)), told, str(run.path))  # fmt: skip
            continue
        metrics = [item[2] for item in group]
        tests = [item["test"] for item in metrics]
        values = [test["nats"] for test in tests]
        gaps = [item["gap_to_truth"] for item in metrics if "gap_to_truth" in item]
        several = len(group) > 1
        yield Row(
            first["data"],
            first["measure"],
            label(config),
            first["parameters"],
            ",".join(str(item["seed"]) for item in metrics),
            *summarize(values, tests[0]["nats_ci95"]),
            statistics.fmean(test["bits_per_dim"] for test in tests),
            statistics.fmean(gaps) if gaps else None,
            statistics.fmean(item["seconds"] for item in metrics),
            ",".join(sorted({tag for item in group for tag in _tags(item[1])})),
            f"done, std of {len(group)} seeds" if several else "done, 95 % interval",
            str(run.path) + (f" and {len(group) - 1} more" if several else ""),
        )


def tables(runs: Sequence[RunDirectory]) -> list[list[Row]]:
    """Rows by data name and measure, best first; runs without a number come last."""
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows(runs):
        parts[row.data, row.measure].append(row)
    ordered = sorted(parts.items(), key=lambda part: (part[0][1] == "", part[0]))
    return [sorted(part, key=lambda row: row.nats) for _, part in ordered]


def render(parts: Sequence[Sequence[Row]], style: str) -> str:
    """The tables as text.

    Raises:
        ValueError: The style is unknown.
    """
    if style == "csv":
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(row.cells() for part in parts for row in part)
        return buffer.getvalue().rstrip("\n")
    if style not in ("table", "markdown"):
        raise ValueError(f"format is {style!r}; choose table, markdown or csv")
    blocks = []
    for part in parts:
        lines = [list(COLUMNS), *(row.cells() for row in part)]
        used = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:])]
        lines = [[line[i] for i in used] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
        if style == "table":
            blocks.append("\n".join("  ".join(line).rstrip() for line in padded))
        else:
            rule = ["-" * width for width in widths]
            blocks.append(
                "\n".join(f"| {' | '.join(s)} |" for s in [padded[0], rule, *padded[1:]])
            )
    return "\n\n".join(blocks)


def main(config: Mapping) -> None:
    """Print the tables, or write them to a file."""
    runs = config["runs"]
    found = find_runs([runs] if isinstance(runs, str) else runs)
    parts = tables(tagged(found, names.read_tags(config["tags"])))
    text = render(parts, config["format"])
    if config["out"]:
        Path(config["out"]).write_text(text + "\n")
        show.say(f"wrote  {config['out']}")
        return
    show.say(text)
    ranked = {(part[0].data, part[0].measure) for part in parts if part[0].measure}
    if len(ranked) > 1 and config["format"] == "table":
        show.say()
        show.say("Not ranked against each other: different data or different measures.")
