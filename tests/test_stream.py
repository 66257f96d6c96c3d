"""Networks over streams: any chopping of the same values gives the same numbers."""

import dataclasses
import functools
import itertools

import pytest
import torch
from cases import CASES, every, random_events
from walks import stream_log_probs

from armodels import heads, limits, orders
from armodels.data.base import PARTS, Splits
from armodels.data.clips import in_windows, window_spec
from armodels.data.rows import Examples, Windows
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.stream import (
    after_prompt,
    learn,
    pieces_log_probs,
    reads,
    with_length,
)
from armodels.density.walk import walk
from armodels.evaluation import evaluate, is_whole
from armodels.networks.attention import Pattern, appended, make_distances, turned, turns
from armodels.networks.base import State
from armodels.networks.ngram import NGram
from armodels.networks.recurrent import Recurrent
from armodels.networks.stream import StreamNetwork
from armodels.networks.transformer import PAST, Transformer
from armodels.objectives import AfterMemory, Likelihood
from armodels.spec import ContextSpec, DataSpec
from armodels.training import timing
from armodels.training.processes import make_fabric
from armodels.training.settings import Settings
from armodels.waveform import Waveform

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
    STREAMS[f"ngram-{n}"] = dataclasses.replace(CASES["ngram"], build=fit)

CHOPPINGS = {
    "whole": [20],
    "one by one": [1] * 20,
    "7 at a time": [7, 7, 6],
    "prompt": [13, *[1] * 7],
}

over_streams = every(STREAMS, "name")


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
@torch.no_grad()
def test_nothing_before_is_the_beginning(name):
    case = STREAMS[name]
    model = case.build(0)
    x = values_of(case)[:, : case.spec.num_dims, None]
    steps = after_prompt(model, x[0, :0, 0], x.shape[1])
    found: list[torch.Tensor] = []

    def follow(s: int, params: torch.Tensor) -> torch.Tensor:
        found.append(params)
        return x[:, s]

    walk(steps, len(x), follow)
    whole = with_length(model, x.shape[1]).net(x[..., 0])
    torch.testing.assert_close(torch.stack(found, 1), whole, rtol=0, atol=1e-10)


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
    assert report["past_symbols_or_all"] == 22  # of the longer piece


@torch.no_grad()
def test_how_much_past_each_symbol_saw():
    values = values_of(CASES["wavenet"], 40)
    pieces = [values[0], values[1, :3]]
    model = CASES["wavenet"].build(0)
    whole = evaluate(model, Examples(Windows(values[0], 4), pieces=pieces))
    assert whole.past == 7
    assert evaluate(model, Examples(Windows(values[0], 4), pieces=pieces[1:])).past == 2
    apart = evaluate(model, Examples(Windows(values[0], 4)))
    assert apart.report(model.spec)["past_symbols_or_all"] == 0


LENGTHS = (5, 1, 23, 11, 23, 4)


@over_streams
@pytest.mark.parametrize(("rows", "chunk"), [(1, 5), (2, 1), (4, 3), (6, 100)])
def test_pieces_side_by_side_are_pieces_one_by_one(name, rows, chunk):
    """What pads a piece is not scored, and what ends early leaves the others alone."""
    model = STREAMS[name].build(0)
    pieces = [values_of(STREAMS[name], n)[i % 2] for i, n in enumerate(LENGTHS)]
    found = [[] for _ in pieces]
    for i, part in pieces_log_probs(model, pieces, rows=rows, chunk=chunk):
        found[i].append(part)
    for piece, parts in zip(pieces, found, strict=True):
        alone = torch.cat(list(stream_log_probs(model, piece)))
        torch.testing.assert_close(torch.cat(parts), alone, rtol=0, atol=1e-10)


def speaking() -> tuple[AutoregressiveModel, Splits]:
    """A model of a label, and clips of two of them, no two of one length."""
    label = ContextSpec("digit", (), 3)
    waveform = Waveform(8000, "linear", 5)
    spec = window_spec("said", 4, waveform, (label,))
    head = heads.Categorical(spec)
    torch.manual_seed(0)
    net = Recurrent(
        spec, head.num_params, orders.make("raster", (4,)), hidden_size=5, context=label
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    made = [random_events(spec, 3, i).flatten()[: 12 - i] for i in range(6)]
    clips = dict.fromkeys(PARTS, made)
    labels = {"digit": {part: [2, 0, 1, 2, 0, 1] for part in PARTS}}
    return AutoregressiveModel(net, head).double().eval(), in_windows(spec, clips, labels)


@pytest.mark.parametrize("batch_size", [1, 4, 500])
@torch.no_grad()
def test_whole_clips_are_scored_given_their_own_label(batch_size):
    model, splits = speaking()
    examples = splits.examples("test", model.context)
    total = 0.0
    for clip, digit in zip(splits.pieces["test"], (2, 0, 1, 2, 0, 1), strict=True):
        longer = with_length(model, len(clip))
        total += float(longer.log_prob(clip[None], torch.tensor([digit])))
    found = evaluate(model, examples, batch_size=batch_size)
    assert found.num_symbols == sum(range(7, 13))
    assert found.log_prob == pytest.approx(total / found.num_symbols * 4, abs=1e-10)


def test_pieces_without_their_contexts_are_not_whole():
    model, splits = speaking()
    alone = dataclasses.replace(splits, piece_contexts={})
    assert is_whole(model, splits.examples("valid", model.context))
    assert not is_whole(model, alone.examples("valid", model.context))
    wrong = dataclasses.replace(splits, piece_contexts={"digit": lambda: [torch.zeros(5)] * 3})
    with pytest.raises(ValueError, match="digit"):
        wrong.examples("valid", model.context)
    with pytest.raises(ValueError, match="1 pieces have 2 contexts"):
        Examples(torch.zeros(4, 2), pieces=[torch.zeros(3)], piece_context=torch.zeros(2))


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
    now, once = [0.0], [3.0]  # for what the first of all makes

    def read(model, some, *unused):
        now[0] += 0.001 * sum(map(len, some)) + (once.pop() if once else 0)
        return []

    monkeypatch.setattr(timing, "pieces_log_probs", read)
    monkeypatch.setattr(limits, "now", lambda: now[0])
    fabric = make_fabric(Settings(accelerator="cpu"))
    table = timing.Timetable(limits.Budget(60.0), 60.0, 1, fabric)
    assert table.plan(model, splits, 500)
    assert table._seconds_of["valid"] == pytest.approx(2.5)
    assert table._seconds_of["test"] == pytest.approx(6.0)


def test_the_time_of_an_evaluation_counts_its_check_once(monkeypatch):
    """What looks for causality takes as long as many examples of a slow network."""
    case = CASES["made"]
    rows = random_events(case.spec, 100)
    splits = Splits(case.spec, rows, rows, rows[:50])
    now = [0.0]

    def log_probs(model, examples, batch_size, check=True):
        now[0] += 0.6 * len(examples) + 20 * check

    monkeypatch.setattr(timing, "log_probs", log_probs)
    monkeypatch.setattr(limits, "now", lambda: now[0])
    fabric = make_fabric(Settings(accelerator="cpu"))
    table = timing.Timetable(limits.Budget(3600), 60.0, 1, fabric)
    assert table.plan(case.build(0), splits, 100)
    assert table._seconds_of["valid"] == pytest.approx(80)
    assert table._seconds_of["test"] == pytest.approx(50)


def test_what_has_nothing_to_fit_reads_no_piece():
    class Untouched:
        def __getitem__(self, rows):
            raise AssertionError("a file may be larger than memory")

        __len__ = None

    assert not learn(CASES["rnn"].build(0), [Untouched()])


PATTERNS = {
    "full": (
        ("full", None, None, None),
        "1.....",
        "11....",
        "111...",
        "1111..",
        "11111.",
        "111111",
    ),
    "window": (
        ("window", 3, None, None),
        "1.....",
        "11....",
        "111...",
        ".111..",
        "..111.",
        "...111",
    ),
    "strided": (
        ("strided", 9, 2, None),
        "1.....",
        "11....",
        "111...",
        ".111..",
        "1.111.",
        ".1.111",
    ),
    "strided, in reach": (
        ("strided", 4, 3, None),
        "1.....",
        "11....",
        "111...",
        "1111..",
        ".1111.",
        "..1111",
    ),
    "fixed": (
        ("fixed", 9, 3, 1),
        "1.....",
        "11....",
        "111...",
        "..11..",
        "..111.",
        "..1111",
    ),
    "fixed, in reach": (
        ("fixed", 3, 2, 1),
        "1.....",
        "11....",
        ".11...",
        ".111..",
        "...11.",
        "...111",
    ),
}
"""Which of six values (columns) each of them asks (rows), by hand."""


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_asked_is_what_stands_here(name):
    options, *rows = PATTERNS[name]
    pattern = Pattern(*options)
    expected = torch.tensor([[char == "1" for char in row] for row in rows])
    read = torch.tensor(0)
    whole = pattern.mask(6, 0, read)
    assert torch.equal(torch.ones(6, 6).tril().bool() if whole is None else whole, expected)
    # The same values in pieces: of the keys that are kept, each asks the same ones.
    for before in range(1, 6):
        first = pattern.first_kept(before)
        later = pattern.mask(6 - before, before - first, read + before)
        asked = expected[before:, first:]
        assert torch.equal(torch.ones_like(asked) if later is None else later, asked)
        assert not expected[before:, :first].any()


NEEDS = {
    ("strided", 4, None, None): "attention strided needs stride, a number of values: set model.s",
    ("fixed", 4, 2, None): "attention fixed needs summary, a number of values: set model.summary",
    ("window", None, None, None): "attention window needs past, a number of values: set model.pa",
    ("full", 4, None, None): "attention full has no past, but past is 4; set model.past=null",
    ("window", 4, 2, None): "attention window has no stride, but stride is 2; set model.stride=nu",
    ("fixed", 4, 2, 3): "summary is 3; a block has 2 values, its stride",
}


@pytest.mark.parametrize("options", NEEDS)
def test_an_attention_has_what_it_needs_and_no_more(options):
    with pytest.raises(ValueError, match=f"^{NEEDS[options]}"):
        Pattern(*options)


def test_what_is_in_reach_where_nothing_is_said():
    case = CASES["transformer"]
    params, order = 3, case.build(0).net.order
    for attention, past in (("window", PAST), ("full", None)):
        net = Transformer(case.spec, params, order, attention=attention, num_layers=1)
        assert net.pattern.past == past


def test_learned_distances_have_an_end():
    with pytest.raises(ValueError, match="but all is in reach; set model.past"):
        make_distances("learned", 2, 8, None)


@torch.no_grad()
def test_distances_enter_as_in_the_papers():
    """Every score by itself, from the equations."""
    torch.manual_seed(0)
    num, heads_, size = 5, 2, 4
    query = torch.randn(1, heads_, num, size, dtype=torch.double)
    keys = torch.randn(1, heads_, num, size, dtype=torch.double)
    kinds = ("rotary", "learned", "sinusoidal")
    made = {kind: make_distances(kind, heads_, heads_ * size, 9).double() for kind in kinds}
    for one in made.values():
        for weight in one.parameters():
            torch.nn.init.normal_(weight)
    for kind, one in made.items():
        by = turns(torch.arange(num), size)
        asked, bias = one(query, keys)
        placed = keys
        if kind == "rotary":
            asked, placed = turned(asked, by), turned(placed, by)
        found = asked @ placed.transpose(-1, -2) / size**0.5
        found = found if bias is None else found + bias
        for h, i, j in itertools.product(range(heads_), range(num), range(num)):
            if j > i:
                continue
            q, k, away = query[0, h, i], keys[0, h, j], i - j
            if kind == "rotary":
                pairs = [torch.complex(x[: size // 2], x[size // 2 :]) for x in (q, k)]
                turn = torch.exp(1j * away * 10_000.0 ** (-torch.arange(2).double() / 2))
                expected = (pairs[0] * turn * pairs[1].conj()).real.sum() / size**0.5
            elif kind == "learned":
                expected = q @ k / size**0.5 + one.table[h, away]
            else:
                rates = away * 10_000.0 ** (-torch.arange(size).double() / size)
                r = one.heads.weight @ torch.cat([rates.sin(), rates.cos()])
                r = r.view(heads_, size)[h]
                terms = q @ k + q @ r + one.of_keys[h, 0] @ k + one.of_distances[h, 0] @ r
                expected = terms / size**0.5
            torch.testing.assert_close(found[0, h, i, j], expected)


@torch.no_grad()
def test_what_is_appended_step_after_step_is_seldom_copied():
    """In the room behind it; what another one reads of the same storage stays as it was."""
    values = torch.randn(2, 3, 40, 4)
    kept, storages = values[:, :, :1].clone(), []
    for i in range(1, 40):
        before = kept
        kept = appended(kept, values[:, :, i : i + 1])[:, :, -10:]
        assert kept.equal(values[:, :, max(i - 9, 0) : i + 1])
        assert before.equal(values[:, :, max(i - 10, 0) : i])
        storages.append(kept.untyped_storage().data_ptr())
    assert 4 <= sum(a != b for a, b in itertools.pairwise(storages)) <= 7


@torch.no_grad()
def test_no_room_is_shared():
    """By rows that are views of one, nor by a fork and what it was forked from."""
    one, other = torch.randn(2, 2, 3, 1, 4)
    kept = appended(one[:1], one[:1])  # with room for another one
    rows = appended(kept.expand(2, -1, -1, -1), one)
    assert rows[:, :, 2].equal(one[:, :, 0])
    for fork in (State({"keys": kept}).fork(), State({"keys": kept}).fork(torch.tensor([0]))):
        first, second = appended(fork["keys"], one[:1]), appended(kept, other[:1])
        assert first[:, :, 2].equal(one[:1, :, 0])
        assert second[:, :, 2].equal(other[:1, :, 0])
    laid = torch.randn(1, 1, 4, 8)
    across = laid.transpose(2, 3)[:, :, :2]  # all of its storage, but not in rows
    expected = torch.cat([across, laid[:, :, :1, :4]], 2)
    assert appended(across, laid[:, :, :1, :4].clone()).equal(expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
@torch.no_grad()
def test_a_copy_has_no_room_whatever_its_strides(shape):
    """A clone of one row and one head keeps the strides of the room that it leaves behind."""
    values = torch.randn(*shape, 6, 4)
    for at in range(1, 6):
        kept = values[:, :, :1].clone()
        for i in range(1, 6):
            kept = appended(kept.clone() if i == at else kept, values[:, :, i : i + 1])
        assert kept.equal(values)


@pytest.mark.parametrize("name", ["transformer-past", "transformer-full", "transformer-learned"])
@torch.no_grad()
def test_two_continuations_of_a_transformer_are_apart(name):
    """In turn and of other values, from a state that has room behind it: as each by itself."""
    case = CASES[name]
    net, values = case.build(0).net.with_length(21), values_of(case)
    expected = net(torch.cat([values, values[:, :1]], 1))[:, -1]
    _, state = net.begin(2)
    for i in range(11):
        _, state = net.read(values[:, i : i + 1, None], state)
    forks = [state, state.fork(), state.fork(torch.tensor([1, 0]))]
    reads = [values, values, values.flip(0)]
    for i in range(11, 20):
        for k in range(3):
            params, forks[k] = net.read(reads[k][:, i : i + 1, None], forks[k])
            found = params[:, 0] if k < 2 else params[[1, 0], 0]
            if i == 19:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


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


PLACES = ("rotary", "learned", "sinusoidal")


def remembering(
    memory: int, length: int = 8, places: str = "rotary", **keys
) -> AutoregressiveModel:
    torch.manual_seed(0)
    spec = DataSpec("text", "sequence", (length,), 5, "probability")
    sizes = {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "past": 5}
    model = AutoregressiveModel.of(Transformer, spec, places=places, memory=memory, **sizes | keys)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.double()


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("of", [None, ContextSpec("label", (), 3)])
def test_training_reads_a_memory_without_gradient(places, of):
    """The gradient is that of a reading by hand; what is remembered changes what is said."""
    model = remembering(3, places=places, context=of)
    x = random_events(model.spec, 4, 0)
    context = None if of is None else torch.tensor([0, 1, 2, 0])
    objective = model.train().default_objective()
    assert type(objective) is AfterMemory
    found = objective(x, context)
    each = model.eval().conditional_log_prob(x, context)
    torch.testing.assert_close(found, each[:, 3:].sum(1) * 8 / 5)
    found.mean().backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}
    assert gradients.pop("net.begins") is None
    weights = {n: one for n, one in model.named_parameters() if n != "net.begins"}

    net = model.net
    _, state = net.begin(4, context)
    _, state = net.read(x[:, :2, None], state)
    state = State({n: one.detach() if n != "context" else one for n, one in state.items()})
    params, _ = net.read(x[:, 2:7, None], state)
    by_hand = model.head.log_prob(params, x[:, 3:, None]).sum(1) * 8 / 5
    expected = torch.autograd.grad(by_hand.mean(), list(weights.values()))
    for (name, found), one in zip(gradients.items(), expected, strict=True):
        torch.testing.assert_close(found, one, msg=name)

    other = x.clone()
    other[:, 0] = (x[:, 0] + 1) % 5
    with torch.no_grad():
        assert not torch.isclose(objective(other, context), objective(x, context)).any()


def test_features_of_a_memory_get_no_gradient():
    model = remembering(3).train()
    seen = []

    def look(module, inputs, features):
        features.retain_grad()
        seen.append(features)

    model.net.embed.register_forward_hook(look)
    model.default_objective()(random_events(model.spec, 4, 0)).sum().backward()
    (features,) = seen  # of all values but the last
    moved = features.grad.abs().amax((0, 2)) > 0
    assert moved.tolist() == [False] * 2 + [True] * 5


def test_a_memory_in_mixed_precision_leaves_each_weight_its_gradient():
    """PyTorch keeps weights that it has cast, and older ones without gradient if cast so."""
    model = remembering(3).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.default_objective()(random_events(model.spec, 4, 0)).sum()
    loss.backward()
    weights = {name: one for name, one in model.named_parameters() if name != "net.begins"}
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in weights.values())


def test_without_a_memory_nothing_is_stopped():
    model = remembering(0).train()
    assert type(model.default_objective()) is Likelihood
    model.default_objective()(random_events(model.spec, 4, 0)).sum().backward()
    assert all(one.grad.abs().sum() > 0 for one in model.parameters())


@torch.no_grad()
def test_a_memory_changes_no_likelihood():
    x = random_events(remembering(0).spec, 4, 0)
    assert remembering(3).eval().log_prob(x).equal(remembering(0).eval().log_prob(x))
    longer = with_length(remembering(3), 3).train()  # of which nothing would be scored
    assert longer.conditional_log_prob(x[:, :3]).shape == (4, 3)


NO_MEMORY = {
    8: "memory is 8, but a window has 8 values, of which none is left to score; set a smaller",
    -1: "memory is -1; it must be",
    1.5: "memory is 1.5; it must be",
}


@pytest.mark.parametrize("memory", NO_MEMORY)
def test_a_memory_leaves_something_to_score(memory):
    with pytest.raises((TypeError, ValueError), match=NO_MEMORY[memory]):
        remembering(memory)


def test_a_memory_is_no_longer_than_the_model_looks_back():
    assert remembering(9, 20).net.memory == 9
    with pytest.raises(ValueError, match="memory is 10, but the model looks back 9 values; set"):
        remembering(10, 20)
    assert remembering(19, 20, attention="full", past=None).net.memory == 19
