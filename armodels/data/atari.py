"""Atari 2600: frames recorded from the real emulator, which brings its games along."""

import difflib
import hashlib
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Literal, TypedDict, cast, final

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from armodels import show
from armodels.checks import Count, Number, Seed, Share, checked
from armodels.data.base import PARTS, Source, Splits, data_root
from armodels.data.cache import Cache, cached
from armodels.data.images import Channels, Format, Levels, Size
from armodels.spec import DataSpec

NUM_COLOURS = 128
"""Of the console's palette."""
FEW = 4_000
"""So many frames are recorded sooner than other processes have started."""


@final
class _Settings(TypedDict):
    """Keys of the config that decide on the frames, besides the game, its policy and its look."""

    repeat: float
    num_noops: int
    frame_skip: int
    episode_frames: int
    num_train: int
    num_valid: int
    num_test: int
    seed: int


DEFAULTS: _Settings = {
    "repeat": 0.25, "num_noops": 30, "frame_skip": 4, "episode_frames": 1000,
    "num_train": 20_000, "num_valid": 2_000, "num_test": 2_000, "seed": 0,
}  # fmt: skip
"""Left out of the data's name."""


@dataclass(frozen=True)
class Episode:
    """One episode of a game, and all that its frames depend on.

    Attributes:
        game: Name of the ROM.
        policy: ``"random"`` or ``"sticky"``.
        repeat: Chance that the sticky policy repeats its last action.
        num_noops: At most so many actions without effect come first.
        frame_skip: Emulated frames an action lasts; the last of them is recorded.
        num_frames: At most so many are recorded.
        form: What a frame becomes.
        palette: Frames are colour numbers 0 .. 127 rather than colours.
        key: Seeds every draw: (seed, split, number of the episode).
    """

    game: str
    policy: str
    repeat: float
    num_noops: int
    frame_skip: int
    num_frames: int
    form: Format
    palette: bool
    key: tuple[int, int, int]


def record(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Play one episode in an emulator of its own.

    Returns:
        Frames (N, C, H, W) uint8, and the luminance of each colour number (128,), 0 if unseen.
    """
    from ale_py import ALEInterface, LoggerMode, roms

    rng = np.random.RandomState(episode.key)
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setInt("random_seed", int(rng.randint(2**31 - 1)))
    ale.setFloat("repeat_action_probability", 0.0)  # The policy repeats them.
    ale.loadROM(cast(Path, roms.get_rom_path(episode.game)))  # there is one of each name
    ale.reset_game()
    actions = ale.getMinimalActionSet()
    for _ in range(rng.randint(episode.num_noops + 1)):
        ale.act(0)
    if ale.game_over():
        ale.reset_game()
    frames: list[np.ndarray] = []
    luminance, action = np.zeros(NUM_COLOURS, np.uint8), None
    while len(frames) < episode.num_frames and not ale.game_over():
        if action is None or episode.policy == "random" or rng.rand() >= episode.repeat:
            action = actions[rng.randint(len(actions))]
        for _ in range(episode.frame_skip):
            ale.act(action)
        if episode.palette:
            numbers = ale.getScreen() >> 1  # The lowest bit means nothing.
            luminance[numbers] = ale.getScreenGrayscale()
            frames.append(_nearest(numbers, episode.form.size)[None])
        else:
            frames.append(episode.form.values(Image.fromarray(ale.getScreenRGB()), crop=False))
    return np.stack(frames), luminance


def _nearest(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels nearest the centres of a grid: a mean of colour numbers would mean nothing."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, numbers.shape, strict=True)
    )
    return numbers[np.ix_(rows, columns)]


@final
class Atari(Source):
    """Frames of an Atari 2600 game under a policy that sees nothing, from the emulator itself.

    Train, valid and test are different episodes: neighbouring frames are nearly equal. A frame of
    valid that also is in train, to the last pixel, is dropped, and so is one of test that is in
    either; how many is reported. Recorded once, by several processes; the same settings give
    the same bytes on any number of them.

    Args:
        game: Any game of ``ale_py``, such as ``"breakout"`` or ``"space_invaders"``.
        policy: ``"random"``: each action is drawn uniformly from those that the game knows.
            ``"sticky"``: with probability ``repeat`` the last one is repeated.
        repeat: Of the sticky policy.
        num_noops: An episode begins with 0 to this many actions without effect.
        frame_skip: Emulated frames (60 a second) that an action lasts; the last is recorded.
        episode_frames: At most so many frames of one episode are recorded.
        size: (H, W); the console's own is (210, 160), a fifth of it the default. The whole frame
            is area-resized.
        channels: 3 (RGB) or 1 (grey).
        levels: 2 to 256.
        quantization: ``"uniform"``: a value v becomes floor(v L / 256). ``"palette"``: a level is
            one of the colours that the recorded frames show, from dark to bright; exact, with one
            channel; other sizes than the console's take the nearest pixel.
        num_train: Frames to train on.
        num_valid: Frames to select by, before any are dropped.
        num_test: Frames to test on, before any are dropped.
        seed: Of the episodes.
        num_processes: That record at once; None: as many as torch has threads.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        cache: Folder of recorded frames; None: $ARMODELS_CACHE, else the user's cache.

    Raises:
        ValueError: A choice or a number is none that can be.

    References:
        The Arcade Learning Environment (Bellemare et al., 2013) https://arxiv.org/abs/1207.4708
        Revisiting the Arcade Learning Environment (Machado et al., 2018; repeated actions)
        https://arxiv.org/abs/1709.06009

    Differs from the paper: actions stick for as long as one lasts (``frame_skip`` frames), and
    frames are as shown, without the maximum over two that hides sprites' flicker.
    """

    @checked
    def __init__(
        self,
        game: str = "breakout",
        policy: Literal["random", "sticky"] = "random",
        repeat: Share = DEFAULTS["repeat"],
        num_noops: Number = DEFAULTS["num_noops"],
        frame_skip: Count = DEFAULTS["frame_skip"],
        episode_frames: Count = DEFAULTS["episode_frames"],
        size: Size = (42, 32),
        channels: Channels = 1,
        levels: Levels = 16,
        quantization: Literal["uniform", "palette"] = "uniform",
        num_train: Count = DEFAULTS["num_train"],
        num_valid: Count = DEFAULTS["num_valid"],
        num_test: Count = DEFAULTS["num_test"],
        seed: Seed = DEFAULTS["seed"],
        num_processes: Count | None = None,
        root: str | None = None,
        cache: str | None = None,
    ):
        self.game, self.policy, self.repeat = game, policy, repeat
        self.num_noops, self.frame_skip = num_noops, frame_skip
        self.episode_frames = episode_frames
        self.format = Format(size, channels, levels)
        self.palette = quantization == "palette"
        if self.palette and (channels != 1 or levels > NUM_COLOURS):
            raise ValueError(
                f"data.quantization=palette gives one number of a colour, 0 to "
                f"{NUM_COLOURS - 1}; use data.channels=1 and data.levels={NUM_COLOURS} or less"
            )
        self.num_train, self.num_valid, self.num_test = num_train, num_valid, num_test
        self.seed = seed
        self.num_processes = num_processes
        self.root, self.cache = data_root(root), cache

    @property
    def spec(self) -> DataSpec:
        look = self.format.name
        if self.palette:
            look = look.replace("-grey-L", "-palette-L")
        parts = ["atari", self.game, look, self.policy]
        for key, default in DEFAULTS.items():
            value = getattr(self, key)
            if value != default and (key != "repeat" or self.policy == "sticky"):
                parts.append(f"{key.removeprefix('num_').removesuffix('_frames')}{value:g}")
        form = self.format
        return DataSpec("-".join(parts), "image", form.shape, form.levels, "probability")

    def load(self) -> Splits:
        version = self._check_emulator()
        spec = self.spec
        every = "-".join(f"{getattr(self, key):g}" for key in DEFAULTS)
        loaded = cached(self.root, self.cache, f"{spec.name}-{every}-ale{version}", self._record)
        kept = " and ".join(
            f"{loaded.meta['dropped'][part]:,} of {getattr(self, f'num_{part}'):,} {part} frames"
            for part in PARTS[1:]
        )
        show.say(f"{kept} of {self.game} also stand in an earlier split and were dropped")
        return Splits(spec, *(loaded.arrays[part] for part in PARTS))

    def _check_emulator(self) -> str:
        """The emulator's version; it is there and knows the game."""
        try:
            from ale_py import ALEInterface, LoggerMode, roms
        except ImportError as error:
            raise ModuleNotFoundError(
                "data=atari needs the emulator ale-py; pip install 'armodels[atari]'"
            ) from error
        known = roms.get_all_rom_ids()
        if self.game not in known:
            close = difflib.get_close_matches(self.game, known, 3) or ["breakout"]
            raise ValueError(
                f"data.game {self.game!r} is unknown; did you mean {' or '.join(close)}?"
            )
        ALEInterface.setLoggerMode(LoggerMode.Error)
        # The emulator ends the whole process at a game that it cannot play.
        if not ALEInterface.isSupportedROM(cast(Path, roms.get_rom_path(self.game))):
            raise ValueError(f"data.game {self.game!r} wants two players; choose another game")
        return metadata.version("ale-py")

    def _episodes(self, split: int) -> Iterator[Episode]:
        for number in count():
            yield Episode(
                self.game,
                self.policy,
                self.repeat,
                self.num_noops,
                self.frame_skip,
                self.episode_frames,
                self.format,
                self.palette,
                (self.seed, split, number),
            )

    def _record(self, cache: Cache) -> None:
        sizes = [self.num_train, self.num_valid, self.num_test]
        num_processes = self.num_processes
        if num_processes is None:
            num_processes = torch.get_num_threads() if sum(sizes) > FEW else 1
        luminance = np.zeros(NUM_COLOURS, np.uint8)
        shown = np.zeros(NUM_COLOURS, bool)
        parts = []
        bar = tqdm(total=sum(sizes), desc=f"recording {self.game}", unit="frame", disable=None)
        with bar, _Workers(num_processes) as workers:
            for split, size in enumerate(sizes):
                frames = cache.scratch((size, *self.format.shape))
                done = 0
                for found, light in workers.record(self._episodes(split)):
                    found = found[: size - done]
                    frames[done : done + len(found)] = found
                    done += len(found)
                    bar.update(len(found))
                    if self.palette:
                        np.maximum(luminance, light, out=luminance)
                        shown[np.unique(found)] = True
                    if done == size:
                        break
                parts.append(frames)
        if self.palette:
            level = self._levels(luminance, shown)
            for frames in parts:
                for start in range(0, len(frames), 256):
                    frames[start : start + 256] = level[frames[start : start + 256]]
        seen: set[bytes] = set()
        dropped = {}
        for name, frames in zip(PARTS, parts, strict=True):
            digests = [hashlib.sha256(frame).digest() for frame in frames]
            rows = np.array([i for i, one in enumerate(digests) if one not in seen], np.int64)
            seen.update(digests)
            dropped[name] = len(frames) - len(rows)
            if not len(rows):
                raise ValueError(
                    f"each {name} frame of {self.spec.name} also stands in an earlier split; "
                    f"raise data.num_{name}, data.episode_frames, data.size or data.levels"
                )
            # Rows are shuffled: the first ones, which initialize models, are like all others.
            cache.write(name, frames, np.random.RandomState(self.seed).permutation(rows))
        cache.meta = {"dropped": dropped}

    def _levels(self, luminance: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """The level of each colour number: its rank among those shown, from dark to bright."""
        numbers = np.flatnonzero(shown)
        if len(numbers) > self.format.levels:
            raise ValueError(
                f"the recorded frames of {self.game} show {len(numbers)} colours, more than "
                f"data.levels={self.format.levels}; use data.levels={len(numbers)} or more"
            )
        level = np.zeros(NUM_COLOURS, np.uint8)
        order = np.argsort(luminance[numbers], kind="stable")
        level[numbers[order]] = np.arange(len(numbers))
        return level


@final
class _Workers:
    """Processes that record episodes; with one, this very process does."""

    def __init__(self, num: int):
        self.num = num

    def __enter__(self) -> "_Workers":
        self._pool = None
        if self.num > 1:
            # A plain fork is never taken: torch's threads do not survive it.
            methods = multiprocessing.get_all_start_methods()
            method = "forkserver" if "forkserver" in methods else "spawn"
            context = multiprocessing.get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload([__name__])  # Torch is imported once.
            self._pool = ProcessPoolExecutor(self.num, mp_context=context)
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def record(self, episodes: Iterator[Episode]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames of the episodes in their order, a few of them played ahead."""
        if self._pool is None:
            yield from map(record, episodes)
            return
        ahead: deque = deque()
        try:
            for episode in episodes:
                ahead.append(self._pool.submit(record, episode))
                if len(ahead) > self.num:
                    yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
