"""Inverse autoregressive flows against what their definition says."""

import itertools
import math

import pytest
import torch
from cases import data
from scipy import stats

from armodels.flows import InverseFlow
from armodels.networks import splines

SPACE = data("vector", 3, levels=None)


def flow(spec=SPACE, seed=0, scale=0.2, **keys) -> InverseFlow:
    """With random weights, in float64."""
    model = InverseFlow(
        spec, **{"num_layers": 2, "hidden_sizes": [8], "activation": "tanh"} | keys
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.double().parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator).double())
    return model.eval()


def noise_of(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("num_bins", [0, 1, 5])
def test_the_log_probability_of_a_draw_is_that_of_the_event(num_bins):
    model = flow(num_layers=3, num_bins=num_bins)
    x, log_prob = model.draw(noise_of(50))
    torch.testing.assert_close(model.log_prob(x), log_prob, rtol=0, atol=1e-9)
    with torch.no_grad():  # where the inverse ends early
        torch.testing.assert_close(model.log_prob(x), log_prob, rtol=0, atol=1e-9)


def by_whole_passes(model, x):
    """log p(x) with gradients, by passes each of which settles one more value."""
    z = (x - model.mean) * torch.exp(-model.log_std)
    log_prob = -model.log_std.sum()
    for net in reversed(model.nets):
        y, z = z, torch.zeros_like(z)
        for _ in range(x.shape[1] + 1):
            change = model._change(net, z)
            bent = (y - change.shift) * torch.exp(-change.log_scale)
            z, log_slope = splines.inverse(bent, change.spline)
        log_prob = log_prob - (log_slope + change.log_scale).sum(1)
    return log_prob + torch.distributions.Normal(0, 1).log_prob(z).sum(1)


@pytest.mark.parametrize("num_bins", [0, 5])
@pytest.mark.parametrize("hidden_sizes", [[], [8], [8, 7]])
def test_gradients_go_through_the_inverse(num_bins, hidden_sizes):
    """Those of weights and of events, of which some are beyond what layers hear."""
    model = flow(num_layers=3, num_bins=num_bins, hidden_sizes=hidden_sizes, scale=0.4)
    x = (6 * noise_of(40)).requires_grad_()
    of = [x, *model.parameters()]
    log_prob, expected = model.log_prob(x), by_whole_passes(model, x)
    torch.testing.assert_close(log_prob, expected, rtol=1e-9, atol=0)
    weights = noise_of(1, 40)[0]
    found = torch.autograd.grad(log_prob, of, weights)
    wanted = torch.autograd.grad(expected, of, weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    model.requires_grad_(False)
    (alone,) = torch.autograd.grad(model.log_prob(x), x, weights)
    torch.testing.assert_close(alone, found[0], rtol=1e-9, atol=1e-9)
    assert not model.log_prob(x.detach()).requires_grad


def test_no_event_is_impossible():
    """A recursion that grows by 2.7 a step would reach e^100 in the first of two layers."""
    model = InverseFlow(data("vector", 100, levels=None), num_layers=2, num_bins=0)
    with torch.no_grad():
        for net in model.nets:
            net.direct.weight.fill_(math.e)
        x = 30 * noise_of(20, 100).float()
        log_prob = model.log_prob(x)
    assert log_prob.isfinite().all()
    torch.testing.assert_close(
        log_prob.double(), model.double().log_prob(x.double()).detach(), rtol=1e-3, atol=0
    )


def test_the_log_probability_is_by_the_jacobian():
    """log p(x) = log p(z) - log |det dx/dz|, the Jacobian by automatic differentiation."""
    model = flow(num_layers=3)
    for z in noise_of(5, seed=1):
        jacobian = torch.autograd.functional.jacobian(lambda one: model.draw(one[None])[0][0], z)
        normal = torch.distributions.Normal(0, 1).log_prob(z).sum()
        expected = normal - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(model.draw(z[None])[1][0], expected, rtol=0, atol=1e-9)


def test_a_layer_hears_the_noise_before_it_alone_and_the_next_turns_round():
    model = flow(num_layers=1)
    jacobian = torch.autograd.functional.jacobian(
        lambda one: model.draw(one[None])[0][0], noise_of(1)[0]
    )
    assert torch.equal(jacobian, jacobian.tril())
    assert (jacobian.tril() != 0).sum() == 6
    assert [net.order.name for net in flow(num_layers=3).nets] == ["raster", "reverse", "raster"]


def test_splines_and_their_inverse():
    """Slopes by automatic differentiation; nothing changes beyond the bound, nor by zeros."""
    generator = torch.Generator().manual_seed(0)
    z = torch.linspace(-5, 5, 41, dtype=torch.double)[:, None].expand(-1, 3).clone()
    params = 2 * torch.randn(41, 3, splines.num_params(5), generator=generator).double()
    y, log_slope = splines.forward(z.requires_grad_(), params)
    slope = torch.autograd.grad(y.sum(), z)[0]
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
    back, same_slope = splines.inverse(y, params)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(same_slope, log_slope, rtol=0, atol=1e-8)
    outside = z.abs() >= splines.BOUND
    assert torch.equal(y[outside], z[outside])
    assert ((y - z)[~outside].abs() > 1e-3).double().mean() > 0.9
    unchanged, log_slope = splines.forward(z, 0 * params)
    torch.testing.assert_close(unchanged, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_slope, 0 * z, rtol=0, atol=1e-12)


def test_a_spline_by_hand():
    """Two bins, the first a quarter of the width and half of the height, slopes 1, 3 and 1."""
    quarter = math.log(1 / 3)  # before a share of LEAST is set aside for each bin
    slope = math.log(math.expm1(3 - splines.LEAST)) - splines.ONE
    params = torch.tensor([quarter, 0.0, 0.0, 0.0, slope], dtype=torch.double)
    first = splines.LEAST + (1 - 2 * splines.LEAST) / 4  # of the width of 8
    knot = -4 + 8 * first
    at = torch.tensor([-4.0, knot, 4.0, (-4 + knot) / 2]).double()
    y, log_slope = splines.forward(at, params.expand(4, 5))
    mean = 4 / (8 * first)
    bent = mean + (1 + 3 - 2 * mean) / 4
    middle = -4 + 4 * (mean / 4 + 1 / 4) / bent
    expected = torch.tensor([-4, 0, 4, middle], dtype=torch.double)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    assert abs(float(log_slope[1]) - math.log(3)) < 1e-6


@pytest.mark.parametrize("num_dims", [1, 2])
def test_the_density_integrates_to_one(num_dims):
    model = flow(data("vector", num_dims, levels=None), scale=0.1)
    grid = torch.linspace(-9, 9, 301 if num_dims == 2 else 4001, dtype=torch.double)
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(*[grid] * num_dims).view(-1, num_dims)).exp()
    # Knots of splines are kinks of the density, where quadrature is as fine as its grid.
    assert abs(float(total.sum()) * float(grid[1] - grid[0]) ** num_dims - 1) < 1e-3


def test_samples_follow_the_density():
    """Chi-square over cells of the plane, the probability of each by quadrature."""
    model = flow(data("vector", 2, levels=None), scale=0.2)
    n, per_cell = 4000, 20
    x, _ = model.sample_with_log_prob(n, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([-1.5, -0.75, 0.0, 0.75, 1.5], dtype=torch.double)
    cells = torch.stack([torch.bucketize(x[:, i].contiguous(), edges) for i in range(2)])
    counts, expected = [], []
    inner = [(edges[i], edges[i + 1]) for i in range(4)]
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(inner, 1), enumerate(inner, 1)):
        middles = (torch.arange(per_cell, dtype=torch.double) + 0.5) / per_cell
        grid = torch.cartesian_prod(a + (b - a) * middles, c + (d - c) * middles)
        with torch.no_grad():
            mean = model.log_prob(grid).exp().mean()
        expected.append(float(mean * (b - a) * (d - c)) * n)
        counts.append(int(((cells[0] == i) & (cells[1] == j)).sum()))
    large = [i for i, number in enumerate(expected) if number >= 10]
    counts, expected = [counts[i] for i in large], [expected[i] for i in large]
    assert len(large) > 5
    counts.append(n - sum(counts))
    expected.append(n - sum(expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert stats.chisquare([*counts[1:], counts[0]], expected).pvalue < 1e-6  # the test can fail


@pytest.mark.parametrize("num_layers", [1, 2])  # raster last, reverse last
def test_training_starts_at_mean_and_covariance(num_layers):
    model = InverseFlow(SPACE, num_layers=num_layers).double()
    factor = torch.tensor([[2.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.1, -0.2, 0.05]]).double()
    x = noise_of(500) @ factor.mT + torch.tensor([3.0, -1.0, 0.0])
    model.initialize([x[:300], x[300:]])
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.std(0), x.std(0), rtol=0.1, atol=0)
    torch.testing.assert_close(drawn.mT.corrcoef(), x.mT.corrcoef(), rtol=0, atol=0.1)


PLANE = data("vector", 2, levels=None)
GRID = torch.linspace(-40, 40, 20_001, dtype=torch.double)
"""For the second value: some conditionals have spikes far out."""


def along(model, first, temperature=1.0):
    """log p(first, second) on the grid, with the log of its step: (20,001,)."""
    with torch.no_grad():
        x = torch.stack([torch.full_like(GRID, first), GRID], 1)
        log_prob = model._tempered(x, temperature)
    return log_prob + (GRID[1] - GRID[0]).log()


def test_the_temperature_is_the_variance_of_the_noise():
    model, z = flow(), noise_of(20)
    x, log_prob = model.draw(z / 2)
    normal = torch.distributions.Normal(0, 1).log_prob
    expected = log_prob - normal(z / 2).sum(1) + normal(z).sum(1) + 3 * math.log(2)
    with torch.no_grad():
        torch.testing.assert_close(model._tempered(x, 0.25), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_particles_follow_the_conditional(temperature):
    """Of two values the second given the first: chi-square against the density on a grid."""
    model = flow(PLANE, scale=0.2)
    x = torch.tensor([[0.3, 0.0]], dtype=torch.double).expand(100, 2)
    known = torch.tensor([True, False])
    options = {"num_particles": 100, "generator": torch.Generator().manual_seed(0)}
    done = model.complete(x, known, temperature=temperature, **options)
    assert done.method == "likelihood weighting"
    assert torch.equal(done.values[:, 0], x[:, 0])
    assert float(done.effective_sample_size.min()) > 5
    cdf = along(model, 0.3, temperature).softmax(0).cumsum(0)
    edges = GRID[torch.searchsorted(cdf, torch.arange(1, 4) / 4)]
    cells = torch.bucketize(done.values[:, 1].contiguous(), edges)
    counts = torch.bincount(cells, minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert stats.chisquare(counts.numpy() + [12, -12] * 2).pvalue < 1e-3  # the test can fail


def test_temperature_0_is_no_completion():
    x, known = torch.zeros(2, 3), torch.tensor([True, False, False])
    with pytest.raises(ValueError, match="choose a temperature above 0"):
        flow().complete(x, known, temperature=0.0)


def test_a_query_estimates_the_integral():
    """Of the first of two values, against the density on a grid, within its stated error.

    Of 1.5 the other value is within 0.01 of 8.1, where the flow itself is within 2 of 0.
    """
    model = flow(PLANE, scale=0.3)
    x = torch.tensor([[0.3, 0.0], [1.0, -1.0], [1.5, 2.0], [-2.0, 0.4]], dtype=torch.double)
    asked = torch.tensor([True, False])

    def asks(*masks):
        generator = torch.Generator().manual_seed(0)
        return model.log_prob_of(x, *masks, num_particles=2000, generator=generator)

    found = asks(asked)
    assert found.method == "likelihood weighting"
    for row, log_prob, error in zip(x, found.log_prob, found.standard_error, strict=True):
        assert 0 < float(error) < 0.2
        assert abs(float(log_prob) - float(along(model, row[0]).logsumexp(0))) < 4 * float(error)
    second = asks(~asked, asked)
    whole = asks(torch.tensor([True, True]))
    assert (whole.method, float(whole.standard_error.sum())) == ("exact", 0)
    torch.testing.assert_close(
        second.log_prob + found.log_prob, whole.log_prob, rtol=0, atol=1e-9
    )  # the same noise weighs what is known


def test_particles_of_a_flow_say_where_too_few_of_them_count():
    """Of a flow that is normal, so that each marginal is known, in 4 and in 11 dimensions.

    In 11, correlated, stated errors were up to ten times too small, and nothing said so.
    """
    shares = {}
    for size, correlated in ((4, 0.9), (11, 0.97)):
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(size, size, generator=generator, dtype=torch.double)
        covariance = torch.corrcoef(root) * correlated + (1 - correlated) * torch.eye(size)
        noise = torch.randn(20_000, size, generator=generator, dtype=torch.double)
        spec = data("vector", size, levels=None)
        model = InverseFlow(spec, num_layers=2, hidden_sizes=[4], num_bins=0).double().eval()
        model.initialize([noise @ torch.linalg.cholesky(covariance).mT])
        x = model.sample(40, generator=generator)
        last = torch.arange(size) == size - 1
        with torch.no_grad():
            many = model.sample(200_000, generator=generator)[:, -1].double()
            truth = torch.distributions.Normal(many.mean(), many.std()).log_prob(x[:, -1])
            found = model.log_prob_of(x, last, num_particles=200, generator=generator)
        off = (found.log_prob - truth).abs() / found.standard_error
        shares[size] = float(found.doubtful.double().mean())
        if not found.doubtful.all():
            assert off[~found.doubtful].max() < 4
    assert shares == {4: 0.0, 11: 1.0}


def test_levels_are_refused():
    with pytest.raises(ValueError, match="InverseFlow needs real values, but tiny-vector has 5"):
        InverseFlow(data("vector", 4, levels=5))
