"""Interpolated modified Kneser-Ney: a next symbol's distribution from counts of n-grams.

Shapes: B rows, L levels, N symbols of a text, C contexts of one length, E n-grams of one length.

An n-gram is a context of n - 1 symbols and the symbol after it. Contexts form a tree that is read
backwards, from the newest symbol to the oldest: a context's id is its index among the sorted keys
``id of the context without its oldest symbol * L + oldest symbol``, and an n-gram's key is ``id
of its context * L + last symbol``. Keys stay below N * L, so int64 holds them for any order, and
every look-up is a binary search for all rows at once.

``growing`` gives the same counts as hash tables, to which a text is added while it is read. One
more symbol changes little: the count of its longest n-gram; where that one is new, the
continuation count of the n-gram without its oldest symbol, and so on down while they are new; and
with each count, one row of ``tallies`` and two entries of ``counts_of_counts``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from armodels.checks import Count, checked
from armodels.kernels.counting import GrowingCounts

_KINDS = ("contexts", "ngrams", "counts")
"""What a state_dict holds for each length of n-grams."""

_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of counts 1, 2, and 3 or more where their formula has no good value."""

FEW = 4
"""Rows at most that are worked out one by one, by numbers rather than by operations on tensors."""


def windows(piece: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What stands before each symbol of a piece, as ``KneserNey`` asks for it.

    Args:
        piece: (T,) symbols.
        length: Symbols of the past, the order less one.

    Returns:
        past, (T, length), and known, (T,).
    """
    known = torch.arange(len(piece), device=piece.device).clamp_max(length)
    if length == 0 or len(piece) == 0:
        return piece.new_zeros(len(piece), length), known
    return torch.cat([piece.new_zeros(length), piece[:-1]]).unfold(0, length, 1), known


@final
class KneserNey(nn.Module):
    """p(x | past), a mixture of what contexts of order - 1, ..., 1, 0 symbols say about x.

    p_n(x | c) = (a(c x) - D_n(a(c x))) / a(c) + g(c) p_{n-1}(x | c without its oldest symbol),
    with p_0 = 1 / L, and without the first term where c x was never seen. The count a is how often
    an n-gram was seen, where n is the order; for shorter ones it is the number of distinct symbols
    seen before it. a(c) is the sum of a(c x) over x. The discount D_n is one of three numbers, for
    counts of 1, 2, and 3 or more, and g(c) is the share of a(c) that was taken away. A context
    that was never seen has the distribution of its longest end that was.

    Where nothing stands before a symbol, at the beginning of a piece, the context is shorter. That
    beginning counts as one predecessor more, the same for all pieces, so that an n-gram which
    stands nowhere else has a count, too.

    Discounts: with n_k the number of n-grams of count k, Y = n_1 / (n_1 + 2 n_2) and
    D(k) = k - (k + 1) Y n_{k+1} / n_k. Where a count of counts that a D(k) reads is zero, or where
    it comes out at or below zero, it is k / 2 instead: so every discount is positive, at most its
    count, and no symbol ever has probability zero.

    Only counts are kept, as integers; a state_dict holds them, and loading one takes their sizes
    from it.

    Args:
        num_levels: L; symbols are 0 .. L - 1.
        order: Symbols of the longest n-grams: a symbol and the order - 1 before it.

    Shapes:
        past: (B, order - 1) int64, the newest symbol last.
        known: (B,) int64, how many symbols at the end of a row of ``past`` are there; the others
            may hold anything.

    References:
        An empirical study of smoothing techniques for language modeling (Chen & Goodman, 1999)
        https://doi.org/10.1006/csla.1999.0128

    Differs from the paper: discounts are always those of the formula (there "-fix"), never
    optimized on held-out text, and have a rule where the formula has no value; pieces have no
    symbols for their beginning and end.
    """

    levels: Tensor
    counts_of_counts: Tensor

    @checked
    def __init__(self, num_levels: Count, order: Count):
        super().__init__()
        self.num_levels = num_levels
        self.order = order
        # Levels stand in the file, because keys of another number of levels look like good ones.
        self.register_buffer("levels", torch.tensor(num_levels))
        for n in range(1, order + 1):
            # Sorted keys (C,) of contexts and (E,) of n-grams, and the counts (E,) of the latter.
            for kind in _KINDS:
                self.register_buffer(f"{kind}_{n}", torch.zeros(0, dtype=torch.long))
            # Derived: where the n-grams of each context begin, (C + 1,), and (C, 4) the sum of
            # their counts and how many of them have the counts 1, 2, and 3 or more.
            for kind, shape in (("begins", (1,)), ("tallies", (0, 4))):
                empty = torch.zeros(shape, dtype=torch.long)
                self.register_buffer(f"{kind}_{n}", empty, persistent=False)
        empty = torch.zeros(order, 4, dtype=torch.long)
        self.register_buffer("counts_of_counts", empty, persistent=False)
        self.register_load_state_dict_pre_hook(_take_sizes)
        self.register_load_state_dict_post_hook(_derive_again)
        self._arrays: list[list[np.ndarray]] | None = None  # the same tables, for a few rows
        self._discounts = np.zeros((order, 3))

    @torch.no_grad()
    def fit(self, pieces: Iterable[Tensor]) -> None:
        """Count the n-grams of a text; what was counted before is forgotten.

        Args:
            pieces: (T,) integer symbols each; no context reaches from one piece into another.

        Raises:
            ValueError: There are no symbols, or they are none of the levels.
        """
        texts = []
        for i, piece in enumerate(pieces):
            if piece.ndim != 1:
                raise ValueError(
                    f"piece {i} of the text has shape {tuple(piece.shape)}; it must be a row (T,)"
                )
            self._require_symbols(piece, f"piece {i} of the text")
            texts.append(piece.to(self.levels.device, torch.long))
        if sum(map(len, texts)) == 0:
            raise ValueError("the text has no symbols to count; give at least one")
        self._index(texts)
        self._derive()

    def log_probs(self, past: Tensor, known: Tensor) -> Tensor:
        """log p of every level as the next symbol, nats.

        Args:
            past: (B, order - 1).
            known: (B,).

        Returns:
            (B, L) float64; their exponentials sum to one in each row.

        Raises:
            RuntimeError: Nothing was counted yet.
            ValueError: The past has another shape, or symbols that are none of the levels.
        """
        self._require_past(past, known)
        if len(past) <= FEW and past.device.type == "cpu":
            rows = [self._follows(*row) for row in zip(past.tolist(), known.tolist(), strict=True)]
            return torch.from_numpy(np.array(rows).reshape(len(past), self.num_levels)).log_()
        return self._log_probs(past, known)

    def _follows(self, past: list[int], known: int) -> np.ndarray:
        """p of every level (L,) after one past, as ``_log_probs`` has them.

        A step of one stream so takes 0.06 ms in place of 0.5: calls of torch were all of it.
        """
        if self._arrays is None:
            names = ("contexts", "ngrams", "counts", "begins", "tallies")
            tables = range(1, self.order + 1)
            self._arrays = [[self._table(kind, n).numpy() for kind in names] for n in tables]
            self._discounts = self.discounts().numpy()
        p, context = np.full(self.num_levels, 1 / self.num_levels), 0
        for n, (contexts, ngrams, counts, begins, tallies) in enumerate(self._arrays, 1):
            if n > 1:
                if known < n - 1:
                    break
                key = context * self.num_levels + past[-(n - 1)]
                context = int(contexts.searchsorted(key))
                if context == len(contexts) or contexts[context] != key:
                    break
            discounts, (total, *numbers) = self._discounts[n - 1], tallies[context].tolist()
            p *= float(discounts @ numbers) / total
            these = slice(begins[context], begins[context + 1])
            number = counts[these]
            shares = (number - discounts[np.minimum(number, 3) - 1]) / total
            p[ngrams[these] % self.num_levels] += shares
        return p

    def _log_probs(self, past: Tensor, known: Tensor) -> Tensor:
        """As ``log_probs``, of any number of rows, on any device."""
        result = torch.full(
            (len(past), self.num_levels),
            1 / self.num_levels,
            dtype=torch.double,
            device=past.device,
        )
        p = result[:1]
        shorter = None  # the distinct contexts that p is of, but for p_0
        for n, rows, context in self._seen(past, known):
            # Rows share contexts, the short ones above all: each is worked out once.
            distinct, which = context.unique(return_inverse=True)
            total, backoff, discounts = self._weights(n, distinct)
            if shorter is not None:
                older = self._table("contexts", n)[distinct] // self.num_levels
                p = p[torch.searchsorted(shorter, older)]
            p = p * backoff[:, None]
            begins = self._table("begins", n)
            first, last = begins[distinct], begins[distinct + 1]
            owner = torch.arange(len(distinct), device=p.device).repeat_interleave(last - first)
            shift = last - (last - first).cumsum(0)  # from places in owner to those in the table
            ngram = torch.arange(len(owner), device=p.device) + shift[owner]
            symbol = self._table("ngrams", n)[ngram] % self.num_levels
            share = _discounted(self._table("counts", n)[ngram], discounts) / total[owner]
            p[owner, symbol] += share
            result[rows] = p[which]
            shorter = distinct
        return result.log_()

    def log_prob_of(self, past: Tensor, known: Tensor, values: Tensor) -> Tensor:
        """log p of the symbols that did come next, nats; faster than all levels.

        Args:
            past: (B, order - 1).
            known: (B,).
            values: (B,) integer symbols.

        Returns:
            (B,) float64.

        Raises:
            RuntimeError: Nothing was counted yet.
            ValueError: The past has another shape, or there are symbols that are none of the
                levels.
        """
        self._require_past(past, known)
        if values.shape != known.shape:
            raise ValueError(
                f"values have shape {tuple(values.shape)} for {len(past)} rows of the past; give "
                f"one symbol for each row"
            )
        self._require_symbols(values, "values")
        size = (len(past),)
        p = torch.full(size, 1 / self.num_levels, dtype=torch.double, device=past.device)
        for n, rows, context in self._seen(past, known):
            total, backoff, discounts = self._weights(n, context)
            keys = context * self.num_levels + values[rows]
            ngram, found = _find(self._table("ngrams", n), keys)
            share = _discounted(self._table("counts", n)[ngram], discounts) / total
            p[rows] = p[rows] * backoff + share.where(found, 0)
        return p.log_()

    def discounts(self) -> Tensor:
        """D of counts 1, 2, and 3 or more, for n-grams of 1 .. order symbols: (order, 3)."""
        number = self.counts_of_counts.double()
        mix = number[:, 0] / (number[:, 0] + 2 * number[:, 1])
        count = torch.arange(1, 4, device=number.device)
        exact = count - (count + 1) * mix[:, None] * number[:, 1:] / number[:, :3]
        there = number > 0
        defined = there[:, :2].all(1, keepdim=True) & there[:, :3] & there[:, 1:]
        return exact.where(defined & (exact > 0), exact.new_tensor(_FALLBACK))

    def _table(self, kind: str, n: int) -> Tensor:
        return getattr(self, f"{kind}_{n}")

    def _index(self, texts: list[Tensor]) -> None:
        """Set the keys and the counts of all n-grams of a text."""
        symbols = torch.cat(texts)
        lengths = torch.tensor([len(text) for text in texts], device=symbols.device)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        position = torch.arange(len(symbols), device=symbols.device)  # of symbols with a context
        context = torch.zeros_like(position)
        begun = []  # for each order, whether an n-gram stands at the beginning of a piece
        for n in range(1, self.order + 1):
            if n > 1:
                far = position - starts[position] >= n - 1
                position = position[far]
                context = context[far] * self.num_levels + symbols[position - (n - 1)]
            contexts, context = context.unique(return_inverse=True)
            keys = context * self.num_levels + symbols[position]
            ngrams, ngram, counts = keys.unique(return_inverse=True, return_counts=True)
            first = position - starts[position] == n - 1
            begun.append(torch.zeros_like(ngrams).index_fill_(0, ngram[first], 1))
            for kind, table in zip(_KINDS, (contexts, ngrams, counts), strict=True):
                setattr(self, f"{kind}_{n}", table)
        for n in range(1, self.order):
            setattr(self, f"counts_{n}", self._predecessors(n) + begun[n - 1])

    def _predecessors(self, n: int) -> Tensor:
        """How many symbols were seen before each n-gram, (E,), for n below the order."""
        # Each longer n-gram is one distinct predecessor of the one without its oldest symbol.
        longer, last = self._split(n + 1)
        keys = self._table("contexts", n + 1)[longer] // self.num_levels
        ngram = torch.searchsorted(self._table("ngrams", n), keys * self.num_levels + last)
        return ngram.bincount(minlength=len(self._table("ngrams", n)))

    def growing(self) -> GrowingCounts:
        """The same counts in a form to which symbols are added one by one.

        What follows is then what ``fit`` would give for the text so far, exactly.

        Raises:
            RuntimeError: Nothing was counted yet.
        """
        self._require_counts()
        contexts, ngrams, counts, shorter, own = [], [], [], 0, 0
        for n in range(1, self.order + 1):
            if n > 1:
                contexts.append(self._table("contexts", n) + shorter * self.num_levels)
            ngrams.append(self._table("ngrams", n) + own * self.num_levels)
            number = self._table("counts", n)
            begun = number - self._predecessors(n) if n < self.order else torch.zeros_like(number)
            counts.append(torch.stack([number, begun], 1))
            shorter, own = own, own + len(self._table("contexts", n))
        tallies = [self._table("tallies", n) for n in range(1, self.order + 1)]
        none = self.levels.new_zeros(0)
        parts = (torch.cat([none, *contexts]), torch.cat(ngrams), torch.cat(counts),
                 torch.cat(tallies), self.counts_of_counts)  # fmt: skip
        return GrowingCounts(self.num_levels, *(part.cpu().numpy() for part in parts))

    def _split(self, n: int) -> tuple[Tensor, Tensor]:
        """Context and last symbol of each n-gram, (E,) and (E,)."""
        ngrams = self._table("ngrams", n)
        return ngrams // self.num_levels, ngrams % self.num_levels

    def _derive(self) -> None:
        """Set what follows from keys and counts."""
        self._arrays = None
        for n in range(1, self.order + 1):
            (context, _), counts = self._split(n), self._table("counts", n)
            size = len(self._table("contexts", n))
            every = torch.arange(size + 1, device=counts.device)
            setattr(self, f"begins_{n}", torch.searchsorted(context, every))
            total = counts.new_zeros(size).index_add_(0, context, counts)
            kind = context * 3 + counts.clamp_max(3) - 1
            numbers = kind.bincount(minlength=3 * size).view(size, 3)
            setattr(self, f"tallies_{n}", torch.cat([total[:, None], numbers], 1))
            few = counts[counts <= 4]
            self.counts_of_counts[n - 1] = few.bincount(minlength=5)[1:]

    def _seen(self, past: Tensor, known: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For n-grams of 1 .. order symbols, the rows whose contexts were seen, and those.

        Yields:
            n, the rows (M,) in order, and the ids (M,) of their contexts of n - 1 symbols.
        """
        rows = torch.arange(len(past), device=past.device)
        context = torch.zeros_like(rows)
        yield 1, rows, context
        for n in range(2, self.order + 1):
            far = known[rows] >= n - 1
            rows, context = rows[far], context[far]
            keys = context * self.num_levels + past[rows, -(n - 1)]
            context, found = _find(self._table("contexts", n), keys)
            rows, context = rows[found], context[found]
            if len(rows) == 0:
                return
            yield n, rows, context

    def _weights(self, n: int, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of counts (M,), mass left for shorter contexts (M,), and the discounts (3,)."""
        tallies = self._table("tallies", n)[context].double()
        discounts = self.discounts()[n - 1]
        total = tallies[:, 0]
        return total, tallies[:, 1:] @ discounts / total, discounts

    def _require_symbols(self, symbols: Tensor, where: str) -> None:
        if symbols.is_floating_point() or symbols.is_complex() or symbols.dtype == torch.bool:
            raise ValueError(f"symbols of {where} are {symbols.dtype}; they must be whole numbers")
        if symbols.numel() == 0:
            return
        low, high = map(int, symbols.aminmax())
        if low < 0 or high >= self.num_levels:
            raise ValueError(
                f"symbols of {where} are in {low}..{high}; they must be in "
                f"0..{self.num_levels - 1}"
            )

    def _require_counts(self) -> None:
        if len(self._table("contexts", 1)) == 0:
            raise RuntimeError(
                "KneserNey has counted nothing; call fit(pieces) or load its counts"
            )

    def _require_past(self, past: Tensor, known: Tensor) -> None:
        self._require_counts()
        longest = self.order - 1
        if past.ndim != 2 or past.shape[1] != longest or known.shape != past.shape[:1]:
            raise ValueError(
                f"past has shape {tuple(past.shape)} and known {tuple(known.shape)}; order "
                f"{self.order} needs (B, {longest}) and (B,)"
            )
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) <= longest:
            raise ValueError(
                f"known is in {int(known.min())}..{int(known.max())}; it must be in 0..{longest}"
            )
        there = torch.arange(longest, 0, -1, device=past.device) <= known[:, None]
        self._require_symbols(past.where(there, 0), "past")


def _find(table: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of keys (M,) in a sorted table, and whether they are there; 0 where they are not."""
    if len(table) == 0:
        return torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
    index = torch.searchsorted(table, keys).clamp_max_(len(table) - 1)
    found = table[index] == keys
    return index.where(found, 0), found


def _discounted(counts: Tensor, discounts: Tensor) -> Tensor:
    """Counts of one or more, less their discounts, in float64."""
    return counts - discounts[counts.clamp_max(3) - 1]


def _take_sizes(model: KneserNey, state: Mapping[str, Any], prefix: str, *unused: object) -> None:
    """Make room for the counts of a state_dict before they are copied; refuse incoherent ones.

    Raises:
        RuntimeError: They are no counts of this model. The error is torch's own for a state_dict
            that does not fit, so that whoever loads one sees a single kind.
    """
    names = ["levels", *(f"{kind}_{n}" for n in range(1, model.order + 1) for kind in _KINDS)]
    saved = {name: state[prefix + name] for name in names if prefix + name in state}
    if not saved:
        return  # torch says what is missing, where something must be there
    for name in names:
        if name not in saved:
            raise RuntimeError(f"{prefix}{name} is missing: the counts are of another order")
    if problem := _problem(model, saved):
        raise RuntimeError(f"{prefix}{problem}")
    for name in names[1:]:
        setattr(model, name, torch.empty_like(saved[name], device=model.levels.device))


def _problem(model: KneserNey, saved: Mapping[str, Tensor]) -> str | None:
    """Why tables cannot be the counts of a model; None where they can."""
    for name, table in saved.items():
        if table.dtype != torch.long or table.ndim != (name != "levels"):
            return (
                f"{name} is {table.dtype} of shape {tuple(table.shape)}; it must be a row of int64"
            )
    if int(saved["levels"]) != model.num_levels:
        return f"levels is {int(saved['levels'])}; the model has {model.num_levels}"
    num_shorter = 1
    for n in range(1, model.order + 1):
        contexts, ngrams, counts = (saved[f"{kind}_{n}"] for kind in _KINDS)
        for name, table, size in (
            ("contexts", contexts, num_shorter),
            ("ngrams", ngrams, len(contexts)),
        ):
            if not _are_keys(table, size * model.num_levels):
                return f"{name}_{n} is not sorted, or names contexts that are not there"
        if len((ngrams // model.num_levels).unique()) != len(contexts):
            return f"ngrams_{n} lacks n-grams of some of the contexts"
        if counts.shape != ngrams.shape or (counts < 1).any() or counts.double().sum() > 2**53:
            return f"counts_{n} must hold a count of at least 1 for each n-gram"
        num_shorter = len(contexts)
    return None


def _are_keys(table: Tensor, end: int) -> bool:
    """Whether numbers rise, from 0 to less than an end."""
    return len(table) == 0 or bool(
        table[0] >= 0 and table[-1] < end and (table[1:] > table[:-1]).all()
    )


def _derive_again(model: KneserNey, keys: object) -> None:
    """Set what follows from counts that have just been loaded."""
    model._derive()
