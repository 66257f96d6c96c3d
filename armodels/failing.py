"""What a run that broke leaves behind: its status, its reason and the traceback."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from armodels.run import RunDirectory


def note(config: Mapping[str, Any], reason: str, traceback: str, *, of_several: bool) -> None:
    """Leave status and traceback with the run that broke.

    A run that never began touches nothing: an earlier run may own the directory, and the next
    attempt wants the same ``out``. One of several, in a sweep or a search, counts as one of the
    runs, and is begun here, so that neither ``compare`` nor TensorBoard misses it.

    Args:
        config: Of the run.
        reason: One sentence.
        traceback: For its log.
        of_several: Whether it is one of several runs.

    Raises:
        OSError: The disk is full, for one.
    """
    run = RunDirectory(config["resume"] or config["directory"])
    if not run.path.is_dir():
        return
    if not any(run.path.iterdir()):
        if not of_several:
            run.path.rmdir()
            return
        # It imports torch, which not every failure has.
        from armodels.tracking import Tracker, require_loggers

        run.begin(config)
        loggers: tuple[str, ...] = ("tensorboard",)
        with contextlib.suppress(ValueError):  # which may be the very reason
            loggers = require_loggers(config["logger"])
        tracker = Tracker(run.path, loggers=loggers)
        tracker.start(config)
        tracker.close("failed")
    try:
        status = run.read_status()
    except (OSError, ValueError):  # damaged, and not by this process
        return
    if status["status"] == "running" and status["pid"] == os.getpid():
        run.write_status("failed", reason)
        with open(run.path / "train.log", "a") as file:
            file.write(traceback)
