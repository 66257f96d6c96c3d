"""Music as frames: chorales, folk tunes, and MIDI files of your own."""

import hashlib
import io
import json
import os
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from armodels import disk, show
from armodels.checks import Count, Seed, Share, checked
from armodels.data.audio import TEST, VALID, parts_of
from armodels.data.base import PARTS, Source, Splits, data_root, read_files
from armodels.data.collections import MAX_SHOWN, UNDECODABLE, Collection, Tree, Zip, first_line
from armodels.data.folder import stem_of
from armodels.data.images import Shares
from armodels.data.midi import MIDIS, read_midi
from armodels.data.rows import Rows
from armodels.notes import Notes
from armodels.spec import DataSpec

Corpus = Literal["jsb", "nottingham", "jsb_16th"]

PIANO = Notes()
VOICES = Notes(36, 4, 4, voices=("soprano", "alto", "tenor", "bass"))
HIGHEST = 81
"""The highest key of the chorales' voices, whose lowest is 36."""


class _File(NamedTuple):
    """A corpus: its file, the md5 of it, its frames a quarter note, and where it is from."""

    name: str
    md5: str
    per_beat: int
    origin: str


BOULANGER = "www-etud.iro.umontreal.ca/~boulanni/icml2012"
SIXTEENTHS = "github.com/czhuang/JSB-Chorales-dataset"


CORPORA: dict[Corpus, _File] = {
    "jsb": _File("JSB_Chorales.mat", "dc87109f2b96bd44f9ce21d117766594", 1, BOULANGER),
    "nottingham": _File("Nottingham.mat", "7cc53d4cad543cf589d8769ae59c556a", 2, BOULANGER),
    "jsb_16th": _File("Jsb16thSeparated.json", "23a2736fa53a40f09bc0c4c825b381c8", 4, SIXTEENTHS),
}

CELLS = {"traindata": "train", "validdata": "valid", "testdata": "test"}
"""Of a .mat file."""

MAX_BYTES = 2**26
"""Of a .mat file: a hundred times those of Boulanger-Lewandowski et al."""

DOWN, UP = 5, 6
"""Half-tones by which a piece is moved at most: with its own that makes twelve keys."""


class Piece(NamedTuple):
    """A piece of music.

    Attributes:
        name: For sentences about it.
        frames: (T, F) of levels.
    """

    name: str
    frames: Tensor


Pieces = dict[str, list[Piece]]
"""Split -> pieces."""


@final
class Music(Source):
    """Music as frames at equal distances: which of 88 keys sound, or what four voices sing.

    An event is a window of ``length`` frames, (length * 88,) of 0 and 1; of voices it is
    (1, length, 4), as a picture has it, and a level is silence or a key: the raster order is then
    that of time, and within a frame soprano, alto, tenor and bass. A model that reads is
    evaluated on whole pieces, each frame given all before it; any other on windows one after
    another, each by itself, and on what is left at the end of a piece not at all. Of each piece
    one training window begins where the piece begins; the others begin anywhere in their share of
    the rest, anew in each epoch.

    Args:
        corpus: ``"jsb"``: 382 chorales of J. S. Bach, a frame each quarter note; ``"jsb_16th"``:
            the same each 16th note; ``"nottingham"``: 1,037 folk tunes with chords. None, with no
            ``path``: ``"jsb"``.
        path: Of your own, instead: a folder with any sub-folders, or a ``.zip``, of MIDI files,
            split by file; one ``.mid``, cut by position; or a ``.mat`` with the cells
            ``traindata``, ``validdata`` and ``testdata`` of (T, 88) arrays.
        name: Of own files in tables; None: music-<last part of path>.
        voices: The four voices of ``jsb_16th``, each apart, for all models that take images.
        length: Frames of a window.
        transpose: Move each training window into a key drawn anew, up to five half-tones down or
            six up, as far as its piece leaves room. Valid and test stay as they are.
        resolution: Frames of a quarter note of own files; None: 4, of a ``.mat`` 1.
        valid: Share of own MIDI files to select by; None: 0.1.
        test: Share of own MIDI files to test on; None: 0.1.
        split_seed: Draws which MIDI files they are; None: 0.
        skip_corrupt: Leave out MIDI files that cannot be read, and report them.
        root: Folder of the data, with ``music/``; None: $ARMODELS_DATA, else ~/.cache/armodels.

    Raises:
        ValueError: Options do not go together, or a share is out of range.

    References:
        Modeling temporal dependencies in high-dimensional sequences (Boulanger-Lewandowski,
        Bengio & Vincent, 2012) https://arxiv.org/abs/1206.6392

    Differs from the paper: nothing in the corpora and their splits.
    """

    @checked
    def __init__(
        self,
        corpus: Corpus | None = None,
        path: str | os.PathLike | None = None,
        name: str | None = None,
        voices: bool = False,
        length: Count = 32,
        transpose: bool = False,
        resolution: Count | None = None,
        valid: Share | None = None,
        test: Share | None = None,
        split_seed: Seed | None = None,
        skip_corrupt: bool = False,
        root: str | None = None,
    ):
        if corpus is not None and path is not None:
            raise ValueError("data.corpus and data.path both say what is read; leave one out")
        own = {"name": name, "resolution": resolution, "valid": valid, "test": test}
        own |= {"split_seed": split_seed, "skip_corrupt": skip_corrupt or None}
        named = [f"data.{key}" for key, value in own.items() if value is not None]
        if path is None and named:
            raise ValueError(
                f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} about own files; "
                f"name them with data.path, or leave it out"
            )
        self.path = None if path is None else Path(path).expanduser()
        self._is_mat = self.path is not None and self.path.suffix.lower() == ".mat"
        if self._is_mat and (named := [one for one in named if one not in _OF_MAT]):
            raise ValueError(f"a .mat has splits of its own; leave out {' and '.join(named)}")
        self.corpus: Corpus = corpus or "jsb"
        if voices and (path is not None or self.corpus != "jsb_16th"):
            raise ValueError("data.voices=true needs data.corpus=jsb_16th, which has voices")
        self.voices, self.length, self.transpose = voices, length, transpose
        self.shares = Shares(VALID if valid is None else valid, TEST if test is None else test)
        self.split_seed, self.skip_corrupt = split_seed or 0, skip_corrupt
        self._given_name, self._resolution = name, resolution
        self.root = data_root(root)

    @property
    def notes(self) -> Notes:
        """What a frame is."""
        if self.path is not None:
            return Notes(per_beat=self._resolution or (1 if self._is_mat else 4))
        return VOICES if self.voices else Notes(per_beat=CORPORA[self.corpus].per_beat)

    @property
    def _name(self) -> str:
        name = self.corpus + "-voices" * self.voices
        if self.path is not None:
            name = self._given_name or f"music-{stem_of(self.path)}"
            if not self._is_mat:
                name += f"-{self.notes.per_beat}"
            if (self.shares.valid, self.shares.test) != (VALID, TEST):
                name += f"-split{self.shares.valid:g}-{self.shares.test:g}"
            if self.split_seed:
                name += f"-seed{self.split_seed}"
        return name

    @property
    def spec(self) -> DataSpec:
        notes, checksum = self.notes, ""
        if self.path is not None:
            digest = hashlib.sha256()
            for part in PARTS:
                for piece in self.pieces[part]:
                    digest.update(f"{part} {len(piece.frames)} ".encode())
                    digest.update(piece.frames.numpy().tobytes())
            checksum = digest.hexdigest()
        return DataSpec(
            f"{self._name}{'-transposed' * self.transpose}-{self.length}",
            "image" if self.voices else "sequence",
            (1, self.length, notes.size) if self.voices else (self.length * notes.size,),
            HIGHEST - notes.lowest + 2 if self.voices else 2,
            "probability",
            notes=notes,
            checksum=checksum,
            pieces=self._name,  # of which train alone is transposed
        )

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of each split, whole.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file cannot be read, is none of music, or there are too few.
        """
        if self.path is None:
            name, md5, _, origin = CORPORA[self.corpus]
            why = f"it is of {origin}, and not fetched"
            (contents,) = read_files(self.root / "music", {name: md5}, None, why)
            if self.corpus == "jsb_16th":
                return _chorales(json.loads(contents), voices=self.voices)
            return read_cells(contents, name)
        if not self.path.exists():
            raise FileNotFoundError(
                f"data.path is {self.path}, which {disk.trouble(self.path)}; name a folder or zip "
                f"of MIDI files, a .mid or a .mat"
            )
        if not self.path.is_dir():
            disk.require_files([self.path], "file")
        if self._is_mat:
            return read_cells(self.path.read_bytes(), str(self.path))
        if self.path.is_file() and MIDIS.takes(self.path.name):
            return self._cut(self.path)
        if self.path.is_file() and self.path.suffix.lower() != ".zip":
            raise ValueError(f"data.path is {self.path}, which is no .mid, .mat, folder or zip")
        collection: Collection = (
            Tree(self.path, MIDIS) if self.path.is_dir() else Zip(self.path, MIDIS)
        )
        return self._split(self._read(collection))

    def _read(self, collection: Collection) -> list[Piece]:
        """The pieces of a collection."""
        found, skipped, outside = [], [], 0
        advice = "mend or remove it, or leave such files out with data.skip_corrupt=true"
        for index, name in enumerate(collection.names):
            try:
                frames, left_out = read_midi(collection.contents(index), self.notes)
            except UNDECODABLE as error:
                if not self.skip_corrupt:
                    raise ValueError(
                        f"{name} of {self.path} cannot be used: {first_line(error)}; {advice}"
                    ) from None
                skipped.append(f"{name}: {first_line(error)}")
                continue
            outside += left_out
            found.append(Piece(name, torch.from_numpy(frames)))
        for sentence in collection.left_out:
            show.say(f"in {self.path}, left out are {sentence}")
        if skipped:
            shown = "; ".join(skipped[:MAX_SHOWN]) + (" ..." if len(skipped) > MAX_SHOWN else "")
            show.warn(f"{len(skipped)} files of {self.path} left out: {shown}")
        self._tell_outside(outside)
        if not found:
            raise ValueError(f"{self.path} holds no MIDI file that can be used")
        return found

    def _tell_outside(self, number: int) -> None:
        if number:
            show.warn(f"{number} notes of {self.path} lie beyond a piano's keys and are left out")

    def _cut(self, path: Path) -> Pieces:
        """One file, cut by position."""
        try:
            frames, outside = read_midi(path.read_bytes(), self.notes)
        except UNDECODABLE as error:
            raise ValueError(f"{path} cannot be used: {first_line(error)}") from None
        self._tell_outside(outside)
        sizes = [round(share * len(frames)) for share in (self.shares.valid, self.shares.test)]
        cut = torch.from_numpy(frames).split([len(frames) - sum(sizes), *sizes])
        return {part: [Piece(path.name, one)] for part, one in zip(PARTS, cut, strict=True)}

    def _split(self, found: list[Piece]) -> Pieces:
        """Pieces whole, those with the same notes in one split."""
        digests = [hashlib.sha256(one.frames.numpy().tobytes()).digest() for one in found]
        part = parts_of(digests, self.shares, self.split_seed)
        if part is None:
            raise ValueError(
                f"{self.path} holds {len(set(digests))} different pieces, which is too few for "
                f"train, valid and test; add some, or name one .mid, which is cut by position"
            )
        pieces: Pieces = {name: [] for name in PARTS}
        # By their notes, so that neither names nor the order on a disk move a piece.
        for digest, one in sorted(zip(digests, found, strict=True), key=lambda pair: pair[0]):
            pieces[part[digest]].append(one)
        return pieces

    def load(self) -> Splits:
        spec, pieces = self.spec, self.pieces
        self._require_windows(pieces)
        train, table = _table(pieces["train"], self.length, self.voices, self.transpose)
        windows = (self._windows(pieces[part]) for part in PARTS[1:])
        whole: dict[str, list[Rows]] = {}
        if not self.voices:
            whole = {part: [one.frames.flatten() for one in pieces[part]] for part in PARTS}
        cut = partial(_drawn, train, self.length, self.voices)
        return Splits(spec, table, *windows, transform=cut, pieces=whole)

    def _require_windows(self, pieces: Pieces) -> None:
        """Say which pieces are shorter than a window; raise ValueError where a split is."""
        short = [one for part in PARTS for one in pieces[part] if len(one.frames) < self.length]
        for part in PARTS:
            longest = max(pieces[part], key=lambda one: len(one.frames))
            if len(longest.frames) < self.length:
                raise ValueError(
                    f"no piece of {part} has the data.length={self.length} frames of a window, "
                    f"the longest, {longest.name}, {len(longest.frames)}; choose a smaller "
                    f"data.length"
                )
        if short:
            number = sum(map(len, pieces.values()))
            show.say(
                f"{len(short)} of {number} pieces, such as {short[0].name}, "
                f"{'is' if len(short) == 1 else 'are'} shorter than data.length={self.length} "
                f"frames and in no window"
            )

    def _windows(self, pieces: list[Piece]) -> Tensor:
        """Windows one after another: (N, *event)."""
        cut = [
            window
            for piece in pieces
            for window in piece.frames.split(self.length)
            if len(window) == self.length
        ]
        return _events(torch.stack(cut), self.voices)


_OF_MAT = ("data.name", "data.resolution")


def _events(windows: Tensor, voices: bool) -> Tensor:
    """(N, T, F) -> (N, 1, T, F) of voices, else (N, T F)."""
    return windows[:, None] if voices else windows.flatten(1)


def _table(
    pieces: list[Piece], length: int, voices: bool, transpose: bool
) -> tuple[Tensor, Tensor]:
    """What windows are drawn from, and how.

    Args:
        pieces: Of the training split.
        length: Frames of a window.
        voices: Whether a level is a key.
        transpose: Whether windows may be moved into other keys.

    Returns:
        All frames (T, F), and (N, 4) int64 of each window: the first and the last frame where it
        may begin, and by how many half-tones it may be moved down (0 or less) and up.
    """
    rows, first = [], 0
    for _, frames in pieces:
        num, most = len(frames), len(frames) - length
        if most >= 0:
            down, up = _room(frames, voices) if transpose else (0, 0)
            rows.append((first, first, down, up))
            others = -(-num // length) - 1
            for i in range(others):
                least, end = most * i // others, most * (i + 1) // others
                rows.append((first + 1 + least, first + end, down, up))
        first += num
    return torch.cat([one.frames for one in pieces]), torch.tensor(rows)


def _room(frames: Tensor, voices: bool) -> tuple[int, int]:
    """How far a piece may be moved down and up."""
    if voices:
        used, lowest, highest = frames[frames > 0].long(), 1, HIGHEST - VOICES.lowest + 1
    else:
        used, lowest, highest = frames.any(0).nonzero()[:, 0], 0, frames.shape[1] - 1
    if not len(used):
        return 0, 0
    return -min(DOWN, int(used.min()) - lowest), min(UP, highest - int(used.max()))


def _drawn(
    frames: Tensor, length: int, voices: bool, raw: Tensor, generator: torch.Generator
) -> Tensor:
    """Windows that begin, and are in a key, where each may be: (B, *event).

    Args:
        frames: All of train, (T, F).
        length: Of a window.
        voices: Whether a level is a key.
        raw: (B, 4), see ``_table``.
        generator: Of the draw.
    """
    noise = torch.rand(len(raw), 2, generator=generator, device=raw.device, dtype=torch.double)
    least, most = raw[:, 0::2], raw[:, 1::2]
    begin, shift = (least + (noise * (most - least + 1)).long()).unbind(1)
    windows = frames.to(raw.device)[begin[:, None] + torch.arange(length, device=raw.device)]
    if voices:
        moved = windows + shift[:, None, None]
        return _events(torch.where(windows > 0, moved, 0).to(frames.dtype), voices)
    keys = torch.arange(frames.shape[1], device=raw.device)
    # What is moved over an edge is silent on both sides: the piece leaves that much room.
    keys = (keys - shift[:, None]) % frames.shape[1]
    return _events(windows.gather(2, keys[:, None].expand_as(windows)), voices)


def _chorales(found: dict[str, list[list[list[int]]]], *, voices: bool) -> Pieces:
    """Frames of four pitches, -1 for silence, of each split; the file's checksum is known."""
    pieces: Pieces = {}
    for part in PARTS:
        pieces[part] = []
        for number, piece in enumerate(found[part]):
            keys = torch.tensor(piece)  # (T, 4)
            if voices:
                frames = torch.where(keys >= 0, keys - VOICES.lowest + 1, 0)
            else:
                frames = torch.zeros(len(keys), PIANO.size + 1, dtype=torch.long)
                frames.scatter_(1, torch.where(keys >= 0, keys - PIANO.lowest, PIANO.size), 1)
                frames = frames[:, : PIANO.size]
            pieces[part].append(Piece(f"piece {number} of {part}", frames.to(torch.uint8)))
    return pieces


def read_cells(contents: bytes, name: str) -> Pieces:
    """The pieces of a .mat file, each an array (T, 88) of 0 and 1.

    Args:
        contents: Of the file, a stranger's perhaps.
        name: Of the file, for sentences.

    Raises:
        ValueError: It is no such file; says what it lacks.
    """
    from scipy import io as scipy_io  # slow to import

    if len(contents) > MAX_BYTES:
        raise ValueError(f"{name} has {len(contents):,} bytes, more than {MAX_BYTES:,}")
    broken: tuple[type[Exception], ...] = (*UNDECODABLE, scipy_io.matlab.MatReadError)
    # One of MATLAB 7.3, one of another kind, and one that breaks off.
    broken += (NotImplementedError, TypeError, LookupError, ArithmeticError, MemoryError)
    needed = f"data.path needs the cells {', '.join(CELLS)} of arrays (T, {PIANO.size})"
    try:
        there = {one: kind for one, _, kind in scipy_io.whosmat(io.BytesIO(contents))}
        for cell in CELLS:
            if there.get(cell) != "cell":
                raise ValueError(f"it has {'another' if cell in there else 'no'} {cell}")
        read = scipy_io.loadmat(io.BytesIO(contents), variable_names=list(CELLS))
        return {part: _of_cell(read[cell], cell, part) for cell, part in CELLS.items()}
    except broken as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} is no music ({reason}); {needed}") from None


def _of_cell(cell: np.ndarray, name: str, part: str) -> list[Piece]:
    if not cell.size:
        raise ValueError(f"{name} is empty")
    pieces = []
    for number, array in enumerate(cell.ravel()):
        fits = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "buif"
        if not (fits and array.shape[1] == PIANO.size and len(array)):
            shape = getattr(array, "shape", type(array).__name__)
            raise ValueError(f"piece {number} of {name} is {shape}")
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"piece {number} of {name} has other values than 0 and 1")
        frames = torch.from_numpy(array.astype(np.uint8))
        pieces.append(Piece(f"piece {number} of {part}", frames))
    return pieces
