"""Every sampler draws from the same distribution, and all but one draw the same samples."""

import re

import numpy as np
import pytest
import torch
from cases import (
    BERNOULLI,
    BIT_TEXT,
    BITS,
    CASES,
    CATEGORICAL,
    GREY,
    LABEL,
    LEVELS,
    SMALL_RGB,
    TEXT,
    context_values,
    data,
    deep_nade,
    event_index,
    every,
    every_event,
    gated,
    given,
    logistics,
    made,
    mixture_of_2,
    nade,
    ngram,
    order_mixture,
    pixelcnn,
    rnn,
    transformer,
)
from command import QUICK, TINY, armodels, done
from frequencies import p_value
from test_text import VERSE
from torch import Tensor

from armodels import heads, orders
from armodels.checkpoints import restore
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.samplers import Draws, Sampler, take
from armodels.density.stream import after_prompt, with_length
from armodels.density.walk import draw_noise
from armodels.networks.base import Network
from armodels.networks.deep_nade import DeepNADE
from armodels.networks.made import MADE


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


STEPS = {name: case for name, case in CASES.items() if case.steps}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_for(model, n: int, sampler: str = "auto", seed: int = 3) -> Tensor:
    each = Sampler.of(sampler).noise_per_step(model.head, model.net.order.width)
    return draw_noise((n, model.net.num_steps, each), generator(seed), "cpu")


def refuses(sentence: str):
    return pytest.raises(ValueError, match=re.escape(sentence))


def assert_same(values: Tensor, expected: Tensor) -> None:
    """Bit for bit; real values as far as passes of fewer events round otherwise."""
    if values.is_floating_point():
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    else:
        assert torch.equal(values, expected)


# The fixed point


@every(STEPS)
def test_the_fixed_point_is_the_walk(case):
    model = case.build(0)
    noise = noise_for(model, 16)
    slow, log_prob = model.sample_with_log_prob(16, noise=noise, sampler="naive")
    for block in (None, 1, 3):
        sampler = Sampler("fixed_point", block=block)
        fast, own_log_prob = model.sample_with_log_prob(16, noise=noise, sampler=sampler)
        assert_same(fast, slow)
        torch.testing.assert_close(own_log_prob, log_prob, rtol=0, atol=1e-11)
        tally = sampler.tally
        assert 1 <= tally.passes <= tally.num_steps == model.net.num_steps


@every(STEPS)
def test_completion_by_the_fixed_point_is_that_of_the_walk(case):
    model, x = case.build(0), case.events(6)
    pixels = case.spec.shape[-1]
    known = (torch.arange(pixels) % 3 == 0).expand(case.spec.shape)
    one, other = (
        model.complete(x, known, num_particles=3, generator=generator(), sampler=sampler)
        for sampler in ("cached", Sampler("fixed_point", block=4))
    )
    assert_same(one.values, other.values)
    assert torch.equal(other.values[:, known], x[:, known])
    assert one.method == other.method
    torch.testing.assert_close(
        one.effective_sample_size, other.effective_sample_size, rtol=0, atol=1e-9
    )


def test_a_mixture_of_orders_draws_by_every_sampler():
    model = CASES["orders-made"].build(0)
    found = [
        model.sample_with_log_prob(30, generator=generator(), sampler=name)
        for name in ("auto", "cached", "naive", "fixed_point")
    ]
    for x, log_prob in found[1:]:
        assert torch.equal(x, found[0][0])
        torch.testing.assert_close(log_prob, found[0][1], rtol=0, atol=1e-11)
    known = torch.arange(6) < 3
    completed = [
        model.complete(found[0][0], known, generator=generator(), sampler=name).values
        for name in ("cached", "fixed_point")
    ]
    assert torch.equal(*completed)


@pytest.mark.parametrize(
    "name", ["multiscale", "multiscale-rgb", "orders-deep-nade", "orders-made", "made"]
)
def test_the_likeliest_levels_by_every_sampler(name):
    """Also where values are written into events of their own type, or a group at once."""
    model = CASES[name].build(0)
    drawn = [
        model.sample(
            7, top_k=2, top_p=0.9, sampler=sampler, generator=torch.Generator().manual_seed(1)
        )
        for sampler in ("auto", "cached", "naive", "fixed_point")
    ]
    assert drawn[0].dtype == model.spec.dtype
    assert all(torch.equal(one, drawn[0]) for one in drawn[1:])


def test_steps_that_hear_nothing_take_two_passes():
    """The first pass finds all values; the second one sees that nothing changes."""
    model = made(BITS, BERNOULLI, direct_connections=True).build(0)
    model.net.direct.weight.data.zero_()
    sampler = Sampler("fixed_point")
    model.sample(50, generator=generator(), sampler=sampler)
    assert (sampler.tally.passes, sampler.tally.num_steps) == (2, 6)


class Chain(Network):
    """Each value is the one before it, turned around; forward alone, as a user would write it."""

    kinds = frozenset({"vector"})
    asked, strength = 0, 80.0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.asked += 1
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return (self.strength * (1.0 - 2.0 * before.double()))[..., None]


def test_a_chain_takes_as_many_passes_as_steps_and_no_more():
    """What each pass guesses wrong turns all around that follows."""
    model = AutoregressiveModel(
        Chain(BITS, 1, orders.make("raster", BITS.shape)), heads.Bernoulli(BITS)
    )
    expected = torch.tensor([1, 0] * 3, dtype=torch.uint8).expand(5, 6)
    sampler = Sampler("fixed_point")
    assert torch.equal(model.sample(5, generator=generator(), sampler=sampler), expected)
    assert sampler.tally.passes == model.net.asked == 6


def test_a_network_of_forward_alone_is_drawn_by_its_fixed_point():
    net = Chain(BITS, 1, orders.make("raster", BITS.shape))
    net.strength = 0.0
    model = AutoregressiveModel(net, heads.Bernoulli(BITS))
    drawn = model.sample(5, generator=generator())
    assert net.asked == 2
    assert torch.equal(model.sample(5, generator=generator(), sampler="cached"), drawn)
    assert net.asked == 2 + 6


def test_the_naive_steps_ask_for_whole_passes(monkeypatch):
    model = made(BITS, BERNOULLI, 5).build(0)
    monkeypatch.setattr(MADE, "step", None)  # what is not called
    assert model.sample(3, sampler="naive").shape == (3, 6)


def test_known_values_are_guessed():
    model, x = made(BITS, BERNOULLI, 12).build(0), torch.ones(9, 6, dtype=torch.uint8)
    sampler = Sampler("fixed_point")
    model.complete(x, torch.arange(6) < 5, generator=generator(), sampler=sampler)
    assert sampler.tally.passes == 1  # in which the last value follows right ones


def test_events_that_are_done_are_left_out():
    model = pixelcnn(GREY, BERNOULLI, 4).build(1)
    sampler = Sampler("fixed_point")
    model.sample(64, generator=generator(1), sampler=sampler)
    assert sampler.tally.passes - 1 < 6
    assert sampler.tally.work < sampler.tally.passes


def test_a_block_reads_from_the_cached_state():
    """What is final is not read again, so that all passes together cost little more than one."""
    model = with_length(ngram(TEXT, 2).build(0), 300)
    read = []
    real = type(model.net).read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(model.net), "read", lambda net, v, s: read.append(v.shape[1]) or real(net, v, s)
        )
        sampler = Sampler("fixed_point", block=4)
        x = model.sample(1, generator=generator(), sampler=sampler)
    assert torch.equal(x, model.sample(1, generator=generator(), sampler="cached"))
    assert max(read) <= 8
    assert sampler.tally.work == pytest.approx(sum(read) / 300, abs=0.1)


def test_a_context_stays_with_its_event():
    """Events are done at different times, and are left out."""
    model = pixelcnn(GREY, BERNOULLI, 4, scale=1.0).build(0, LABEL)
    context = context_values(LABEL, 40)
    noise = noise_for(model, 40)
    naive, fixed = (
        model.sample(40, noise=noise, context=context, sampler=name)
        for name in ("naive", "fixed_point")
    )
    assert torch.equal(naive, fixed)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_what_follows_a_prompt_is_the_same_by_every_sampler(temperature):
    model = transformer(TEXT, CATEGORICAL, 8).build(0)
    prompt = torch.tensor([0, 3, 4], dtype=torch.uint8)
    longer = with_length(model, 23)
    draws = Draws(longer.head, torch.rand(7, 20, 1), temperature, top_k=3, top_p=0.9)
    found, seen = [], []
    for sampler in ("cached", "naive", "fixed_point", Sampler("fixed_point", block=20)):
        shown: list[Tensor] = []
        steps = after_prompt(longer, prompt, 20)
        found.append(take(steps, longer, draws, Sampler.of(sampler), watch=shown.append))
        seen.append(torch.cat(shown))
    for (values, log_probs), shown in zip(found, seen, strict=True):
        assert torch.equal(values, found[0][0])
        torch.testing.assert_close(log_probs, found[0][1], rtol=0, atol=1e-11)
        assert torch.equal(shown, values[0])  # each value once, in turn


# Speculative sampling

FEW = data("vector", 3, levels=4)
PAIRS = {
    "bits": (pixelcnn(GREY, BERNOULLI, 4), made(GREY, BERNOULLI, 5, scale=1.5)),
    "fused": (nade(BITS, BERNOULLI, 6), made(BITS, BERNOULLI, 5, scale=1.5)),
    "categorical draft": (made(BITS, BERNOULLI, 6), made(BITS, CATEGORICAL, 5, scale=1.5)),
    "levels": (made(FEW, CATEGORICAL, 6), nade(FEW, CATEGORICAL, 5)),
    "several values": (made(SMALL_RGB, logistics, 6), nade(SMALL_RGB, logistics, 5)),
    "given": (
        given(gated(GREY, BERNOULLI, 4)),
        made(GREY, BERNOULLI, 5, scale=1.5),
    ),
    "text": (transformer(BIT_TEXT, BERNOULLI, 4), ngram(BIT_TEXT, 3)),
    "text by a network": (rnn(BIT_TEXT, CATEGORICAL, 6), rnn(BIT_TEXT, BERNOULLI, 3, scale=2.0)),
}
"""A model of 64 outcomes and a draft that says something else."""


@pytest.mark.parametrize("name", PAIRS)
def test_speculative_samples_follow_the_model(name):
    model, draft = (case.build(seed) for seed, case in enumerate(PAIRS[name]))
    sampler = Sampler("speculative", draft=draft, draft_steps=4)
    x, log_prob = model.sample_with_log_prob(6000, generator=generator(), sampler=sampler)
    outcomes = every_event(model.spec)
    probs = model.log_prob(outcomes)
    index = event_index(x, model.spec)
    assert p_value(index, probs) > 1e-3
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=1e-11)
    # The draft differs: its own probabilities are refused by the same draws.
    assert p_value(index, draft.log_prob(outcomes)) < 1e-9
    assert 0.1 < sampler.tally.acceptance < 0.98


ORDERS = {
    "one order": deep_nade(BITS, BERNOULLI, 5, scale=1.5),
    "a mixture": order_mixture(BITS, BERNOULLI, DeepNADE, hidden_sizes=[5]),
    "resampled": made(BITS, BERNOULLI, 5, order="random", resample=True, scale=1.5),
}
"""Drafts that are trained for all orders."""


@pytest.mark.parametrize("name", ORDERS)
def test_a_draft_for_all_orders_follows_each_order_of_a_mixture(name):
    model = order_mixture(BITS, BERNOULLI, DeepNADE, hidden_sizes=[6], scale=1.5).build(3)
    sampler = Sampler("speculative", draft=ORDERS[name].build(1), draft_steps=4)
    x, log_prob = model.sample_with_log_prob(6000, generator=generator(), sampler=sampler)
    outcomes, index = every_event(model.spec), event_index(x, model.spec)
    assert p_value(index, model.log_prob(outcomes)) > 1e-3
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=1e-11)
    # The mixture is none of its parts: the same draws refuse each of them.
    for i in range(3):
        assert p_value(index, model.component(i).log_prob(outcomes)) < 1e-6
    assert 0.1 < sampler.tally.acceptance < 0.98


def test_a_completion_by_a_draft_for_all_orders_follows_the_mixture():
    model = order_mixture(BITS, BERNOULLI, DeepNADE, hidden_sizes=[6], scale=1.5).build(3)
    known = torch.arange(6) % 2 == 0
    x = torch.zeros(6000, 6, dtype=torch.uint8)
    x[:, 2] = 1
    outcomes = every_event(model.spec)
    fits = outcomes[(outcomes[:, known] == x[:1, known]).all(1)]
    expected = torch.full((64,), -torch.inf, dtype=torch.double)
    answers = model.log_prob_of(fits, ~known, known)
    assert answers.method == "exact"
    expected[event_index(fits, model.spec)] = answers.log_prob
    for draft in (None, ORDERS["one order"].build(1)):
        sampler = Sampler("speculative", draft=draft) if draft is not None else "auto"
        found = model.complete(x, known, generator=generator(), sampler=sampler)
        assert found.method == "exact"
        assert p_value(event_index(found.values, model.spec), expected) > 1e-3


def test_a_draft_of_one_order_is_refused_before_anything_is_drawn(monkeypatch):
    """Also where it has the order of the mixture's first component, which would be drawn."""
    model = order_mixture(BITS, BERNOULLI, MADE, hidden_sizes=[6]).build(3)
    draft = made(BITS, BERNOULLI, 5, order="random", order_seed=0).build(1)
    sampler = Sampler("speculative", draft=draft)
    model.component(0).sample(3, sampler=sampler)  # suits it
    monkeypatch.setattr(AutoregressiveModel, "sample", lambda *_, **__: pytest.fail("drawn"))
    with refuses("draft writes its values in another order"):
        model.sample_with_log_prob(50, sampler=sampler)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_speculative_samples_at_a_temperature(temperature):
    model, draft = (case.build(seed) for seed, case in enumerate(PAIRS["fused"]))
    sampler = Sampler("speculative", draft=draft)
    options = {"temperature": temperature, "generator": generator()}
    x = model.sample(6000, sampler=sampler, **options)
    if temperature == 0:
        assert torch.equal(x, model.sample(6000, temperature=0.0))
        return
    index = event_index(x, model.spec)
    other = event_index(model.sample(200_000, **options), model.spec)
    shares = torch.bincount(other, minlength=64).double() / len(other)
    assert p_value(index, (shares + 1e-9).log()) > 1e-4
    assert p_value(index, model.log_prob(every_event(model.spec))) < 1e-9


@pytest.mark.parametrize("name", PAIRS)
def test_speculative_samples_depend_on_their_own_noise_alone(name):
    """Neither on how many steps are drafted at once nor on the events beside them."""
    model, draft = (case.build(seed) for seed, case in enumerate(PAIRS[name]))
    noise = noise_for(model, 30, Sampler("speculative", draft=draft))

    def drawn(rows: slice, num: int | None = None) -> Tensor:
        sampler = Sampler("speculative", draft=draft, draft_steps=num)
        return model.sample(len(noise[rows]), noise=noise[rows], sampler=sampler)

    x = drawn(slice(None))
    for num in (1, 2, 5):
        assert torch.equal(drawn(slice(None), num), x)
    for row in range(5):
        assert torch.equal(drawn(slice(row, row + 1), 3), x[row : row + 1])


def test_a_draft_that_is_the_model_is_always_accepted():
    model = nade(BITS, BERNOULLI, 6).build(0)
    sampler = Sampler("speculative", draft=model, draft_steps=3)
    model.sample(50, generator=generator(), sampler=sampler)
    known = torch.arange(6) % 2 == 0
    x = torch.randint(2, (50, 6), generator=generator(), dtype=torch.uint8)
    model.complete(x, known, generator=generator(), sampler=sampler)
    longer = with_length(rnn(TEXT, CATEGORICAL, 6).build(0), 9)
    steps = after_prompt(longer, torch.tensor([3, 1, 4], dtype=torch.uint8), 6)
    own = Sampler("speculative", draft=longer, draft_steps=3, tally=sampler.tally)
    take(steps, longer, Draws(longer.head, draw_noise((50, 6, 3), generator(), "cpu")), own)
    assert sampler.tally.acceptance == 1
    assert sampler.tally.passes == 2 * 3


@pytest.mark.parametrize("name", ["bits", "text"])
def test_completion_by_a_draft_follows_the_conditional(name):
    model, draft = (case.build(seed) for seed, case in enumerate(PAIRS[name]))
    size = model.spec.num_dims
    known = (torch.arange(size) < 2).view(model.spec.shape)
    x = torch.zeros(6000, *model.spec.shape, dtype=torch.uint8)
    x.view(6000, -1)[:, 1] = 1
    sampler = Sampler("speculative", draft=draft, draft_steps=3)
    done_ = model.complete(x, known, generator=generator(), sampler=sampler)
    assert torch.equal(done_.values[:, known], x[:, known])
    outcomes = every_event(model.spec)
    fits = (outcomes[:, known] == x[:1, known]).all(1)
    log_probs = model.log_prob(outcomes).masked_fill(~fits, -torch.inf)
    index = event_index(done_.values, model.spec)
    assert p_value(index, log_probs - log_probs.logsumexp(0)) > 1e-3


def test_what_follows_a_prompt_is_drafted():
    model, draft = transformer(BIT_TEXT, BERNOULLI, 4).build(0), ngram(BIT_TEXT, 3).build(1)
    prompt = torch.tensor([0, 1, 1], dtype=torch.uint8)
    longer = with_length(model, 9)
    sampler = Sampler("speculative", draft=draft)
    noise = draw_noise((6000, 6, 3), generator(), "cpu")
    steps = after_prompt(longer, prompt, 6)
    values, log_probs = take(steps, longer, Draws(longer.head, noise), sampler)
    outcomes = every_event(BIT_TEXT)
    both = torch.cat([prompt.expand(64, -1), outcomes], 1)
    expected = longer.conditional_log_prob(both)[:, 3:].sum(1)
    assert p_value(event_index(values[..., 0], BIT_TEXT), expected) > 1e-3
    drawn = torch.cat([prompt.expand(6000, -1), values[..., 0]], 1)
    own = longer.conditional_log_prob(drawn)[:, 3:]
    torch.testing.assert_close(log_probs, own, rtol=0, atol=1e-11)


# What cannot be


def test_samplers_that_cannot_be_are_refused():
    with refuses("sampler is 'fast'; choose from auto, cached, naive, fixed_point, speculative"):
        Sampler("fast")
    with refuses("block is 0; it must be at least 1"):
        Sampler("fixed_point", block=0)
    with refuses("block goes with sampler=fixed_point; leave it out"):
        Sampler("cached", block=3)
    for key in ("draft", "draft_steps"):
        with refuses(f"{key} goes with sampler=speculative; leave it out"):
            Sampler("fixed_point", **{key: 3})
    with refuses("name its run: draft=RUN"):
        Sampler("speculative")


def test_drafts_that_do_not_suit_are_refused():
    model = pixelcnn(GREY, BERNOULLI, 4).build(0)

    def refused(case, sentence: str, run=model, **options) -> None:
        draft = case if not hasattr(case, "build") else case.build(0)
        with refuses(sentence):
            run.sample(2, sampler=Sampler("speculative", draft=draft), **options)

    refused(made(LEVELS, CATEGORICAL, 3), "draft is a model of tiny-vector, the run one of tiny-")
    refused(
        made(GREY, BERNOULLI, 3, order="columns"),
        "draft writes its values in another order (columns) than the run (raster)",
    )
    refused(
        made(GREY, BERNOULLI, 3),
        "draft writes its values in another order (raster) than the run (columns); train one with "
        "the run's model.order and head, or for all orders",
        order_mixture(
            GREY, BERNOULLI, MADE, order="columns", num_orders=1, hidden_sizes=[3]
        ).build(1),
    )
    refused(CASES["gmm"], "draft is GMM, which has no single walk of steps")
    orders_ = order_mixture(GREY, BERNOULLI, MADE, hidden_sizes=[3])
    refused(orders_, "which has no single walk of steps")
    real = made(CASES["made-mog"].spec, mixture_of_2, 3)
    refused(real, "has real values; leave sampler at auto", real.build(1))
    conditioned = made(GREY, BERNOULLI, 3).build(0, LABEL)
    refused(conditioned, "draft is conditioned on label, the run on nothing")
    joint = made(SMALL_RGB, logistics, 4)
    refused(
        joint, "at temperature 1 alone, but temperature is 0.5", joint.build(1), temperature=0.5
    )
    pixels = made(SMALL_RGB, BERNOULLI, 4)
    refused(pixels, "draft writes its values in another order", joint.build(1))


# The command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samplers")
    (folder / "verse.txt").write_text(VERSE)
    text = ("data=text", "data.path=verse.txt", "data.length=16", *QUICK, "trainer.max_steps=30")
    done(folder, "train", "model=rnn", "model.hidden_size=8", *text, "out=rnn")
    done(folder, "train", "model=ngram", *text[:-1], "out=ngram")
    for seed, name in enumerate(("made", "draft")):
        done(folder, "train", *TINY, f"seed={seed}", "trainer.max_steps=9", f"out={name}")
    done(folder, "train", "data=tiny", "model=uniform", *QUICK, "out=uniform")
    for seed, name in enumerate(("deep", "deep2")):
        keys = ("model=deep_nade", f"seed={seed}", "trainer.max_steps=9", f"out={name}")
        done(folder, "train", *TINY, *keys)
    return folder


def arrays(path) -> dict:
    with np.load(path) as found:
        return dict(found)


def test_sample_says_what_its_passes_were(runs):
    keys = ("sample", "made", "num=20", "device=cpu")
    done(runs, *keys, "out=auto")
    told = done(runs, *keys, "out=fixed", "sampler=fixed_point", "block=2")
    one, other = (arrays(runs / f"{out}/sample-seed0-t1.npz") for out in ("auto", "fixed"))
    assert np.array_equal(one["x"], other["x"])
    assert "passes" not in one
    steps = int(other["steps"])
    assert 0 < other["passes"] <= steps
    assert f"passes {int(other['passes'])} for {steps} steps" in told


def test_sample_says_what_was_accepted(runs):
    keys = ("sample", "made", "num=20", "device=cpu", "sampler=speculative", "draft=draft")
    told = done(runs, *keys, "draft_steps=3")
    found = arrays(runs / "made/samples/sample-seed0-t1-speculative.npz")
    assert 0 < found["acceptance"] <= 1
    assert f"draft  {found['acceptance']:.1%} of " in told


def test_complete_takes_every_sampler(runs):
    keys = ("complete", "made", "num=3", "device=cpu", "num_particles=2")
    done(runs, *keys, "out=cached", "sampler=cached")
    told = done(runs, *keys, "out=passes", "sampler=fixed_point")
    one, other = (
        arrays(runs / f"{out}/complete-top-0.5-seed0.npz") for out in ("cached", "passes")
    )
    assert np.array_equal(one["completions"], other["completions"])
    assert "passes" in told
    assert other["passes"] <= other["steps"]
    told = done(runs, *keys, "sampler=speculative", "draft=draft", "out=drafted")
    assert "drafted steps were accepted" in told


def test_a_prompt_goes_on_by_every_sampler(runs):
    keys = ("complete", "rnn", "prompt=the cat ", "length=30", "device=cpu")
    texts = []
    for sampler in ("cached", "naive", "fixed_point"):
        told = done(runs, *keys, f"sampler={sampler}", f"out={sampler}")
        texts.append((runs / sampler / "prompt-the-cat-seed0-t1-length30.txt").read_text())
        assert texts[-1] in told
    assert len({*texts}) == 1
    told = done(runs, *keys, "sampler=speculative", "draft=ngram", "top_k=5", "out=drafted")
    (path,) = (runs / "drafted").glob("*.txt")
    assert len(path.read_text()) == len("the cat ") + 30
    assert path.read_text() in told
    told = done(runs, "sample", "rnn", "length=40", "num=2", "sampler=speculative", "draft=ngram")
    assert "drafted steps were accepted" in told


@pytest.mark.parametrize("verb", ["sample", "complete"])
def test_a_run_for_all_orders_is_drawn_as_a_mixture_by_every_sampler(runs, verb):
    """The very mixture that ``eval`` scores under the same eval.num_orders."""
    keys = (verb, "deep", "num=20", "device=cpu", "eval.num_orders=3")
    mixture = restore(runs / "deep", num_orders=3).model
    options = {"generator": generator()}
    name = "sample-seed0-t1-orders3"
    if verb == "sample":
        expected, log_prob = mixture.sample_with_log_prob(20, **options)
    else:
        keys, name = (*keys, "known=bottom"), "complete-bottom-0.5-seed0-orders3"
    for sampler in ("auto", "cached", "naive", "fixed_point"):
        done(runs, *keys, f"sampler={sampler}", f"out={verb}-{sampler}")
        found = arrays(runs / f"{verb}-{sampler}/{name}.npz")
        if verb == "complete":
            truth, known = torch.from_numpy(found["truth"]), torch.from_numpy(found["known"])
            again = mixture.complete(
                truth.repeat_interleave(7, 0), known, generator=generator()
            ).values
            assert np.array_equal(found["completions"], again.unflatten(0, (-1, 7)))
            continue
        assert np.array_equal(found["x"], expected)
        np.testing.assert_allclose(found["log_prob"], log_prob, atol=1e-5)
    done(runs, *keys, "sampler=speculative", "draft=deep2", f"out={verb}-drafted")
    (path,) = (runs / f"{verb}-drafted").glob("*-orders3*.npz")
    found = arrays(path)
    assert 0 < found["acceptance"] < 1
    if verb == "sample":
        own = mixture.log_prob(torch.from_numpy(found["x"]))
        np.testing.assert_allclose(found["log_prob"], own, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            ("made", "eval.num_orders=3"),
            "eval.num_orders is 3, but the model was trained on 1 order",
        ),
        (
            ("uniform", "eval.num_orders=3"),
            "model Uniform follows no order; leave eval.num_orders",
        ),
        (("deep", "eval.num_orders=0"), "eval.num_orders is 0; it must be at least 1"),
        (
            ("deep", "eval.num_orders=2", "sampler=speculative", "draft=made"),
            "draft writes its values in another order (raster) than the run (",
        ),
        (("made", "sampler=fast"), "sampler is 'fast'; choose auto, cached, naive, "),
        (("made", "block=2"), "block goes with sampler=fixed_point; leave it out"),
        (("made", "draft=draft"), "draft goes with sampler=speculative; leave it out"),
        (("made", "sampler=speculative"), "name its run: draft=RUN"),
        (("made", "sampler=speculative", "draft=nothing"), "nothing does not exist"),
        (("made", "sampler=speculative", "draft=uniform"), "has no single walk of steps"),
        (("made", "sampler=speculative", "draft=rnn"), "draft is a model of text-verse-char-16"),
        (("uniform", "sampler=naive"), "draws all values at once and walks no steps"),
    ],
)
def test_what_does_not_go_together_is_refused(runs, keys, sentence):
    run, *others = keys
    for verb in ("sample", "complete"):
        result = armodels(runs, verb, run, "device=cpu", "out=refused", *others)
        assert sentence in result.error
    assert not (runs / "refused").exists()
