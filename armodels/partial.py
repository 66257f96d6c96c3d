"""What an exact evaluation has found so far, in files: one that was interrupted goes on.

Exact likelihoods may take hours: a model for all orders makes a pass for each value, under each
order. Sums are kept each half minute, and where something stops the evaluation; they lie beside
the run and are of this very model, order and data, as a fingerprint says.
"""

import contextlib
import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from armodels import __version__, disk, show

EVERY = 30.0
"""Seconds between saves."""

SHARE = 0.02
"""Of the time at most goes into saving."""

VALUES_SEEN, ROWS_SEEN = 2**24, 256
"""Data is recognized by all of its values, or by so many of them at least: whole examples, evenly
spread, so many at least, or the beginnings of sequences."""

Content = Mapping[str, np.ndarray]

Places = tuple[int, int]
"""From which to which."""


@final
class Partial:
    """The files in which the processes of an evaluation keep what they have found.

    Args:
        folder: Where they lie, until all is found.
        name: Of what is evaluated, such as ``"test"``.
        fingerprint: Of the model and the data; asked for when it is needed first, as it takes a
            second for each gigabyte of weights.
        rank: Of this process.
    """

    def __init__(self, folder: Path, name: str, fingerprint: Callable[[], str], rank: int = 0):
        self._folder, self._name, self._rank = folder, name, rank
        self._find, self._found = fingerprint, ""
        self._saved_at, self._took = time.monotonic(), 0.0

    @property
    def _stem(self) -> str:
        self._found = self._found or self._find()
        return f"evaluating-{self._name}-{self._found}"

    @property
    def _any(self) -> bool:
        """Whether there is anything for which a fingerprint is needed."""
        return bool([*self._folder.glob(f"evaluating-{self._name}-*.npz")])

    def load(self) -> list[dict[str, np.ndarray]]:
        """What was found before, by file; what is damaged counts as not there."""
        if not self._any:
            return []
        found = []
        for path in sorted(self._folder.glob(f"{self._stem}.*.npz")):
            try:
                with zipfile.ZipFile(path) as archive:
                    packed = any(one.compress_type for one in archive.infolist())
                with np.load(path, allow_pickle=False) as content:
                    # It is saved as it is; what is packed is not ours, and may have no end.
                    found += [] if packed else [{key: content[key] for key in content.files}]
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                show.warn(f"{path} is damaged, and what it held is evaluated again ({error})")
        return found

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        wait = max(EVERY, self._took / SHARE)
        return time.monotonic() - self._saved_at >= wait

    def save(self, content: Content) -> None:
        """Keep all that this process has found."""
        started = time.monotonic()
        with disk.atomic(self._folder / f"{self._stem}.{self._rank}.npz") as file:
            np.savez(file, **dict(content))  # type: ignore[arg-type]
        self._saved_at, self._took = time.monotonic(), time.monotonic() - started

    def remove(self) -> None:
        """All is found: the files of every process go."""
        if self._any:
            for path in self._folder.glob(f"{self._stem}.*.npz"):
                path.unlink(missing_ok=True)


@final
class LogSums:
    """log sum{ p_t(x) } of each example over the terms t of its probability that are found.

    Places count examples under one term after another: example i under term t has place t N + i.
    A signal may find the program anywhere: what was found is taken in by one assignment.

    Args:
        num_examples: N.
        num_terms: Terms of the probability of each.
    """

    def __init__(self, num_examples: int, num_terms: int):
        self.num_examples, self.total = num_examples, num_examples * num_terms
        sums = torch.full((num_examples,), -torch.inf, dtype=torch.double)
        self._state: tuple[list[Places], Tensor, list[tuple[int, Tensor]]] = (
            [],
            sums,
            [],
        )

    def add(self, start: int, values: Tensor) -> None:
        """Take in log p_t of examples one after another, of which the first has that place."""
        self._state[2].append((start, values.double().cpu()))

    def _folded(self) -> tuple[list[Places], Tensor]:
        done, sums, parts = self._state
        if parts:
            done, sums = done.copy(), sums.clone()
            for start, values in parts.copy():
                rows = slice(start % self.num_examples, start % self.num_examples + len(values))
                sums[rows] = torch.logaddexp(sums[rows], values)
                done.append((start, start + len(values)))
            done = _joined(done)
            self._state = (done, sums, [])
        return done, sums

    @property
    def content(self) -> dict[str, np.ndarray]:
        """What was found so far, for a file."""
        done, sums = self._folded()
        return {"done": np.array(done, dtype=np.int64).reshape(-1, 2), "sums": sums.numpy()}

    def take_in(self, content: Content) -> None:
        """Add what another found; what overlaps was saved twice, and counts once."""
        fits = content.keys() == {"done", "sums"} and content["sums"].shape == (self.num_examples,)
        if not fits or content["done"].dtype != np.int64 or content["done"].shape[1:] != (2,):
            return
        done, sums = self._folded()
        more = [(int(start), int(stop)) for start, stop in content["done"]]
        if all(0 <= start < stop <= self.total for start, stop in more):
            if not any(a < stop and start < b for a, b in done for start, stop in more):
                both = torch.logaddexp(sums, torch.from_numpy(content["sums"]).double())
                self._state = (_joined([*done, *more]), both, [])

    @property
    def num_found(self) -> int:
        """Places that are found."""
        return sum(stop - start for start, stop in self._folded()[0])

    def share(self, rank: int, world: int) -> list[Places]:
        """What one of ``world`` processes has to find: an equal part of the places left."""
        ends = [0, *(end for part in self._folded()[0] for end in part), self.total]
        left = [(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True)]
        number = self.total - self.num_found
        first, last = number * rank // world, number * (rank + 1) // world
        found, passed = [], 0
        for start, stop in left:
            low, high = max(start, start + first - passed), min(stop, start + last - passed)
            if low < high:
                found.append((low, high))
            passed += stop - start
        return found

    @property
    def log_sums(self) -> Tensor:
        """(N,) float64, of the terms that were found."""
        return self._folded()[1]


def _joined(parts: list[Places]) -> list[Places]:
    """Intervals in order, those that meet as one."""
    joined: list[Places] = []
    for start, stop in sorted(parts):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


@contextlib.contextmanager
def kept(
    partial: Partial | None, content: Callable[[], Content | None]
) -> Iterator[Callable[[], None]]:
    """Save where that is due, and where something stops the block.

    Args:
        partial: Where; None: nowhere.
        content: What was found so far; None: nothing.

    Yields:
        To be called whenever something was found.
    """

    def save() -> None:
        found = content()
        if partial is not None and found is not None:
            with contextlib.suppress(OSError):  # a full disk stops no evaluation
                partial.save(found)

    def save_if_due() -> None:
        if partial is not None and partial.is_due:
            save()

    try:
        yield save_if_due
    except BaseException:
        save()
        raise


def fingerprint(
    model: nn.Module, tables: list[Tensor], about: str, values: list[Tensor], code: list[bytes]
) -> str:
    """What tells an evaluation from others: 16 hexadecimal digits.

    Args:
        model: Its weights and buffers.
        tables: Of the orders.
        about: All else that the numbers depend on.
        values: Some of the data.
        code: By which the model computes.
    """
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {about}".encode())
    for source in code:
        digest.update(source)
    named = [value for _, value in sorted({**model.state_dict()}.items())]
    for tensor in [*named, *tables, *values]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]
