"""Sines of random frequency and phase, in few levels and with noise: their entropy is known."""

import math
from collections.abc import Sequence
from typing import Annotated, final

import numpy as np
import torch
from torch import Tensor

from armodels.checks import Count, Range, Seed, Share, checked
from armodels.data.base import PARTS, Source, Splits
from armodels.data.clips import Clips, Rate, in_windows, window_spec
from armodels.spec import DataSpec
from armodels.waveform import Waveform

FREQUENCIES, NUM_PHASES, NOISE, SINE_RATE = (250, 400, 800), 16, 0.2, 8_000


@final
class Sine(Source):
    """A sine of random frequency and phase, in few levels, with noise: its entropy is known.

    One of F frequencies and of P phases is drawn for a clip, all equally likely; its sine is
    rounded to the levels 1 to L - 2, and each sample is then moved up or down by one level with
    probability ``noise``, independently of all others. So a clip is a mixture of F P products of
    known distributions, and its log-probability an exact sum:
    log p(x) = log mean over (f, p) of prod over t of p(x_t | f, p). A clip is one window.

    Args:
        length: Samples of a clip.
        levels: L, from 4 to 256.
        frequencies: In hertz, different ones.
        num_phases: P; they lie equally far apart, the first at 0.
        noise: Probability that a sample is moved, half of it up and half of it down.
        rate: Samples a second; frequencies are at most half of it.
        num_train: Number of draws to train on.
        num_valid: Number of draws to select by.
        num_test: Number of draws to test on.
        seed: Of the draws. Each split has a stream of its own: another ``num_train`` leaves valid
            and test as they are.

    Raises:
        ValueError: A frequency stands twice, or is above half of the rate.
    """

    @checked
    def __init__(
        self,
        length: Count = 256,
        levels: Annotated[int, Range(4, 256)] = 16,
        frequencies: Sequence[Count] = FREQUENCIES,
        num_phases: Count = NUM_PHASES,
        noise: Share = NOISE,
        rate: Rate = SINE_RATE,
        num_train: Count = 20_000,
        num_valid: Count = 2_000,
        num_test: Count = 2_000,
        seed: Seed = 0,
    ):
        self.length, self.levels, self.num_phases = length, levels, num_phases
        self.frequencies, self.noise, self.rate = tuple(frequencies), noise, rate
        self.sizes, self.seed = (num_train, num_valid, num_test), seed
        if not self.frequencies:
            raise ValueError("data.frequencies is empty; name one at least, such as [400]")
        if len(set(self.frequencies)) < len(self.frequencies):
            raise ValueError(f"data.frequencies is {list(frequencies)}; each may stand there once")
        if 2 * max(self.frequencies) > rate:
            raise ValueError(
                f"data.frequencies holds {max(self.frequencies)} Hz, which {rate} samples a "
                f"second cannot show; choose at most {rate // 2}"
            )

    @property
    def spec(self) -> DataSpec:
        name = f"sine-L{self.levels}-{self.length}"
        if self.frequencies != FREQUENCIES:
            name += f"-hz{'-'.join(map(str, self.frequencies))}"
        if self.num_phases != NUM_PHASES:
            name += f"-phases{self.num_phases}"
        if self.noise != NOISE:
            name += f"-noise{self.noise:g}"
        if self.rate != SINE_RATE:
            name += f"-rate{self.rate}"
        return window_spec(name, self.length, Waveform(self.rate, "linear", self.levels))

    def sines(self) -> Tensor:
        """The F P sequences of levels before noise, (F P, T) int16, by frequency and phase."""
        time = np.arange(self.length, dtype=np.int64)
        frequency = np.array(self.frequencies, np.int64)[:, None, None]
        phase = np.arange(self.num_phases)[:, None] / self.num_phases
        turns = (frequency * time) % self.rate / self.rate + phase  # (F, P, T)
        heights = self.levels / 2 + (self.levels / 2 - 1.5) * np.sin(2 * np.pi * turns)
        # A sine of 0 lies between two levels: the rounding makes every machine take the same one.
        levels = np.floor(heights.round(9)).astype(np.int16).reshape(-1, self.length)
        return torch.from_numpy(levels)

    def clips(self) -> Clips:
        """The draws of each split, of one length."""
        sines, found = self.sines(), {}
        for i, (part, size) in enumerate(zip(PARTS, self.sizes, strict=True)):
            rng = np.random.RandomState([self.seed, i])
            clean_ones = sines[torch.from_numpy(rng.randint(len(sines), size=size))]
            moved = rng.random_sample((size, self.length))
            steps = np.where(moved < self.noise / 2, -1, np.where(moved < self.noise, 1, 0))
            drawn = clean_ones + torch.from_numpy(steps.astype(np.int16))
            found[part] = list(drawn.to(torch.uint8))
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of clips under the mixture, exact to float64.

        Args:
            x: (B, T) levels.

        Returns:
            (B,) nats, on the device of x; -inf where no sine is within a level of x everywhere.
        """
        sines = self.sines().to(x.device)
        found = torch.empty(len(x), len(sines), dtype=torch.double, device=x.device)
        for i, one in enumerate(sines):
            distance = (x.short() - one).abs()
            moved = (distance == 1).sum(1).double()
            known = torch.special.xlogy(moved, self.noise / 2)
            known = known + (self.length - moved) * math.log1p(-self.noise)
            found[:, i] = known.masked_fill((distance > 1).any(1), -math.inf)
        return found.logsumexp(1) - math.log(len(sines))

    def load(self) -> Splits:
        spec = self.spec

        def true_log_prob(x: Tensor) -> Tensor:
            spec.check(x)
            return self.log_prob(x)

        return in_windows(spec, self.clips(), {}, true_log_prob)
