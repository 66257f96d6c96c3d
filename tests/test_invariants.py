"""What every model must satisfy, on every tiny case of ``cases.CASES``."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import math
import re

import pytest
import torch
from cases import (
    BITS,
    CASES,
    GREY,
    LABEL,
    PLANE,
    RGB,
    VECTOR,
    Case,
    Given,
    context_values,
    event_index,
    every,
    every_event,
)
from frequencies import p_value
from walks import walked

from armodels import heads, orders
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.completion import DISTRUST, disagreement
from armodels.density.mixture import OrderMixture, over_orders
from armodels.density.walk import Scored, draw, draw_noise, follow, walk
from armodels.evaluation import evaluate
from armodels.networks.base import AnyOrderNetwork, Network, State
from armodels.networks.conv_nade import ConvNADE
from armodels.networks.deep_nade import DeepNADE
from armodels.networks.grouped import GroupedNetwork
from armodels.networks.lmconv import LMConv
from armodels.networks.made import MADE
from armodels.networks.pixel_snail import PixelSNAIL
from armodels.networks.stream import StreamNetwork
from armodels.objectives import draw_known
from armodels.spec import DataSpec


def over(wanted):
    """Run a test on every case for which ``wanted(case)`` holds."""
    return every({name: case for name, case in CASES.items() if wanted(case)})


def countable(case: Case) -> bool:
    return case.spec.measure == "probability" and case.spec.levels**case.spec.num_dims <= 6561


over_all = over(lambda case: True)
over_steps = over(lambda case: case.steps)
over_countable = over(countable)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_for(model: AutoregressiveModel, n: int, seed: int = 0):
    shape = (n, model.net.num_steps, model.head.num_noise)
    return draw_noise(shape, generator(seed), "cpu")


@contextlib.contextmanager
def refuses(sentence: str):
    """The block must raise this very ValueError."""
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        yield


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# 1. Sums to one


@over_countable
def test_probabilities_of_all_events_sum_to_one(case):
    for seed in range(3):
        total = case.build(seed).log_prob(every_event(case.spec)).logsumexp(0)
        assert abs(float(total)) < 1e-10


@over(lambda case: case.spec.levels is None and case.spec.num_dims <= 2 and not case.jumps)
def test_density_integrates_to_one(case):
    # The trapezium rule is as good as exact for sums of Gaussians wider than the spacing.
    grid = torch.linspace(-16, 16, 321, dtype=torch.double)
    x = torch.cartesian_prod(*[grid] * case.spec.num_dims).view(-1, *case.spec.shape)
    cell = case.spec.num_dims * math.log(32 / 320)
    total = case.build(0).log_prob(x).logsumexp(0) + cell
    assert abs(float(total)) < 1e-6


# 2. Strictly causal, and uses the whole past


def group_end(net: Network, step: int) -> int:
    """The first step that hears what is written at a step."""
    net = net.net if isinstance(net, Given) else net
    if not isinstance(net, GroupedNetwork):
        return step + 1
    return next(group.stop for group in net.groups if step < group.stop)


@over_steps
def test_a_step_sees_every_earlier_value_and_no_other(case):
    """Changed values rather than a Jacobian: levels have none, nor need a compiled network."""
    for seed in range(3):
        model, x = case.build(seed), case.events(4, seed)
        order, before = model.net.order_table, model.net(x)
        for t, index in enumerate(order.flatten().tolist()):
            step = t // order.shape[1]
            for change in range(1, case.spec.levels or 3):
                changed = x.flatten(1).clone()
                if case.spec.levels is None:
                    changed[:, index] += change
                else:
                    changed[:, index] = (changed[:, index] + change) % case.spec.levels
                moved = (model.net(changed.view_as(x)) - before).abs().amax(-1)  # (B, S)
                later = group_end(model.net, step)
                assert not moved[:, :later].any(), f"a step before {later} sees a value of {step}"
                assert (moved[:, later:] > 1e-9).all(), f"a later step misses one of {step}"


# 3. The cached step is the naive step


@over_steps
def test_cached_step_equals_naive_step(case):
    model, x = case.build(0), case.events(5)
    values = x.flatten(1)[:, model.net.order_table]
    naive, cached = walked(model.net, values, naive=True), walked(model.net, values)
    torch.testing.assert_close(naive, model.net(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(cached, naive, rtol=0, atol=1e-11)


def after(net: Network, values, num_steps: int, pack) -> State:
    """The state of a walk that wrote values (B, S, K) in its first steps."""
    state = net.start(pack, len(values))
    for s in range(num_steps):
        _, state = net.step(values[:, s - 1] if s else None, s, state, pack)
    return state


def rest(net: Network, values, first: int, state: State, pack):
    """Parameters of the steps from the first on: (B, S - first, P)."""
    params = []
    for s in range(first, net.num_steps):
        now, state = net.step(values[:, s - 1] if s else None, s, state, pack)
        params.append(now.clone())
    return torch.stack(params, 1)


@over_steps
def test_a_forked_walk_goes_on_twice(case):
    """From every step, in other rows and with other values: one pack serves all of them."""
    net, x, other = case.build(0).net, case.events(3), case.events(4, seed=5)
    values, others = (events.flatten(1)[:, net.order_table] for events in (x, other))
    rows = torch.tensor([2, 0, 0, 1])
    pack, expected = net.pack(), net(x)
    for first in range(1, net.num_steps):
        mixed = torch.cat([values[rows, :first], others[:, first:]], 1)
        state = after(net, values, first, pack)
        same, fork = state.fork(), state.fork(rows)
        for tensor in state.values():
            assert tensor.shape[0] == 3, "the first dimension of a state counts events"
        whole = torch.empty_like(other).flatten(1)
        whole[:, net.order_table.flatten()] = mixed.flatten(1)
        forked = net(whole.view_as(other))[:, first:]
        torch.testing.assert_close(rest(net, mixed, first, fork, pack), forked, rtol=0, atol=1e-11)
        for one in (state, same):
            again = rest(net, values, first, one, pack)
            torch.testing.assert_close(again, expected[:, first:], rtol=0, atol=1e-11)


@over_steps
def test_a_walk_of_no_events_goes_through(case):
    """From the start, and from a fork in which every event has ended."""
    net, x = case.build(0).net, case.events(2)
    values, pack = x.flatten(1)[:, net.order_table], net.pack()
    for first in range(net.num_steps):
        state = after(net, values, first, pack).fork(torch.arange(0))
        params = rest(net, values[:0], first, state, pack)
        assert params.shape == (0, net.num_steps - first, net.num_params)
    params = rest(net, values[:0], 0, net.start(pack, 0), pack)
    assert params.shape == (0, net.num_steps, net.num_params)


# 4. The sampler's log-probability is the model's


@over_all
def test_samples_carry_their_log_prob(case):
    model = case.build(0)
    x, log_prob = model.sample_with_log_prob(16, generator=generator())
    assert x.shape == (16, *case.spec.shape)
    assert log_prob.shape == (16,)
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=1e-10)


@over_all
def test_no_events_have_a_shape_too(case):
    model = case.build(0)
    x, log_prob = model.sample_with_log_prob(0, generator=generator())
    assert x.shape == (0, *case.spec.shape)
    assert log_prob.shape == (0,)
    none = case.events(3)[:0]
    assert model.log_prob(none).shape == (0,)
    # A part of a batch, or a process's share of it, may be empty.
    assert model.train().default_objective()(none).shape == (0,)
    some = torch.zeros(case.spec.num_dims, dtype=torch.bool)
    some[1::2] = True
    for known in (some, some & False):
        done = model.eval().complete(none, known.view(case.spec.shape), num_particles=3)
        assert done.values.shape == none.shape
        assert done.effective_sample_size.shape == (0,)


@over(lambda case: case is not CASES["least"])
def test_temperatures_that_cannot_be_are_refused(case):
    model, x = case.build(0), case.events(3)
    unknown = torch.zeros(case.spec.shape, dtype=torch.bool)
    for temperature in (-1.0, math.nan, math.inf):
        with refuses(f"temperature is {temperature}; it must be finite and 0 or more"):
            model.sample(2, temperature=temperature)
        with refuses(f"temperature is {temperature}; it must be finite and 0 or more"):
            model.complete(x, unknown, temperature=temperature)
    with refuses("-1 samples cannot be drawn; ask for 0 or more"):
        model.sample(-1)
    with refuses("temperature is '1'; it must be a number"):
        model.sample(2, temperature="1")
    for n in (2.5, "3"):
        with refuses(f"n is {n!r}; it must be a whole number"):
            model.sample(n)
    with of_class("generator", "int", "Generator"):
        draw_noise((2,), 5, torch.device("cpu"))


def of_class(name, kind="ndarray", wanted="Tensor"):
    """The block must say that an argument is of one class instead of another."""
    return pytest.raises(
        TypeError, match=f"^{name} is of type {kind}; it must be of type {wanted}"
    )


@over(lambda case: case is not CASES["least"])
def test_what_is_no_tensor_is_refused(case):
    model, x = case.build(0), case.events(3)
    unknown = torch.zeros(case.spec.shape, dtype=torch.bool)
    for call in (model.log_prob, lambda array: model.complete(array, unknown)):
        with of_class("x"):
            call(x.numpy())
    with of_class("known"):
        model.complete(x, unknown.numpy())


def test_a_context_that_is_no_tensor_is_refused():
    case = CASES["made"]
    model, x = case.build(0, LABEL), case.events(3)
    unknown = torch.zeros(case.spec.shape, dtype=torch.bool)
    for call in (
        lambda context: model.log_prob(x, context),
        lambda context: model.conditional_log_prob(x, context),
        lambda context: model.complete(x, unknown, context=context),
        lambda context: model.sample(3, context=context),
    ):
        with of_class("context", "list"):
            call([0, 1, 1])
    with of_class("x"):
        model.conditional_log_prob(x.numpy(), None)


def test_noise_is_of_the_shape_of_the_draw():
    model = CASES["made"].build(0)
    for shape in ((3, 6, 1), (2, 5, 1), (2, 6, 2), (2, 6)):
        with pytest.raises(
            ValueError, match=re.escape(f"noise is {shape}; it must be a tensor (2")
        ):
            model.sample(2, noise=torch.rand(shape, dtype=torch.double))
    with pytest.raises(ValueError, match="^noise is ndarray; it must be a tensor"):
        model.sample(2, noise=torch.rand(2, 6, 1).numpy())


def test_only_a_model_is_evaluated_and_on_whole_batches():
    case = CASES["made"]
    model, x = case.build(0), case.events(3)
    with of_class("model", "MADE", "DensityModel"):
        evaluate(model.net, x)
    for size, wanted in ((2.5, "a whole number"), ("5", "a whole number"), (0, "at least 1")):
        with refuses(f"batch_size is {size!r}; it must be {wanted}"):
            evaluate(model, x, size)


@over_all
def test_samples_lie_in_the_support(case):
    x = case.build(0).sample(16, generator=generator())
    case.spec.check(x)
    assert case.spec.levels is None or x.dtype == case.spec.dtype


@over_steps
def test_naive_sampling_equals_cached_sampling(case):
    model = case.build(0)
    noise = noise_for(model, 16)
    fast, fast_log_prob = model.sample_with_log_prob(16, noise=noise)
    slow, slow_log_prob = model.sample_with_log_prob(16, noise=noise, sampler="naive")
    if case.spec.levels is None:
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    else:
        assert torch.equal(fast, slow)
    torch.testing.assert_close(fast_log_prob, slow_log_prob, rtol=0, atol=1e-10)


def fused(case: Case) -> bool:
    """Whether the network draws by compiled code under this head."""
    model = case.build(0) if case.steps else None
    return (
        model is not None
        and model.net.fused_walk(model.head.family, noise_for(model, 1), 1.0, None) is not None
    )


@over(fused)
def test_a_fused_walk_equals_the_loop(case):
    model = case.build(0)
    noise = noise_for(model, 16)
    looped = walk(model.net, 16, draw(model.head, noise, 0.7))
    values, params = model.net.fused_walk(model.head.family, noise, 0.7, None)
    torch.testing.assert_close(values, looped, rtol=0, atol=1e-10)
    torch.testing.assert_close(params, walked(model.net, looped), rtol=0, atol=1e-10)


@over_steps
def test_a_walk_that_follows_an_event_scores_it(case):
    """Scoring, drawing and completing are choosers on one walk."""
    model, x = case.build(0), case.events(5)
    scored = Scored(model.head, follow(x.flatten(1)[:, model.net.order_table]))
    written = walk(model.net, 5, scored)
    assert torch.equal(model._to_event(written), x)
    expected = model.conditional_log_prob(x)
    torch.testing.assert_close(scored.log_probs(), expected, rtol=0, atol=1e-11)


# 5. Samples have the frequencies of the model


@over(lambda case: countable(case) and case.spec.levels**case.spec.num_dims <= 64)
def test_sample_frequencies(case):
    model = case.build(0)
    index = event_index(model.sample(2000, generator=generator(1)), case.spec)
    assert p_value(index, model.log_prob(every_event(case.spec))) > 1e-3


def copy_chain(order: str) -> AutoregressiveModel:
    """An FVSBN, set by hand, that starts at random and repeats itself in its order."""
    made = orders.make(order, BITS.shape, seed=3)
    net = MADE(BITS, 1, made, hidden_sizes=[], direct_connections=True)
    flat = made.table.flatten().tolist()
    net.bias.zero_()
    net.direct.weight.zero_()
    for last, now in zip(flat, flat[1:], strict=False):
        net.direct.weight[now, last] = 80.0
        net.bias[now] = -40.0
    return AutoregressiveModel(net, heads.Bernoulli(BITS))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["raster", "reverse", "random"])
def test_samples_of_a_copy_chain_are_constant(order):
    x = copy_chain(order).sample(300, generator=generator())
    assert (x == x[:, :1]).all()
    assert 100 < int(x[:, 0].sum()) < 200
    constant = torch.tensor([[0] * 6, [1] * 6], dtype=torch.uint8)
    torch.testing.assert_close(
        copy_chain(order).log_prob(constant), torch.full((2,), -math.log(2)), rtol=0, atol=1e-6
    )


# 6. Completion


def pixel_masks(case: Case):
    """Masks of whole pixels: the first half known, the second half known, nothing, all."""
    pixels = case.spec.shape[1] * case.spec.shape[2] if case.spec.kind == "image" else None
    size = pixels or case.spec.num_dims
    late = torch.arange(size) >= (size + 1) // 2
    for mask in (~late, late, late & ~late, late | ~late):
        if pixels:
            mask = mask.view(1, *case.spec.shape[1:])
        yield mask.expand(case.spec.shape)


def channel_masks(case: Case):
    """One channel, the first or the last of one pixel, a pixel whole beside a part of another."""
    none = torch.zeros(case.spec.shape, dtype=torch.bool)
    red, first, last, more = none.clone(), none.clone(), none.clone(), none.clone()
    red[0] = first[0, ..., -1] = last[2, ..., 0] = True
    more[..., -1] = more[1, ..., 0] = True
    yield from (red, first, last, more)


def known_first(model, order, observed):
    """The order that a model for all orders chooses: known values, then the others.

    Trained on orders of whole pixels (``resample_orders``) it moves pixels, not their channels.
    """
    pixels = observed.numel()
    if model.resample_orders and observed.ndim == 3:
        pixels = observed[0].numel()
    unknown = (~observed).reshape(-1, pixels).sum(0)
    steps = sorted(order.table[:, None], key=lambda one: int(unknown[one[0, 0] % pixels]))
    return orders.Order(torch.cat(steps), seed=order.seed)


def puts_known_first(order, observed):
    """Whether an order writes every known value before all others."""
    ranks = orders.ranks(order.table).view(observed.shape)
    known, others = ranks[observed].tolist(), ranks[~observed].tolist()
    return max(known, default=-1) < min(others, default=len(order.table))


def fitting(mixture, observed):
    """The orders that write known values before all others."""
    return [one for one in mixture.orders if puts_known_first(one, observed)]


def conditional(model, x, observed, choose_order=False):
    """log p(event | known values of x) of every event, by enumeration: (L^D,).

    Of a model that may choose its order: under orders that put the known values first. Of a
    mixture of orders: under those of them that do, where there are some.
    """
    if choose_order and isinstance(model, OrderMixture):
        one = model.model
        model = OrderMixture(one, [known_first(one, order, observed) for order in model.orders])
    elif choose_order:
        model = model.with_order(known_first(model, model.net.order, observed))
    elif isinstance(model, OrderMixture):
        model = OrderMixture(model.model, fitting(model, observed) or model.orders)
    every = every_event(model.spec)
    agrees = ((every == x) | ~observed).flatten(1).all(1)
    return model.log_prob(every).masked_fill(~agrees, -math.inf).log_softmax(0)


@over_all
def test_completion_keeps_known_values(case):
    model, x = case.build(0), case.events(6)
    for observed in pixel_masks(case):
        rest = torch.where(observed, x, torch.zeros_like(x))
        done = model.complete(rest, observed, num_particles=3, generator=generator())
        assert done.values.shape == x.shape
        assert torch.equal(done.values[:, observed], x[:, observed])
        case.spec.check(done.values)
        assert (done.effective_sample_size <= done.num_particles + 1e-9).all()
        assert (done.effective_sample_size >= 1 - 1e-9).all()
        # One mask for all events, or one each.
        each = observed.expand_as(x)
        again = model.complete(rest, each, num_particles=3, generator=generator())
        assert torch.equal(done.values, again.values)


@pytest.mark.slow
@over(lambda case: countable(case) and case.spec.num_dims > 1)
def test_completion_follows_the_conditional(case):
    """Exact or by many particles; whatever the model's order, early or late values known."""
    model, x = case.build(0), case.events(1, seed=5)
    for observed in list(pixel_masks(case))[:2]:
        done = model.complete(
            x.expand(300, *case.spec.shape), observed, num_particles=60, generator=generator(2)
        )
        assert done.method in (["exact"] if case.any_order else ["exact", "likelihood weighting"])
        index = event_index(done.values, case.spec)
        assert p_value(index, conditional(model, x, observed, case.any_order)) > 1e-3


def of_single_channels(case: Case) -> bool:
    """For all orders, of colours that are written one after another."""
    if not case.any_order or case.spec.shape[0] != 3:
        return False
    model = case.build(0)
    return not (model.model if case.num_orders > 1 else model).head.joint


@pytest.mark.slow
@over(of_single_channels)
def test_channels_that_are_known_choose_an_order(case):
    """Exact where an order that the model was trained on puts them first, else by particles."""
    model, x = case.build(0), case.events(1, seed=5)
    one = model.model if case.num_orders > 1 else model
    methods = []
    for observed in channel_masks(case):
        done = model.complete(
            x.expand(300, *case.spec.shape), observed, num_particles=60, generator=generator(2)
        )
        own = model.orders if case.num_orders > 1 else [one.net.order]
        assert done.order_chosen == (not all(puts_known_first(o, observed) for o in own))
        assert torch.equal(done.values[:, observed], x[:, observed].expand(300, -1))
        exact = puts_known_first(known_first(one, one.net.order, observed), observed)
        assert done.method == ("exact" if exact else "likelihood weighting")
        methods.append(done.method)
        index = event_index(done.values, case.spec)
        assert p_value(index, conditional(model, x, observed, True)) > 1e-3
    assert len(set(methods)) == (1 if one.net.any_order else 2)
    # In one batch with others: the known parts, and whether their draws are exact, differ.
    known = torch.stack(list(channel_masks(case)))
    done = model.complete(
        x.expand(4, *case.spec.shape), known, num_particles=5, generator=generator()
    )
    assert torch.equal(done.values[known], x.expand(4, *case.spec.shape)[known])
    assert set(methods) >= {done.method}
    assert done.num_particles == case.num_orders * (1 if done.method == "exact" else 5)


def test_a_mixture_completes_under_the_orders_that_put_the_missing_part_last():
    """Of eight S-curves two begin with the upper row, from the left and from the right."""
    case = CASES["lmconv"]
    mixture = over_orders(case.build(0), "s_curve", range(8))
    x = case.events(1).expand(2000, *case.spec.shape)
    observed = torch.zeros(case.spec.shape, dtype=torch.bool)
    observed[:, 0] = True
    first = fitting(mixture, observed)
    assert len(first) == 2
    done = mixture.complete(x, observed, num_particles=5, generator=generator())
    assert (done.method, done.order_chosen, done.num_particles) == ("exact", True, 2)
    index = event_index(done.values, case.spec)
    assert p_value(index, conditional(mixture, x[0], observed)) > 1e-3
    # Where all is known, or nothing, every order fits.
    for known in (observed | True, observed & False):
        done = mixture.complete(x[:2], known, generator=generator())
        assert (done.method, done.order_chosen, done.num_particles) == ("exact", False, 8)


@over(lambda case: case.any_order and case.spec.num_dims > 1)
def test_completion_chooses_an_order_for_each_known_part(case):
    """Events whose known parts differ, in one batch, are completed as each would be alone."""
    model, x = case.build(0), case.events(4)
    pixels = math.prod(case.spec.shape[1:]) if case.spec.kind == "image" else case.spec.num_dims
    order = (model.orders[0] if case.num_orders > 1 else model.net.order).table[:, 0] % pixels
    known = torch.zeros(4, pixels, dtype=torch.bool)
    known[0, order[-1]] = known[1, order[0]] = known[2, order[-1]] = True
    if case.spec.kind == "image":
        known = known.view(4, 1, *case.spec.shape[1:])
    known = known.expand_as(x) if case.spec.kind == "image" else known
    done = model.complete(x, known, temperature=0, generator=generator())
    assert (done.method, done.order_chosen) == ("exact", True)
    assert torch.equal(done.values[known], x[known])
    if case.num_orders == 1:
        for i in range(4):
            view = model.with_order(known_first(model, model.net.order, known[i]))
            alone = view.complete(x[i : i + 1], known[i], temperature=0, generator=generator())
            assert (alone.method, alone.order_chosen) == ("exact", False)
            torch.testing.assert_close(alone.values[0], done.values[i], rtol=0, atol=1e-10)


def step_alone(model, s: int):
    """Only the values of step s are known."""
    known = torch.zeros(model.spec.num_dims, dtype=torch.bool)
    known[model.net.order_table[s]] = True
    return known.view(model.spec.shape)


def knows_the_last_step_exactly(case: Case) -> bool:
    """Whether an order that the model was trained on begins with its last step."""
    if not case.any_order:
        return False
    model = case.build(0)
    known = step_alone(model, -1)
    return puts_known_first(known_first(model, model.net.order, known), known)


@over(lambda case: case.steps and case.spec.num_dims > 1)
def test_completion_from_the_first_step_on_is_exact(case):
    model, x = case.build(0), case.events(2)
    done = model.complete(x, step_alone(model, 0), generator=generator(), num_particles=50)
    assert (done.method, done.num_particles) == ("exact", 1)
    assert done.effective_sample_size.tolist() == [1, 1]
    assert not done.order_chosen


@over(lambda case: case.steps and case.spec.num_dims > 1 and knows_the_last_step_exactly(case))
def test_completion_by_a_chosen_order_is_exact(case):
    model, x = case.build(0), case.events(2)
    done = model.complete(x, step_alone(model, -1), generator=generator(), num_particles=50)
    assert (done.method, done.num_particles) == ("exact", 1)
    assert done.order_chosen


@over(lambda case: case.steps and case.spec.num_dims > 1 and not knows_the_last_step_exactly(case))
def test_completion_says_how(case):
    model, x = case.build(0), case.events(2)
    known = step_alone(model, -1)
    done = model.complete(x, known, generator=generator(), num_particles=50)
    assert (done.method, done.num_particles) == ("likelihood weighting", 50)
    assert done.order_chosen == case.any_order
    assert (done.effective_sample_size < 50 - 1e-9).all()
    clamped = model.complete(x, known, generator=generator())
    assert (clamped.method, clamped.num_particles) == ("clamped", 1)


def test_clamping_ignores_later_evidence():
    """What "clamped" warns of: the known end of a copy chain does not reach its start."""
    x, last = torch.ones(200, 6, dtype=torch.uint8), torch.arange(6) == 5
    chain = copy_chain("raster")
    clamped = chain.complete(x, last, generator=generator())
    assert clamped.method == "clamped"
    assert 60 < int(clamped.values[:, 0].sum()) < 140
    weighted = chain.complete(x, last, num_particles=30, generator=generator())
    assert (weighted.values == 1).all()
    # About half of the particles start at 1 and share all the weight.
    assert 13 < float(weighted.effective_sample_size.mean()) < 17


def two_modes(rare: float, factor: float) -> AutoregressiveModel:
    """Two bits: the first is on with ``rare``, the second with 1e-6 or ``factor`` times that."""
    spec = dataclasses.replace(BITS, shape=(2,))
    order = orders.make("raster", (2,))
    net = MADE(spec, 1, order, hidden_sizes=[], direct_connections=True)
    for weight in net.parameters():
        torch.nn.init.zeros_(weight)
    net.bias[:, 0] = torch.tensor([rare, 1e-6]).logit()
    net.direct.weight[1, 0] = torch.tensor(1e-6 * factor).logit() - net.bias[1, 0]
    return AutoregressiveModel(net, heads.Bernoulli(spec)).double().eval()


@pytest.mark.parametrize("particles", [20, 21])
def test_particles_that_missed_a_mode_contradict_each_other(particles):
    """The rare mode has 0.9998 of the posterior, and most particles of most events miss it."""
    x, second = torch.ones(40, 2, dtype=torch.uint8), torch.tensor([False, True])
    options = {"num_particles": particles, "generator": generator()}
    done = two_modes(0.01, 5e5).complete(x, second, **options)
    assert 0.1 < float(done.values[:, 0].double().mean()) < 0.4  # wrong, and ...
    assert float(done.effective_sample_size.mean()) > 0.6 * particles  # ... it looks right
    found = done.values[:, 0] == 1
    assert (done.disagreement[found] > 3).all()
    assert (done.disagreement[~found] < 1e-6).all()
    assert DISTRUST < 3
    # Modes that the particles find as often as they should.
    for model in (two_modes(0.5, 1), two_modes(0.5, 20)):
        done = model.complete(x, second, **options)
        assert (done.disagreement < DISTRUST).all()


def test_halves_of_particles_by_hand():
    inf = math.inf
    weights = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]], [[0.0, -inf]], [[-inf, -inf]]])
    assert disagreement(weights).tolist() == [0.0, 2.0, inf, inf]
    # Particles of one component stay together with those of the others.
    both = torch.tensor([[[0.0, 0.0], [5.0, 5.0]]])
    assert disagreement(both).tolist() == [0.0]
    # All splits of four: the heavy one is always in one half alone.
    heavy = torch.tensor([[[10.0, -inf, 0.0, 0.0]]])
    assert 9 < float(disagreement(heavy)) < 10.1
    exact = CASES["made"].build(0).complete(CASES["made"].events(2), torch.arange(6) < 3)
    assert exact.disagreement is None


def test_completion_of_a_mixture_of_one_is_the_model():
    model, x = CASES["made-permuted"].build(0), CASES["made-permuted"].events(4)
    mixture = OrderMixture(model, [model.net.order])
    late = torch.arange(6) > 2
    alone = model.complete(x, late, num_particles=9, generator=generator())
    mixed = mixture.complete(x, late, num_particles=9, generator=generator())
    assert torch.equal(alone.values, mixed.values)
    assert torch.equal(alone.effective_sample_size, mixed.effective_sample_size)


def test_completion_refuses():
    case = CASES["made"]
    model, x = case.build(0), case.events(3)
    known = torch.ones(6, dtype=torch.bool)

    with refuses("num_particles is 0; it must be at least 1"):
        model.complete(x, known, num_particles=0)
    with refuses("known must be boolean, True = known, got torch.int64"):
        model.complete(x, known.long())
    with refuses("known has shape (5,), the events (6,)"):
        model.complete(x, known[:5])
    with refuses("data 'tiny-vector' has levels 0..1, got values in 0..7"):
        model.complete(x * 7, known)
    with refuses("data 'tiny-vector' has examples of shape (6,), got (5,)"):
        model.complete(x[:, :5], known[:5])


def test_completion_ignores_what_stands_in_unknown_places():
    case = CASES["made-mog-deep"]
    model, x = case.build(0), case.events(3)
    known = torch.tensor([True, False, True, False])
    holes = x.masked_fill(~known, math.nan)
    done = [model.complete(v, known, num_particles=4, generator=generator()) for v in (x, holes)]
    assert torch.equal(done[0].values, done[1].values)


def test_completion_refuses_a_pixel_known_in_part():
    case = CASES["made-rgb-joint"]
    red = torch.zeros(RGB.shape, dtype=torch.bool)
    red[0] = True
    with refuses(
        "the head writes all channels of a pixel in one step: "
        "each pixel must be known wholly or not at all"
    ):
        case.build(0).complete(case.events(2), red)


def test_completion_refuses_known_values_of_probability_0():
    model = CASES["made"].build(0)
    model.net.bias[5], model.net.output.weight[5] = -math.inf, 0.0
    x, last = torch.ones(3, 6, dtype=torch.uint8), torch.arange(6) == 5
    with refuses("the known values have probability 0 under the model"):
        model.complete(x, last, num_particles=4)


# 7. Mixtures of orders

over_mixtures = over(lambda case: case.num_orders > 1)


@over_mixtures
def test_a_mixture_of_orders_averages_joint_probabilities(case):
    mixture, x = case.build(0), case.events(8)
    views = [mixture.model.with_order(order, seed=order.seed) for order in mixture.orders]
    parts = torch.stack([view.log_prob(x) for view in views])
    assert parts.std(0).mean() > 0.1, "the orders agree, so that this test tests nothing"
    mean = parts.exp().mean(0).log()
    torch.testing.assert_close(mixture.log_prob(x), mean, rtol=0, atol=1e-10)
    assert (mixture.log_prob(x) >= parts.mean(0) - 1e-10).all()


@over(lambda case: case.num_orders > 1 and not case.any_order)
def test_a_mixture_of_orders_trains_one_at_a_time(case):
    """What training maximizes is one order's log-probability, a bound on average."""
    mixture, x = case.build(0), case.events(8)
    views = [mixture.model.with_order(order, seed=order.seed) for order in mixture.orders]
    parts = torch.stack([view.log_prob(x) for view in views])
    torch.manual_seed(0)
    chosen = torch.zeros(len(parts), dtype=torch.bool)
    objective = mixture.train().default_objective()
    for _ in range(20):
        same = (objective(x) - parts).abs().amax(1) < 1e-10
        assert same.sum() == 1
        chosen |= same
    assert chosen.all()


def every_order(case: Case, model):
    """All orders of whole steps, as the training of a model for all orders draws them."""
    steps = model.net.order_table
    if not model.net.any_order and case.spec.kind == "image":
        steps = orders.make(
            "raster", case.spec.shape, joint=True
        ).table  # pixels, channels in turn
    for one in itertools.permutations(steps.tolist()):
        yield orders.Order(torch.tensor(one).reshape(-1, model.net.order.width))


@pytest.mark.slow
@over(lambda case: case.any_order and not case.canonical and case.spec.num_dims <= 6)
def test_training_for_all_orders_estimates_their_mean_without_bias(case):
    mixture, x = case.build(0), case.events(1)
    model = mixture.model if case.num_orders > 1 else mixture
    expected = torch.stack([model.with_order(o).log_prob(x) for o in every_order(case, model)])
    torch.manual_seed(0)
    n = 4000
    objective = mixture.train().default_objective()
    if model.net.any_order:
        drawn = objective(x.expand(n, *case.spec.shape))
    else:
        n = 300
        drawn = torch.cat([objective(x) for _ in range(n)])
    error = float(drawn.std()) / math.sqrt(n)
    assert error < 0.2 * float(drawn.mean().abs())
    assert abs(float(drawn.mean() - expected.mean())) < 4 * error + 1e-9
    if model.net.any_order and case.num_orders == 1 and case.spec.num_dims > 1:
        # The same without chance: the sum over all known parts, by their probabilities.
        num_steps = model.net.num_steps
        every = torch.cartesian_prod(*[torch.tensor([False, True])] * num_steps)[:-1]
        size, rows = every.sum(1).double(), x.expand(len(every), *case.spec.shape)
        sets = torch.tensor([math.comb(num_steps, int(d)) for d in size]).double()
        chances = 1 / (num_steps * sets)
        params = model.net.params_given(rows, every)
        log_probs = model.head.log_prob(params, rows.flatten(1)[:, model.net.order_table])
        mean = (chances * num_steps / (num_steps - size) * (~every * log_probs).sum(1)).sum()
        torch.testing.assert_close(mean, expected.mean(), rtol=0, atol=1e-10)


def test_known_parts_are_drawn_evenly():
    torch.manual_seed(0)
    known, weights = draw_known(20_000, 3, "cpu")
    size = known.sum(1)
    assert ((weights == 0) == known).all()
    torch.testing.assert_close(weights.amax(1), 3 / (3 - size).float())
    index = (known * torch.tensor([4, 2, 1])).sum(1)
    chances = torch.tensor([1 / (3 * math.comb(3, d)) for d in (0, 1, 1, 2, 1, 2, 2)])
    assert p_value(index, chances.double().log()) > 1e-3


@over(lambda case: case.steps and case.reads_known and case.spec.num_dims > 1)
def test_a_network_for_all_orders_reads_the_known_values_alone(case):
    model, x = case.build(0), case.events(1)
    net = model.net
    naive = AnyOrderNetwork.forward(net, x)
    torch.testing.assert_close(net(x), naive, rtol=0, atol=1e-11)
    known = torch.arange(net.num_steps)[None] == net.num_steps - 1
    before, changed = net.params_given(x, known), x.clone().flatten(1)
    hidden = changed[:, net.order_table[0]]
    changed[:, net.order_table[0]] = (
        hidden + 1 if x.is_floating_point() else 1 - hidden.clamp(max=1)
    )
    assert torch.equal(net.params_given(changed.view_as(x), known), before)
    # Zeros that are known differ from zeros that are not.
    nothing = torch.zeros_like(x)
    moved = net.params_given(nothing, known) - net.params_given(nothing, known & False)
    assert (moved.abs().amax(-1)[:, :-1] > 1e-9).all()


@over(lambda case: case.steps and case.reads_known and case.spec.levels is not None)
def test_the_exact_conditionals_have_gradients(case):
    """Of a model for all orders, which trains without them: fitting one order needs them."""
    with torch.enable_grad():
        model, x = case.build(0), case.events(2)
        gradients = []
        for net in (model.net.__call__, functools.partial(AnyOrderNetwork.forward, model.net)):
            model.zero_grad()
            model.head.log_prob(net(x), x.flatten(1)[:, model.net.order_table]).sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_averaged_logits_are_not_a_distribution():
    """A reminder of a published mistake: the mean over orders of logits does not sum to one."""
    mixture, every = CASES["orders-made"].build(0), every_event(BITS)
    by_event = []
    for i in range(len(mixture.orders)):
        net = mixture.component(i).net
        by_event.append(net(every)[:, orders.ranks(net.order_table)])
    log_prob = heads.Bernoulli(BITS).log_prob(torch.stack(by_event).mean(0), every[..., None])
    assert abs(float(log_prob.sum(1).logsumexp(0))) > 1e-3
    assert abs(float(mixture.log_prob(every).logsumexp(0))) < 1e-10


def follows_any_order(case: Case) -> bool:
    return case.steps and type(case.build(0).net).with_order is not Network.with_order


@over(follows_any_order)
def test_with_order_leaves_the_model_as_it_was(case):
    model, x = case.build(0), case.events(4)
    before = model.log_prob(x)
    view = model.with_order(orders.Order(model.net.order_table.flip(0)), seed=9)
    again = view.with_order(model.net.order, seed=0)
    assert torch.equal(view.net.order_table, model.net.order_table.flip(0))
    assert torch.equal(model.log_prob(x), before)
    if countable(case):
        total = view.log_prob(every_event(case.spec)).logsumexp(0)
        assert abs(float(total)) < 1e-10
    torch.testing.assert_close(again.log_prob(x), before, rtol=0, atol=1e-10)


# 11. Independence within a batch


@over_all
def test_one_row_never_moves_another(case):
    model, x = case.build(0), case.events(5)
    before = model.log_prob(x)
    others = x.clone()
    others[1:] = case.events(9, seed=1)[5:]
    assert not torch.equal(others[1:], x[1:])
    assert torch.equal(model.log_prob(others)[0], before[0])
    torch.testing.assert_close(model.log_prob(x[:1]), before[:1], rtol=0, atol=1e-11)


@over_steps
def test_one_rows_noise_never_moves_another_sample(case):
    model = case.build(0)
    noise = noise_for(model, 5)
    others = noise.clone()
    others[1:] = noise_for(model, 4, seed=1)
    drawn = [model.sample_with_log_prob(5, noise=n)[0] for n in (noise, others)]
    assert torch.equal(drawn[0][0], drawn[1][0])


# 12. Numbers


@over_all
def test_float32_agrees_with_float64(case):
    model, x = case.build(0), case.events(32)
    exact = model.log_prob(x)
    if x.is_floating_point():
        x = x.float()
    single = model.float().log_prob(x)
    # Nats per event; sums of a few terms, each good to about 1e-7 of its size.
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4)


@over(lambda case: case.steps and not case.counted)
def test_bfloat16_autocast_agrees_with_float64(case):
    model, x = case.build(0), case.events(64)
    exact = model.log_prob(x)
    model = model.float()
    if x.is_floating_point():
        x = x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.log_prob(x)
    assert half.dtype == torch.float32, "heads compute in at least float32"
    # Parameters keep 8 bits, so a log-probability is good to about 1 in 100.
    assert ((half - exact).abs() <= 0.02 * case.spec.num_dims + 0.05 * exact.abs()).all()
    assert float((half - exact).mean().abs()) < 0.05 * case.spec.num_dims


def test_in_half_precision_samples_follow_the_log_prob():
    """256 levels of a narrow logistic, near the edge, where the halves are coarse."""
    spec = DataSpec("grey", "image", (1, 1, 1), 256, "probability")
    head = heads.DiscretizedLogisticMixture(spec, num_components=1)
    net = MADE(spec, head.num_params, orders.make("raster", spec.shape), hidden_sizes=[1])
    net.bias[0] = torch.tensor([0.0, 0.6, -2.0])
    model = AutoregressiveModel(net, head).bfloat16()
    n = 20_000
    noise = torch.full((n, 1, head.num_noise), 0.5, dtype=torch.double)
    noise[:, 0, -1] = (torch.arange(n) + 0.5) / n
    drawn, _ = model.sample_with_log_prob(n, noise=noise)
    frequencies = drawn.flatten().long().bincount(minlength=256) / n
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    distance = (frequencies - model.log_prob(levels).exp()).abs().sum() / 2
    assert distance < 0.01


# Context


@pytest.mark.parametrize("context", [LABEL, VECTOR], ids=lambda c: c.name)
@over(lambda case: case.steps and "context" in inspect.signature(case.build).parameters)
def test_every_step_hears_the_context(case, context):
    x, contexts = case.events(1), context_values(context, 3)
    untold, model = case.build(0), case.build(0, context)
    params = model.net(x.expand(3, *case.spec.shape), contexts)
    moved = (params[1:] - params[:1]).abs().amax(-1)  # (2, S)
    assert (moved > 1e-9).all()
    assert (params[0] != untold.net(x)[0]).any()
    drawn, log_prob = model.sample_with_log_prob(3, context=contexts, generator=generator())
    torch.testing.assert_close(log_prob, model.log_prob(drawn, contexts), rtol=0, atol=1e-10)
    alone = [model.log_prob(x, c[None]) for c in contexts]
    together = model.log_prob(x.expand(3, *case.spec.shape), contexts)
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-10)


def test_completion_and_mixtures_hear_the_context():
    one, contexts = CASES["made"].build(0, LABEL), context_values(LABEL, 3).repeat(40)
    mixture = OrderMixture(one, [orders.make("random", (6,), seed=i) for i in range(3)])
    x, log_prob = mixture.sample_with_log_prob(120, context=contexts, generator=generator())
    torch.testing.assert_close(log_prob, mixture.log_prob(x, contexts), rtol=0, atol=1e-10)
    # The bias of one label's own: events of the others stay as they are.
    one.net.conditioning[-1].weight[:, 1] = 80.0
    for model in (one, mixture):
        drawn = model.sample(120, context=contexts, generator=generator())
        assert (drawn[contexts == 1] == 1).all()
        assert not (drawn[contexts != 1] == 1).all()
        done = model.complete(
            x, torch.arange(6) < 2, context=contexts, num_particles=3, generator=generator()
        ).values
        assert (done[contexts == 1][:, 2:] == 1).all()
        assert not (done[contexts != 1][:, 2:] == 1).all()


def test_contexts_that_do_not_fit_are_refused():
    case = CASES["made"]
    plain, told, x = case.build(0), case.build(0, LABEL), case.events(3)
    name = "MADE with bernoulli head"
    labels = torch.tensor([0, 1, 2])
    known = torch.ones(6, dtype=torch.bool)
    for call in (
        lambda model, c: model.log_prob(x, c),
        lambda model, c: model.sample(3, context=c),
        lambda model, c: model.complete(x, known, context=c),
        lambda model, c: model.conditional_log_prob(x, c),
        lambda model, c: model.log_prob_map(x, c),
    ):
        with refuses(f"{name} takes no context: it is conditioned on nothing"):
            call(plain, labels)
        with refuses(f"{name} is conditioned on label: give one for each event"):
            call(told, None)
        with refuses("context 'label' has levels 0..2, got values in 0..3"):
            call(told, torch.tensor([0, 1, 3]))
        with refuses("context 'label' of 3 events must have shape (3,), got (2,)"):
            call(told, labels[:2])
        with refuses("context 'label' has 3 levels, given as integers, got torch.float32"):
            call(told, labels.float())
    # Training reads no values, which would wait for the device, but misses none either.
    with refuses(f"{name} takes no context: it is conditioned on nothing"):
        plain.default_objective()(x, labels)
    with refuses(f"{name} is conditioned on label: give one for each event"):
        told.default_objective()(x)
    mixture = OrderMixture(told, [told.net.order])
    with refuses(f"mixture of 1 order of {name} is conditioned on label: give one for each event"):
        mixture.sample(3)
    vector = case.build(0, VECTOR)
    with refuses("context 'features' holds NaN or infinite values"):
        vector.log_prob(x, torch.full((3, 2), math.nan))


# Temperature and generators


@over_steps
def test_temperature_0_is_one_event_and_1_is_the_model(case):
    model = case.build(0)
    cold = model.sample(16, temperature=0, generator=generator())
    # The last bit of a row of a matrix product may depend on where the row stands.
    bound = 1e-12 if case.spec.levels is None else 0
    assert ((cold.double() - cold[:1].double()).abs() <= bound).all()
    noise = noise_for(model, 16)
    plain, at_one = (
        model.sample_with_log_prob(16, noise=noise, **t) for t in ({}, {"temperature": 1})
    )
    assert torch.equal(plain[0], at_one[0])
    # Log-probabilities of tempered samples are still the model's own.
    x, log_prob = model.sample_with_log_prob(16, temperature=0.3, generator=generator())
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=1e-10)
    x, log_prob = model.sample_with_log_prob(16, temperature=0, generator=generator())
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=1e-10)


@over(lambda case: case.steps and case.spec.levels is not None and case.spec.num_dims > 1)
def test_colder_samples_are_likelier(case):
    model = case.build(0)
    mean = [
        float(model.sample_with_log_prob(300, temperature=t, generator=generator())[1].mean())
        for t in (0.3, 1.0, 3.0)
    ]
    assert mean[0] > mean[1] > mean[2]


@over_all
def test_a_generator_repeats_itself(case):
    model, x = case.build(0), case.events(8)
    nothing = torch.zeros(case.spec.shape, dtype=torch.bool)
    first, again, other = (model.sample(8, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    if case.spec.num_dims > 1:
        assert not torch.equal(first, other)
    torch.manual_seed(0)  # the global stream must not matter
    done = model.complete(x, nothing, num_particles=2, generator=generator(1)).values
    torch.manual_seed(1)
    same = model.complete(x, nothing, num_particles=2, generator=generator(1)).values
    assert torch.equal(done, same)


# The contract


@over_all
def test_values_outside_the_support_are_refused(case):
    model, x = case.build(0), case.events(4)
    if case.spec.levels is None:
        wrong = x.clone()
        wrong[3] = math.nan
        sentence = f"data '{case.spec.name}' holds NaN or infinite values"
    else:
        wrong = x.clone()
        wrong.flatten(1)[3, 0] = case.spec.levels
        sentence = f"data '{case.spec.name}' has levels 0..{case.spec.levels - 1}, got values in"
    for function in (model.log_prob, model):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            function(wrong)


@over_all
def test_forward_is_log_prob_in_either_mode(case):
    model, x = case.build(0), case.events(4)
    assert torch.equal(model(x), model.log_prob(x))
    model.train()
    found = []
    for function in (model, model.log_prob):
        torch.manual_seed(0)  # dropout
        found.append(function(x))
    assert torch.equal(*found)
    assert model.default_objective()(x).shape == (4,)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@over_all
@pytest.mark.usefixtures("two_threads")
def test_sampling_leaves_mode_threads_and_weights_alone(case):
    model, x = case.build(0), case.events(4)
    before = copy.deepcopy(model.state_dict())
    expected = model.sample(8, generator=generator())
    model.train()
    # Dropout must be off, and on again afterwards.
    assert torch.equal(model.sample(8, generator=generator()), expected)
    if case.steps:
        noise = noise_for(model, 8)
        fast, slow, settled = (
            model.sample_with_log_prob(8, noise=noise, sampler=one)[1]
            for one in ("auto", "naive", "fixed_point")
        )
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
        torch.testing.assert_close(settled, slow, rtol=0, atol=1e-10)
    model.complete(x, torch.ones(case.spec.shape, dtype=torch.bool))
    assert all(module.training for module in model.modules())
    assert torch.get_num_threads() == 2
    # Masks are multiplied, never written into weights.
    model.log_prob(x)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@over_all
def test_a_state_dict_restores_the_distribution(case):
    """Orders and masks come from the config; weights alone from the file."""
    model, other, x = case.build(0), case.build(1), case.events(8)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert torch.equal(
        other.sample(8, generator=generator()), model.sample(8, generator=generator())
    )


@over_steps
def test_log_prob_map_shares_out_the_log_prob(case):
    model, x = case.build(0), case.events(4)
    shares = model.log_prob_map(x)
    assert shares.shape == x.shape
    torch.testing.assert_close(shares.flatten(1).sum(1), model.log_prob(x), rtol=0, atol=1e-10)
    steps = shares.flatten(1)[:, model.net.order_table].sum(-1)
    torch.testing.assert_close(steps, model.conditional_log_prob(x), rtol=0, atol=1e-10)


INDEPENDENT = ("uniform", "uniform-real", "histogram", "histogram-real", "independent",
               "independent-rgb", "independent-real")  # fmt: skip
"""Cases without steps whose values say nothing about each other."""


@pytest.mark.parametrize("name", INDEPENDENT)
def test_log_prob_map_of_independent_values(name):
    case = CASES[name]
    model, x = case.build(0), case.events(4)
    shares = model.log_prob_map(x)
    assert shares.shape == x.shape
    torch.testing.assert_close(shares.flatten(1).sum(1), model.log_prob(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not case.steps and name not in INDEPENDENT]
)
def test_no_log_prob_map_where_values_share_what_they_say(name):
    case = CASES[name]
    assert case.build(0).log_prob_map(case.events(4)) is None


@over(lambda case: case.steps and not case.counted and case.spec.num_dims > 1)
def test_training_starts_at_the_marginals(case):
    """With no other weight than the output biases, the model is the data's marginals."""
    model = case.build(0)
    for weight in model.parameters():
        weight.zero_()
    x = case.events(300)
    model.initialize([x[:100], x[100:]])
    values = x.flatten(1)[:, model.net.order_table]
    expected = model.head.marginal_params(values).expand(4, -1, -1)
    if isinstance(getattr(model.net, "net", model.net), StreamNetwork):
        # No step has its own, save within a frame.
        of_frames = expected.unflatten(1, (-1, case.spec.unit_size))
        expected = of_frames.mean(1, keepdim=True).expand_as(of_frames).flatten(1, 2)
    torch.testing.assert_close(model.net(x[:4]), expected.double(), rtol=0, atol=1e-6)


# Unknown names and pairs that cannot work


class OnlyImages(MADE):
    kinds = frozenset({"image"})


class OneOrder(MADE):
    with_order = Network.with_order


def build_made(spec=BITS, **keys):
    return MADE(spec, 1, orders.make("raster", spec.shape), **{"hidden_sizes": [4]} | keys)


REFUSALS = {
    "head bernoulli needs data of 2 levels, but tiny-image has 3 levels; use head=auto, or "
    "binarize the data": lambda: heads.Bernoulli(RGB),
    "head bernoulli needs data of 2 levels, but tiny-vector has real values; use head=auto, or "
    "binarize the data": lambda: heads.Bernoulli(PLANE),
    "head categorical needs data with levels, but tiny-vector has real values; use "
    "head=gaussian_mixture": lambda: heads.Categorical(PLANE),
    "head discretized_logistic_mixture needs data with levels, but tiny-vector has real values; "
    "use head=gaussian_mixture": lambda: heads.DiscretizedLogisticMixture(PLANE),
    "head gaussian_mixture needs real values, but tiny-vector has 2 levels; use "
    "head=auto": lambda: heads.GaussianMixture(BITS),
    "num_components is 4, but head=auto takes a mixture for real values alone and tiny-vector has "
    "levels; leave it at null, or name a head": lambda: heads.auto(BITS, num_components=4),
    "mixing is 'even'; choose learned or uniform": lambda: heads.GaussianMixture(
        PLANE, mixing="even"
    ),
    "num_components is 0; it must be at least 1": lambda: heads.GaussianMixture(
        PLANE, num_components=0
    ),
    "num_components is -1; it must be at least 1": lambda: heads.DiscretizedLogisticMixture(
        RGB, num_components=-1
    ),
    "name is 'zigzag'; choose raster, reverse, columns, spiral, s_curve, hilbert, "
    "subscale or random": lambda: orders.make("zigzag", (4,)),
    "activation is 'swish'; choose relu, sigmoid, tanh or elu": lambda: build_made(
        activation="swish"
    ),
    "encoding is 'binary'; choose auto, one_hot or scaled": lambda: build_made(encoding="binary"),
    "connectivity is 'sparse'; choose even or random": lambda: build_made(connectivity="sparse"),
    "hidden_sizes is empty: that needs direct_connections=true (FVSBN)": lambda: build_made(
        hidden_sizes=[]
    ),
    "hidden_sizes is [4, 0]; each must be at least 1": lambda: build_made(hidden_sizes=[4, 0]),
    "connectivity_seed is -1; it must be from 0 to 4294967295": lambda: build_made(
        connectivity_seed=-1
    ),
    "seed is 4294967296; it must be from 0 to 4294967295": lambda: orders.make(
        "random", (4,), seed=2**32
    ),
    "num_channels is 0; it must be at least 1": lambda: LMConv(
        GREY, 1, orders.make("raster", GREY.shape), num_channels=0, dilations=[1]
    ),
    "num_blocks is -1; it must be at least 0": lambda: LMConv(
        GREY, 1, orders.make("raster", GREY.shape), num_blocks=-1, dilations=[1]
    ),
    "num_resnets is -1; it must be at least 0": lambda: PixelSNAIL(
        GREY, 1, orders.make("raster", GREY.shape), num_resnets=-1
    ),
    "4 orders called raster are asked for, but only 1 of them is different; ask for no more, or "
    "train with model.order=random": lambda: over_orders(
        CASES["made"].build(0), "raster", range(4)
    ),
    "9 orders called s_curve are asked for, but only 8 of them are different; ask for no more, or "
    "train with model.order=random": lambda: over_orders(
        CASES["lmconv"].build(0), "s_curve", range(9)
    ),
    "hidden_sizes is []; it must hold one layer of 1 unit or more": lambda: DeepNADE(
        BITS, 1, orders.make("raster", (6,)), hidden_sizes=[]
    ),
    "kernel_size is 4; it must be odd and at least 1": lambda: ConvNADE(
        GREY, 1, orders.make("raster", GREY.shape), kernel_size=4
    ),
    "num_layers is 0; it must be at least 1": lambda: ConvNADE(
        GREY, 1, orders.make("raster", GREY.shape), num_layers=0
    ),
    "model OnlyImages takes image data, but tiny-vector is vector data; "
    "use a model that takes it, such as model=made": lambda: OnlyImages(
        BITS, 1, orders.make("raster", (6,)), hidden_sizes=[4]
    ),
    "model OneOrder follows one order only; use num_orders=1": lambda: OneOrder(
        BITS, 1, orders.make("raster", (6,)), hidden_sizes=[4]
    ).with_order(orders.make("reverse", (6,))),
}


@pytest.mark.parametrize("sentence", REFUSALS, ids=lambda s: "-".join(s.split()[:3]))
def test_what_cannot_work_is_refused_in_one_sentence(sentence):
    with refuses(sentence):
        REFUSALS[sentence]()


# What runs every time


def test_every_network_and_head_runs_every_time():
    fast = [param.values[0] for param in every(CASES).args[1] if not param.marks]
    shown = [set(case.shows) for case in fast]
    assert set.union(*shown) == {each for case in CASES.values() for each in case.shows}
    for i, shows in enumerate(shown):
        assert not shows <= set().union(*shown[:i]), "a case that shows nothing first is slow"
