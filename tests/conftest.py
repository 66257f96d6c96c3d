"""What holds for every test."""

import gc
import os
import signal
from pathlib import Path

import pytest

# Threads of OpenMP sleep until the next operation. Awake, they took what another worker needs: the
# tests of two threads ten times what they compute. The variable is read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

TREE = (
    "architecture config docstrings examples mutate named needs newcomer packaging pages".split()
)
TREE += ["codecs", "reproduce", "torture"]
"""Tests of what is in no wheel: pages, scripts, examples, the sources as they are written."""

if not (Path(__file__).parents[1] / "pyproject.toml").is_file():  # make test-wheel
    collect_ignore = [f"test_{name}.py" for name in TREE]

# Verbs run in folders of their own, from which a relative path leads nowhere.
if "ARMODELS_DATA" in os.environ:
    os.environ["ARMODELS_DATA"] = os.path.abspath(os.environ["ARMODELS_DATA"])


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What tests decode goes nowhere else, and is known to no earlier test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARMODELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def imported():
    """What was imported stays: to look through it for garbage takes a tenth of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same draws, whichever tests ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def signals():
    """Signals end programs, also where nohup or a shell's background had them ignored."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
