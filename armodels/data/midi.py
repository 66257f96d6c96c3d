"""MIDI files as frames of keys, and events as MIDI files, by mido."""

import io
from collections import defaultdict
from itertools import chain, pairwise
from typing import BinaryIO, NamedTuple

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


class _Span(NamedTuple):
    """A note: its first tick, the tick after its last, its key and channel."""

    first: int
    end: int
    key: int
    channel: int


def read_midi(
    contents: bytes, notes: Notes, *, highest: int | None = None, every: tuple[str, ...] = ()
) -> tuple[np.ndarray, int]:
    """Frames of a MIDI file, from its first note to the end of its last one.

    A note begins at the frame nearest to where it begins, and lasts one frame at least. Drums are
    left out, and channels put together, unless voices are wanted: each of them is a track, or
    a channel of a file with one track, in the order of the file, and sings one key at a time.

    Args:
        contents: Of the file.
        notes: What a frame is.
        highest: The highest key of a voice; None: of keys, whose number says it.
        every: All voices of a piece, in its order: a file that has them all may be asked for some.

    Returns:
        (T, size) uint8 of 0 and 1, or of the levels of voices, and how many notes lie outside the
        keys, which are left out.

    Raises:
        ValueError: It is no readable MIDI file, has no notes, is too long, or has other voices;
            says so after the name of the file.
    """
    if len(contents) > MAX_BYTES:
        raise ValueError(f"it has {len(contents):,} bytes, which is no file of notes")
    try:
        file = mido.MidiFile(file=io.BytesIO(contents), clip=True)
        tracks = [_spans(track) for track in file.tracks]
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"it is no readable MIDI file ({reason})") from None
    if file.ticks_per_beat <= 0:
        raise ValueError("it counts time in seconds (SMPTE), not in beats; save it with beats")
    keys = range(notes.lowest, (notes.lowest + notes.size if highest is None else highest + 1))
    spans = [span for track in tracks for span in track]
    inside = [span for span in spans if span.key in keys]
    if not inside:
        raise ValueError(f"it has no notes{_others(file, len(spans))}")
    scale = notes.per_beat / file.ticks_per_beat
    begins = round(min(span.first for span in inside) * scale)
    ends = max(_last(span, scale) for span in inside)
    if ends - begins > MAX_FRAMES:
        raise ValueError(f"it lasts {ends - begins:,} frames, more than {MAX_FRAMES:,}")
    frames = np.zeros((ends - begins, notes.size), np.uint8)
    if notes.voices:
        parts = _parts(tracks, notes.voices, every, 0.5 / scale)
    else:
        parts = [inside]
    for number, part in enumerate(parts):
        for span in part:
            during = slice(round(span.first * scale) - begins, _last(span, scale) - begins)
            if not notes.voices:
                frames[during, span.key - notes.lowest] = 1
            elif span.key in keys:  # a later note ends the one before
                frames[during, number] = span.key - notes.lowest + 1
    return frames, len(spans) - len(inside)


def _others(file: mido.MidiFile, outside: int) -> str:
    """What sounds in a file without a key of the model's."""
    if outside:
        return f" on the keys that the model knows, but {outside} on others"
    drums = any(one.type == "note_on" and one.channel == DRUMS for one in chain(*file.tracks))
    return " but those of drums, which are no keys" if drums else ""


def _last(span: _Span, scale: float) -> int:
    """The frame after the last one of a note."""
    return max(round(span.first * scale) + 1, round(span.end * scale))


def _parts(
    tracks: list[list[_Span]],
    voices: tuple[str, ...],
    every: tuple[str, ...],
    most_shared: float,
) -> list[list[_Span]]:
    """The notes of each voice, one after another.

    Args:
        tracks: The notes of each.
        voices: Names of those that are wanted.
        every: Names of all that a piece may have, in its order.
        most_shared: Ticks for which a note may sound on while the next one does.

    Raises:
        ValueError: There are more or fewer, or one sings several keys at a time.
    """
    parts = [track for track in tracks if track]
    if len(parts) == 1:
        channels = sorted({span.channel for span in parts[0]})
        parts = [[span for span in parts[0] if span.channel == one] for one in channels]
    if len(parts) == len(every) != len(voices):
        parts = [parts[every.index(voice)] for voice in voices]
    if len(parts) != len(voices):
        raise ValueError(
            f"its notes lie in {len(parts)} track{'s' * (len(parts) != 1)} or "
            f"channel{'s' * (len(parts) != 1)}, but one is needed for each of {', '.join(voices)}"
        )
    for part, voice in zip(parts, voices, strict=True):
        part.sort()
        for before, after in pairwise(part):
            if before.end - after.first > most_shared:
                raise ValueError(
                    f"its {voice} has the keys {before.key} and {after.key} at a time, but a "
                    f"voice sings one"
                )
    return parts


def _spans(track: mido.MidiTrack) -> list[_Span]:
    """Notes of a track."""
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
            found.append(_Span(begun.pop(0), now, message.note, message.channel))
    # What is never let go sounds to the end of its track.
    return found + [
        _Span(one, now, key, channel)
        for (channel, key), begun in sounding.items()
        for one in begun
    ]


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
