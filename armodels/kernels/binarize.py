"""Fresh binarization on the CPU: grey pixels to bits, eight to a draw of 64 random bits."""

import numpy as np
import torch
from torch import Tensor

from armodels.kernels.arrays import to_numpy


def reference(grey: Tensor, seed: int) -> Tensor:
    """Draw each pixel from Bernoulli(grey / 255), exactly.

    Word k of the noise is SplitMix64's output for the state seed + k gamma, so that it follows
    from its index alone; pixel i has byte i of the words. A word that holds a 255 is drawn again,
    which leaves the other 255 values of a byte equally likely: ``grey`` of them lie below it.

    Args:
        grey: (...) uint8.
        seed: 0 .. 2^64 - 1.

    Returns:
        (...) bool.

    References:
        Fast Splittable Pseudorandom Number Generators (Steele, Lea & Flood, 2014)
        https://doi.org/10.1145/2660193.2660195
    """

    def mix(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    indices = np.arange(-(-grey.numel() // 8), dtype=np.uint64)
    words = mix(indices * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed))
    while (holds := (words.view(np.uint8).reshape(-1, 8) == 255).any(1)).any():
        words[holds] = mix(words[holds] + np.uint64(0xD1342543DE82EF95))
    noise = torch.from_numpy(words.view(np.uint8)[: grey.numel()])
    return noise.view(grey.shape) < grey


def draw(grey: Tensor, seed: int) -> Tensor:
    """As ``reference``, bit for bit, in compiled code; on the CPU."""
    from armodels.kernels import compiled

    bits = torch.empty(grey.shape, dtype=torch.bool)
    compiled.binarize(to_numpy(grey)[0].reshape(-1), np.uint64(seed), bits.numpy().reshape(-1))
    return bits
