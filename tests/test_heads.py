"""Every head alone: sums, independent formulas, samplers, marginals, extremes."""

import math
import re

import pytest
import torch
from cases import BITS, PLANE, RGB, data, every_event
from frequencies import p_value
from scipy import stats
from torch import distributions

from armodels import heads

GREY_256 = data("image", 1, 1, 1, levels=256)
RGB_256 = data("image", 3, 1, 1, levels=256)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random_params(head, n=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*n, head.num_params, generator=generator, dtype=torch.double)


def uniforms(n, head, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, head.num_noise, generator=generator, dtype=torch.double)


# Sums to one, both edges included


@pytest.mark.parametrize("kind", [heads.Categorical, heads.DiscretizedLogisticMixture])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_256_levels_sum_to_one(kind, scale):
    head, values = kind(GREY_256), torch.arange(256)[:, None]
    for seed in range(20):
        params = (scale * random_params(head, seed=seed)).expand(256, -1)
        total = head.log_prob(params, values).logsumexp(0)
        assert abs(float(total)) < 1e-10


def test_logistics_far_outside_the_range_fall_on_its_edges():
    head = heads.DiscretizedLogisticMixture(GREY_256, num_components=1)
    values = torch.arange(256)[:, None]
    for mean, edge in ((-30.0, 0), (30.0, 255)):
        log_probs = head.log_prob(torch.tensor([0.0, mean, -3.0]).double(), values)
        assert abs(float(log_probs.logsumexp(0))) < 1e-10
        assert float(log_probs[edge].exp()) > 1 - 1e-10


@pytest.mark.parametrize("first", [0, 1, 77, 128, 254, 255])
def test_each_channel_sums_to_one_over_256_levels(first):
    """Sum over the last channel of (R, G, B): p(R, G) in closed form from the first two."""
    head = heads.DiscretizedLogisticMixture(RGB_256, num_components=3)
    params = random_params(head)
    red_green = torch.tensor([first, 255 - first])
    values = torch.cat([red_green.expand(256, 2), torch.arange(256)[:, None]], 1)
    parts = params.unflatten(-1, (-1, 3))  # logits, 3 means, 3 log-scales, 3 coefficients
    two = heads.DiscretizedLogisticMixture(data("image", 2, 1, 1, levels=256), num_components=3)
    pair = torch.cat([parts[0], parts[1], parts[2], parts[4], parts[5], parts[7]])
    expected = two.log_prob(pair, red_green)
    total = head.log_prob(params, values).logsumexp(0)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)


# Independent formulas


def test_bernoulli_is_torch_bernoulli():
    head, params = heads.Bernoulli(BITS), 4 * random_params(heads.Bernoulli(BITS), (50,))
    for value in (0, 1):
        values = torch.full((50, 1), value, dtype=torch.uint8)
        expected = distributions.Bernoulli(logits=params[:, 0]).log_prob(values[:, 0].double())
        torch.testing.assert_close(head.log_prob(params, values), expected, rtol=0, atol=1e-12)


def test_categorical_is_torch_categorical():
    head = heads.Categorical(RGB)
    params, values = random_params(head, (50,)), torch.arange(50)[:, None] % 3
    expected = distributions.Categorical(logits=params).log_prob(values[:, 0])
    torch.testing.assert_close(head.log_prob(params, values), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixing", ["learned", "uniform"])
def test_gaussian_mixture_is_torch_mixture(mixing):
    head = heads.GaussianMixture(PLANE, num_components=4, mixing=mixing)
    params = random_params(head, (50,))
    means, log_scales = params[:, :4], params[:, 4:8]
    logits = params[:, 8:] if mixing == "learned" else torch.zeros(50, 4).double()
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits),
        distributions.Normal(means, log_scales.exp()),
    )
    values = 3 * torch.randn(50, 1, generator=torch.Generator().manual_seed(1)).double()
    expected = mixture.log_prob(values[:, 0])
    torch.testing.assert_close(head.log_prob(params, values), expected, rtol=0, atol=1e-12)
    assert params.shape[1] == (12 if mixing == "learned" else 8)


def logistic_cdf(x, mean, log_scale):
    return 1 / (1 + math.exp(-(x - mean) / math.exp(log_scale)))


def logistics_by_hand(params, values, levels, channels, num_components):
    """p(pixel) from differences of logistic CDFs, on the [-1, 1] scale, value by value."""
    parts = params.view(-1, num_components).tolist()
    logits, means = parts[0], parts[1 : 1 + channels]
    log_scales, coefficients = parts[1 + channels : 1 + 2 * channels], parts[1 + 2 * channels :]
    weights = [math.exp(v) / sum(map(math.exp, logits)) for v in logits]
    x = [2 * v / (levels - 1) - 1 for v in values]
    half, total = 1 / (levels - 1), 0.0
    for m in range(num_components):
        product, used = weights[m], 0
        for c in range(channels):
            mean = means[c][m]
            for earlier in range(c):  # coefficients: G of R; B of R, B of G
                mean += math.tanh(coefficients[used][m]) * x[earlier]
                used += 1
            above = logistic_cdf(x[c] + half, mean, log_scales[c][m])
            below = logistic_cdf(x[c] - half, mean, log_scales[c][m])
            upper, lower = values[c] == levels - 1, values[c] == 0
            product *= (1 if upper else above) - (0 if lower else below)
        total += product
    return math.log(total)


@pytest.mark.parametrize(("channels", "levels"), [(1, 5), (2, 4), (3, 4)])
def test_discretized_logistics_by_hand(channels, levels):
    spec = data("image", channels, 1, 1, levels=levels)
    head = heads.DiscretizedLogisticMixture(spec, num_components=2)
    params, values = random_params(head, seed=3), every_event(spec).flatten(1)
    log_probs = head.log_prob(params, values)
    expected = [logistics_by_hand(params, v, levels, channels, 2) for v in values.tolist()]
    torch.testing.assert_close(
        log_probs, torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-10
    )
    assert abs(float(log_probs.logsumexp(0))) < 1e-10


def test_colours_are_coupled_and_one_way():
    """R moves G, R and G move B, and no coefficient moves the marginal of R."""
    spec = data("image", 3, 1, 1, levels=4)
    head = heads.DiscretizedLogisticMixture(spec, num_components=1)

    def table(**coefficients):
        params = torch.zeros(head.num_params, dtype=torch.double)
        params[4:7] = -2.0  # sharp scales
        for name, value in coefficients.items():
            params[7 + ["g_of_r", "b_of_r", "b_of_g"].index(name)] = value
        return head.log_prob(params, every_event(spec).flatten(1)).exp().view(4, 4, 4)

    free, coupled = table(), table(g_of_r=2.0)
    torch.testing.assert_close(coupled.sum((1, 2)), free.sum((1, 2)), rtol=0, atol=1e-12)
    levels = torch.arange(4.0).double()

    def mean_of(values, dims):  # of the last axis, for each level of the first
        pair = values.sum(dims)
        return (pair * levels).sum(1) / pair.sum(1)

    assert (mean_of(coupled, 2).diff() > 0.3).all()
    assert mean_of(free, 2).diff().abs().max() < 1e-12
    assert mean_of(coupled, 1).diff().abs().max() < 1e-12  # B does not follow R by itself
    assert (mean_of(table(b_of_r=2.0), 1).diff() > 0.3).all()
    assert (mean_of(table(b_of_g=-2.0), 0).diff() < -0.3).all()


# Probabilities of levels


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        (heads.Bernoulli, 2),
        *((heads.Categorical, levels) for levels in (2, 3, 256)),
        *((heads.DiscretizedLogisticMixture, levels) for levels in (2, 3, 256)),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_every_level_has_its_log_prob(kind, levels, scale):
    head = kind(data("image", 1, 2, 2, levels=levels))
    params = scale * random_params(head, (3, 4))
    found = head.level_log_probs(params, torch.empty(3, 4, 0, dtype=torch.uint8))
    each = [head.log_prob(params, torch.full((3, 4, 1), level)) for level in range(levels)]
    torch.testing.assert_close(found, torch.stack(each, -1), rtol=1e-12, atol=1e-15)
    assert found.logsumexp(-1).abs().max() < 1e-12


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("log_scale", [0.0, -7.0])
def test_levels_of_channels_multiply_to_the_event(levels, channels, log_scale):
    """The chain rule, with values inside and at both edges."""
    head = heads.DiscretizedLogisticMixture(data("image", channels, 1, 2, levels=levels))
    params = random_params(head, (50, 2))
    params.unflatten(-1, (-1, 10))[..., 1 + channels : 1 + 2 * channels, :] += log_scale
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(levels, (50, 2, channels), generator=generator).to(torch.uint8)
    values[:10], values[10:20], values[20:30, :, 0] = 0, levels - 1, 0
    total = torch.zeros(50, 2, dtype=torch.double)
    for k in range(channels):
        found = head.level_log_probs(params, values[..., :k])
        assert found.shape == (50, 2, levels)
        assert found.logsumexp(-1).abs().max() < 1e-12
        total += found.gather(-1, values[..., k : k + 1].long()).squeeze(-1)
    torch.testing.assert_close(total, head.log_prob(params, values), rtol=1e-12, atol=0)


def test_levels_of_a_channel_are_conditionals_of_the_enumerated_pixel():
    spec = data("image", 3, 1, 1, levels=4)
    head = heads.DiscretizedLogisticMixture(spec, num_components=3)
    params = random_params(head, seed=4)
    table = head.log_prob(params, every_event(spec).flatten(1)).view(4, 4, 4)
    red_green = table.logsumexp(2)
    red = red_green.logsumexp(1)
    for r in range(4):
        for g in range(4):
            blue = head.level_log_probs(params, torch.tensor([r, g]))
            torch.testing.assert_close(blue, table[r, g] - red_green[r, g], rtol=0, atol=1e-12)
        green = head.level_log_probs(params, torch.tensor([r]))
        torch.testing.assert_close(green, red_green[r] - red[r], rtol=0, atol=1e-12)
    nothing = torch.empty(0, dtype=torch.long)
    torch.testing.assert_close(head.level_log_probs(params, nothing), red, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "channels"),
    [(heads.Bernoulli, 1), (heads.Categorical, 1), (heads.DiscretizedLogisticMixture, 3)],
)
def test_all_values_of_a_step_leave_no_level_in_question(kind, channels):
    head = kind(data("image", channels, 1, 2, levels=2))
    for k in (channels, channels + 1):
        sentence = (
            f"head {head.family} has {channels} values a step, so at most {channels - 1} are "
            f"earlier, but got earlier values of shape (4, {k})"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            head.level_log_probs(random_params(head, (4,)), torch.zeros(4, k, dtype=torch.long))


def levels_of_pixels(head, params, levels):
    """(L^3,) nats of every pixel, from the levels of a channel after the other."""
    red = head.level_log_probs(params, torch.empty(0, dtype=torch.long))
    grid = torch.cartesian_prod(*[torch.arange(levels)] * 2)
    green = head.level_log_probs(params.expand(levels, -1), torch.arange(levels)[:, None])
    blue = head.level_log_probs(params.expand(levels**2, -1), grid)
    return (red[:, None, None] + green[:, :, None] + blue.view([levels] * 3)).flatten()


def test_samples_follow_the_levels():
    """Pixels of the joint head, and single values of the others, by chi-squared."""
    head = heads.DiscretizedLogisticMixture(data("image", 3, 1, 1, levels=4), num_components=2)
    for seed in range(3):
        params = random_params(head, seed=seed)
        drawn = head.sample(params.expand(4000, -1), uniforms(4000, head, seed)).long()
        index = (drawn * torch.tensor([16, 4, 1])).sum(1)
        assert p_value(index, levels_of_pixels(head, params, 4)) > 1e-3
    for head in (heads.Bernoulli(BITS), heads.Categorical(GREY_256)):
        params = random_params(head)
        drawn = head.sample(params.expand(20_000, -1), uniforms(20_000, head))[:, 0].long()
        found = head.level_log_probs(params, torch.empty(0, dtype=torch.long))
        assert p_value(drawn, found) > 1e-3


@pytest.mark.parametrize("kind", [heads.Bernoulli, heads.Categorical])
def test_levels_of_extreme_logits_are_normalized(kind):
    head = kind(BITS if kind is heads.Bernoulli else GREY_256)
    for logit in (-1e30, -1e3, 1e3, 1e30):
        params = torch.zeros(head.num_params)
        params[0] = logit
        found = head.level_log_probs(params, torch.empty(0, dtype=torch.long))
        assert found.isfinite().all()
        assert abs(float(found.logsumexp(-1))) < 1e-6


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-5), (torch.float64, 1e-12)])
def test_levels_of_extreme_logistics_are_normalized(dtype, most):
    """Scales of e^-1000 to e^1000, means inside, at the edges and far outside."""
    head = heads.DiscretizedLogisticMixture(RGB_256, num_components=1)
    log_scales = torch.tensor([-1e3, -20, -7, -5, 0, 20, 88, 1e3])
    means = torch.cat([torch.linspace(-1.1, 1.1, 45), torch.tensor([-1e30, -50.0, 50.0, 1e30])])
    mean, log_scale = torch.cartesian_prod(means, log_scales).to(dtype).T[..., None]
    zero, coefficient = torch.zeros_like(mean), torch.full_like(mean, 0.6)
    params = torch.cat([zero, *[mean] * 3, *[log_scale] * 3, *[coefficient] * 3], 1)
    for k in range(3):
        for level in (0, 100, 255):
            found = head.level_log_probs(params, torch.full((len(params), k), level))
            assert found.dtype == dtype
            assert found.isfinite().all()
            assert found.logsumexp(-1).abs().max() < most


@pytest.mark.parametrize(
    "kind", [heads.Bernoulli, heads.Categorical, heads.DiscretizedLogisticMixture]
)
def test_levels_of_half_precision_are_computed_in_float32(kind):
    head = kind(BITS if kind is heads.Bernoulli else GREY_256)
    nothing = torch.empty(20, 0, dtype=torch.uint8)
    for dtype in (torch.bfloat16, torch.float16):
        params = random_params(head, (20,)).to(dtype)
        found = head.level_log_probs(params, nothing)
        assert torch.equal(found, head.level_log_probs(params.float(), nothing))


@pytest.mark.parametrize(
    "kind", [heads.Bernoulli, heads.Categorical, heads.DiscretizedLogisticMixture]
)
def test_levels_are_of_parameters_and_earlier_values_that_can_be(kind):
    head, nothing = kind(data("image", 3, 1, 2, levels=2)), torch.zeros(4, 0)
    params = random_params(head, (4,))
    for wrong in (params.repeat(1, 2), params[:, :-1], params[0, 0]):
        sentence = f"head {head.family} reads {head.num_params} parameters a step, (..., P), but"
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            head.level_log_probs(wrong, nothing)
    if kind is not heads.DiscretizedLogisticMixture:
        return
    for wrong in (-1, 2, 999):
        with pytest.raises(ValueError, match="^earlier values must be levels from 0 to 1$"):
            head.level_log_probs(params, torch.tensor([[0, 1], [1, 1], [0, wrong], [0, 0]]))
    with pytest.raises(
        ValueError, match=r"shape \(3, 1\) do not stand beside .* shape \(4, 100\)"
    ):
        head.level_log_probs(params, torch.zeros(3, 1))


def test_real_values_have_no_levels():
    head = heads.GaussianMixture(PLANE)
    with pytest.raises(ValueError, match="gaussian_mixture has no level_log_probs: real values"):
        head.level_log_probs(random_params(head), torch.empty(0))


# Samplers


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_noise_quantiles_become_levels_in_proportion(temperature):
    noise = (torch.arange(10_000).double()[:, None] + 0.5) / 10_000
    head = heads.Categorical(RGB)
    params = random_params(head)
    counts = head.sample(params.expand(10_000, 3), noise, temperature)[:, 0].long().bincount()
    expected = 10_000 * (params / temperature).softmax(0)
    assert (counts - expected).abs().max() <= 1
    head = heads.Bernoulli(BITS)
    logit = torch.tensor([1.3], dtype=torch.double)
    ones = head.sample(logit.expand(10_000, 1), noise, temperature).sum()
    assert abs(float(ones - 10_000 * (logit / temperature).sigmoid())) <= 1


def test_discretized_logistic_samples_follow_their_probabilities():
    spec = data("image", 3, 1, 1, levels=4)
    head = heads.DiscretizedLogisticMixture(spec, num_components=2)
    every = every_event(spec).flatten(1)
    for seed in range(3):
        params = random_params(head, seed=seed)
        drawn = head.sample(params.expand(4000, -1), uniforms(4000, head, seed))
        assert drawn.dtype == spec.dtype
        spec.check(drawn.view(-1, 3, 1, 1))
        index = (drawn.long() * torch.tensor([16, 4, 1])).sum(1)
        assert p_value(index, head.log_prob(params, every)) > 1e-3


@pytest.mark.parametrize("mixing", ["learned", "uniform"])
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_gaussian_mixture_samples_follow_their_density(mixing, temperature):
    head = heads.GaussianMixture(PLANE, num_components=3, mixing=mixing)
    params = random_params(head, seed=2)
    drawn = head.sample(params.expand(4000, -1), uniforms(4000, head), temperature)[:, 0]
    means, scales = params[:3].numpy(), params[3:6].exp().numpy() * math.sqrt(temperature)
    logits = params[6:] if mixing == "learned" else torch.zeros(3, dtype=torch.double)
    weights = (logits / temperature).softmax(0).numpy()

    def cdf(x):
        return (weights * stats.norm.cdf((x[:, None] - means) / scales)).sum(1)

    assert stats.kstest(drawn.numpy(), cdf).pvalue > 1e-3


def test_temperature_0_is_the_mode():
    noise = uniforms(50, heads.Categorical(RGB))
    params = random_params(heads.Categorical(RGB), (50,))
    drawn = heads.Categorical(RGB).sample(params, noise, 0.0)
    assert torch.equal(drawn[:, 0].long(), params.argmax(1))
    logit = params[:, :1]
    assert torch.equal(heads.Bernoulli(BITS).sample(logit, noise, 0.0), (logit > 0).byte())
    head = heads.GaussianMixture(PLANE, num_components=2)
    params = torch.tensor([1.5, -3.0, 0.0, 0.0, 0.2, 0.1]).double().expand(50, 6)
    assert (head.sample(params, uniforms(50, head), 0.0) == 1.5).all()
    head = heads.DiscretizedLogisticMixture(GREY_256, num_components=2)
    params = torch.tensor([0.1, 0.2, -1.0, 0.5, 0.0, 0.0]).double().expand(50, 6)
    assert (head.sample(params, uniforms(50, head), 0.0) == round(1.5 * 127.5)).all()


def test_samplers_stand_the_ends_of_the_noise():
    for spec, kind in (
        (BITS, heads.Bernoulli),
        (GREY_256, heads.Categorical),
        (GREY_256, heads.DiscretizedLogisticMixture),
        (PLANE, heads.GaussianMixture),
    ):
        head = kind(spec)
        params = random_params(head, (2,))
        ends = torch.tensor([[2.0**-54], [1 - 2.0**-53]], dtype=torch.double)
        for dtype in (torch.float32, torch.float64):
            drawn = head.sample(params.to(dtype), ends.expand(2, head.num_noise))
            if spec.levels is None:
                assert torch.isfinite(drawn).all()
            else:
                assert int(drawn.max()) < spec.levels


# Where training starts


def test_marginals_of_levels_are_the_counts():
    values = torch.tensor([[0], [2], [2], [2]]).view(4, 1, 1)
    probs = heads.Categorical(RGB).marginal_params(values).softmax(1)
    expected = torch.tensor([[1 + 1 / 3, 1 / 3, 3 + 1 / 3]], dtype=torch.double) / 5
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-12)
    # More rows than are counted at once, and more steps than one.
    values = torch.randint(3, (2500, 4, 1), generator=torch.Generator().manual_seed(0))
    params = heads.Categorical(RGB).marginal_params(values.to(torch.uint8))
    counts = torch.stack([(values[..., 0] == level).sum(0) for level in range(3)], 1)
    torch.testing.assert_close(params, ((counts + 1 / 3) / 2501).double().log())
    bits = torch.tensor([0, 1, 1, 1]).view(4, 1, 1)
    probs = heads.Bernoulli(BITS).marginal_params(bits).sigmoid()
    torch.testing.assert_close(probs, torch.full_like(probs, 4 / 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixing", ["learned", "uniform"])
def test_marginals_of_real_values_come_near_their_density(mixing):
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(4000, 2, 1, generator=generator).double()
    values = columns * torch.tensor([[0.1], [7.0]]) + torch.tensor([[5.0], [-2.0]])
    head = heads.GaussianMixture(PLANE, num_components=5, mixing=mixing)
    params = head.marginal_params(values)
    assert params.shape == (2, head.num_params)
    nats = -head.log_prob(params, values).mean(0)
    entropy = torch.tensor([0.1, 7.0]).log() + 0.5 * math.log(2 * math.pi * math.e)
    assert (nats - entropy).abs().max() < 0.1


def test_marginals_of_pixels_come_near_their_frequencies():
    generator = torch.Generator().manual_seed(0)
    logistic = torch.rand(4000, 2, 3, generator=generator).double().logit()
    centre = torch.tensor([[60.0, 128.0, 200.0], [90.0, 90.0, 90.0]])
    scale = torch.tensor([[4.0, 10.0, 6.0], [2.0, 3.0, 20.0]])
    values = (centre + scale * logistic).round().clamp(0, 255).to(torch.uint8)
    params = heads.DiscretizedLogisticMixture(RGB_256, num_components=3).marginal_params(values)
    logits, means, log_scales, coefficients = params.unflatten(1, (-1, 3)).split([1, 3, 3, 3], 1)
    assert not logits.any()
    assert not coefficients.any()
    one = heads.DiscretizedLogisticMixture(GREY_256, num_components=3)
    for c in range(3):
        alone = torch.cat([logits[:, 0], means[:, c], log_scales[:, c]], 1)
        nats = -one.log_prob(alone.expand(4000, -1, -1), values[..., c : c + 1]).mean(0)
        entropy = scale[:, c].log() + 2  # of a logistic
        assert (nats - entropy).abs().max() < 0.15


@pytest.mark.parametrize("kind", [heads.GaussianMixture, heads.DiscretizedLogisticMixture])
def test_marginals_of_a_constant_are_finite(kind):
    spec = PLANE if kind is heads.GaussianMixture else GREY_256
    values = torch.zeros(10, 2, 1, dtype=spec.dtype)
    head = kind(spec)
    assert torch.isfinite(head.log_prob(head.marginal_params(values), values)).all()


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logistics_stay_finite(dtype):
    """Scales of e^-1000 to e^1000, means inside and far outside, values at both edges."""
    head = heads.DiscretizedLogisticMixture(GREY_256, num_components=1)
    log_scales = torch.cat([torch.linspace(-20, 20, 21), torch.tensor([-1e3, -88, 88, 1e3])])
    grid = torch.cartesian_prod(torch.zeros(1), torch.linspace(-50, 50, 11), log_scales).to(dtype)
    with torch.enable_grad():
        for level in (0, 1, 128, 254, 255):
            params = grid.clone().requires_grad_()
            log_probs = head.log_prob(params, torch.full((len(grid), 1), level))
            assert (log_probs <= 1e-6).all()
            assert torch.isfinite(log_probs).all()
            log_probs.sum().backward()
            assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_gaussians_stay_finite(dtype):
    head = heads.GaussianMixture(PLANE, num_components=2)
    grid = torch.cartesian_prod(
        *[torch.linspace(-20, 20, 3)] * 2,
        *[torch.linspace(-20, 20, 5)] * 2,
        *[torch.linspace(-20, 20, 3)] * 2,
    ).to(dtype)
    with torch.enable_grad():
        for value in (-100.0, 0.0, 3.0):
            params = grid.clone().requires_grad_()
            log_probs = head.log_prob(params, torch.full((len(grid), 1), value, dtype=dtype))
            assert torch.isfinite(log_probs).all()
            log_probs.sum().backward()
            assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_scale", [-1e30, -1e3, 88.0, 1e3, 1e30])
def test_draws_of_extreme_gaussians_are_finite_and_have_a_log_prob(log_scale, dtype):
    """e^88 is about the largest number of single precision, and its square is none."""
    head = heads.GaussianMixture(PLANE, num_components=1)
    noise = torch.rand(100, head.num_noise, generator=torch.Generator().manual_seed(0))
    params = torch.tensor([0.0, log_scale, 0.0], dtype=dtype).expand(100, -1)
    drawn = head.sample(params, noise.double())
    assert drawn.isfinite().all()
    assert head.log_prob(params, drawn).isfinite().all()
    # The ceiling is the scale that is drawn from and scored with.
    bound = heads.GaussianMixture(PLANE, num_components=1, max_log_scale=1.0)
    above, at = (torch.tensor([0.0, v, 0.0], dtype=dtype).expand(100, -1) for v in (50.0, 1.0))
    assert torch.equal(bound.sample(above, noise.double()), bound.sample(at, noise.double()))
    assert torch.equal(bound.log_prob(above, drawn), bound.log_prob(at, drawn))


def test_a_floor_above_the_ceiling_is_refused():
    with pytest.raises(ValueError, match=r"min_log_scale is 2.0 and max_log_scale 1.0; the floor"):
        heads.GaussianMixture(PLANE, min_log_scale=2.0, max_log_scale=1.0)


def test_extreme_logits_stay_finite():
    with torch.enable_grad():
        for head, size in ((heads.Bernoulli(BITS), 1), (heads.Categorical(RGB), 3)):
            for sign in (-1e30, 1e30):
                params = torch.zeros(1, size)
                params[0, 0] = sign
                params.requires_grad_()
                for value in (0, 1):
                    log_prob = head.log_prob(params, torch.tensor([[value]]))
                    assert torch.isfinite(log_prob).all()
                    (grad,) = torch.autograd.grad(log_prob.sum(), params)
                    assert torch.isfinite(grad).all()


def test_density_of_repeated_values_is_bounded():
    head = heads.GaussianMixture(PLANE, num_components=1, min_log_scale=-3.0)
    params = torch.tensor([0.0, -50.0, 0.0]).double()
    peak = float(head.log_prob(params, torch.zeros(1).double()))
    assert abs(peak - (3 - 0.5 * math.log(2 * math.pi))) < 1e-12


def test_auto_chooses_by_the_data():
    assert heads.auto(BITS).family == "bernoulli"
    assert heads.auto(RGB).family == "categorical"
    assert heads.auto(PLANE).family == "gaussian_mixture"
    assert heads.auto(PLANE, num_components=4).num_params == 12
