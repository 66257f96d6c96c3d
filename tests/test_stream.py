"""Networks over streams: any chopping of the same values gives the same numbers."""

import dataclasses
import functools

import pytest
import torch
from cases import CASES, random_events

from armodels import heads, limits, orders
from armodels.data.base import Splits
from armodels.data.rows import Examples, Windows
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.stream import learn, reads, stream_log_probs, with_length
from armodels.density.walk import draw, keep, walk
from armodels.evaluation import evaluate
from armodels.networks import stream
from armodels.networks.ngram import NGram
from armodels.networks.stream import StreamNetwork
from armodels.networks.transformer import window_mask
from armodels.spec import ContextSpec, DataSpec
from armodels.training import timing
from armodels.training.processes import make_fabric
from armodels.training.settings import Settings

STREAMS = {
    name: case
    for name, case in CASES.items()
    if case.steps and isinstance(case.build(0).net, StreamNetwork)
}


def fitted_ngram(seed: int, n: int) -> AutoregressiveModel:
    spec = CASES["rnn"].spec
    head = heads.Categorical(spec)
    net = NGram(spec, head.num_params, orders.make("raster", spec.shape), n=n)
    net.learn([random_events(spec, 60, seed).flatten(), random_events(spec, 20, 9).flatten()])
    return AutoregressiveModel(net, head).double().eval()


for n in (1, 2, 4):
    fit = functools.partial(fitted_ngram, n=n)
    STREAMS[f"ngram-{n}"] = dataclasses.replace(CASES["rnn"], build=fit)

CHOPPINGS = {
    "whole": [20],
    "one by one": [1] * 20,
    "7 at a time": [7, 7, 6],
    "prompt": [13, *[1] * 7],
}

over_streams = pytest.mark.parametrize("name", STREAMS)


def values_of(case, length: int = 20) -> torch.Tensor:
    """(2, length) random values."""
    return case.events(2 * length).flatten()[: 2 * length].view(2, length)


def read(net: StreamNetwork, values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Parameters (B, t + 1, P) before the first value and after each."""
    first, state = net.begin(len(values))
    parts = [first[:, None]]
    for part in values.split(sizes, 1):
        params, state = net.read(part[..., None], state)
        parts.append(params)
    return torch.cat(parts, 1)


@over_streams
@pytest.mark.parametrize("chopping", CHOPPINGS)
@torch.no_grad()
def test_any_chopping_gives_the_same_numbers(name, chopping):
    case = STREAMS[name]
    net, values = case.build(0).net, values_of(case)
    whole = read(net, values, [20])
    torch.testing.assert_close(read(net, values, CHOPPINGS[chopping]), whole, rtol=0, atol=1e-10)
    longer = net.with_length(21)
    x = torch.cat([values, values[:, :1]], 1)
    torch.testing.assert_close(longer(x), whole, rtol=0, atol=1e-10)


@over_streams
@pytest.mark.parametrize("known", [0, 1, 13])
@torch.no_grad()
def test_a_walk_after_a_text_is_that_of_the_whole_from_there(name, known, monkeypatch):
    """Read at once, five at a time, the same values are drawn as step after step."""
    monkeypatch.setattr(stream, "CHUNK", 5)
    case = STREAMS[name]
    model, begin = case.build(0), values_of(case)[:1, :known, None]
    noise = torch.rand(3, 20, model.head.num_noise, dtype=torch.double)
    drawn = draw(model.head, noise)
    values = torch.cat([begin, begin.new_zeros(1, 20 - known, 1)], 1).expand(3, -1, -1)
    kept = keep(values, (torch.arange(20) < known).expand(3, -1), drawn)
    whole = walk(model.net.with_length(20), 3, kept)
    after = stream.After(model.net, begin[0])
    rest = draw(model.head, noise[:, known:])
    found = walk(model.net.with_length(20 - known), 3, rest, after=after)
    torch.testing.assert_close(found, whole[:, known:], rtol=0, atol=1e-10)


@over_streams
def test_a_model_of_another_length_is_the_same_model(name):
    case = STREAMS[name]
    model = case.build(0)
    x = values_of(case)
    longer = with_length(model, 20)
    assert longer.spec.shape == (20,)
    expected = longer.log_prob(x)
    for row, of_row in zip(x, expected, strict=True):
        for chunk in (1, 6, 100):
            parts = list(stream_log_probs(model, row, chunk))
            assert [len(part) for part in parts][:-1] == [min(chunk, 20)] * (len(parts) - 1)
            torch.testing.assert_close(torch.cat(parts).sum(), of_row, rtol=0, atol=1e-10)
    size = case.spec.num_dims
    torch.testing.assert_close(
        with_length(longer, size).log_prob(x[:, :size]), model.log_prob(x[:, :size])
    )
    assert longer.sample(3).shape == (3, 20)
    assert model.sample(3).shape == (3, size)


def test_a_model_of_one_length_does_not_read():
    model = CASES["made-sequence"].build(0)
    assert not reads(model)
    with pytest.raises(ValueError, match="takes events of one length alone; choose model=rnn"):
        with_length(model, 3)


@pytest.mark.parametrize("length", [1, 3, 23, 40])
@torch.no_grad()
def test_each_symbol_of_a_split_is_scored_once(length):
    """Whatever the windows and the batches: only the length of an example follows them."""
    case = CASES["rnn"]
    model = with_length(case.build(0), length)
    pieces = [values_of(case, 23)[0], values_of(case, 11)[1]]
    total = sum(float(with_length(model, len(one)).log_prob(one[None])) for one in pieces)
    examples = Examples(Windows(pieces[0], length), pieces=pieces)
    found = evaluate(model, examples, batch_size=2)
    assert found.num_symbols == 34
    assert found.log_prob == pytest.approx(total / 34 * length, abs=1e-9)
    report = found.report(model.spec)
    assert report["nats_per_symbol"] == pytest.approx(-total / 34, abs=1e-10)
    assert report["nats"] == pytest.approx(-total / 34 * length)
    assert report["bits_per_symbol"] == report["bits_per_dim"]


def test_the_error_of_a_mean_is_that_of_its_windows():
    case = CASES["rnn"]
    model = case.build(0)
    piece = values_of(case, 400).flatten()
    found = evaluate(model, Examples(Windows(piece, 4), pieces=[piece]))
    windows = torch.cat(list(stream_log_probs(model, piece))).view(-1, 4).sum(1)
    assert found.num_examples == 200
    assert found.standard_error == pytest.approx(float(windows.std() / 200**0.5))


def test_the_time_of_an_evaluation_is_that_of_whole_texts(monkeypatch):
    """Symbol after symbol a text may take a hundred times as long as its windows side by side."""
    model, piece = CASES["rnn"].build(0), values_of(CASES["rnn"], 3000).flatten()
    rows = Windows(piece, 4)
    pieces = {"valid": [piece[:2000], piece[:500]], "test": [piece]}
    splits = Splits(model.spec, rows, rows, rows, pieces=pieces)
    now = [0.0]

    def read(model, part, *unused):
        now[0] += 0.001 * len(part)
        return []

    monkeypatch.setattr(timing, "stream_log_probs", read)
    monkeypatch.setattr(limits, "now", lambda: now[0])
    fabric = make_fabric(Settings(accelerator="cpu"))
    table = timing.Timetable(limits.Budget(60.0), 60.0, 1, fabric)
    assert table.plan(model, splits, 500)
    assert table._seconds_of["valid"] == pytest.approx(2.5)
    assert table._seconds_of["test"] == pytest.approx(6.0)


def test_what_has_nothing_to_fit_reads_no_piece():
    class Untouched:
        def __getitem__(self, rows):
            raise AssertionError("a file may be larger than memory")

        __len__ = None

    assert not learn(CASES["rnn"].build(0), [Untouched()])


def test_processes_share_pieces():
    pieces = [torch.full((3 + i,), i) for i in range(5)]
    examples = Examples(torch.zeros(4, 2), pieces=pieces)
    shares = [examples.share(rank, 2).pieces for rank in (0, 1)]
    assert sorted(len(piece) for share in shares for piece in share) == [3, 4, 5, 6, 7]


def test_a_window_is_the_last_values_and_no_later_ones():
    found = window_mask(3, 5, 2, torch.device("cpu")).int().tolist()
    assert found == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    whole = window_mask(3, 3, 9, torch.device("cpu")).int().tolist()
    assert whole == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@torch.no_grad()
def test_a_transformer_of_one_layer_sees_its_past_and_no_more():
    case = CASES["transformer-past"]
    model = case.build(0)
    net = model.net.with_length(9)
    net.blocks = net.blocks[:1]
    x = case.events(9).flatten()[:9][None]
    other = x.clone()
    other[0, 2] = (x[0, 2] + 1) % 5
    moved = (net(x) - net(other)).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False] * 3 + [True] * 3 + [False] * 3  # past=3


@torch.no_grad()
def test_an_ngram_counts_whole_pieces(tmp_path):
    model = fitted_ngram(0, 3)
    values = random_events(CASES["rnn"].spec, 60, 0).flatten()[:50]
    (log_probs,) = stream_log_probs(model, values, 99)
    past = torch.cat([torch.zeros(2, dtype=values.dtype), values])[:-1].unfold(0, 2, 1).long()
    known = torch.arange(50).clamp(max=2)
    expected = model.net.counts.log_prob_of(past, known, values.long())
    torch.testing.assert_close(log_probs, expected)
    again = fitted_ngram(5, 3)
    again.load_state_dict(model.state_dict())
    assert torch.cat(list(stream_log_probs(again, values))).equal(log_probs)


def test_an_ngram_needs_levels_and_no_context():
    spec = CASES["rnn"].spec
    order = orders.make("raster", spec.shape)
    with pytest.raises(ValueError, match="use head=categorical"):
        NGram(spec, 3, order)
    two = DataSpec("bits", "sequence", (4,), 2, "probability")
    model = AutoregressiveModel.of(NGram, two, n=3)
    model.net.learn([torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])])
    (log_probs,) = stream_log_probs(model, torch.tensor([0, 1, 1, 0]))
    past, known = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 1]]), torch.tensor([0, 1, 2, 2])
    expected = model.net.counts.log_prob_of(past, known, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(log_probs, expected)
    with pytest.raises(ValueError, match="has no context"):
        NGram(spec, 5, order, context=ContextSpec("label", (), 3))
