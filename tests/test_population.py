"""Populations of particles against integrals in closed form."""

import math

import torch
from scipy import stats

from armodels.density import population

MEAN, DEVIATION = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([2.0, 0.5, 1.0]).double()


def start(centres=8):
    noise = torch.randn(centres, 3, generator=torch.Generator().manual_seed(5), dtype=torch.double)
    return population.Place(MEAN, DEVIATION, MEAN + DEVIATION * noise)


def searched(log_density, known, n=1000, events=1, seed=0, x=None):
    known = torch.tensor(known).expand(events, 3)
    x = torch.zeros(events, 3, dtype=torch.double) if x is None else x
    generator = torch.Generator().manual_seed(seed)
    noise = population.noise_of(events, n, 3, generator, torch.device("cpu"))
    return population.search(log_density, x, known, start(), noise, n)


def estimated(log_weights):
    """Log of the mean weight (B,), and its standard error by the delta method."""
    n = log_weights.shape[1]
    mean = log_weights.logsumexp(1) - math.log(n)
    return mean, (log_weights - mean[:, None]).exp().std(1) / math.sqrt(n)


def normal(mean, deviation):
    each = torch.distributions.Normal(
        torch.tensor(mean).double(), torch.tensor(deviation).double()
    )
    return lambda x: each.log_prob(x).sum(1)


def test_the_mean_weight_is_the_integral():
    """Of a normal density over all values, over two of them, and over none."""
    target = normal([0.0, -1.0, 2.5], [0.3, 0.5, 0.3])
    for known in ([False] * 3, [True, False, False], [True] * 3):
        values, log_weights = searched(target, known, events=10)
        mean, error = estimated(log_weights)
        truth = 0.0
        if known[0]:
            truth = float(normal([0.0], [0.3])(torch.zeros(1, 1)))
            assert (values[..., 0] == 0).all()
        if all(known):
            truth = float(target(torch.zeros(1, 3)))
            assert float(error.max()) < 1e-9
        else:
            assert float(error.max()) < 0.3
        error = (error.square().sum().sqrt() / 10).clamp_min(1e-9)
        assert abs(float(mean.exp().mean() / math.exp(truth)) - 1) < 4 * float(error) + 1e-3


def test_a_spike_far_out_is_found():
    """Five deviations from the mean, a tenth wide: where few of the first particles hit."""
    _, log_weights = searched(normal([11.0, -2.0, 0.5], [0.2, 0.25, 0.5]), [False] * 3, events=10)
    mean, error = estimated(log_weights)
    assert (mean.abs() < 4 * error).all()
    assert float(error.mean()) < 0.3


def test_what_no_population_has_found_is_drawn_again():
    """A spike that draws the populations, and most of the mass around it."""
    spike, wide = normal(MEAN.tolist(), [0.2, 0.05, 0.1]), normal([1.0, -2, 0.5], [2.0, 0.5, 1])

    def target(x):
        return torch.logaddexp(spike(x) + math.log(0.5), wide(x) + math.log(0.5))

    _, log_weights = searched(target, [False] * 3, n=4000, events=2)
    mean, error = estimated(log_weights)
    assert float(error.max()) < 0.4
    assert (mean.abs() < 4 * error).all()


def test_particles_are_drawn_as_they_are_weighed():
    """Kolmogorov-Smirnov of one value against the mixture, whose density is integrated."""
    place = start(3)
    noise = population.noise_of(1, 20_000, 3, torch.Generator().manual_seed(0), MEAN.device)
    centres = place.centres[None]
    values = population._drawn(centres, place, noise.normal[0], noise.uniform[0])
    grid = torch.linspace(-40, 40, 40_001, dtype=torch.double)
    x = torch.stack([grid, 0 * grid, 0 * grid], 1)[None]
    free = torch.tensor([[True, False, False]])
    cdf = population._log_mixture(x, free, centres, place)[0].softmax(0).cumsum(0)

    def of(at):
        return cdf[torch.searchsorted(grid, torch.as_tensor(at)).clamp_max(len(grid) - 1)].numpy()

    drawn = values[0, :, 0].numpy()
    assert stats.kstest(drawn, of).pvalue > 1e-3
    assert stats.kstest(1.05 * drawn, of).pvalue < 1e-3  # the test can fail
