"""Sound in files as sequences of levels: one's own, and spoken digits."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple, final

from torch import Tensor

from armodels import disk, show
from armodels.checks import Count, Seed, checked
from armodels.data.base import PARTS, Source, Splits, data_root
from armodels.data.clips import Clips, Rate, in_windows, read_all, window_spec, with_checksum
from armodels.data.collections import MAX_SHOWN, Collection, Tree, Zip
from armodels.data.folder import stem_of
from armodels.data.images import Shares
from armodels.data.sound import CLIPS, SUFFIXES
from armodels.spec import ContextSpec, DataSpec
from armodels.waveform import Encoding, Waveform

VALID, TEST = 0.1, 0.1


# Own files


@final
class Audio(Source):
    """Own files of sound: mixed down, resampled, and cut into windows of equal length.

    Files are split whole, so that no window of a recording is in train and the next one in test.
    Which files are valid and test follows from the seed and from their contents, whatever their
    names are; equal files are in one split. What is left at the end of a clip, and clips shorter
    than a window, are in no window. Clips and windows are held in memory: an hour at 16 kHz takes
    58 MB twice, with ``linear16`` four times as much.

    Args:
        path: A folder with any sub-folders, or a ``.zip``, of WAV, FLAC, OGG, MP3 or AIFF.
        name: Of the data in tables; None: the last part of ``path``. Whoever changes the files
            should change the name.
        rate: Samples a second that all files are brought to.
        encoding: ``"mu_law"``: 256 levels, closer to each other near silence. ``"linear8"``,
            ``"linear16"``: 256 and 65,536 equal ones, as of a PCM file.
        length: Samples of a window.
        valid: Share of the files to select by; at least one.
        test: Share of the files to test on; at least one.
        split_seed: Draws which files they are. Another seed is another test set, so it becomes
            part of the data's name.
        skip_corrupt: Leave out files that cannot be read, and report them.

    Raises:
        ValueError: The name is a path, or the shares of the splits cannot be.

    References:
        WaveNet: a generative model for raw audio (van den Oord et al., 2016)
        https://arxiv.org/abs/1609.03499
    """

    @checked
    def __init__(
        self,
        path: str | os.PathLike,
        name: str | None = None,
        rate: Rate = 16_000,
        encoding: Encoding = "mu_law",
        length: Count = 1024,
        valid: float = VALID,
        test: float = TEST,
        split_seed: Seed = 0,
        skip_corrupt: bool = False,
    ):
        if name and "/" in name.replace(os.sep, "/"):
            raise ValueError(f"data.name is {name!r}; it is no path, so use no {os.sep} in it")
        self.path = Path(path).expanduser()
        self.name = name or f"audio-{stem_of(self.path)}"
        self.encoding, self.length = encoding, length
        self.waveform = Waveform.of(rate, encoding)
        self.shares, self.split_seed = Shares(valid, test), split_seed
        self.skip_corrupt = skip_corrupt

    @property
    def spec(self) -> DataSpec:
        name, parts = f"{self.name}-{self.waveform.rate}-{self.encoding}", ""
        if (self.shares.valid, self.shares.test) != (VALID, TEST):
            parts += f"-split{self.shares.valid:g}-{self.shares.test:g}"
        if self.split_seed:
            parts += f"-seed{self.split_seed}"
        whole, window = f"{name}{parts}", f"{name}-{self.length}{parts}"
        return window_spec(window, self.length, self.waveform, pieces=whole)

    @cached_property
    def _collection(self) -> Collection:
        if not self.path.exists():
            raise FileNotFoundError(
                f"data.path is {self.path}, which {disk.trouble(self.path)}; name a folder or zip"
            )
        if not self.path.is_dir():
            disk.require_files([self.path], "file")
        made: Collection
        if self.path.is_dir():
            made = Tree(self.path, CLIPS)
        elif self.path.suffix.lower() == ".zip":
            made = Zip(self.path, CLIPS)
        else:
            raise ValueError(
                f"data.path is {self.path}, which is no folder or zip of sound; put several clips "
                f"into a folder, as each of them is in one split"
            )
        if not made.names:
            about = f" ({'; '.join(made.left_out)})" if made.left_out else ""
            kinds = " ".join(sorted(SUFFIXES))
            raise ValueError(f"{self.path} holds no sound{about}; looked for files of {kinds}")
        return made

    def clips(self) -> Clips:
        """The levels of each file, whole.

        Raises:
            FileNotFoundError: There is nothing at ``path``.
            ValueError: Files cannot be read, or are too few to be split.
        """
        collection = self._collection
        advice = "mend or remove it, or leave such files out with data.skip_corrupt=true"
        found = read_all(collection, self.waveform, advice, skip=self.skip_corrupt)
        for sentence in collection.left_out:
            show.say(f"in {self.path}, left out are {sentence}")
        if skipped := [done.trouble for done in found if done.clip is None]:
            shown = "; ".join(skipped[:MAX_SHOWN]) + (" ..." if len(skipped) > MAX_SHOWN else "")
            show.warn(f"{len(skipped)} corrupt files of {self.path} left out: {shown}")
        whole = [done for done in found if done.clip is not None]
        part = parts_of([done.digest for done in whole], self.shares, self.split_seed)
        if part is None:
            raise ValueError(
                f"{self.path} holds {len({done.digest for done in whole})} different files, which "
                f"is too few for train, valid and test; cut recordings into several files"
            )
        # By their contents, so that neither names nor the order on a disk move a clip.
        whole.sort(key=lambda done: done.digest)
        clips: Clips = {name: [] for name in PARTS}
        for done in whole:
            assert done.clip is not None
            clips[part[done.digest]].append(done.clip)
        return clips

    def load(self) -> Splits:
        clips = self.clips()
        return in_windows(with_checksum(self.spec, clips), clips, {})


def parts_of(digests: Sequence[bytes], shares: Shares, seed: int) -> dict[bytes, str] | None:
    """The split of each different file, by its contents: SHA-256 -> name.

    Args:
        digests: SHA-256 of each file.
        shares: Of the files that become valid and test, at least one each.
        seed: Of the draw.

    Returns:
        None where so few files are different that none would be left to train on.
    """
    ranked = sorted(
        set(digests), key=lambda one: hashlib.sha256(f"{seed} ".encode() + one).digest()
    )
    num_test, num_valid = (
        max(1, round(share * len(ranked))) for share in (shares.test, shares.valid)
    )
    if num_test + num_valid >= len(ranked):
        return None
    names = chain(["test"] * num_test, ["valid"] * num_valid)
    return {one: next(names, "train") for one in ranked}


# Spoken digits


SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
"""Of the spoken digits, in the order of their labels."""

TAKES = range(50)
"""Each speaker says each digit so many times."""

_OF_TEST, _OF_VALID = range(5), range(5, 8)


class _Recording(NamedTuple):
    digit: int
    speaker: int
    clip: Tensor


@final
class FSDD(Source):
    """The Free Spoken Digit Dataset: six speakers say each digit fifty times, at 8 kHz.

    The clips are ``{digit}_{speaker}_{index}.wav``. Indices 0 to 4 are test (300 clips), as the
    data set itself says; of the others, 5 to 7 are valid (180 clips), a choice made here, and 8 to
    49 are train (2,520). A clip has 1,148 to 18,262 samples; what is left at its end, and one
    shorter than a window, is in no window.

    Args:
        encoding: ``"mu_law"`` (256 levels), ``"linear8"`` (256) or ``"linear16"`` (65,536, those
            of the files).
        length: Samples of a window: 1024 are an eighth of a second.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The file is
            ``audio/fsdd.zip``, which holds the clips in any folder.

    References:
        Free Spoken Digit Dataset (Jackson et al., 2018)
        https://github.com/Jakobovski/free-spoken-digit-dataset

    Differs from the paper: it has no split for valid.
    """

    @checked
    def __init__(
        self, encoding: Encoding = "mu_law", length: Count = 1024, root: str | None = None
    ):
        self.encoding, self.length = encoding, length
        self.waveform = Waveform.of(8_000, encoding)
        self.root = data_root(root)

    @property
    def spec(self) -> DataSpec:
        contexts = (ContextSpec("digit", (), 10), ContextSpec("speaker", (), len(SPEAKERS)))
        whole = f"fsdd-{self.encoding}"
        window = f"{whole}-{self.length}"
        return window_spec(window, self.length, self.waveform, contexts, pieces=whole)

    @cached_property
    def _recordings(self) -> dict[str, list[_Recording]]:
        """Of each split."""
        path = self.root / "audio" / "fsdd.zip"
        if not path.exists():
            raise FileNotFoundError(
                f"fsdd.zip not found: armodels has no place to download it from; put a zip of the "
                f"recordings of https://github.com/Jakobovski/free-spoken-digit-dataset into "
                f"{path.parent}"
            )
        collection = Zip(path, CLIPS)
        known = {
            f"{digit}_{speaker}_{index}.wav": (digit, number, index)
            for digit in range(10)
            for number, speaker in enumerate(SPEAKERS)
            for index in TAKES
        }
        names = [name.rpartition("/")[2] for name in collection.names]
        wanted, there = Counter(list(known)), Counter(names)
        for verb, odd in (("lacks", wanted - there), ("also holds", there - wanted)):
            if odd:
                raise ValueError(
                    f"{path} {verb} {min(odd)}; it should hold the {len(known):,} recordings of "
                    f"six speakers, {len(TAKES)} of each digit, and no others: fetch or copy it "
                    f"again"
                )
        read = read_all(collection, self.waveform, "fetch or copy the zip again")
        found: dict[str, list[_Recording]] = {part: [] for part in PARTS}
        for name, done in zip(names, read, strict=True):
            digit, number, index = known[name]
            part = "test" if index in _OF_TEST else "valid" if index in _OF_VALID else "train"
            assert done.clip is not None
            found[part].append(_Recording(digit, number, done.clip))
        return found

    def clips(self) -> Clips:
        """The levels of each recording, whole, by digit and then by speaker.

        Raises:
            FileNotFoundError: The zip is missing; says where it belongs.
            ValueError: It is corrupted, or holds other recordings.
        """
        return {part: [one.clip for one in of] for part, of in self._recordings.items()}

    def load(self) -> Splits:
        clips = self.clips()
        of_split = self._recordings.items()
        labels = {
            "digit": {part: [one.digit for one in of] for part, of in of_split},
            "speaker": {part: [one.speaker for one in of] for part, of in of_split},
        }
        show.say(f"speakers: {', '.join(f'{i} {name}' for i, name in enumerate(SPEAKERS))}")
        return in_windows(with_checksum(self.spec, clips), clips, labels)
