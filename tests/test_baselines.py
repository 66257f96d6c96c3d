"""Baselines: exact, against enumeration, quadrature and independent implementations."""

import gzip
import math
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.mixture import GaussianMixture

from armodels.baselines import (
    GMM,
    Histogram,
    Independent,
    MixtureOfCategoricals,
    Uniform,
    categoricals,
    gmm,
    normal,
)
from armodels.spec import DataSpec, bits_per_dim


def make_spec(shape, levels, kind="vector"):
    return DataSpec("tiny", kind, shape, levels, "density" if levels is None else "probability")


def correlated(n, num_dims, levels=None, seed=0):
    """Two correlated lumps; with ``levels``, rounded so that the outer levels are in use."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(num_dims, num_dims, generator=generator, dtype=torch.double)
    noise = torch.randn(n, num_dims, generator=generator, dtype=torch.double)
    lump = (torch.rand(n, 1, generator=generator) < 0.4).double()
    x = 0.6 * noise @ mix + 2 * lump * torch.tensor([1.0, -1.0]).repeat(num_dims)[:num_dims]
    if levels is None:
        return x
    return (x + levels / 2).floor().clamp(0, levels - 1).to(torch.uint8)


def fit(model, x):
    model.initialize(x.view(-1, *model.spec.shape).split(64))
    return model


# name -> (a fresh model, the values that it is fitted to, (N, D))
CASES = {
    "independent-binary": lambda: (
        Independent(make_spec((1, 2, 3), 2, "image")),
        correlated(300, 6, 2),
    ),
    "independent-levels": lambda: (Independent(make_spec((3,), 5)), correlated(300, 3, 5)),
    "independent-real": lambda: (Independent(make_spec((3,), None)), correlated(300, 3)),
    "mob": lambda: (
        MixtureOfCategoricals(make_spec((2, 1, 3), 2, "image"), num_components=3, smoothing=0.5),
        correlated(300, 6, 2),
    ),
    "mob-1d": lambda: (
        MixtureOfCategoricals(make_spec((1,), 2), num_components=1),
        correlated(40, 1, 2),
    ),
    "moc": lambda: (
        MixtureOfCategoricals(make_spec((1, 3, 1), 4, "image"), num_components=3, smoothing=0.5),
        correlated(300, 3, 4),
    ),
    "uniform-levels": lambda: (Uniform(make_spec((3,), 4)), correlated(300, 3, 4)),
    "uniform-real-box": lambda: (Uniform(make_spec((3,), None)), correlated(300, 3)),
    "histogram-levels": lambda: (Histogram(make_spec((3,), 4)), correlated(300, 3, 4)),
    "histogram-shared": lambda: (
        Histogram(make_spec((1, 3, 1), 5, "image"), num_bins=3),
        correlated(300, 3, 5),
    ),
    "histogram-joint": lambda: (
        Histogram(make_spec((3,), 4), num_bins=3, joint=True, smoothing=0.1),
        correlated(300, 3, 4),
    ),
    "histogram-real-apart": lambda: (
        Histogram(make_spec((3,), None), num_bins=7),
        correlated(300, 3),
    ),
    "histogram-real-joint": lambda: (
        Histogram(make_spec((3,), None), num_bins=4, joint=True, smoothing=0.1),
        correlated(300, 3),
    ),
    "gmm-diag-levels": lambda: (
        GMM(make_spec((3,), 4), num_components=3, covariance_type="diag"),
        correlated(300, 3, 4),
    ),
    "gmm-spherical-levels": lambda: (
        GMM(make_spec((1, 3, 1), 4, "image"), num_components=3, covariance_type="spherical"),
        correlated(300, 3, 4),
    ),
    "gmm-full-levels": lambda: (
        GMM(make_spec((3,), 4), num_components=2),
        correlated(300, 3, 4),
    ),
    "gmm-tied-levels": lambda: (
        GMM(make_spec((2,), 5), num_components=2, covariance_type="tied"),
        correlated(300, 2, 5),
    ),
} | {
    f"gmm-{kind}-real": lambda kind=kind: (
        GMM(make_spec((3,), None), num_components=2, covariance_type=kind),
        correlated(300, 3),
    )
    for kind in ("full", "tied", "diag", "spherical")
}
EXACT = [name for name in CASES if "real" not in name and name[:8] not in ("gmm-full", "gmm-tied")]
BOUNDS = ["gmm-full-levels", "gmm-tied-levels"]


@pytest.fixture(params=CASES)
def case(request):
    model, x = CASES[request.param]()
    return fit(model, x), x


def enumerate_events(spec):
    values = torch.tensor(list(product(range(spec.levels), repeat=spec.num_dims)))
    return values.to(torch.uint8).view(-1, *spec.shape)


def cell_probability(model, lower, upper):
    """Of full Gaussians over boxes, by scipy's quadrature: (N, D), (N, D) -> (N,)."""
    total = np.zeros(len(lower))
    scales = model.scale.expand(len(model.means), -1, -1)
    for w, mean, scale in zip(model.log_weights.exp(), model.means, scales, strict=True):
        normal = stats.multivariate_normal(mean.numpy(), (scale @ scale.T).numpy())
        for i in range(len(lower)):
            total[i] += w * normal.cdf(upper[i], lower_limit=lower[i])
    return torch.from_numpy(total)


def true_probs(model, events):
    """Probability of every event; for full Gaussians by quadrature."""
    if model.spec.measure == "probability":
        return model.log_prob(events).exp()
    x = events.flatten(1).double()
    lower = torch.where(x == 0, -50.0, x)
    upper = torch.where(x == model.spec.levels - 1, 50.0, x + 1)
    return cell_probability(model, lower.numpy(), upper.numpy())


def index_of(x, levels):
    powers = levels ** torch.arange(x[0].numel() - 1, -1, -1)
    return (x.flatten(1).long() * powers).sum(1)


def chi_squared_p(counts, probs):
    expected = probs / probs.sum() * counts.sum()
    # Rare outcomes are counted together: chi^2 is wrong for cells that expect few.
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return stats.chisquare(counts.double().numpy(), expected.double().numpy()).pvalue


@pytest.mark.parametrize("name", EXACT)
def test_sums_to_one(name):
    model = fit(*CASES[name]())
    assert model.spec.measure == "probability"
    total = model.log_prob(enumerate_events(model.spec)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros((), dtype=torch.double), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_lies_just_below_the_probability(name):
    model = fit(*CASES[name]())
    assert model.spec.measure == "bound"
    events = enumerate_events(model.spec)
    probs = true_probs(model, events)
    assert abs(probs.sum() - 1) < 1e-5
    bound = model.log_prob(events)
    assert (bound <= probs.log() + 1e-6).all()
    assert (probs * (probs.log() - bound)).sum() < 0.1
    # The same bound with y uniform in its cell, by a grid of 16 points a side.
    grid = (torch.arange(16).double() + 0.5) / 16
    u = torch.cartesian_prod(*[grid] * model.spec.num_dims)
    y = events[:, None].double() + u
    scales = model.scale.expand(len(model.means), -1, -1)
    normals = [
        torch.distributions.MultivariateNormal(mean, scale_tril=scale).log_prob(y).mean(1)
        for mean, scale in zip(model.means, scales, strict=True)
    ]
    uniform = (torch.stack(normals, 1) + model.log_weights).logsumexp(1)
    assert (bound >= uniform).all()
    # It counts the tails of the outer cells, which y uniform in its cell cannot.
    assert (probs * (bound - uniform)).sum() > 0.1


def test_bound_is_exact_without_correlation():
    # Then nothing is lost by a product over values; and always so for a single one.
    full, diag = (
        fit(GMM(make_spec((1,), 6), num_components=2, covariance_type=kind), x)
        for kind, x in zip(("full", "diag"), [correlated(300, 1, 6)] * 2, strict=True)
    )
    events = enumerate_events(full.spec)
    torch.testing.assert_close(full.log_prob(events), diag.log_prob(events))
    torch.testing.assert_close(full.log_prob(events).exp().sum().item(), 1.0)
    diag = fit(*CASES["gmm-diag-levels"]())
    full = GMM(make_spec((3,), 4), num_components=3)
    full.load_state_dict(diag.state_dict() | {"scale": diag.scale.diag_embed()})
    events = enumerate_events(full.spec)
    torch.testing.assert_close(full.log_prob(events), diag.log_prob(events))


def test_bound_does_not_depend_on_blocks(monkeypatch):
    x = correlated(300, 5, 4)
    model = fit(GMM(make_spec((5,), 4), num_components=2), x)
    whole = model.log_prob(x)
    for block in (1, 2):
        monkeypatch.setattr(gmm, "_BLOCK", block)
        torch.testing.assert_close(model.log_prob(x), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_gmm_equals_scipy_and_scikit_learn(kind):
    x = correlated(300, 3)
    model = fit(GMM(make_spec((3,), None), num_components=2, covariance_type=kind), x)
    ours = model.log_prob(x)
    oracle = GaussianMixture(2, covariance_type=kind, reg_covar=1e-6, random_state=0).fit(x)
    np.testing.assert_allclose(ours.numpy(), oracle.score_samples(x.numpy()), rtol=1e-9)
    if kind == "full":
        density = sum(
            w * stats.multivariate_normal(m, c).pdf(x.numpy())
            for w, m, c in zip(oracle.weights_, oracle.means_, oracle.covariances_, strict=True)
        )
        np.testing.assert_allclose(ours.exp().numpy(), density, rtol=1e-9)


def test_levels_are_fitted_as_dequantized_values():
    x = correlated(2000, 2, 6)
    model = fit(GMM(make_spec((2,), 6), num_components=1), x)
    covariance = model.scale[0] @ model.scale[0].T
    noisy = np.cov(x.numpy().T, bias=True) + np.eye(2) * (1 / 12 + 1e-6)
    np.testing.assert_allclose(model.means[0].numpy(), x.double().mean(0) + 0.5, rtol=1e-9)
    np.testing.assert_allclose(covariance.numpy(), noisy, rtol=1e-9)


def test_constant_pixels_need_no_regularization():
    x = correlated(200, 3, 4)
    x[:, 1] = 0
    for kind in ("full", "tied", "diag", "spherical"):
        spec = make_spec((3,), 4)
        model = GMM(spec, num_components=2, covariance_type=kind, regularization=0.0)
        assert torch.isfinite(fit(model, x).log_prob(x)).all()


def test_independent_by_hand():
    x = torch.tensor([[0, 2], [0, 1], [1, 2]], dtype=torch.uint8)
    model = fit(Independent(make_spec((2,), 3), smoothing=0.5), x)
    probs = torch.tensor([[2.5, 1.5, 0.5], [0.5, 1.5, 2.5]], dtype=torch.double) / 4.5
    torch.testing.assert_close(model.params.exp(), probs)
    log_prob = model.log_prob(torch.tensor([[2, 0]]))
    torch.testing.assert_close(log_prob, (probs[0, 2] * probs[1, 0]).log()[None])
    x = correlated(100, 2)
    model = fit(Independent(make_spec((2,), None)), x)
    oracle = stats.norm.logpdf(x.numpy(), x.numpy().mean(0), x.numpy().std(0))
    np.testing.assert_allclose(model.log_prob(x).numpy(), oracle.sum(1))
    np.testing.assert_allclose(model.log_prob_map(x).numpy(), oracle)


def test_unseen_level_without_smoothing_is_impossible():
    model = fit(Independent(make_spec((1,), 3), smoothing=0), torch.tensor([[0], [1]]))
    assert model.log_prob(torch.tensor([[2]])).tolist() == [-math.inf]
    assert set(model.sample(200).flatten().tolist()) == {0, 1}


def test_uniform_data_gives_eight_bits():
    spec = make_spec((2,), 256)
    x = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 2)
    model = fit(Independent(spec), x)
    assert bits_per_dim(model.log_prob(x), spec).tolist() == pytest.approx([8.0] * 256)


def test_mixture_of_bernoullis_by_hand():
    model = MixtureOfCategoricals(make_spec((2,), 2), num_components=2)
    w, p = torch.tensor([0.3, 0.7]), torch.tensor([[0.2, 0.9], [0.6, 0.5]])
    model.load_state_dict(
        {"fitted": torch.tensor(True), "log_weights": w.log(), "logits": p.logit()}
    )
    log_prob = model.log_prob(torch.tensor([[1, 0]]))
    expected = torch.tensor([0.3 * 0.2 * 0.1 + 0.7 * 0.6 * 0.5], dtype=torch.double).log()
    torch.testing.assert_close(log_prob, expected, atol=1e-6, rtol=0)


def test_em_raises_the_penalized_likelihood():
    x = correlated(300, 6, 2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.double)
    log_weights = torch.full((4,), -math.log(4), dtype=torch.double)
    mean = x.double().mean(0)
    objectives = []
    for _ in range(40):
        weights, probs, objective = categoricals._em_step(x, log_weights, logits, mean, 2.0)
        objectives.append(objective)
        log_weights, logits = weights.log(), probs.logit()
    assert (np.diff(objectives) > 0).all()
    model = MixtureOfCategoricals(make_spec((6,), 2), num_components=4)
    state = {"fitted": torch.tensor(True), "log_weights": log_weights, "logits": logits}
    model.load_state_dict(state)
    *_, objective = categoricals._em_step(x, log_weights, logits, mean, 2.0)
    # Two examples more in each component, of expected log-probability under it.
    more = 2 * (mean * probs.log() + (1 - mean) * (1 - probs).log()).sum() / len(x)
    assert objective == pytest.approx((model.log_prob(x).mean() + more).item(), abs=1e-12)


def test_em_smooths_towards_the_data():
    x = correlated(300, 6, 2)
    mean = torch.linspace(0.1, 0.9, 6, dtype=torch.double)
    logits = torch.zeros(1, 6, dtype=torch.double)
    weights, probs, _ = categoricals._em_step(x, torch.zeros_like(logits[:, 0]), logits, mean, 5.0)
    assert weights.tolist() == [1]
    torch.testing.assert_close(probs[0], (x.double().sum(0) + 5 * mean) / 305)
    # ``initialize`` smooths towards the mean of the data, itself smoothed by one of each.
    model = fit(MixtureOfCategoricals(make_spec((6,), 2), num_components=1, smoothing=5.0), x)
    mean = (x.double().sum(0) + 1) / 302
    expected = (x.double().sum(0) + 5 * mean) / 305
    torch.testing.assert_close(model.logits[0].sigmoid(), expected)


def test_categoricals_by_hand():
    model = MixtureOfCategoricals(make_spec((2,), 3), num_components=2)
    w = torch.tensor([0.3, 0.7], dtype=torch.double)
    p = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], [[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]])
    p = p.double()
    logits = (p[..., 1:].log() - p[..., :1].log()).flatten(1)
    model.load_state_dict({"fitted": torch.tensor(True), "log_weights": w.log(), "logits": logits})
    log_prob = model.log_prob(torch.tensor([[1, 2], [0, 0]]))
    expected = [0.3 * 0.5 * 0.8 + 0.7 * 0.3 * 0.4, 0.3 * 0.2 * 0.1 + 0.7 * 0.6 * 0.3]
    torch.testing.assert_close(log_prob.exp(), torch.tensor(expected, dtype=torch.double))


def test_em_of_categoricals_by_responsibilities():
    """One step against the definition, by loops over components, dimensions and levels."""
    x = correlated(60, 3, 4)
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 4, generator=generator, dtype=torch.double).softmax(-1)
    w = torch.tensor([0.4, 0.6], dtype=torch.double)
    mean = torch.rand(3, 4, generator=generator, dtype=torch.double).softmax(-1)
    joint = torch.stack(
        [w[k] * torch.stack([p[k, d, x[:, d].long()] for d in range(3)]).prod(0) for k in range(2)]
    )
    posterior = joint / joint.sum(0)
    expected = torch.zeros(2, 3, 4, dtype=torch.double)
    for k, d, level in product(range(2), range(3), range(4)):
        count = posterior[k][x[:, d] == level].sum() + 1.5 * mean[d, level]
        expected[k, d, level] = count / (posterior[k].sum() + 1.5)
    logits = (p[..., 1:].log() - p[..., :1].log()).flatten(1)
    weights, probs, objective = categoricals._em_step(
        x, w.log(), logits, mean[:, 1:].flatten(), 1.5
    )
    torch.testing.assert_close(weights, posterior.mean(1))
    torch.testing.assert_close(probs, expected[..., 1:].flatten(1))
    penalty = 1.5 * (mean * p.log()).sum()
    assert objective == pytest.approx(float((joint.sum(0).log().sum() + penalty) / len(x)))


def test_em_keeps_a_constant_level_possible_in_single_precision():
    x = torch.full((5000, 2), 1, dtype=torch.uint8)
    x[:, 1] = torch.arange(5000) % 3 != 0
    spec = make_spec((2,), 2)
    model = fit(MixtureOfCategoricals(spec, num_components=5, smoothing=1e-3), x)
    events = enumerate_events(spec)
    assert torch.isfinite(model.log_prob(events)).all()
    assert model.log_prob(events).logsumexp(0).item() == pytest.approx(0, abs=1e-9)


def test_em_of_categoricals_finds_three_prototypes():
    x = torch.tensor([[0] * 4] * 50 + [[1] * 4] * 30 + [[2] * 4] * 20, dtype=torch.uint8)
    model = fit(MixtureOfCategoricals(make_spec((4,), 3), num_components=3, smoothing=0.01), x)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert -model.log_prob(x).mean().item() == pytest.approx(entropy, abs=0.02)


def test_uniform_is_exact():
    spec = make_spec((2,), 256)
    x = torch.randint(256, (10, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert bits_per_dim(fit(Uniform(spec), x).log_prob(x), spec).tolist() == [8.0] * 10
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.double)
    model = fit(Uniform(make_spec((2,), None), margin=0.25), x)
    inside = torch.tensor([[-0.5, 0.0], [2.5, 6.0], [1.0, 3.0]], dtype=torch.double)
    assert model.log_prob(inside).tolist() == pytest.approx([-math.log(3 * 6)] * 3)
    outside = torch.tensor([[-0.51, 3.0], [1.0, 6.01]], dtype=torch.double)
    assert model.log_prob(outside).tolist() == [-math.inf] * 2
    drawn = model.sample(2000, generator=torch.Generator().manual_seed(0)).double()
    assert stats.kstest((drawn[:, 1] / 6).numpy(), "uniform").pvalue > 1e-3


def test_histogram_equals_numpy():
    x = correlated(400, 2)
    for joint in (False, True):
        spec = make_spec((2,), None)
        model = fit(Histogram(spec, num_bins=5, joint=joint, smoothing=0.0), x)
        if joint:
            density, edges = np.histogramdd(x.numpy(), 5, density=True)
            cells = [
                np.searchsorted(e[1:-1], x[:, d].numpy(), "right") for d, e in enumerate(edges)
            ]
            expected = np.log(density[cells[0], cells[1]])
        else:
            expected = 0
            for d in range(2):
                density, edges = np.histogram(x[:, d].numpy(), 5, density=True)
                expected += np.log(density[np.searchsorted(edges[1:-1], x[:, d].numpy(), "right")])
        np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-9)
        low = torch.full((1, 2), -50.0, dtype=torch.double)
        assert model.log_prob(low).tolist() == [-math.inf]


@pytest.mark.parametrize("joint", [False, True])
def test_histogram_integrates_to_one(joint):
    x = correlated(100, 1)
    model = fit(Histogram(make_spec((1,), None), num_bins=5, joint=joint, smoothing=2.0), x)
    low, high = float(x.min()), float(x.max())

    def density(value: float) -> float:
        return float(model.log_prob(torch.tensor([[value]], dtype=torch.double)).exp())

    parts = [
        integrate.quad(density, -math.inf, low)[0],
        *(integrate.quad(density, a, b)[0] for a, b in zip(
            np.linspace(low, high, 6)[:-1], np.linspace(low, high, 6)[1:], strict=True)),
        integrate.quad(density, high, math.inf)[0],
    ]  # fmt: skip
    assert sum(parts) == pytest.approx(1, abs=1e-7)
    # A tail has what smoothing gives it, and decays by e over the range of the data.
    assert parts[0] == pytest.approx(2 / (100 + 7 * 2))
    assert density(high + (high - low)) == pytest.approx(density(high + 1e-9) / math.e)
    drawn = model.sample(3000, generator=torch.Generator().manual_seed(0)).double()[:, 0]
    counts = [
        int((drawn < low).sum()),
        *np.histogram(drawn.numpy(), 5, (low, high))[0],
        int((drawn > high).sum()),
    ]
    assert stats.chisquare(counts, np.array(parts) / sum(parts) * 3000).pvalue > 1e-3
    right = drawn[drawn > high] - high
    assert stats.kstest(right.numpy(), stats.expon(scale=high - low).cdf).pvalue > 1e-3


def test_histogram_of_levels_shares_bins():
    x = torch.tensor([[0], [0], [1], [4]], dtype=torch.uint8)
    model = fit(Histogram(make_spec((1,), 5), num_bins=2, smoothing=0.0), x)
    # Levels 0, 1, 2 and levels 3, 4.
    expected = [3 / 4 / 3] * 3 + [1 / 4 / 2] * 2
    events = torch.arange(5, dtype=torch.uint8)[:, None]
    assert model.log_prob(events).exp().tolist() == pytest.approx(expected)


def test_a_joint_histogram_knows_what_depends_on_what():
    x = torch.tensor([[0, 0]] * 50 + [[1, 1]] * 50, dtype=torch.uint8)
    spec = make_spec((2,), 2)
    joint, apart = (fit(Histogram(spec, joint=j, smoothing=1e-6), x) for j in (True, False))
    assert -joint.log_prob(x).mean().item() == pytest.approx(math.log(2), abs=1e-3)
    assert -apart.log_prob(x).mean().item() == pytest.approx(2 * math.log(2), abs=1e-3)
    known = torch.tensor([True, False])
    done = joint.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(done.values, x)
    strict = fit(Histogram(spec, joint=True, smoothing=0.0), torch.zeros_like(x))
    with pytest.raises(ValueError, match="^the known values have probability 0 under the mo"):
        strict.complete(torch.ones_like(x), known)


@pytest.mark.parametrize(
    "model",
    [
        Independent(make_spec((2,), 3), smoothing=0.0),
        Histogram(make_spec((2,), 3), smoothing=0.0),
        Uniform(make_spec((2,), None), margin=0.5),
    ],
    ids=lambda model: type(model).__name__,
)
def test_completion_refuses_known_values_of_probability_0(model):
    fit(model, torch.tensor([[1, 1], [2, 2]], dtype=model.spec.dtype))
    x = torch.tensor([[1, 0], [2, 0]], dtype=model.spec.dtype)
    done = model.complete(x, torch.tensor([True, False]))  # what is not known does not count
    assert torch.equal(done.values[:, 0], x[:, 0])
    assert (done.values[:, 1] > 0).all()
    for known in ([False, True], [True, True]):
        with pytest.raises(ValueError, match="^the known values have probability 0 under the"):
            model.complete(x, torch.tensor(known))


@pytest.mark.parametrize("seed", [0, 1, 2])  # also starts from two equal examples
def test_em_finds_two_prototypes(seed):
    x = torch.tensor([[0, 0, 0, 0]] * 75 + [[1, 1, 1, 1]] * 25, dtype=torch.uint8)
    model = MixtureOfCategoricals(make_spec((4,), 2), num_components=2, smoothing=0.01, seed=seed)
    fit(model, x)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert -model.log_prob(x).mean().item() == pytest.approx(entropy, abs=0.01)
    assert sorted(model.log_weights.exp().tolist()) == pytest.approx([0.25, 0.75], abs=0.01)


@pytest.mark.parametrize("name", EXACT + BOUNDS)
def test_sample_frequencies(name):
    model = fit(*CASES[name]())
    x = model.sample(4000, generator=torch.Generator().manual_seed(3))
    events = enumerate_events(model.spec)
    counts = index_of(x, model.spec.levels).bincount(minlength=len(events))
    if len(events) > 2:
        assert chi_squared_p(counts, true_probs(model, events)) > 1e-3
    else:
        assert counts[1] / 4000 == pytest.approx(true_probs(model, events)[1].item(), abs=0.03)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("real")])
def test_real_samples_have_the_marginals(name):
    model = fit(*CASES[name]())
    x = model.sample(4000, generator=torch.Generator().manual_seed(3)).double()
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
    if name == "independent-real":
        mean, std = model.params.unbind(1)
        weights, means, stds = [1.0], [mean @ direction], [(std * direction).norm()]
    else:
        weights, means = model.log_weights.exp(), model.means @ direction
        scale = model.scale if model.scale.ndim == 3 else model.scale.expand(2, 3).diag_embed()
        stds = (scale.expand(2, 3, 3).mT @ direction).norm(dim=1)
    cdf = sum(
        float(w) * stats.norm.cdf((x @ direction).numpy(), m, s)
        for w, m, s in zip(weights, means, stds, strict=True)
    )
    assert stats.kstest(cdf, "uniform").pvalue > 1e-3


def test_samples_know_their_log_prob(case):
    model, _ = case
    generator = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        x, log_prob = model.sample_with_log_prob(20, temperature=temperature, generator=generator)
        assert x.shape == (20, *model.spec.shape)
        assert x.dtype == model.spec.dtype
        torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0, atol=0)


def test_temperature_zero_draws_the_mode(case):
    model, _ = case
    x = model.sample(20, temperature=0, generator=torch.Generator().manual_seed(0))
    assert (x == x[0]).all()
    # The mode of the likeliest component beats nearly all that is drawn at temperature 1.
    usual = model.log_prob(model.sample(200, generator=torch.Generator().manual_seed(0)))
    assert model.log_prob(x)[0] >= usual.median()


def test_temperature_tempers():
    spec = make_spec((1,), 2)
    model = fit(Independent(spec), torch.tensor([[1], [1], [1], [0]]))
    x = model.sample(4000, temperature=2.0, generator=torch.Generator().manual_seed(0))
    tempered = torch.sigmoid(torch.tensor(math.log(2) / 2)).item()  # (3+1) : (1+1)
    assert x.double().mean().item() == pytest.approx(tempered, abs=0.03)
    for kind in ("full", "diag"):
        x = correlated(300, 2)
        model = fit(GMM(make_spec((2,), None), num_components=1, covariance_type=kind), x)
        drawn = model.sample(4000, temperature=0.25, generator=torch.Generator().manual_seed(0))
        ratio = drawn.double().var(0) / x.var(0)
        assert ratio.tolist() == pytest.approx([0.25, 0.25], rel=0.1)


def test_completion_keeps_known_values(case):
    model, x = case
    x = x[:30].view(-1, *model.spec.shape)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    if model.spec.levels is None:
        blanked = x.masked_fill(~observed, math.nan)  # what is not known is not looked at
    else:
        blanked = x.masked_fill(~observed, 77)
    done = model.complete(blanked, observed, num_particles=4)
    assert done.values.dtype == x.dtype
    assert torch.equal(done.values[observed], x[observed])
    assert torch.isfinite(model.log_prob(done.values)).all()
    if model.spec.measure == "bound":
        assert done.method == "likelihood weighting"
        assert done.num_particles == 4 * len(model.means)
        assert (done.effective_sample_size >= 1).all()
        assert (done.effective_sample_size <= done.num_particles).all()
        assert done.effective_sample_size.max() > 2
    else:
        assert (done.method, done.num_particles) == ("exact", 1)
        assert (done.effective_sample_size == 1).all()
    nothing = model.complete(x, torch.zeros_like(observed))
    assert nothing.method == "exact"
    assert torch.equal(model.complete(x, torch.ones_like(observed)).values, x)


@pytest.mark.parametrize("name", EXACT + BOUNDS)
def test_completion_follows_the_conditional(name):
    model, data = CASES[name]()
    fit(model, data)
    d = model.spec.num_dims
    known = torch.zeros(d, dtype=torch.bool)
    known[::2] = d > 1  # known and unknown values alternate
    # An outer level among the known: its cell reaches to infinity.
    x = data[(data[:, 0] == 0).nonzero()[0, 0]].view(1, *model.spec.shape)
    done = model.complete(
        x.expand(3000, *model.spec.shape),
        known.view(model.spec.shape),
        num_particles=30,
        generator=torch.Generator().manual_seed(0),
    )
    events = enumerate_events(model.spec)
    fits = (events.flatten(1) == x.flatten())[:, known].all(1)
    probs = true_probs(model, events)[fits]
    counts = index_of(done.values, model.spec.levels).bincount(minlength=len(events))[fits]
    assert counts.sum() == 3000
    if len(probs) > 2:
        assert chi_squared_p(counts, probs) > 1e-3


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_real_completion_follows_the_conditional(kind):
    x = correlated(300, 3)
    model = fit(GMM(make_spec((3,), None), num_components=2, covariance_type=kind), x)
    check_real_completion(model)


def test_completion_by_a_joint_histogram_follows_the_conditional():
    check_real_completion(fit(*CASES["histogram-real-joint"]()))


def check_real_completion(model):
    known = torch.tensor([True, False, True])
    event = torch.tensor([[0.5, math.nan, -0.8]], dtype=torch.double)
    done = model.complete(event.expand(3000, 3), known, generator=torch.Generator().manual_seed(0))
    # The distribution function of the unknown value, by summing the joint density.
    grid = torch.linspace(-15, 15, 60001, dtype=torch.double)
    line = event.expand(len(grid), 3).clone()
    line[:, 1] = grid
    cdf = model.log_prob(line).softmax(0).cumsum(0)
    drawn = np.interp(done.values[:, 1].numpy(), grid.numpy(), cdf.numpy())
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_each_event_has_its_own_mask():
    x = correlated(300, 3)
    model = fit(GMM(make_spec((3,), None), num_components=2), x)
    observed = torch.tensor([[True, False, True], [False, True, False]]).repeat(1500, 1)
    x = x[:1].expand(3000, 3)
    done = model.complete(x, observed, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        alone = model.complete(x[i::2], observed[i::2], generator=torch.Generator().manual_seed(1))
        unknown = int((~observed[i]).nonzero()[0, 0])
        pair = done.values[i::2, unknown].numpy(), alone.values[:, unknown].numpy()
        assert stats.ks_2samp(*pair).pvalue > 1e-3


def test_cells_in_the_tails():
    # Far from the mean the distribution function rounds to 0 or 1; its logarithm must not.
    inf = math.inf
    edges = [(30, 31), (-31, -30), (-inf, -60), (60, inf), (60, 61), (-0.5, 0.5), (1, 2)]
    lower, upper = torch.tensor(edges, dtype=torch.double).unbind(1)
    # By log of the tail, about -z^2 / 2 - log(z sqrt(2 pi)); the last two from tables.
    far = [-0.5 * z * z - math.log(z * math.sqrt(2 * math.pi)) for z in (30, 30, 60, 60, 60)]
    expected = torch.tensor([*far, math.log(0.382925), math.log(0.135905)], dtype=torch.double)
    torch.testing.assert_close(normal.log_cell(lower, upper), expected, rtol=1e-5, atol=0)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(7, generator=generator, dtype=torch.double)
    drawn = normal.truncated_normal(lower, upper, uniform)
    assert ((drawn >= lower) & (drawn <= upper) & torch.isfinite(drawn)).all()
    mean = normal.truncated_mean(lower, upper)
    # Beyond z the tail is nearly exponential, of mean z + 1 / z.
    far = [30 + 1 / 30, -30 - 1 / 30, -60 - 1 / 60, 60 + 1 / 60, 60 + 1 / 60]
    expected = torch.tensor([*far, 0, stats.truncnorm(1, 2).mean()], dtype=torch.double)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (9, 10), (-10, -9), (-0.5, 2), (-math.inf, 0)])
def test_truncated_normal(low, high):
    uniform = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    lower, upper = torch.full_like(uniform, low), torch.full_like(uniform, high)
    drawn = normal.truncated_normal(lower, upper, uniform)
    assert stats.kstest(drawn.numpy(), stats.truncnorm(low, high).cdf).pvalue > 1e-3
    mean = normal.truncated_mean(lower, upper)[0].item()
    assert mean == pytest.approx(stats.truncnorm(low, high).mean(), abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_state_dict_restores_the_distribution(name, tmp_path):
    model, x = CASES[name]()
    fit(model, x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh, _ = CASES[name]()
    x = x.view(-1, *model.spec.shape)
    with pytest.raises(RuntimeError, match="is not fitted; call initialize"):
        fresh.log_prob(x)
    with pytest.raises(RuntimeError, match="is not fitted"):
        fresh.sample(1)
    with pytest.raises(RuntimeError, match="is not fitted"):
        fresh.complete(x, torch.ones_like(x, dtype=torch.bool))
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh.log_prob(x), model.log_prob(x))
    draws = [m.sample(5, generator=torch.Generator().manual_seed(0)) for m in (model, fresh)]
    assert torch.equal(*draws)


def test_single_precision_and_autocast(case):
    model, x = case
    x = x[:50].view(-1, *model.spec.shape)
    exact = model.log_prob(x)
    model.float()
    if model.spec.levels is None:
        x = x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.log_prob(x).double(), exact, rtol=1e-4, atol=1e-4)
        assert model.sample(3).dtype == model.spec.dtype
        half = torch.zeros(model.spec.shape, dtype=torch.bool)
        half.flatten()[0] = True
        assert torch.equal(model.complete(x, half).values[:, half], x[:, half])


def test_events_do_not_touch_one_another(case):
    model, x = case
    x = x[:7].view(-1, *model.spec.shape)
    alone = torch.cat([model.log_prob(event[None]) for event in x])
    torch.testing.assert_close(model.log_prob(x), alone, rtol=1e-12, atol=1e-12)


def test_fit_is_reproducible():
    for name in ("mob", "gmm-full-real"):
        one, two = (fit(*CASES[name]()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


def refusals():
    binary, levels, real = make_spec((2,), 2), make_spec((64,), 17), make_spec((2,), None)
    yield (
        lambda: MixtureOfCategoricals(real),
        "needs data with levels, but tiny has real values; use model=gmm$",
    )
    yield lambda: Uniform(real, margin=-1), "margin is -1; it must be at least 0"
    yield lambda: Histogram(real, num_bins=0), "num_bins is 0; it must be at least 1"
    yield lambda: Histogram(real, smoothing=-1), "smoothing is -1"
    yield (
        lambda: Histogram(levels, joint=True, num_bins=16),
        r"^a joint histogram of data 'tiny' takes 16\^64 cells, more than 10,000,000; use a "
        r"smaller num_bins, or joint=false$",
    )
    yield (
        lambda: Histogram(make_spec((11,), None), joint=True),
        r"takes 34\^11 cells, the two tails included, more than",
    )
    yield lambda: MixtureOfCategoricals(binary, smoothing=0), "smoothing is 0; it must be above 0"
    yield lambda: MixtureOfCategoricals(binary, num_components=0), "num_components is 0"
    yield lambda: MixtureOfCategoricals(binary, max_iter=0), "max_iter is 0"
    yield lambda: Independent(binary, smoothing=-1), "smoothing is -1; it must be at least 0"
    yield lambda: GMM(real, num_components=0), "num_components is 0; it must be at least 1"
    yield lambda: GMM(real, max_iter=0), "max_iter is 0"
    yield lambda: GMM(real, num_init=0), "num_init is 0"
    yield lambda: GMM(real, covariance_type="free"), "'free'; choose full, tied, diag or spher"
    yield lambda: GMM(real, regularization=-1), "regularization is -1"
    constant = correlated(50, 2)
    constant[:, 1] = 3
    for kind in (Independent, GMM, Uniform, Histogram):
        yield lambda kind=kind: fit(kind(real), constant), "dimension 1 of data 'tiny' is constant"
    yield lambda: fit(GMM(real), correlated(5, 2)), "5 training examples for the 10 components"
    yield (
        lambda: fit(MixtureOfCategoricals(binary), correlated(5, 2, 2)),
        "5 training examples for the 100 components of model MixtureOfCategoricals",
    )
    yield lambda: Independent(binary).initialize([]), "has no training examples"
    yield lambda: fit(Independent(binary), correlated(5, 2, 4)), "has levels 0..1, got values"
    double = correlated(50, 1).expand(-1, 2)  # the same value twice
    yield (
        lambda: fit(GMM(real, num_components=1, regularization=0.0), double),
        "a covariance of model GMM on data 'tiny' is singular; use a larger regularization",
    )
    model = fit(Independent(binary), correlated(50, 2, 2))
    x = torch.zeros(3, 2, dtype=torch.uint8)
    known = torch.zeros(2, dtype=torch.bool)
    yield (
        lambda: model.log_prob(x, torch.zeros(3)),
        "Independent takes no context: it is conditioned on nothing",
    )
    yield lambda: model.log_prob_map(x, torch.zeros(3)), "Independent takes no context"
    yield lambda: model.sample(3, context=torch.zeros(3)), "Independent takes no context"
    yield lambda: model.complete(x, known, context=torch.zeros(3)), "Independent takes no context"
    yield lambda: model.sample(3, temperature=-1), "temperature is -1; it must be finite and 0"
    yield lambda: model.complete(x, known, num_particles=0), "num_particles is 0"
    yield lambda: model.complete(x, known.int()), "known must be boolean"
    yield lambda: model.complete(x + 5, ~known), "has levels 0..1, got values in 5..5"


@pytest.mark.parametrize(("call", "message"), list(refusals()))
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_stopping_early_is_said():
    model = GMM(make_spec((3,), None), num_components=3, max_iter=1)
    with pytest.warns(UserWarning, match="EM of model GMM stopped at max_iter=1"):
        fit(model, correlated(300, 3))


@pytest.fixture
def data_root():
    if "ARMODELS_DATA" not in os.environ:
        pytest.skip("ARMODELS_DATA is not set: the real data is not here")
    return Path(os.environ["ARMODELS_DATA"])


def load_amat(path):
    # One digit, one separator, and so on: 784 values a line.
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
    return torch.from_numpy(raw[::2] - ord("0")).view(-1, 1, 28, 28)


@pytest.mark.parametrize(
    ("name", "nats"), [("mushrooms", 34.232), ("connect4", 35.338), ("nips", 294.802)]
)
def test_independent_on_binary_uci(data_root, name, nats):
    arrays = np.load(data_root / "binary_uci" / f"{name}.npz")
    train, test = (torch.from_numpy(arrays[split]) for split in ("train", "test"))
    model = fit(Independent(make_spec(train.shape[1:], 2)), train)
    assert -model.log_prob(test).mean().item() == pytest.approx(nats, abs=6e-4)


@pytest.mark.slow
def test_binarized_mnist(data_root):
    folder = data_root / "binarized_mnist"
    train, test = (load_amat(folder / f"binarized_mnist_{s}.amat.gz") for s in ("train", "test"))
    spec = make_spec((1, 28, 28), 2, "image")
    independent = fit(Independent(spec), train)
    assert -independent.log_prob(test).mean().item() == pytest.approx(205.79, abs=6e-3)
    mixture = fit(MixtureOfCategoricals(spec, num_components=10), train)
    # 168.95 with 10 components in the NADE paper.
    assert -mixture.log_prob(test).mean().item() < 168.95
