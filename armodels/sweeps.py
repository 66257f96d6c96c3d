"""A sweep that goes on: which of its jobs are done, and which runs its other jobs take up.

A job is known by what was typed for it, so that neither its number nor the values beside its own
matter. Its run says the same in its config; there is no other record of a sweep.
"""

import functools
import hashlib
import os
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from armodels import construct, names, show, trust
from armodels.run import RunDirectory
from armodels.tasks import compare

How = Literal["done", "skipped", "resumed", "elsewhere", "not begun"]
"""What became of a job: trained from its start, not at all, from where it was, or by another
process; or not, since another failed."""


def go_on(
    train: Callable[[Mapping[str, Any]], float],
    config: dict[str, Any],
    folder: str | None,
    swept: Collection[str],
) -> tuple[float, How]:
    """Do one job of a sweep that goes on, where it is not done, and hold it meanwhile.

    Of several runs of the job one that is done counts first, then one that may be resumed. What
    failed is removed, so that it is trained afresh. The lock of a process that is killed is gone
    with it.

    Args:
        train: Trains by a config; its result is returned.
        config: Of the job, whose own directory is there and empty. It is changed to what
            ``train`` is called with: ``resume`` names the run that was there.
        folder: Of the sweep; its runs lie below. None: a command without a sweep.
        swept: Keys that the sweep varies.

    Raises:
        ValueError: The job cannot be one of a sweep that goes on, or its run is damaged.
    """
    _require_sweep(config, folder)
    config["overrides"] = [one for one in config["overrides"] if not _is_own(one)]
    job = job_of(config["overrides"], swept)
    locks = Path(str(folder)) / ".jobs"
    locks.mkdir(exist_ok=True)
    directory = Path(config["directory"])
    lock = FileLock(locks / hashlib.sha256(repr(job).encode()).hexdigest()[:16])
    try:
        with lock.acquire(timeout=0):
            how = _take(config, [run for run in _runs(locks.parent) if _job_of(run, swept) == job])
            return float("nan") if how == "skipped" else train(config), how
    except Timeout:
        _leave(directory)
    except BlockingIOError:  # by a command that resumes this one run
        if not config["resume"]:
            raise
    return float("nan"), "elsewhere"


def is_over(on_error: str) -> bool:
    """Whether a job of this sweep has failed, and none is to begin after that.

    Args:
        on_error: ``continue`` or ``stop``.
    """
    ended = Path(os.environ["ARMODELS_SWEEP"])  # a job of another machine does not see it
    # The key is looked for, not parsed: another process may be in the middle of its record.
    return on_error == "stop" and ended.is_file() and '"error":' in ended.read_text("utf-8")


def leave_out(config: Mapping[str, Any]) -> How:
    """Begin no run for a job; of its directory nothing is left.

    Args:
        config: Of the job.
    """
    if not config["resume"]:
        _leave(Path(config["directory"]))
    return "not begun"


def come_back(
    train: Callable[[Mapping[str, Any]], float], config: dict[str, Any]
) -> tuple[float, How]:
    """Do one job that may have begun before, as that of a queue which starts it again.

    Args:
        train: Trains by a config; its result is returned.
        config: Of the job, which has the same directory each time. It is changed as by ``go_on``.

    Raises:
        ValueError: Its run is damaged.
    """
    own = RunDirectory(config["directory"])
    began = not config["resume"] and (own.path / "config.yaml").is_file()
    how = _take(config, [own] if began else [])
    return (float("nan"), "done") if how == "skipped" else (train(config), how)


def _require_sweep(config: Mapping[str, Any], folder: str | None) -> None:
    if folder is None:
        raise ValueError("skip_done=true goes on with a sweep, which needs -m")
    if config["resume"]:
        raise ValueError(
            f"skip_done=true finds by itself what it resumes; leave resume={config['resume']} away"
        )


def _take(config: dict[str, Any], found: Sequence[RunDirectory]) -> How:
    """What is to be done with a job, of which these runs are there; the config says it, too."""
    for rank, _, run in sorted((_rank(run), run.path, run) for run in found):
        if rank < _FAILED:
            _leave(Path(config["directory"]))
            config.update(_resuming(config, run))
            return "resumed" if rank else "skipped"
        run.clear()
    return "done"


def _leave(directory: Path) -> None:
    """Remove the directory of a job done elsewhere; one that came back may have its run there."""
    if not any(directory.iterdir()):
        directory.rmdir()


_FAILED = 3


def _rank(run: RunDirectory) -> int:
    """0: done, 1: perhaps a process trains there, 2: stopped before its end, 3: failed.

    Raises:
        ValueError: A file of the run is damaged.
    """
    facts = compare.read(run)
    if facts.damage:
        raise ValueError(facts.damage)
    if facts.status["status"] == "done" and facts.metrics is not None:
        return 0
    return {"running": 1, "failed": _FAILED}.get(facts.status["status"], 2)


def _resuming(config: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    """Keys of a config that takes up a run; of what was typed, what the run was not told yet."""
    before = construct.typed_values(run.read_config()["overrides"])
    new = [
        item
        for item in config["overrides"]
        for key, value in construct.typed_values([item]).items()
        if key not in before or before[key] != value
    ]
    named = trust.Trust.in_own(config).names | trust.Trust.of(config["trust"]).names
    return {"resume": str(run.path), "overrides": new, "trust": sorted(named) or None}


def _is_own(item: str) -> bool:
    return item.lstrip("+").startswith(("skip_done=", "on_error="))


def job_of(overrides: Sequence[str], swept: Collection[str]) -> tuple[tuple[str, str], ...]:
    """What tells a job from the others of a sweep: its keys that matter, with their values.

    Args:
        overrides: Of one job, as typed.
        swept: Keys that the sweep varies; they matter all.
    """
    values = construct.typed_values(overrides)
    matter = {*names.what_was_trained(f"{key}=" for key in values)}
    kept = [key for key in values if f"{key}=" in matter or key == "seed" or key in swept]
    return tuple((key, repr(values[key])) for key in sorted(kept))


def _runs(folder: Path) -> list[RunDirectory]:
    """All runs below a folder. ``rglob`` raises where another process removes one meanwhile."""
    walk = os.walk(folder)
    return [RunDirectory(path) for path, _, files in walk if "config.yaml" in files]


def _job_of(run: RunDirectory, swept: Collection[str]) -> tuple | None:
    """The job of a run; None where its config cannot be read, and is no job's."""
    try:
        stat = (run.path / "config.yaml").stat()
        overrides = _overrides(run.path, stat.st_mtime_ns, stat.st_size)
        return job_of(overrides, swept)
    except (OSError, ValueError):
        return None


@functools.cache
def _overrides(run: Path, changed: int, size: int) -> tuple[str, ...]:
    """What was typed for a run. A config is read once: each job of a sweep looks at all runs."""
    overrides = RunDirectory(run).read_config().get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise ValueError(f"{run} says nothing of what was typed for it")
    return tuple(overrides)


def line(number: int, record: Mapping[str, Any]) -> str:
    """How one job of a sweep ended.

    Args:
        number: Of the job.
        record: As ``report`` takes it.
    """
    keys = os.environ["ARMODELS_SWEPT"].split()
    chosen = [item for item in record["overrides"] if item.partition("=")[0] in keys]
    what = f"job {number}  {' '.join(chosen)}".rstrip()
    if "error" in record:
        return f"{what}: failed: {record['error']}"
    if record["how"] == "elsewhere":
        return f"{what}: left to another process, which trains it"
    if record["how"] == "not begun":
        return f"{what}: not begun, since a job has failed (on_error=stop)"
    what += "" if record["how"] == "done" else f": {record['how']}"
    metrics = typing.cast(dict, RunDirectory(record["directory"]).read_metrics())  # it is done
    splits = [split for split in ("valid", "test") if split in metrics]
    numbers = ", ".join(f"{split} {metrics[split]['nats']:.4f}" for split in splits)
    return f"{what}: {numbers} nats, {metrics['seconds']:.0f} s"


def report(records: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
    """The table of the runs of a sweep, how many of its jobs ended how, and how to look on.

    Args:
        records: One a job: its ``directory``, and ``error`` or ``how``.
        defaults: Of the verb ``compare``.
    """
    folders = [one["directory"] for one in records if one["directory"]]
    begun = [os.path.relpath(one) for one in folders if (Path(one) / "status.json").is_file()]
    if begun:
        show.say()
        compare.main({**defaults, "runs": begun})
        show.say()
    counts = Counter("failed" if "error" in one else one["how"] for one in records)
    kinds = [one for one in (*typing.get_args(How), "failed") if counts[one]]
    show.say(f"jobs: {', '.join(f'{counts[one]} {one}' for one in kinds)}")
    if any(any(Path(one).glob("events.*")) for one in begun):
        show.say(f"Next: {show.command('tensorboard', logdir=os.path.commonpath(begun))}")
