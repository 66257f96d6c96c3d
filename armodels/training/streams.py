"""Random streams: every draw of a training is a function of (purpose, seed, step)."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

WEIGHTS, EPOCH, STEP, NOISE, SAMPLES = range(5)
"""What a stream is for; the first number of its key."""


def stream(*key: int) -> int:
    """A seed for one purpose: well mixed, and a function of the key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what models draw from, such as dropout's noise, on the CPU and on ``device``."""
    if device.type == "cpu":
        # torch.manual_seed would note the call stack for a GPU that may yet come: 0.1 ms.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as zero inside the block.

    Adam's averages fade by a tenth a step, so those of a pixel that is seldom on soon hold
    nothing but such numbers, with which a CPU is far slower.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
