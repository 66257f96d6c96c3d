"""What the values of music stand for: keys that sound, frame after frame, or voices."""

from dataclasses import dataclass

import numpy as np

NUM_KEYS = 128
"""Of MIDI."""

HZ_OF_A, A = 440.0, 69
"""The concert pitch, and its key."""

TEMPO = 100
"""Beats a minute of what is written and played."""

RATE = 16_000
"""Samples a second of what is played."""

_OVERTONES = (1.0, 0.5, 0.25, 0.12)
_ATTACK, _FADING, _RELEASE = 0.01, 1.5, 0.05
"""Seconds in which a note swells, loses two thirds of its loudness, and ends."""


@dataclass(frozen=True)
class Notes:
    """A frame of music: which keys sound at a moment, or what each of several voices sings.

    Attributes:
        lowest: The lowest key, as MIDI counts them: 21 is the lowest of a piano.
        size: Values of a frame. Of keys: value i says whether key ``lowest + i`` sounds. Of
            voices: level 0 is silence and level i the key ``lowest + i - 1``.
        per_beat: Frames of a quarter note.
        voices: Their names, where a frame holds voices; an event is then (1, T, size). Empty: a
            frame holds keys, and an event is (T * size,). Frames stand one after another.
    """

    lowest: int = 21
    size: int = 88
    per_beat: int = 1
    voices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names: object = self.voices
        if names is not False and not isinstance(names, (tuple, list)):
            raise ValueError(f"voices are {names!r}; they must be names, of frames in time")
        # Runs from before voices had names hold False where there are none.
        object.__setattr__(self, "voices", tuple(names or ()))
        if not (0 <= self.lowest < NUM_KEYS and self.size >= 1 and self.per_beat >= 1):
            raise ValueError(
                f"notes have a key from 0 to {NUM_KEYS - 1} and at least one value and one frame "
                f"a beat, got {self}"
            )
        if self.voices and len(self.voices) != self.size:
            raise ValueError(f"a frame has {self.size} values, but the voices {self.voices}")

    def parts(self, event: np.ndarray) -> list[np.ndarray]:
        """The keys that sound, of each voice by itself; of keys there is one part.

        Args:
            event: One event, of whatever shape.

        Returns:
            (T, 128) bool of each part; a frame that is not whole is left out.
        """
        flat = event.reshape(-1)
        frames = flat[: len(flat) // self.size * self.size].reshape(-1, self.size)
        if self.voices:
            parts = [np.zeros((len(frames), NUM_KEYS), bool) for _ in self.voices]
            for part, voice in zip(parts, frames.T.astype(np.int64), strict=True):
                (sounding,) = np.nonzero(voice)
                part[sounding, (self.lowest + voice[sounding] - 1).clip(max=NUM_KEYS - 1)] = True
            return parts
        roll = np.zeros((len(frames), NUM_KEYS), bool)
        shown = min(self.size, NUM_KEYS - self.lowest)
        roll[:, self.lowest : self.lowest + shown] = frames[:, :shown] != 0
        return [roll]


def held(roll: np.ndarray) -> list[tuple[int, int, int]]:
    """Notes of a roll (T, 128): (first frame, frame after the last, key), by the first frame.

    A key that sounds in frames one after another is one note: a roll does not say whether it was
    struck again.
    """
    edges = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    found = []
    for key in np.flatnonzero(roll.any(0)).tolist():
        begins, ends = np.flatnonzero(edges[:, key] > 0), np.flatnonzero(edges[:, key] < 0)
        found += [(int(a), int(b), key) for a, b in zip(begins, ends, strict=True)]
    return sorted(found)


def played(events: np.ndarray, notes: Notes) -> np.ndarray:
    """Events one after another as sound: a sum of sines for each note, nothing more.

    Args:
        events: (N, *event).
        notes: What a frame is.

    Returns:
        (samples,) float32 in [-1, 1], at ``RATE``.
    """
    frame = 60 * RATE / TEMPO / notes.per_beat  # in samples
    rolls = [np.any(notes.parts(event), 0) for event in events]
    starts = np.cumsum([0, *(len(roll) + 2 * notes.per_beat for roll in rolls)])
    sound = np.zeros(int(frame * starts[-1]) + 1, np.float32)
    for start, roll in zip(starts, rolls, strict=False):
        for first, end, key in held(roll):
            begin, stop = int((start + first) * frame), int((start + end) * frame)
            time = np.arange(stop - begin) / RATE
            hz = HZ_OF_A * 2 ** ((key - A) / 12)
            wave = np.zeros(len(time))
            for i, loudness in enumerate(_OVERTONES, 1):
                if i * hz < RATE / 2:
                    wave += loudness * np.sin(2 * np.pi * i * hz * time)
            wave *= np.minimum(time / _ATTACK, 1) * np.exp(-time / _FADING)
            wave *= np.minimum((time[-1] - time) / _RELEASE, 1)
            sound[begin:stop] += wave.astype(np.float32)
    loudest = float(np.abs(sound).max())
    return sound / loudest if loudest > 1 else sound
