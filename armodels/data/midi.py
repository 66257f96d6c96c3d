"""MIDI files as frames of keys, and events as MIDI files, by mido."""

import io
from collections import defaultdict
from typing import BinaryIO

import mido
import numpy as np

from armodels.data.collections import Wanted
from armodels.notes import TEMPO, Notes, held

MIDIS = Wanted("MIDI", lambda: frozenset({".mid", ".midi"}))

UNREADABLE: tuple[type[Exception], ...]
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError)
UNREADABLE += (AttributeError, mido.KeySignatureError)
"""What mido raises for a file that is no MIDI, or breaks off."""

MAX_BYTES = 2**24
"""A file of notes has a hundredth of them; what is larger is something else."""

MAX_FRAMES = 2**17
"""Of one file: nine hours at four frames a beat and 60 beats a minute. A few bytes may state any
number of beats."""

DRUMS = 9
"""The channel whose keys are no pitches."""

_TICKS, _LOUDNESS = 480, 80


def read_midi(contents: bytes, notes: Notes) -> tuple[np.ndarray, int]:
    """Frames of a MIDI file, from its first note to the end of its last one.

    A note begins at the frame nearest to where it begins, and lasts one frame at least. Channels
    are put together, drums left out.

    Args:
        contents: Of the file.
        notes: What a frame is.

    Returns:
        (T, size) uint8 of 0 and 1, and how many notes lie outside the keys, which are left out.

    Raises:
        ValueError: It is no readable MIDI file, has no notes, or is too long; says so after the
            name of the file.
    """
    if len(contents) > MAX_BYTES:
        raise ValueError(f"it has {len(contents):,} bytes, which is no file of notes")
    try:
        file = mido.MidiFile(file=io.BytesIO(contents), clip=True)
        spans = [span for track in file.tracks for span in _spans(track)]
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"it is no readable MIDI file ({reason})") from None
    if file.ticks_per_beat <= 0:
        raise ValueError("it counts time in seconds (SMPTE), not in beats; save it with beats")
    inside = [one for one in spans if notes.lowest <= one[2] < notes.lowest + notes.size]
    if not inside:
        raise ValueError("it has no notes")
    scale = notes.per_beat / file.ticks_per_beat
    placed = []
    for first, end, key in inside:
        frame = round(first * scale)
        placed.append((frame, max(frame + 1, round(end * scale)), key - notes.lowest))
    begins, ends = min(one[0] for one in placed), max(one[1] for one in placed)
    if ends - begins > MAX_FRAMES:
        raise ValueError(f"it lasts {ends - begins:,} frames, more than {MAX_FRAMES:,}")
    frames = np.zeros((ends - begins, notes.size), np.uint8)
    for first, end, key in placed:
        frames[first - begins : end - begins, key] = 1
    return frames, len(spans) - len(inside)


def _spans(track: mido.MidiTrack) -> list[tuple[int, int, int]]:
    """Notes of a track: (first tick, tick after the last, key)."""
    now, found = 0, []
    sounding: dict[tuple[int, int], list[int]] = defaultdict(list)
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        begun = sounding[message.channel, message.note]
        if message.type == "note_on" and message.velocity:
            begun.append(now)
        elif begun:
            found.append((begun.pop(0), now, message.note))
    # What is never let go sounds to the end of its track.
    return found + [(one, now, key) for (_, key), begun in sounding.items() for one in begun]


def write_midi(events: np.ndarray, notes: Notes, file: BinaryIO) -> None:
    """Write events one after another, two beats apart, each voice a track of its own.

    A key that sounds in frames one after another is one long note.

    Args:
        events: (N, *event).
        notes: What a frame is.
        file: Of bytes.
    """
    midi = mido.MidiFile(type=1, ticks_per_beat=_TICKS)
    played = [notes.parts(event) for event in events]
    head = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(TEMPO))])
    midi.tracks.append(head)
    ticks = _TICKS // notes.per_beat if _TICKS % notes.per_beat == 0 else 0
    if not ticks:
        midi.ticks_per_beat, ticks = notes.per_beat * 24, 24
    for number in range(len(played[0]) if played else 0):
        changes, start = [], 0
        for parts in played:
            for first, end, key in held(parts[number]):
                changes += [(start + end, 0, key), (start + first, 1, key)]
            start += len(parts[number]) + 2 * notes.per_beat
        track, now = mido.MidiTrack(), 0
        for frame, begins, key in sorted(changes):  # of a frame, what ends goes first
            track.append(
                mido.Message(
                    "note_on" if begins else "note_off",
                    channel=number % 16 if number != DRUMS else DRUMS + 1,
                    note=key,
                    velocity=_LOUDNESS if begins else 0,
                    time=(frame - now) * ticks,
                )
            )
            now = frame
        midi.tracks.append(track)
    midi.save(file=file)
