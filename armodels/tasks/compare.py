"""armodels compare: an honest table over run directories.

Runs are ranked within one data name and one measure only: a table for each, never one for all.
Those that scored whole sequences, each symbol once given all before it, are ranked by nats a
symbol under the name of these, whatever the length of the windows that they were trained on.
Runs that differ in nothing but the seed are one row, mean ± standard deviation over seeds.
"""

import csv
import io
import json
import math
import os
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armodels import names, show
from armodels.disk import atomic, require_place
from armodels.run import RunDirectory

COLUMNS = ("data", "measure", "per", "model", "parameters", "seeds", "test nats", "valid nats",
           "± 95 %", "std", "bits/dim", "bits/symbol", "adapted nats", "gap", "seconds", "tags",
           "status", "run")  # fmt: skip
# What says where or which seed, not what was trained.
_IGNORED = ("seed", "resume", "out", "directory", "overrides", "choices", "samples", "name",
            "tags", "started", "trust", "logger")  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """One line of the table: a run, or the runs of several seeds."""

    data: str
    measure: str
    per: str
    model: str
    parameters: int | None
    seeds: str
    nats: float
    valid: float
    interval: float
    deviation: float
    bits_per_dim: float
    bits_per_symbol: float
    adapted: float | None
    gap: float | None
    seconds: float
    tags: str
    status: str
    run: str

    def cells(self) -> list[str]:
        """As text, in the order of COLUMNS."""

        def number(value: float | None, places: int) -> str:
            return "" if value is None or math.isnan(value) else f"{value:.{places}f}"

        cells = [
            self.data, self.measure, self.per, self.model,
            "" if self.parameters is None else f"{self.parameters:,}",
            self.seeds, number(self.nats, 3), number(self.valid, 3),
            number(self.interval, 3), number(self.deviation, 3),
            number(self.bits_per_dim, 4), number(self.bits_per_symbol, 4),
            number(self.adapted, 3), number(self.gap, 4), number(self.seconds, 0),
            self.tags, self.status, self.run,
        ]  # fmt: skip
        # A name with a line break would make rows of its own.
        return [show.clean(cell).replace("\n", "\\n") for cell in cells]


def find_runs(folders: Sequence[str]) -> list[RunDirectory]:
    """Every run directory in or below the folders.

    A folder without one is named, and left out where others have some.

    Raises:
        FileNotFoundError: A folder does not exist, or there is no run in any.
    """
    found: dict[Path, RunDirectory] = {}
    without: list[str] = []
    for typed in folders:
        folder = Path(typed)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist; name folders that hold runs")
        marks = [*folder.rglob("status.json")]
        marks += [p for p in folder.rglob("config.yaml") if (p.parent / "checkpoints").is_dir()]
        if not marks:
            without.append(_without(typed))
        for path in sorted(marks, key=lambda path: path.parent):
            found[path.parent.resolve()] = RunDirectory(path.parent)
    if not found:
        raise FileNotFoundError("; ".join(without))
    for why in without:
        show.warn(why)
    return list(found.values())


def _without(folder: str) -> str:
    """Why a folder has nothing to compare."""
    from armodels import exported

    if exported.is_exported(Path(folder)):
        return (
            f"{folder} is an exported model, without a run's curves; name the run, or see the "
            f"numbers in {Path(folder) / exported.CARD}"
        )
    return f"no run in {folder}; train something first"


@dataclass(frozen=True)
class Facts:
    """What the files of a run say: whole, or why they cannot be read."""

    path: Path
    config: dict
    status: dict
    metrics: dict | None = None
    damage: str = ""

    @property
    def tags(self) -> list[str]:
        """The user's own words about it."""
        return [str(tag) for tag in self.config.get("tags") or []]


def read(run: RunDirectory) -> Facts:
    """What a run says of itself; one that is damaged must not hide all the others."""
    try:
        status, metrics = run.read_status(), run.read_metrics()
        config = run.read_config() if os.path.lexists(run.path / "config.yaml") else {}
        _require_config(config, run.path / "config.yaml")
        if metrics is not None:
            _require_metrics(metrics, run.path / "metrics.json")
    except (OSError, ValueError) as error:
        return Facts(run.path, {}, {}, damage=" ".join(str(error).split()))
    return Facts(run.path, config, status, metrics)


_NUMBER: tuple[type, ...] = (int, float)
_METRICS: dict[str, type | tuple[type, ...]] = {
    "data": str, "measure": str, "seed": int, "parameters": int, "seconds": _NUMBER,
    "test.nats": _NUMBER, "test.bits_per_dim": _NUMBER,
    "test.nats_ci95": (*_NUMBER, type(None)), "gap_to_truth": (*_NUMBER, type(None)),
    "test_adapted.nats": _NUMBER, "warning": (str, type(None)),
}  # fmt: skip
_OF_SEQUENCES: dict[str, type | tuple[type, ...]] = {
    "sequences": str, "unit": str, "test.nats_per_symbol": _NUMBER,
    "test.bits_per_symbol": _NUMBER,
    "test.nats_per_symbol_ci95": (*_NUMBER, type(None)), "test_adapted.nats_per_symbol": _NUMBER,
}  # fmt: skip
_CONFIG: dict[str, type | tuple[type, ...]] = {
    "seed": int, "choices": dict, "overrides": list, "data": dict, "tags": (list, str)
}  # fmt: skip


def _require_metrics(metrics: Mapping, path: Path) -> None:
    needed = _METRICS | (_OF_SEQUENCES if "sequences" in metrics else {})
    of = "test" if "test" in metrics else "valid"
    for name, kind in needed.items():
        name = name.replace("test.", f"{of}.")
        value: object = metrics
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        absent = value is None and (
            name in ("gap_to_truth", "warning")
            or (name.startswith("test_adapted.") and "test_adapted" not in metrics)
        )
        infinite = isinstance(value, float) and not math.isfinite(value)
        if not absent and (not isinstance(value, kind) or infinite):
            raise ValueError(f"{path} is damaged: its {name} is {str(value)[:50]!r}")


def _require_config(config: Mapping, path: Path) -> None:
    for name, kind in _CONFIG.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            raise ValueError(f"{path} is damaged: its {name} is {str(config[name])[:50]!r}")
    if config and not isinstance(config.get("seed"), int):
        raise ValueError(f"{path} is damaged: it has no seed")
    if not all(isinstance(item, str) for item in config.get("overrides") or []):
        raise ValueError(f"{path} is damaged: its overrides are no text")


def tagged(runs: Sequence[Facts], tags: Sequence[str]) -> list[Facts]:
    """Those of the runs that have all of the tags.

    Raises:
        ValueError: None has.
    """
    wanted = {str(tag) for tag in tags}
    if not wanted:
        return list(runs)
    if not (found := [run for run in runs if wanted <= {*run.tags}]):
        known = sorted({tag for run in runs for tag in run.tags})
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
    aside |= {"test"} if key == "trainer" else set()
    return {name: value for name, value in part.items() if name not in aside}


def _said(seeds: Sequence[int]) -> str:
    """What runs that are averaged differ in."""
    number = len(set(seeds))
    if number == len(seeds):
        return f"std of {number} seeds"
    of = f"seed {seeds[0]}" if number == 1 else f"{number} seeds"
    return f"std of {len(seeds)} runs of {of}"


def _amiss(metrics: Sequence[Mapping]) -> str:
    """The first words of what runs that are averaged warn of, as ``, diverged``."""
    warnings = [item["warning"] for item in metrics if item.get("warning")]
    if not warnings:
        return ""
    first = textwrap.shorten(warnings[0].partition(":")[0], 60, placeholder=" ...")
    return f", {len(warnings)} {first}" if len(metrics) > 1 else f", {first}"


def rows(runs: Sequence[Facts]) -> Iterator[RunSummary]:
    """One row for each group of runs that differ in the seed alone."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for run in runs:
        config = run.config
        same = {key: _what_counts(config, key) for key in config if key not in _IGNORED}
        if not config or run.metrics is None or run.status["status"] != "done":
            same = {"alone": str(run.path)}  # has no number to average
        else:
            same["tested"] = "test" in run.metrics
        groups[json.dumps(same, sort_keys=True, default=str)].append(run)
    nan = math.nan
    for group in groups.values():
        run, config, status = group[0], group[0].config, group[0].status
        if not config or run.metrics is None or run.damage or status["status"] != "done":
            state = f"unreadable: {run.damage}" if run.damage else status["status"]
            if not run.damage and status.get("reason"):
                state += f": {textwrap.shorten(status['reason'], 60, placeholder=' ...')}"
            data = (config.get("choices") or {}).get("data", "?")
            seed = str(config.get("seed", ""))
            yield RunSummary(str(data), "", "", label(config), None, seed, nan, nan, nan, nan, nan,
                             nan, None, None, nan, ",".join(run.tags), state,
                             str(run.path))  # fmt: skip
            continue
        metrics = [item.metrics for item in group if item.metrics is not None]
        first, tested = metrics[0], "test" in metrics[0]
        reports = [item["test" if tested else "valid"] for item in metrics]
        whole = "sequences" in first
        key = "nats_per_symbol" if whole else "nats"
        values, seeds = [report[key] for report in reports], [item["seed"] for item in metrics]
        gaps = [item["gap_to_truth"] for item in metrics if item.get("gap_to_truth") is not None]
        # Of models that learned while they were scored: never ranked with the others.
        adapted = [item["test_adapted"][key] for item in metrics if "test_adapted" in item]
        adapted = adapted if len(adapted) == len(metrics) else []
        several = len(group) > 1
        done = f"done{'' if tested else ', test not read'}{_amiss(metrics)}"
        half = reports[0][f"{key}_ci95"]
        yield RunSummary(
            first["sequences" if whole else "data"],
            first["measure"],
            first["unit"] if whole else "",
            label(config),
            first["parameters"],
            ",".join(map(str, sorted({*seeds}))),
            statistics.fmean(values) if tested else nan,
            nan if tested else statistics.fmean(values),
            math.nan if several or half is None else half,
            statistics.stdev(values) if several else math.nan,
            nan if whole else statistics.fmean(item["bits_per_dim"] for item in reports),
            statistics.fmean(item["bits_per_symbol"] for item in reports) if whole else nan,
            statistics.fmean(adapted) if adapted else None,
            statistics.fmean(gaps) if gaps else None,
            statistics.fmean(item["seconds"] for item in metrics),
            ",".join(sorted({tag for item in group for tag in item.tags})),
            f"{done}, {_said(seeds) if several else '95 % interval'}",
            str(run.path) + (f" and {len(group) - 1} more" if several else ""),
        )


def _place(row: RunSummary) -> tuple[bool, float]:
    untested = math.isnan(row.nats)
    return untested, row.valid if untested else row.nats


def tables(runs: Sequence[Facts]) -> list[list[RunSummary]]:
    """Rows by data name and measure, best first, those on valid alone after the others.

    Runs without a number come last.
    """
    parts: dict[tuple[str, str], list[RunSummary]] = defaultdict(list)
    for row in rows(runs):
        parts[row.data, row.measure].append(row)
    ordered = sorted(parts.items(), key=lambda part: (part[0][1] == "", part[0]))
    return [sorted(part, key=_place) for _, part in ordered]


def render(parts: Sequence[Sequence[RunSummary]], style: str) -> str:
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
    require_place(config["out"], mark="test nats")
    runs = config["runs"]
    found = [read(one) for one in find_runs([runs] if isinstance(runs, str) else runs)]
    if damaged := [one for one in found if one.damage]:
        show.warn(f"{len(damaged)} of {len(found)} runs cannot be read; their rows say why")
    parts = tables(tagged(found, names.read_tags(config["tags"])))
    text = render(parts, config["format"])
    if config["out"]:
        with atomic(Path(config["out"])) as file:
            file.write(f"{text}\n".encode())
        show.say(f"wrote  {config['out']}")
        return
    show.say(text)
    ranked = {(part[0].data, part[0].measure) for part in parts if part[0].measure}
    if len(ranked) > 1 and config["format"] == "table":
        show.say()
        show.say("Not ranked against each other: different data or different measures.")
