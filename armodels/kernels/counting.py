"""Counts of n-grams that grow while a text is read, for interpolated modified Kneser-Ney.

A table in two hash tables: contexts, each by the context without its oldest symbol and that
symbol, and n-grams, each by its context and its last symbol. Keys are ``id * L + symbol``.

Shapes: L levels, C contexts, N order, t symbols read at once.
"""

from typing import final

import numpy as np

EMPTY = -1
"""In the place of a key: a slot that is free, as compiled code has it."""


@final
class GrowingCounts:
    """Counts that a text is added to symbol by symbol, each scored before it is counted.

    Args:
        levels: L.
        contexts: Keys of contexts in the order of their ids, from 1 on; the empty one has id 0.
        ngrams: Keys of n-grams.
        counts: Of the n-grams, each count and whether it began a piece: (E, 2).
        tallies: (C, 4), see ``compiled.count_and_say``.
        numbers: (N, 4), see ``compiled.count_and_say``.
    """

    def __init__(
        self,
        levels: int,
        contexts: np.ndarray,
        ngrams: np.ndarray,
        counts: np.ndarray,
        tallies: np.ndarray,
        numbers: np.ndarray,
    ):
        self.levels, self.order = levels, len(numbers)
        self.size = len(tallies)
        self.tallies, self.numbers = tallies.copy(), numbers.copy()
        self._used = len(ngrams)
        self._contexts = _table(contexts, np.arange(1, len(contexts) + 1)[:, None])
        self._ngrams = _table(ngrams, counts)

    def read(self, values: np.ndarray, past: np.ndarray, known: int) -> tuple[np.ndarray, int]:
        """What follows each of the symbols, once it is counted.

        Args:
            values: (t,) int64.
            past: (N - 1,) int64; holds what stands before the next symbol afterwards.
            known: How many of the past are there.

        Returns:
            (t, L) log-probabilities, nats, and how many of the past are there then.
        """
        from armodels.kernels import compiled

        self._make_room(len(values))
        found = np.empty((len(values), self.levels))
        known, self.size = compiled.count_and_say(
            values, past, known, self.levels, self._contexts[0], self._contexts[1][:, 0],
            *self._ngrams, self.tallies, self.numbers, self.size, found,
        )  # fmt: skip
        self._used += self.order * len(values)  # at most
        return found, known

    def _make_room(self, num: int) -> None:
        """Let so many symbols be counted: each adds at most an n-gram of each length."""
        more = num * self.order
        if len(self.tallies) < self.size + more:
            size = 2 * (self.size + more)
            self.tallies = np.concatenate(
                [self.tallies, np.zeros((size - len(self.tallies), 4), np.int64)]
            )
        if 2 * (self.size + more) > len(self._contexts[0]):
            self._contexts = _table(*self._contexts, least=4 * (self.size + more))
        if 2 * (self._used + more) > len(self._ngrams[0]):
            self._used = int((self._ngrams[0] != EMPTY).sum())
            self._ngrams = _table(*self._ngrams, least=4 * (self._used + more))


def _table(keys: np.ndarray, values: np.ndarray, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A hash table of keys (M,) and values (M, V), at most half full."""
    from armodels.kernels import compiled

    size = 1 << max(4, (max(2 * len(keys), least) - 1).bit_length())
    slots = np.full(size, EMPTY, np.int64)
    held = np.zeros((size, values.shape[1]), np.int64)
    compiled.insert_all(slots, held, keys, values)
    return slots, held
