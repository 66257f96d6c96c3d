"""What the levels of a sound stand for: samples in [-1, 1], so many a second."""

import io
import math
import os
import wave
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import numpy as np

Law = Literal["mu_law", "linear"]
"""By which levels lie in [-1, 1]."""

Encoding = Literal["mu_law", "linear8", "linear16"]
"""A law with its number of levels, as a config names it."""

ENCODINGS: dict[Encoding, tuple[Law, int]] = {
    "mu_law": ("mu_law", 256),
    "linear8": ("linear", 256),
    "linear16": ("linear", 65_536),
}

MU = 255
"""Of the µ-law: levels are closer to each other near silence, by a factor of up to 256."""

HIGHEST_RATE = 768_000
"""Samples a second: twice what any studio records. A header that states more is damaged, and a
filter for such rates would take gigabytes."""

PAUSE = 0.25
"""Seconds of silence between several sounds in one file."""


@dataclass(frozen=True)
class Waveform:
    """Level i of a sound stands for one sample in [-1, 1].

    Attributes:
        rate: Samples a second.
        law: ``"linear"``: levels lie equally far apart, as the numbers of a PCM file;
            ``"mu_law"``: closer to each other near silence.
        num_levels: L.
    """

    rate: int
    law: Law
    num_levels: int

    def __post_init__(self) -> None:
        if self.law not in ("mu_law", "linear"):
            raise ValueError(f"the law of a sound is {self.law!r}; it must be mu_law or linear")
        if not 1 <= self.rate <= HIGHEST_RATE:
            raise ValueError(
                f"rate is {self.rate}; it must be from 1 to {HIGHEST_RATE:,} samples a second"
            )
        if self.law == "mu_law" and self.num_levels != MU + 1:
            raise ValueError(f"the µ-law has {MU + 1} levels, not {self.num_levels}")

    @classmethod
    def of(cls, rate: int, encoding: Encoding) -> "Waveform":
        """Samples a second, and the encoding of each."""
        return cls(rate, *ENCODINGS[encoding])

    def encoded(self, samples: np.ndarray) -> np.ndarray:
        """Samples as levels; ``decoded`` gives the middle of each level.

        The µ-law: round((f(x) + 1) / 2 * 255), f(x) = sign(x) ln(1 + µ|x|) / ln(1 + µ), µ = 255,
        halves rounded up, so that silence is 128. Linear: round(h x) + h, h = floor(L / 2); 1
        becomes the highest level. Of 256 and 65,536 levels these are the numbers of a PCM file.

        Args:
            samples: (..., T) in [-1, 1].

        Returns:
            (..., T) uint8 of up to 256 levels, else int32.

        Raises:
            ValueError: Samples are not finite or not in [-1, 1].

        References:
            WaveNet: a generative model for raw audio (van den Oord et al., 2016), section 2.2
            https://arxiv.org/abs/1609.03499
            Pulse code modulation of voice frequencies, ITU-T G.711
            https://www.itu.int/rec/T-REC-G.711

        Differs from the paper: G.711 itself has straight pieces in place of the logarithm.
        """
        x = np.asarray(samples, np.float64)
        if x.size and not np.abs(x).max() <= 1:  # NaN is not, either.
            raise ValueError("samples of sound must lie in [-1, 1], and be no NaN")
        if self.law == "mu_law":
            companded = np.copysign(np.log1p(MU * np.abs(x)) / math.log1p(MU), x)
            return np.floor((companded + 1) / 2 * MU + 0.5).astype(np.uint8)
        half = self.num_levels // 2
        levels = np.minimum(np.floor(x * half + 0.5) + half, self.num_levels - 1)
        return levels.astype(np.uint8 if self.num_levels <= 256 else np.int32)

    def decoded(self, levels: np.ndarray) -> np.ndarray:
        """The sample that each level stands for; ``encoded`` gives every level back.

        Args:
            levels: (..., T) integers, from 0 to L - 1.

        Returns:
            (..., T) float32 in [-1, 1].

        Raises:
            ValueError: They are no such levels.
        """
        levels, num = np.asarray(levels), self.num_levels
        if levels.dtype.kind not in "iu" or (
            levels.size and not 0 <= levels.min() <= levels.max() < num
        ):
            raise ValueError(f"sound of this encoding has the levels 0 to {num - 1}, as integers")
        if self.law == "mu_law":
            companded = 2 * levels.astype(np.float64) / MU - 1
            size = np.expm1(np.abs(companded) * math.log1p(MU)) / MU
            return np.copysign(size, companded).astype(np.float32)
        return ((levels.astype(np.float64) - num // 2) / (num // 2)).astype(np.float32)

    def joined(self, several: np.ndarray) -> np.ndarray:
        """Samples (T',) of levels (N, T) one after another, with a pause between them."""
        pause = np.zeros(round(PAUSE * self.rate), np.float32)
        parts = [part for one in several for part in (pause, self.decoded(one))]
        return np.concatenate(parts[1:])


def wav(samples: np.ndarray, rate: int) -> bytes:
    """The contents of a WAV file; arguments as of ``write_wav``."""
    file = io.BytesIO()
    write_wav(file, samples, rate)
    return file.getvalue()


def write_wav(path: str | os.PathLike | BinaryIO, samples: np.ndarray, rate: int) -> None:
    """Write mono samples as a WAV of 16-bit PCM, by Python itself: it needs no soundfile.

    A level of ``linear16`` comes back from the file as it was.

    Args:
        path: The file, or one that is open for writing bytes.
        samples: (T,) in [-1, 1].
        rate: Samples a second.

    Raises:
        ValueError: Samples are not finite, not in [-1, 1] or of another shape, or there is no such
            rate.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"a WAV is written of samples (T,), not of shape {samples.shape}")
    values = Waveform.of(rate, "linear16").encoded(samples) - 32_768
    opened = cast("str | BinaryIO", os.fspath(path) if isinstance(path, os.PathLike) else path)
    with wave.open(opened, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.astype("<i2").tobytes())
