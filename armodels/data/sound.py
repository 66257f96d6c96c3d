"""Sound in files, as clips of mono samples in [-1, 1].

Files are read by soundfile, which brings libsndfile along, and resampled by SciPy.
"""

import io
import math
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np

from armodels.data.collections import MAX_BYTES, Wanted, first_line
from armodels.waveform import HIGHEST_RATE

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


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two files that can be read have the same samples, channels and rate."""
    soundfile = require_soundfile()
    (a, rate), (b, other_rate) = (
        soundfile.read(io.BytesIO(contents), dtype="float64", always_2d=True)
        for contents in (one, other)
    )
    return rate == other_rate and np.array_equal(a, b)


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
