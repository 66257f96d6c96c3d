"""The tables of docs/results.md, from runs: never typed by hand.

    python scripts/reproduce.py collect FOLDER ...  keep records of finished runs, write the tables
    python scripts/reproduce.py tables              write the tables from the records
    python scripts/reproduce.py run [WORD ...]      train what has no record yet (of rows whose
                                                    section or command holds one of the words)

scripts/results.yaml says which rows there are and what was published; docs/results.json holds the
records. A row is one command; several values (``data.fold=0,1,2``) make its number the mean over
them. A run belongs to a row when it was given the same overrides; of two runs with the same seed
the later collected counts. A row with ``eval`` is what `armodels eval` says of the test split with
these overrides, of a run whose directory keeps its report as eval*.json.
"""

import argparse
import itertools
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from armodels.names import what_was_trained
from armodels.run import RunDirectory
from armodels.tasks.compare import find_runs

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "scripts" / "results.yaml"
RECORDS = ROOT / "docs" / "results.json"
PAGE = ROOT / "docs" / "results.md"

HEADER = (
    "model",
    "test nats",
    "bits/dim",
    "published",
    "difference",
    "seconds",
    "hardware",
    "command",
)


def lookup(config: Mapping, key: str) -> object:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def arguments(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what was trained, sorted; what an experiment says itself is left out.

    A run of an experiment that repeats one of its values on the command line is the same run.
    """
    chosen = what_was_trained(overrides)
    own: Mapping = {}
    for item in chosen:
        if item.startswith("experiment="):
            path = ROOT / "configs" / "experiment" / f"{item.partition('=')[2]}.yaml"
            own = yaml.safe_load(path.read_text()) if path.is_file() else {}
    kept = []
    for item in chosen:
        key, _, value = item.partition("=")
        said = lookup(own, key)
        if said is None or said != yaml.safe_load(value):
            kept.append(item)
    return sorted(kept)


def record(run: RunDirectory) -> dict | None:
    """What is kept of a run, or None where it has no test result."""
    metrics = run.read_metrics()
    if run.read_status()["status"] != "done" or metrics is None or "test" not in metrics:
        return None
    environment = metrics["environment"]
    return {
        "arguments": arguments(metrics["overrides"]),
        "seed": metrics["seed"],
        "data": metrics["data"],
        "measure": metrics["measure"],
        "nats": metrics["test"]["nats"],
        "nats_ci95": metrics["test"]["nats_ci95"],
        "bits_per_dim": metrics["test"]["bits_per_dim"],
        "valid_nats": metrics["valid"]["nats"],
        "parameters": metrics["parameters"],
        "seconds": round(metrics["seconds"], 1),
        "hardware": hardware(environment),
        "torch": environment["torch"],
        "commit": environment["git_commit"],
    }


def evaluations(run: RunDirectory, trained: Mapping) -> list[dict]:
    """What is kept of the reports of `armodels eval` on test in the directory of a run.

    Args:
        run: Where eval*.json lie.
        trained: The record of the run itself.
    """
    found = []
    for path in sorted(run.path.glob("eval*.json")):
        report = json.loads(path.read_text())
        if "overrides" not in report:  # of before a report said what was asked
            continue
        where = ("run=", "device=", "out=", "split=", "eval.batch_size=")
        given = [item for item in report["overrides"] if not item.startswith(where)]
        # Of another checkpoint it is another number, and without a question the run's own.
        asked = bool(given) and all(item.startswith("eval.") for item in given)
        if asked and (report["split"], report["data"]) == ("test", trained["data"]):
            found.append(
                trained
                | {
                    "arguments": sorted([*trained["arguments"], *given]),
                    "nats": report["nats"],
                    "nats_ci95": report["nats_ci95"],
                    "bits_per_dim": report["bits_per_dim"],
                    "valid_nats": None,  # the run's own is of another distribution
                    "seconds": round(trained["seconds"] + report["seconds"], 1),
                    "hardware": hardware(report["environment"]),
                    "commit": report["environment"]["git_commit"],
                }
            )
    return found


def hardware(environment: Mapping) -> str:
    """What a run or an evaluation ran on."""
    threads = environment["threads"]
    return f"{environment['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def identity(item: Mapping) -> tuple:
    """What makes two records the same experiment."""
    return (*item["arguments"], item["seed"])


def read_records() -> list[dict]:
    """All records."""
    return json.loads(RECORDS.read_text()) if RECORDS.is_file() else []


def collect(folders: Sequence[str]) -> int:
    """Add the finished runs below the folders to the records; how many there were."""
    kept = {identity(item): item for item in read_records()}
    found = []
    for run in find_runs(folders):
        own = record(run)
        found += [own, *evaluations(run, own)] if own is not None else []
    kept |= {identity(item): item for item in found}
    ordered = sorted(
        kept.values(), key=lambda item: (item["data"], identity(item)[:-1], item["seed"])
    )
    lines = ",\n".join(json.dumps(item) for item in ordered)  # a line each, for readable diffs
    RECORDS.write_text(f"[\n{lines}\n]\n")
    return len(found)


def wanted(row: Mapping) -> list[list[str]]:
    """Arguments of every run whose mean the row is."""
    split = []
    for item in shlex.split(row["run"]):
        key, _, values = item.partition("=")
        split.append([item] if "[" in values else [f"{key}={v}" for v in values.split(",")])
    return [sorted(part) for part in itertools.product(*split)]


def evaluated(row: Mapping) -> list[str]:
    """Arguments of `armodels eval`, of a row that is not what the run itself reported."""
    return shlex.split(row.get("eval", ""))


def command(row: Mapping) -> str:
    """What to type for the row."""
    typed = f"armodels train {'-m ' if len(wanted(row)) > 1 else ''}{row['run']}"
    return typed + (f" && armodels eval run=... {row['eval']}" if "eval" in row else "")


def result(row: Mapping, records: Sequence[Mapping]) -> dict | None:
    """The number of a row, or None unless some seed has all of its runs."""
    parts = [sorted([*part, *evaluated(row)]) for part in wanted(row)]
    by_part = [
        {item["seed"]: item for item in records if item["arguments"] == part} for part in parts
    ]
    seeds = sorted(set.intersection(*(set(found) for found in by_part)))
    if not seeds:
        return None
    runs = [[found[seed] for found in by_part] for seed in seeds]
    values = [statistics.fmean(item["nats"] for item in one) for one in runs]
    # Parts have test sets of their own: variances of the means add up.
    halves = [math.sqrt(sum(item["nats_ci95"] ** 2 for item in one)) / len(parts) for one in runs]
    every = [item for one in runs for item in one]
    return {
        "nats": statistics.fmean(values),
        "nats_ci95": statistics.fmean(halves),
        "std": statistics.stdev(values) if len(seeds) > 1 else None,
        "bits_per_dim": statistics.fmean(item["bits_per_dim"] for item in every),
        "seeds": seeds,
        "seconds": statistics.fmean(sum(item["seconds"] for item in one) for one in runs),
        "hardware": " / ".join(sorted({item["hardware"] for item in every})),
        "measures": {item["measure"] for item in every},
    }


def cells(row: Mapping, records: Sequence[Mapping]) -> list[str]:
    """One line of a table."""
    found = result(row, records)
    published = ""
    if "published" in row:
        half = f" ± {row['published_ci95']:.2f}" if "published_ci95" in row else ""
        published = f"{row['published']:.2f}{half} ({row['source']})"
    typed = f"`{command(row)}`"
    if found is None:
        return [row["model"], "not run", "", published, "", "", "", typed]
    nats = f"{found['nats']:.2f} ± {found['nats_ci95']:.2f}"
    if found["std"] is not None:
        nats += f" ({len(found['seeds'])} seeds, std {found['std']:.2f})"
    if found["measures"] == {"bound"}:
        nats = f"≤ {nats}"
    difference = f"{found['nats'] - row['published']:+.2f}" if "published" in row else ""
    seconds = f"{found['seconds']:,.0f}"
    bits = f"{found['bits_per_dim']:.4f}"
    return [row["model"], nats, bits, published, difference, seconds, found["hardware"], typed]


def table(rows: Sequence[Mapping], records: Sequence[Mapping]) -> str:
    """A section's table in Markdown, and its notes."""
    lines = [list(HEADER), ["---"] * len(HEADER), *(cells(row, records) for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [f"- {row['model']}: {row['note']}" for row in rows if "note" in row]
    return "\n".join([text, "", *notes]) if notes else text


def fill(page: str, sections: Mapping, records: Sequence[Mapping]) -> str:
    """The page with every table between its markers renewed.

    Raises:
        ValueError: A section has no markers.
    """
    for name, rows in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"docs/results.md has no place for {name}: write {begin} and {end}")
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = f"{begin}\n\n{table(rows, records)}\n\n{end}"
        page = re.sub(pattern, lambda _, text=text: text, page, flags=re.DOTALL)
    return page


def read_sections() -> dict[str, list[dict]]:
    """The rows of every table."""
    return yaml.safe_load(ROWS.read_text())


def tables() -> None:
    """Write docs/results.md."""
    PAGE.write_text(fill(PAGE.read_text(), read_sections(), read_records()))


def missing(words: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Arguments of train and of eval that have no record, of rows that hold one of the words."""
    done = [item["arguments"] for item in read_records()]
    found = []
    for section, rows in read_sections().items():
        for row in rows:
            if words and not any(word in f"{section} {row['run']}" for word in words):
                continue
            for part in wanted(row):
                pair = part, evaluated(row)
                if sorted([*part, *evaluated(row)]) not in done and pair not in found:
                    found.append(pair)
    return found


def train(words: Sequence[str]) -> None:
    """Train and evaluate what is missing, one after the other; each is recorded when it ends."""
    for part, evaluation in missing(words):
        folder = ROOT / "outputs" / "reproduce" / file_name(part)
        if not (folder / "metrics.json").is_file():
            armodels("train", *part, f"out={folder}")
        if evaluation:
            report = folder / f"eval-{file_name(evaluation)}.json"
            armodels("eval", f"run={folder}", *evaluation, f"out={report}")
        collect([str(folder)])
        tables()


def file_name(arguments: Sequence[str]) -> str:
    """Arguments in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(arguments))


def armodels(*arguments: str) -> None:
    """Run a verb and show which."""
    print("armodels", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "armodels", *arguments], check=True)


def main(argv: Sequence[str]) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("collect").add_argument("folders", nargs="+")
    verbs.add_parser("tables")
    verbs.add_parser("run").add_argument("words", nargs="*")
    options = parser.parse_args(argv)
    if options.verb == "collect":
        print(f"{collect(options.folders)} runs recorded in {RECORDS.relative_to(ROOT)}")
    elif options.verb == "run":
        train(options.words)
    tables()


if __name__ == "__main__":
    main(sys.argv[1:])
