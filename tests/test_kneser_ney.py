"""Kneser-Ney: exact, against the textbook in plain Python, and on tiny Shakespeare."""

import copy
import math
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from armodels.networks.kneser_ney import FEW, KneserNey, windows

BEGINNING = -1


def random_pieces(levels, lengths, seed=0, unseen=0):
    """Pieces in which a symbol often depends on the two before; the last levels never occur."""
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for length in lengths:
        symbols = [0, 0]
        for noise in torch.rand(length, generator=generator).tolist():
            guess = (symbols[-1] + 2 * symbols[-2] + 1) if noise < 0.6 else int(noise * 1000)
            symbols.append(guess % (levels - unseen))
        pieces.append(torch.tensor(symbols[2:], dtype=torch.long))
    return pieces


def fitted(levels, order, pieces):
    model = KneserNey(levels, order)
    model.fit(pieces)
    return model


class Textbook:
    """Section 2.7 and 3 of Chen & Goodman by dictionaries, a symbol at a time."""

    def __init__(self, levels, order, pieces):
        self.levels, self.order = levels, order
        times, before = Counter(), defaultdict(set)
        for piece in pieces:
            piece = piece.tolist()
            for i in range(len(piece)):
                for n in range(1, min(i + 1, order) + 1):
                    first = i + 1 - n
                    ngram = tuple(piece[first : i + 1])
                    times[ngram] += 1
                    before[ngram].add(piece[first - 1] if first else BEGINNING)
        self.counts = {
            ngram: times[ngram] if len(ngram) == order else len(before[ngram]) for ngram in times
        }
        self.after = defaultdict(dict)
        for ngram, count in self.counts.items():
            self.after[ngram[:-1]][ngram[-1]] = count
        self.discounts = [self.estimate(n) for n in range(1, order + 1)]

    def estimate(self, n):
        numbers = Counter(count for ngram, count in self.counts.items() if len(ngram) == n)
        found = []
        for k in (1, 2, 3):
            discount = 0
            if all(numbers[one] for one in {1, 2, k, k + 1}):
                mix = numbers[1] / (numbers[1] + 2 * numbers[2])
                discount = k - (k + 1) * mix * numbers[k + 1] / numbers[k]
            found.append(discount if discount > 0 else k / 2)
        return found

    def prob(self, symbol, context):
        seen = self.after.get(context)
        shorter = self.prob(symbol, context[1:]) if context else 1 / self.levels
        if not seen:
            return shorter
        discount = self.discounts[len(context)]
        taken = {one: discount[min(count, 3) - 1] for one, count in seen.items()}
        own = seen[symbol] - taken[symbol] if symbol in seen else 0
        return (own + sum(taken.values()) * shorter) / sum(seen.values())

    def log_probs(self, past, known):
        contexts = [
            tuple(row.tolist()[len(row) - count :])
            for row, count in zip(past, known.tolist(), strict=True)
        ]
        rows = [[math.log(self.prob(x, c)) for x in range(self.levels)] for c in contexts]
        return torch.tensor(rows, dtype=torch.double)


# name -> levels, order, lengths of the pieces, levels that never occur
CASES = {
    "order-1": (3, 1, [40], 0),
    "bigrams": (2, 2, [50, 30], 0),
    "trigrams": (4, 3, [300, 100, 7], 0),
    "order-4": (5, 4, [600, 1, 2, 100], 1),
    "order-5": (3, 5, [400, 400], 0),
    "short-pieces": (4, 5, [1, 2, 3, 1, 2, 0, 3], 0),
    "one-symbol": (5, 3, [1], 0),
    "one-level": (1, 3, [6], 0),
    "many-pieces": (3, 3, [4] * 60, 0),
}


@pytest.fixture(params=CASES)
def case(request):
    levels, order, lengths, unseen = CASES[request.param]
    pieces = random_pieces(levels, lengths, unseen=unseen)
    # Contexts of new text, of which not all were seen, and every length of the past.
    text = torch.randint(levels, (60,), generator=torch.Generator().manual_seed(5))
    past, known = windows(text, order - 1)
    known[20:] = torch.arange(40) % order
    return levels, order, pieces, past, known


def test_distributions_are_those_of_the_textbook(case):
    levels, order, pieces, past, known = case
    expected = Textbook(levels, order, pieces).log_probs(past, known)
    actual = fitted(levels, order, pieces).log_probs(past, known)
    assert actual.dtype == torch.double
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_discounts_are_those_of_the_textbook(case):
    levels, order, pieces, _, _ = case
    actual = fitted(levels, order, pieces).discounts()
    expected = torch.tensor(Textbook(levels, order, pieces).discounts, dtype=torch.double)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


def test_both_rules_of_discounts_are_tested():
    """Of all discounts in CASES, some come from the formula, and some where it fails."""
    found = [
        fitted(levels, order, random_pieces(levels, lengths, unseen=unseen)).discounts()
        for levels, order, lengths, unseen in CASES.values()
    ]
    usual = torch.cat(found) == torch.tensor([0.5, 1.0, 1.5])
    assert usual.any(0).all()
    assert not usual.all(0).any()


def test_discounts_by_hand():
    """n_1 .. n_4 are 4, 2, 1 and 1; then 2 n_2 is no more than needed for D(2) below zero."""
    model = KneserNey(20, 1)
    model.fit([torch.tensor([0, 1, 2, 3, *[4, 5] * 2, *[6] * 3, *[7] * 4])])
    mix = 4 / (4 + 2 * 2)
    exact = [mix, 2 - 3 * mix * 1 / 2, 3 - 4 * mix * 1 / 1]
    torch.testing.assert_close(model.discounts()[0].tolist(), exact)
    model.fit([torch.tensor([0, 1, 2, 3, 4, 4, *[5, 6, 7] * 3, *[8] * 4])])
    mix = 4 / (4 + 2 * 1)
    exact = [mix, 1.0, 3 - 4 * mix * 1 / 3]  # 2 - 3 mix * 3 / 1 is -4
    torch.testing.assert_close(model.discounts()[0].tolist(), exact)


def test_distributions_sum_to_one(case):
    levels, order, pieces, past, known = case
    total = fitted(levels, order, pieces).log_probs(past, known).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_few_rows_are_as_many(case):
    levels, order, pieces, past, known = case
    model = fitted(levels, order, pieces)
    every = model.log_probs(past, known)
    few = [model.log_probs(past[i : i + FEW], known[i : i + FEW]) for i in range(0, 60, FEW)]
    torch.testing.assert_close(torch.cat(few), every, rtol=0, atol=1e-13)
    model.fit(random_pieces(levels, [40], seed=1))  # what was kept for few rows is another text's
    every = model.log_probs(past, known)
    one = model.log_probs(past[-1:], known[-1:])
    torch.testing.assert_close(one, every[-1:], rtol=0, atol=1e-13)


def test_log_prob_of_is_one_entry_of_log_probs(case):
    levels, order, pieces, past, known = case
    model = fitted(levels, order, pieces)
    every = model.log_probs(past, known)
    for symbol in range(levels):
        values = torch.full_like(known, symbol)
        actual = model.log_prob_of(past, known, values)
        torch.testing.assert_close(actual, every[:, symbol], rtol=0, atol=1e-13)


def test_what_is_not_known_changes_nothing(case):
    levels, order, pieces, past, known = case
    model = fitted(levels, order, pieces)
    other = past.clone()
    other[torch.arange(order - 1, 0, -1) > known[:, None]] = 10**6
    assert torch.equal(model.log_probs(other, known), model.log_probs(past, known))


def test_contexts_never_cross_a_piece():
    """The order of pieces is nothing; a text that is parted differently is another."""
    pieces = random_pieces(3, [30, 20, 10])
    models = [fitted(3, 3, one) for one in (pieces, pieces[::-1], [torch.cat(pieces)])]
    past, known = windows(torch.cat(pieces), 2)
    first, turned, joined = (model.log_probs(past, known) for model in models)
    assert torch.equal(first, turned)
    assert not torch.allclose(first, joined)


def test_windows():
    past, known = windows(torch.tensor([5, 6, 7, 8]), 2)
    assert past.tolist() == [[0, 0], [0, 5], [5, 6], [6, 7]]
    assert known.tolist() == [0, 1, 2, 2]
    assert [tuple(one.shape) for one in windows(torch.tensor([5, 6]), 0)] == [(2, 0), (2,)]
    assert [tuple(one.shape) for one in windows(torch.tensor([]), 3)] == [(0, 3), (0,)]


def test_many_levels_and_a_high_order():
    """Keys of the longest contexts stay small: they are made of ids, not of powers of L."""
    levels, order = 2**31 - 1, 12
    piece = torch.arange(100) * 20_000_000 % levels
    model = fitted(levels, order, [piece, piece[:50]])
    past, known = windows(piece, order - 1)
    log_prob = model.log_prob_of(past, known, piece)
    assert log_prob[5:].exp().min() > 0.3  # a context has one symbol after it
    other = model.log_prob_of(past, known, piece + 1)
    assert other[5:].exp().max() < 1e-9


def test_a_second_fit_forgets_the_first():
    first, second = random_pieces(3, [200], seed=1), random_pieces(3, [50], seed=2)
    model = fitted(3, 4, first)
    model.fit(second)
    past, known = windows(first[0], 3)
    assert torch.equal(model.log_probs(past, known), fitted(3, 4, second).log_probs(past, known))


def test_bytes_are_counted_as_whole_numbers():
    pieces = random_pieces(4, [100])
    small = fitted(4, 3, [piece.to(torch.uint8) for piece in pieces])
    past, known = windows(pieces[0], 2)
    expected = fitted(4, 3, pieces).log_probs(past, known)
    assert torch.equal(small.log_probs(past.to(torch.uint8), known.int()), expected)


@pytest.mark.parametrize("earlier", [None, [17], [90, 40]])
def test_a_state_dict_brings_its_sizes(tmp_path, earlier):
    """Into a fresh module, and into one that has counted less or more."""
    pieces = random_pieces(4, [60, 20])
    model = fitted(4, 3, pieces)
    torch.save(model.state_dict(), tmp_path / "counts.pt")
    other = KneserNey(4, 3)
    if earlier:
        other.fit(random_pieces(4, earlier, seed=9))
    other = copy.deepcopy(other)
    other.load_state_dict(torch.load(tmp_path / "counts.pt", weights_only=True))
    past, known = windows(torch.cat(pieces), 2)
    assert torch.equal(other.log_probs(past, known), model.log_probs(past, known))
    inside = torch.nn.ModuleDict({"model": KneserNey(4, 3)})
    inside.load_state_dict({f"model.{name}": one for name, one in model.state_dict().items()})
    assert torch.equal(inside["model"].log_probs(past, known), model.log_probs(past, known))


def test_counts_lose_nothing_to_a_dtype():
    model = fitted(3, 3, random_pieces(3, [100]))
    past, known = windows(random_pieces(3, [30], seed=3)[0], 2)
    expected = model.log_probs(past, known)
    assert torch.equal(model.to(torch.float16).log_probs(past, known), expected)


def damages():
    """What is changed in a state_dict of order 2, and what is said."""
    yield {"ngrams_2": None}, "ngrams_2 is missing"
    yield {"levels": torch.tensor(5)}, "levels is 5; the model has 4"
    yield {"counts_1": torch.ones(4)}, "counts_1 is torch.float32 of shape"
    yield {"contexts_2": torch.zeros(1, 1).long()}, "contexts_2 is torch.int64 of shape"
    yield {"contexts_2": torch.tensor([1, 0, 2, 3])}, "contexts_2 is not sorted"
    yield {"contexts_2": torch.tensor([0, 1, 2, 4])}, "names contexts that are not there"
    yield {"ngrams_1": torch.tensor([-1, 1, 2, 3])}, "ngrams_1 is not sorted"
    yield {"ngrams_2": torch.arange(3)}, "ngrams_2 lacks n-grams"
    yield {"counts_1": torch.ones(3).long()}, "counts_1 must hold a count"
    yield {"counts_1": torch.tensor([0, 1, 1, 1])}, "counts_1 must hold a count"


@pytest.mark.parametrize(("damage", "message"), list(damages()))
def test_counts_that_cannot_be_are_refused(damage, message):
    model = fitted(4, 2, random_pieces(4, [200]))
    state = {k: v for k, v in {**model.state_dict(), **damage}.items() if v is not None}
    other = fitted(4, 2, random_pieces(4, [20], seed=1))
    kept = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match=message):
        other.load_state_dict(state)
    assert all(torch.equal(one, kept[name]) for name, one in other.state_dict().items())


def refusals():
    model = fitted(4, 3, random_pieces(4, [30]))
    past, known = windows(torch.tensor([0, 1, 2, 3]), 2)
    yield lambda: model.fit([]), "no symbols"
    yield lambda: model.fit([torch.zeros(0).long()]), "no symbols"
    yield lambda: model.fit([past]), r"piece 0 of the text has shape \(4, 2\)"
    yield (
        lambda: model.fit([known, torch.tensor([1.5])]),
        "symbols of piece 1 of the text are torch.float32",
    )
    yield lambda: model.fit([known + 3]), r"text are in 3\.\.5; they must be in 0\.\.3"
    yield lambda: model.log_probs(past[:, 1:], known), "order 3 needs"
    yield lambda: model.log_probs(past, known[1:]), "order 3 needs"
    yield lambda: model.log_probs(past, known + 1), r"known is in 1\.\.3; it must be in 0\.\.2"
    yield lambda: model.log_probs(past + 2, known), r"symbols of past are in \d\.\.4"
    yield lambda: model.log_prob_of(past, known, known[1:]), "give one symbol for each row"
    yield lambda: model.log_prob_of(past, known, known - 1), r"symbols of values are in -1\.\.1"
    yield lambda: KneserNey(4, 0), "order"


@pytest.mark.parametrize(("call", "message"), list(refusals()))
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_said_before_a_fit():
    past, known = windows(torch.tensor([0, 1]), 2)
    with pytest.raises(RuntimeError, match="has counted nothing"):
        KneserNey(4, 3).log_probs(past, known)


TEXT = Path(os.environ.get("ARMODELS_DATA", "")) / "text/tinyshakespeare.txt"


@pytest.mark.skipif(not TEXT.is_file(), reason="needs tinyshakespeare.txt in $ARMODELS_DATA")
def test_tiny_shakespeare():
    """Nats per character of the last tenth, as an implementation by dictionaries has them."""
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8)
    train, test = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    levels = train.unique()
    model = fitted(len(levels), 5, [torch.searchsorted(levels, train)])
    symbols = torch.searchsorted(levels, test)
    log_prob = model.log_prob_of(*windows(symbols, 4), symbols)
    assert len(log_prob) == 111_540
    assert -log_prob.mean().item() == pytest.approx(1.5612, abs=1e-4)
