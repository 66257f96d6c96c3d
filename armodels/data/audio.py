"""Sound as sequences of levels: one's own files, spoken digits, and sines of a known entropy.

Every source gives whole clips (``clips``); for now each is cut into windows of equal length that
do not overlap, and what is left at the end of a clip is in no window.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from armodels import show
from armodels.checks import Count, Range, Seed, Share, checked
from armodels.data.base import PARTS, Source, Splits, data_root, split_rows
from armodels.data.collections import MAX_SHOWN, UNDECODABLE, Collection, Tree, Zip, first_line
from armodels.data.folder import clean
from armodels.data.images import Shares
from armodels.data.sound import (
    CLIPS,
    HIGHEST_RATE,
    NUM_LEVELS,
    SUFFIXES,
    Encoding,
    encode,
    read_clip,
    require_soundfile,
)
from armodels.spec import ContextSpec, DataSpec

Clips = dict[str, list[Tensor]]
"""Split -> clips (T,) of levels, each of its own length."""

Rate = Annotated[int, Range(1, HIGHEST_RATE)]
"""Samples a second."""

VALID, TEST = 0.1, 0.1
ORDER_SEED = 0
"""Of the order of the windows of a split: the first ones, which initialize models, are like all
others."""

_AT_ONCE = 64
"""Files in work at once."""


# What all of them share


def windows(clip: Tensor, length: int) -> Tensor:
    """A clip (T,) in pieces that do not overlap: (T // length, length); the rest is left out."""
    num = len(clip) // length
    return clip[: num * length].view(num, length)


def _cut(
    spec: DataSpec,
    clips: Clips,
    labels: Mapping[str, Mapping[str, Sequence[int]]],
    true_log_prob: Callable[[Tensor], Tensor] | None = None,
) -> Splits:
    """Splits of all windows of the clips.

    Args:
        spec: What a window is.
        clips: Split -> clips.
        labels: Context -> split -> label of each clip, which all of its windows have.
        true_log_prob: As of ``Splits``.

    Raises:
        ValueError: No clip of a split is as long as a window.
    """
    (length,) = spec.shape
    rows: dict[str, Tensor] = {}
    contexts: dict[str, list[Tensor]] = {name: [] for name in labels}
    short = 0
    for part in PARTS:
        cut = [windows(clip, length) for clip in clips[part]]
        counts = torch.tensor([len(one) for one in cut])
        short += int((counts == 0).sum())
        num = int(counts.sum())
        if not num:
            raise ValueError(
                f"no clip of {part} is as long as data.length={length} samples, the longest has "
                f"{max(map(len, clips[part]))}; choose a smaller data.length"
            )
        order = torch.from_numpy(split_rows(num, (num,), ORDER_SEED)[0])
        rows[part] = torch.cat(cut)[order]
        for name, of_clips in labels.items():
            each = torch.tensor(of_clips[part], dtype=torch.uint8)
            contexts[name].append(each.repeat_interleave(counts)[order])
    if short:
        whole = sum(map(len, clips.values()))
        show.say(f"{short} of {whole} clips are shorter than data.length={length} and left out")
    return Splits(
        spec,
        *(rows[part] for part in PARTS),
        true_log_prob=true_log_prob,
        contexts={name: partial(contexts.__getitem__, name) for name in labels},
    )


def _with_checksum(spec: DataSpec, clips: Clips) -> DataSpec:
    """The spec of clips from files, which says by their levels whether two are the same."""
    digest = hashlib.sha256()
    for part in PARTS:
        for clip in clips[part]:
            digest.update(f"{part} {len(clip)} ".encode() + clip.numpy().tobytes())
    return replace(spec, checksum=digest.hexdigest())


class _One(NamedTuple):
    clip: Tensor | None
    digest: bytes
    trouble: str


def _read(
    collection: Collection, rate: int, encoding: Encoding, advice: str, *, skip: bool = False
) -> list[_One]:
    """All clips of a collection as levels, in its order, by several threads.

    Args:
        collection: Of files of sound.
        rate: Samples a second that they are brought to.
        encoding: Of a sample.
        advice: What to do about a file that cannot be read.
        skip: Go on after one.

    Raises:
        ValueError: A file cannot be read, or none can.
        ModuleNotFoundError: soundfile is not installed.
    """

    def one(index: int) -> _One:
        try:
            contents = collection.contents(index)
            clip = torch.from_numpy(encode(read_clip(contents, rate), encoding))
        except UNDECODABLE as error:
            return _One(None, b"", f"{collection.names[index]}: {first_line(error)}")
        return _One(clip, hashlib.sha256(contents).digest(), "")

    require_soundfile()
    num = len(collection.names)
    found: list[_One] = []
    bar = tqdm(
        total=num, desc=show.clean(f"reading {collection.path.name}"), unit="clip", disable=None
    )
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # A few are in work at once, so that the first trouble ends the reading.
        for start in range(0, num, _AT_ONCE):
            for done in pool.map(one, range(start, min(start + _AT_ONCE, num))):
                if done.clip is None and not skip:
                    raise ValueError(
                        f"a file of {collection.path} cannot be used ({done.trouble}); {advice}"
                    )
                found.append(done)
                bar.update()
    if all(done.clip is None for done in found):
        raise ValueError(f"no file of {collection.path} can be read ({found[0].trouble})")
    return found


# Own files


@final
class Audio(Source):
    """Own files of sound: mixed down, resampled, and cut into windows of equal length.

    Files are split whole, so that no window of a recording is in train and the next one in test.
    Which files are valid and test follows from the seed and from their contents, whatever their
    names are; equal files are in one split. What is left at the end of a clip, and clips shorter
    than a window, are in no window. All levels are held in memory: an hour at 16 kHz takes 58 MB,
    with ``linear16`` four times as much.

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
        self.name = name or f"audio-{clean(self.path.resolve().stem)}"
        self.rate, self.encoding, self.length = rate, encoding, length
        self.shares, self.split_seed = Shares(valid, test), split_seed
        self.skip_corrupt = skip_corrupt

    @property
    def spec(self) -> DataSpec:
        name = f"{self.name}-{self.rate}-{self.encoding}-{self.length}"
        if (self.shares.valid, self.shares.test) != (VALID, TEST):
            name += f"-split{self.shares.valid:g}-{self.shares.test:g}"
        if self.split_seed:
            name += f"-seed{self.split_seed}"
        return _spec(name, self.length, NUM_LEVELS[self.encoding])

    @cached_property
    def _collection(self) -> Collection:
        if not self.path.exists():
            raise FileNotFoundError(
                f"data.path is {self.path}, which does not exist; name a folder or zip"
            )
        made: Collection
        if self.path.is_dir():
            made = Tree(self.path, CLIPS)
        elif self.path.suffix.lower() == ".zip":
            made = Zip(self.path, CLIPS)
        else:
            raise ValueError(f"{self.path} is no folder or zip of sound")
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
        found = _read(collection, self.rate, self.encoding, advice, skip=self.skip_corrupt)
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
        return _cut(_with_checksum(self.spec, clips), clips, {})


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


def _spec(name: str, length: int, levels: int, contexts: tuple[ContextSpec, ...] = ()) -> DataSpec:
    return DataSpec(name, "sequence", (length,), levels, "probability", contexts=contexts)


# Spoken digits


SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
"""Of the spoken digits, in the order of their labels."""

NUM_TAKES = 50
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

    rate = 8_000

    @checked
    def __init__(
        self, encoding: Encoding = "mu_law", length: Count = 1024, root: str | None = None
    ):
        self.encoding, self.length = encoding, length
        self.root = data_root(root)

    @property
    def spec(self) -> DataSpec:
        contexts = (ContextSpec("digit", (), 10), ContextSpec("speaker", (), len(SPEAKERS)))
        name = f"fsdd-{self.encoding}-{self.length}"
        return _spec(name, self.length, NUM_LEVELS[self.encoding], contexts)

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
            for index in range(NUM_TAKES)
        }
        names = [name.rpartition("/")[2] for name in collection.names]
        wanted, there = Counter(list(known)), Counter(names)
        for verb, odd in (("lacks", wanted - there), ("also holds", there - wanted)):
            if odd:
                raise ValueError(
                    f"{path} {verb} {min(odd)}; it should hold the {len(known):,} recordings of "
                    f"six speakers, {NUM_TAKES} of each digit, and no others: fetch or copy it "
                    f"again"
                )
        read = _read(collection, self.rate, self.encoding, "fetch or copy the zip again")
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
        return _cut(_with_checksum(self.spec, clips), clips, labels)


# Sines


FREQUENCIES, NUM_PHASES, NOISE, SINE_RATE = (250, 400, 800), 16, 0.2, 8_000


@final
class Sine(Source):
    """A sine of random frequency and phase, in few levels, with noise: its entropy is known.

    One of F frequencies and of P phases is drawn for a clip, all equally likely; its sine is
    rounded to the levels 1 to L - 2, and each sample is then moved up or down by one level with
    probability ``noise``, independently of all others. So a clip is a mixture of F P products of
    known distributions, and its log-probability an exact sum:
    log p(x) = log mean over (f, p) of prod over t of p(x_t | f, p). A clip is one window.

    Args:
        length: Samples of a clip.
        levels: L, from 4 to 256.
        frequencies: In hertz, different ones.
        num_phases: P; they lie equally far apart, the first at 0.
        noise: Probability that a sample is moved, half of it up and half of it down.
        rate: Samples a second; frequencies are at most half of it.
        num_train: Number of draws to train on.
        num_valid: Number of draws to select by.
        num_test: Number of draws to test on.
        seed: Of the draws. Each split has a stream of its own: another ``num_train`` leaves valid
            and test as they are.

    Raises:
        ValueError: A frequency stands twice, or is above half of the rate.
    """

    @checked
    def __init__(
        self,
        length: Count = 256,
        levels: Annotated[int, Range(4, 256)] = 16,
        frequencies: Sequence[Count] = FREQUENCIES,
        num_phases: Count = NUM_PHASES,
        noise: Share = NOISE,
        rate: Rate = SINE_RATE,
        num_train: Count = 20_000,
        num_valid: Count = 2_000,
        num_test: Count = 2_000,
        seed: Seed = 0,
    ):
        self.length, self.levels, self.num_phases = length, levels, num_phases
        self.frequencies, self.noise, self.rate = tuple(frequencies), noise, rate
        self.sizes, self.seed = (num_train, num_valid, num_test), seed
        if not self.frequencies:
            raise ValueError("data.frequencies is empty; name one at least, such as [400]")
        if len(set(self.frequencies)) < len(self.frequencies):
            raise ValueError(f"data.frequencies is {list(frequencies)}; each may stand there once")
        if 2 * max(self.frequencies) > rate:
            raise ValueError(
                f"data.frequencies holds {max(self.frequencies)} Hz, which {rate} samples a "
                f"second cannot show; choose at most {rate // 2}"
            )

    @property
    def spec(self) -> DataSpec:
        name = f"sine-L{self.levels}-{self.length}"
        if self.frequencies != FREQUENCIES:
            name += f"-hz{'-'.join(map(str, self.frequencies))}"
        if self.num_phases != NUM_PHASES:
            name += f"-phases{self.num_phases}"
        if self.noise != NOISE:
            name += f"-noise{self.noise:g}"
        if self.rate != SINE_RATE:
            name += f"-rate{self.rate}"
        return _spec(name, self.length, self.levels)

    def sines(self) -> Tensor:
        """The F P sequences of levels before noise, (F P, T) int16, by frequency and phase."""
        time = np.arange(self.length, dtype=np.int64)
        frequency = np.array(self.frequencies, np.int64)[:, None, None]
        phase = np.arange(self.num_phases)[:, None] / self.num_phases
        turns = (frequency * time) % self.rate / self.rate + phase  # (F, P, T)
        heights = self.levels / 2 + (self.levels / 2 - 1.5) * np.sin(2 * np.pi * turns)
        # A sine of 0 lies between two levels: the rounding makes every machine take the same one.
        levels = np.floor(heights.round(9)).astype(np.int16).reshape(-1, self.length)
        return torch.from_numpy(levels)

    def clips(self) -> Clips:
        """The draws of each split, of one length."""
        sines, found = self.sines(), {}
        for i, (part, size) in enumerate(zip(PARTS, self.sizes, strict=True)):
            rng = np.random.RandomState([self.seed, i])
            clean_ones = sines[torch.from_numpy(rng.randint(len(sines), size=size))]
            moved = rng.random_sample((size, self.length))
            steps = np.where(moved < self.noise / 2, -1, np.where(moved < self.noise, 1, 0))
            drawn = clean_ones + torch.from_numpy(steps.astype(np.int16))
            found[part] = list(drawn.to(torch.uint8))
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of clips under the mixture, exact to float64.

        Args:
            x: (B, T) levels.

        Returns:
            (B,) nats, on the device of x; -inf where no sine is within a level of x everywhere.
        """
        sines = self.sines().to(x.device)
        found = torch.empty(len(x), len(sines), dtype=torch.double, device=x.device)
        for i, one in enumerate(sines):
            distance = (x.short() - one).abs()
            moved = (distance == 1).sum(1).double()
            known = torch.special.xlogy(moved, self.noise / 2)
            known = known + (self.length - moved) * math.log1p(-self.noise)
            found[:, i] = known.masked_fill((distance > 1).any(1), -math.inf)
        return found.logsumexp(1) - math.log(len(sines))

    def load(self) -> Splits:
        spec = self.spec

        def true_log_prob(x: Tensor) -> Tensor:
            spec.check(x)
            return self.log_prob(x)

        return _cut(spec, self.clips(), {}, true_log_prob)
