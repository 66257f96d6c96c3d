"""Sound in files: clips of mono samples in [-1, 1], and samples as levels.

Files are read by soundfile, which brings libsndfile along, and resampled by SciPy.
"""

import io
import math
import os
import re
import wave
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Literal, cast

import numpy as np

from armodels.data.collections import MAX_BYTES, Wanted, first_line

Encoding = Literal["mu_law", "linear8", "linear16"]
"""How a sample in [-1, 1] becomes a level."""

NUM_LEVELS: dict[str, int] = {"mu_law": 256, "linear8": 256, "linear16": 65_536}

MU = 255
"""Of the µ-law: levels are closer to each other near silence, by a factor of up to 256."""

HIGHEST_RATE = 768_000
"""Samples a second: twice what any studio records. A header that states more is damaged, and a
filter for such rates would take gigabytes."""

MAX_SAMPLES = 2**28
"""Of one file, mixed down: 100 minutes at 44.1 kHz, in a gigabyte of float32."""

LOUDEST = 2.0
"""What lies outside [-1, 1] is cut off up to this peak, since decoders of MP3 and OGG overshoot; a
file that is louder has another scale."""

_BLOCK = 2**16
"""Samples that are read at once: a header may state any number of them."""

_STREAMED = 0x7FFFF000
"""A recorder that does not know how long it will run writes such a size, or a larger one."""

SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split()
)
"""Endings of the files that are taken for sound."""

CLIPS = Wanted("sound of a known kind", lambda: SUFFIXES)


# Files


def read_clip(source: str | os.PathLike | bytes, rate: int) -> np.ndarray:
    """A file of sound as mono samples: the mean of its channels, resampled.

    Any of PCM of 8 to 32 bits, floats, FLAC, OGG and what else libsndfile reads; what it is
    follows from the contents and not from the ending. Of a file that has the wanted rate and one
    channel, no sample of up to 24 bits is changed.

    Args:
        source: The file, or its contents, such as those of a member of a zip.
        rate: Samples a second that are wanted.

    Returns:
        (T,) float32 in [-1, 1], T at least 1.

    Raises:
        ValueError: It is no sound, is damaged or cut off, holds no samples, too many or NaN, or
            has another scale.
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: soundfile is not installed.
    """
    if isinstance(source, bytes):
        return _mono(source, rate)
    path = Path(source)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes; cut it into several files")
    try:
        return _mono(path.read_bytes(), rate)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as sound: {error}") from error


def _mono(contents: bytes, rate: int) -> np.ndarray:
    """What ``read_clip`` gives; its errors do not name the file."""
    soundfile = require_soundfile()
    if not 1 <= rate <= HIGHEST_RATE:
        raise ValueError(f"rate is {rate}; it must be from 1 to {HIGHEST_RATE:,} samples a second")
    try:
        with soundfile.SoundFile(io.BytesIO(contents)) as file:
            _require_whole(file.extra_info)
            if not 1 <= file.samplerate <= HIGHEST_RATE:
                raise ValueError(f"its header states {file.samplerate:,} samples a second")
            blocks, num = [], 0
            while len(block := file.read(_BLOCK, dtype="float64", always_2d=True)):
                num += len(block)
                if num > MAX_SAMPLES:
                    raise ValueError(
                        f"it holds more than {MAX_SAMPLES:,} samples a channel; cut it into "
                        f"several files"
                    )
                blocks.append(block.mean(1).astype(np.float32))
            own_rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(error.error_string.removeprefix("Error : ").rstrip(".")) from error
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(first_line(error)) from error
    if not blocks:
        raise ValueError("it holds no samples")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        place = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise ValueError(f"sample {place} is {samples[place]}, which is no number")
    if (peak := np.abs(samples).max()) > LOUDEST:
        raise ValueError(
            f"its samples go up to {peak:.4g}, but those of a float file lie in [-1, 1]; divide "
            f"them by their scale"
        )
    return resample(samples, own_rate, rate).clip(-1, 1)


def _require_whole(log: str) -> None:
    """Raise ValueError where a header states more bytes than there are, by libsndfile's log.

    The library itself reads what is left of a file that was cut off, and raises nothing.
    """
    found = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found and int(found[2]) < int(found[1]) < _STREAMED:
        raise ValueError(
            f"it is cut off: its header states {int(found[1]):,} bytes of samples, "
            f"{int(found[2]):,} are there"
        )


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples at another rate, by a polyphase low-pass filter (``scipy.signal.resample_poly``).

    Args:
        samples: (T,) float32.
        rate: Theirs.
        wanted: Samples a second.

    Returns:
        (ceil(T wanted / rate),) float32; ``samples`` themselves where both rates are equal. The
        filter may overshoot [-1, 1].
    """
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly  # slow to import

    shared = math.gcd(rate, wanted)
    found = resample_poly(samples.astype(np.float64), wanted // shared, rate // shared)
    return found.astype(np.float32)


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
    if not 1 <= rate <= HIGHEST_RATE:
        raise ValueError(f"rate is {rate}; it must be from 1 to {HIGHEST_RATE:,} samples a second")
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"a WAV is written of samples (T,), not of shape {samples.shape}")
    values = encode(samples, "linear16") - 32_768
    opened = cast("str | BinaryIO", os.fspath(path) if isinstance(path, os.PathLike) else path)
    with wave.open(opened, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.astype("<i2").tobytes())


def require_soundfile() -> ModuleType:
    """The library soundfile.

    Raises:
        ModuleNotFoundError: It is not installed, or the library that it calls is not.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: soundfile is here, libsndfile is not.
        raise ModuleNotFoundError(
            "files of sound need the library soundfile; pip install 'armodels[audio]'"
        ) from error
    return soundfile


# Levels


def encode(samples: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Samples as levels; ``decode`` gives the middle of each level.

    Args:
        samples: (..., T) in [-1, 1].
        encoding: ``"mu_law"``: round((f(x) + 1) / 2 * 255), f(x) = sign(x) ln(1 + µ|x|) / ln(1 +
            µ), µ = 255, halves rounded up, so that silence is 128. ``"linear8"``: round(128 x) +
            128. ``"linear16"``: round(32768 x) + 32768. The last two are the numbers of a PCM file
            itself, and 1 becomes the highest level.

    Returns:
        (..., T) uint8 of 256 levels, or int32 of 65,536.

    Raises:
        ValueError: Samples are not finite or not in [-1, 1].

    References:
        WaveNet: a generative model for raw audio (van den Oord et al., 2016), section 2.2
        https://arxiv.org/abs/1609.03499
        Pulse code modulation of voice frequencies, ITU-T G.711 https://www.itu.int/rec/T-REC-G.711

    Differs from the paper: G.711 itself has straight pieces in place of the logarithm.
    """
    x = np.asarray(samples, np.float64)
    if x.size and not np.abs(x).max() <= 1:  # NaN is not, either.
        raise ValueError("samples of sound must lie in [-1, 1], and be no NaN")
    if encoding == "mu_law":
        companded = np.copysign(np.log1p(MU * np.abs(x)) / math.log1p(MU), x)
        return np.floor((companded + 1) / 2 * MU + 0.5).astype(np.uint8)
    half = NUM_LEVELS[encoding] // 2
    levels = np.minimum(np.floor(x * half + 0.5) + half, 2 * half - 1)
    return levels.astype(np.uint8 if half <= 128 else np.int32)


def decode(levels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The sample that each level stands for; ``encode`` gives every level back.

    Args:
        levels: (..., T) integers, 0 to 255 or 0 to 65,535.
        encoding: As of ``encode``.

    Returns:
        (..., T) float32 in [-1, 1].

    Raises:
        ValueError: They are no such levels.
    """
    levels, num = np.asarray(levels), NUM_LEVELS[encoding]
    if levels.dtype.kind not in "iu" or (
        levels.size and not 0 <= levels.min() <= levels.max() < num
    ):
        raise ValueError(f"{encoding} has the levels 0 to {num - 1}, as integers")
    if encoding == "mu_law":
        companded = 2 * levels.astype(np.float64) / MU - 1
        size = np.expm1(np.abs(companded) * math.log1p(MU)) / MU
        return np.copysign(size, companded).astype(np.float32)
    return ((levels.astype(np.float64) - num // 2) / (num // 2)).astype(np.float32)
