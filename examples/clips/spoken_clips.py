"""Loud windows of the spoken digits as real values: data of your own for `--config-dir`."""

import math

import torch
from torch import Tensor

from armodels.data.audio import FSDD
from armodels.data.base import PARTS, Source, Splits
from armodels.spec import DataSpec

SCALE = 10.0
"""Values are samples times it, so that their deviation is near 1."""


class SpokenClips(Source):
    """Windows of the spoken digits that are louder than silence, each sample with noise of one
    level of 16 bits, so that they have a density.

    Args:
        length: Samples of a clip.
        loudness: Root mean square of its samples, at least.
    """

    def __init__(self, length: int = 256, loudness: float = 0.05):
        self.digits, self.loudness = FSDD("linear16", length), loudness

    @property
    def spec(self) -> DataSpec:
        (length,) = self.digits.spec.shape
        name = f"spoken-clips-{length}-{self.loudness:g}"
        log_det = length * math.log(SCALE)
        return DataSpec(name, "sequence", (length,), None, "density", log_det=log_det)

    def load(self) -> Splits:
        splits = self.digits.load()
        generator = torch.Generator().manual_seed(0)

        def loud(levels: Tensor) -> Tensor:
            noise = torch.rand(levels.shape, generator=generator)
            samples = (levels - 32_768 + noise - 0.5) / 32_768
            return SCALE * samples[samples.square().mean(1).sqrt() >= self.loudness]

        return Splits(self.spec, *(loud(getattr(splits, part)) for part in PARTS))
