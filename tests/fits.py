"""``python tests/fits.py FILE NAMES...``: train cases by ``armodels.fit``, in one process or more.

The first of the processes writes what came of it.
"""

import os
import sys

import torch
from cases import CASES

import armodels
from armodels.training.settings import Settings, Watching


def fit(name: str) -> dict:
    """Curves, numbers and weights of a case, after two epochs of 11 examples in batches of 4."""
    case = CASES[name]
    rows = case.events(25)
    splits = armodels.Splits(case.spec, rows[:11], rows[11:18], rows[18:])
    settings = Settings(max_epochs=2, batch_size=4, accumulate=2, ema=0.5, precision="64-true",
                        accelerator="cpu", log_every=1, progress=False)  # fmt: skip
    watching = Watching(batch_size=3, num_samples=0)
    try:
        result = armodels.fit(case.build(0), splits, settings, watching=watching, quiet=True)
    except FloatingPointError as error:  # of a baseline for which some row is impossible
        return {"error": str(error)}
    numbers = {split: dict(result.metrics[split]) for split in ("valid", "test")}
    timed = ("seconds", "watch/examples_per_s")
    curve = [{k: v for k, v in row.items() if k not in timed} for row in result.history]
    return {"numbers": numbers, "curve": curve, "weights": dict(result.model.state_dict())}


if __name__ == "__main__":
    found = {name: fit(name) for name in sys.argv[2:]}
    if os.environ.get("RANK", "0") == "0":
        torch.save(found, sys.argv[1])
