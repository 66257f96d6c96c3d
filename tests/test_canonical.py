"""Training on a canonical order against sums over all questions that can be asked of it."""

import itertools
import math

import pytest
import torch
from cases import BITS
from frequencies import p_value
from test_any_order import NO_HEAD, made
from test_invariants import over, refuses

from armodels import construct, heads, objectives, orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.made import MADE

DEEP = made(_target_="armodels.networks.deep_nade.DeepNADE", objective="canonical")


def questions(num_steps):
    """Every part of the steps that may be given, with its probability: all but the whole."""
    share = (1 - objectives.WHOLE) / num_steps
    for given in itertools.product([False, True], repeat=num_steps):
        if not all(given):
            even = share / math.comb(num_steps, sum(given))
            yield list(given), even + (0 if any(given) else objectives.WHOLE)


def told(model, x, known, step):
    """log p(a step of the model's order | others of its steps), by an order that begins so."""
    rest = [s for s in range(model.net.num_steps) if s not in (*known, step)]
    view = model.with_order(model.net.order.permuted(torch.tensor([*known, step, *rest])))
    return view.conditional_log_prob(x)[0, len(known)]


def expected(model, x):
    """Of all answers: the sum over their steps of what is trained there, one by one."""
    total = torch.zeros((), dtype=torch.double)
    for given, chance in questions(model.net.num_steps):
        known = [s for s, there in enumerate(given) if there]
        asked = [s for s, there in enumerate(given) if not there]
        for i, step in enumerate(asked):
            at = [*known, *asked[:i]]
            every = torch.stack([told(model, x, at, other) for other in asked[i:]])
            own = told(model, x, at, step)
            both = (1 - objectives.SPREAD) * own + objectives.SPREAD * every.mean()
            total = total + chance * both
    return total


@over(lambda case: case.canonical and case.reads_known and case.num_orders == 1)
def test_the_mean_over_all_questions_is_what_the_order_says(case, monkeypatch):
    model, x = case.build(0).requires_grad_(False), case.events(1)
    num_steps = model.net.num_steps
    for spread in (objectives.SPREAD, 0.5, 0.0):
        monkeypatch.setattr(objectives, "SPREAD", spread)
        mean = torch.zeros((), dtype=torch.double)
        for given, chance in questions(num_steps):
            asked = num_steps - sum(given)
            rows = torch.tensor(given).expand(asked, -1)
            known, weights = objectives.canonical_weights(rows, torch.arange(asked)[:, None])
            found = model.log_prob_given_known(x.expand(asked, *case.spec.shape), known)
            mean = mean + chance * (weights * found).sum() / asked
        torch.testing.assert_close(mean, expected(model, x), rtol=0, atol=1e-6)
    # Without a spread the answer to log p(x) is log p(x) under the model's own order.
    known, weights = objectives.canonical_weights(
        torch.zeros(num_steps, num_steps, dtype=torch.bool), torch.arange(num_steps)[:, None]
    )
    found = model.log_prob_given_known(x.expand(num_steps, *case.spec.shape), known)
    whole = (weights * found).sum() / num_steps
    torch.testing.assert_close(whole, model.log_prob(x)[0], rtol=0, atol=1e-6)


@over(lambda case: case.canonical and case.reads_known)
def test_the_objective_estimates_that_mean(case):
    model, x = case.build(0).requires_grad_(False), case.events(1)
    several = [model.component(i) for i in range(2)] if case.num_orders > 1 else [model]
    assert len(several) == case.num_orders
    wanted = torch.stack([expected(one, x) for one in several])
    torch.manual_seed(0)
    n = 20_000
    drawn = model.train().default_objective()(x.expand(n, *case.spec.shape))
    error = float(drawn.std()) / math.sqrt(n)
    assert error < 0.02 * abs(float(drawn.mean()))
    assert abs(float(drawn.mean() - wanted.mean())) < 4 * error


def answered(model, x):
    """The mean over all questions of what an order says that puts what is given first.

    All channels of a pixel are given, or none.
    """
    spec, order = model.spec, model.net.order
    channels = spec.shape[0] if spec.kind == "image" else 1
    pixels = order.table[:, 0] % (spec.num_dims // channels)
    total = torch.zeros((), dtype=torch.double)
    for part, chance in questions(spec.num_dims // channels):
        given = torch.tensor(part)[pixels]
        first = [s for s in range(len(given)) if given[s]]
        rest = [s for s in range(len(given)) if not given[s]]
        view = model.with_order(order.permuted(torch.tensor([*first, *rest])))
        total = total + chance * view.conditional_log_prob(x)[0, len(first) :].sum()
    return total


@pytest.mark.slow
@over(lambda case: case.canonical and not case.reads_known)
def test_a_network_of_any_order_answers_questions_in_the_canonical_one(case):
    model, x = case.build(0).requires_grad_(False), case.events(1)
    several = [model.component(i) for i in range(2)] if case.num_orders > 1 else [model]
    assert len(several) == case.num_orders
    wanted = float(torch.stack([answered(one, x) for one in several]).mean())
    torch.manual_seed(0)
    objective = model.train().default_objective()
    drawn = torch.stack([objective(x)[0] for _ in range(4000)])
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert error < 0.02 * abs(wanted)
    assert abs(float(drawn.mean()) - wanted) < 4 * error


def test_questions_are_drawn_as_often_as_they_are_asked():
    torch.manual_seed(0)
    given, num_there = objectives.draw_asked(30_000, 3, torch.device("cpu"))
    every = [
        (part, i, chance / (3 - sum(part)))
        for part, chance in questions(3)
        for i in range(3 - sum(part))
    ]
    index = torch.full((len(given),), -1)
    for row, (part, there, _) in enumerate(every):
        index[(given == torch.tensor(part)).all(1) & (num_there[:, 0] == there)] = row
    assert (index >= 0).all()
    assert p_value(index, torch.tensor([chance for *_, chance in every]).double().log()) > 1e-3


def test_a_canonical_model_is_a_mixture_of_no_other_orders():
    model = construct.model(DEEP | {"num_orders": 2}, NO_HEAD, BITS)
    assert len(construct.over_orders(model, DEEP | {"num_orders": 2}, 1).orders) == 1
    with refuses(
        "eval.num_orders is 3, but the model was trained for 2 canonical orders; ask for no "
        "more, or train it with model.num_orders=3 or model.objective=all_orders"
    ):
        construct.over_orders(model, DEEP | {"num_orders": 2}, 3)


def test_objectives_that_do_not_suit_are_refused():
    with refuses("model.objective is 'first'; choose all_orders or canonical"):
        construct.model(DEEP | {"objective": "first"}, NO_HEAD, BITS)
    head = heads.auto(BITS)
    net = MADE(BITS, head.num_params, orders.make("raster", BITS.shape), hidden_sizes=[3])
    with refuses(
        "objective is canonical, but model MADE is not trained for all orders; leave it at "
        "all_orders, or use resample_orders=true"
    ):
        AutoregressiveModel(net, head, objective="canonical")
    with pytest.raises(ValueError, match="MADE is not trained for all orders"):
        construct.model(made(objective="canonical"), NO_HEAD, BITS)


def test_runs_saved_before_the_objective_was_named_still_load():
    config = {key: value for key, value in DEEP.items() if key != "objective"}
    assert not construct.model(config, NO_HEAD, BITS).canonical
