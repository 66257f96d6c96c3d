"""Log-probabilities of parts: against enumeration, closed forms, and their own stated errors."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from cases import CASES, LABEL, every, every_event, random_events
from command import QUICK, TINY, armodels, done
from scipy.stats import multivariate_normal

from armodels import heads, imputation, orders
from armodels.baselines import GMM, Histogram, Independent
from armodels.density import query
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.mixture import OrderMixture
from armodels.flows import InverseFlow
from armodels.networks.made import MADE
from armodels.spec import DataSpec, Standardization

TELLS = {name: case for name, case in CASES.items() if not name.startswith("least")}
PARTED = {name: case for name, case in TELLS.items() if case.spec.num_dims > 1}
DISCRETE = {name: case for name, case in PARTED.items() if case.spec.levels is not None}


def parts_of(case, model: DensityModel, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random masks (*event) of what is asked and known; a step, and a joint pixel, is whole."""
    generator = torch.Generator().manual_seed(seed)
    one = model.model if case.num_orders > 1 else model
    table = one.net.order_table if isinstance(one, AutoregressiveModel) else None
    num = case.spec.num_dims if table is None else len(table)
    places = torch.arange(num) % 3 if num > 2 else torch.tensor([1, 2])
    places = places[torch.randperm(num, generator=generator)]
    each = places
    if table is not None:
        each = torch.empty(case.spec.num_dims, dtype=torch.long)
        each[table] = places[:, None].expand(table.shape)
    each = each.view(case.spec.shape)
    return each == 1, each == 2


def matching(events: torch.Tensor, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Which events have the values of x (1, *event) in a part."""
    return ((events == x) | ~part).flatten(1).all(1)


def enumerated(model: DensityModel, x: torch.Tensor, part: torch.Tensor) -> float:
    """log p(part) by the sum over all events that have it."""
    events = every_event(model.spec)
    return float(model.log_prob(events).detach()[matching(events, x, part)].logsumexp(0))


@every(DISCRETE)
def test_conditionals_sum_to_one(case):
    """Over every value of what is asked, and are the model's own where it has one order."""
    model, x = case.build(0), case.events(1, seed=3)
    asked, known = parts_of(case, model, 1)
    events = every_event(case.spec)
    rows = events[matching(events, x, ~asked)]
    found = model.log_prob_of(
        rows, asked, known, num_particles=300, generator=torch.Generator().manual_seed(0)
    )
    total = float(found.log_prob.exp().sum())
    if found.method == "exact":
        assert total == pytest.approx(1, abs=1e-9)
        assert (found.standard_error == 0).all()
    else:
        # Rows draw by noise of their own, so that their errors are independent.
        error = float((found.log_prob.exp() * found.standard_error).square().sum().sqrt())
        assert abs(total - 1) < 5 * error + 0.01
    if not case.any_order and model.spec.measure != "bound":
        truth = enumerated(model, rows[:1], asked | known) - enumerated(model, rows[:1], known)
        bound = 1e-9 + 5 * float(found.standard_error[0]) + 0.01 * (found.method != "exact")
        assert float(found.log_prob[0]) == pytest.approx(truth, abs=bound)
    else:
        assert found.method == "exact" or model.spec.measure == "bound" or case.spec.shape[0] == 3


@every(PARTED)
def test_conditional_times_marginal_is_joint(case):
    """To 1e-9, where the answers are exact."""
    model, x = case.build(0), case.events(5, seed=4)
    asked, known = parts_of(case, model, 2)
    if case.steps and not case.any_order:  # of one order: what is known comes first
        late = torch.empty(case.spec.num_dims, dtype=torch.long)
        table = model.net.order_table
        late[table] = torch.arange(len(table))[:, None].expand(table.shape)
        late = late.view(case.spec.shape)
        num = max(1, len(table) // 3)
        known, asked = late < num, (late >= num) & (late < len(table) - 1)
        if not asked.any():
            asked = ~known
    conditional, marginal, both = (
        model.log_prob_of(x, *masks) for masks in ((asked, known), (known,), (asked | known,))
    )
    if not {conditional.method, marginal.method, both.method} == {"exact"}:
        estimates = model.spec.measure == "bound" or isinstance(model, InverseFlow)
        assert case.num_orders > 1 or estimates or case.spec.shape[0] == 3
        return
    product = conditional.log_prob + marginal.log_prob
    if case.any_order:  # under the order that writes what is known, then what is asked
        own = model.log_prob_of(x, ~known, known).log_prob + marginal.log_prob
        one = model.model if case.num_orders > 1 else model
        if case.num_orders == 1 and one.net.any_order:
            ranks = known.flatten()[one.net.order_table].all(-1).logical_not().long()
            view = model.with_order(one.net.order.permuted(ranks.argsort(stable=True)))
            assert torch.allclose(own, view.log_prob(x).double(), rtol=0, atol=1e-9)
        return
    assert torch.allclose(product, both.log_prob, rtol=0, atol=1e-9)
    whole = model.log_prob_of(x, torch.ones_like(asked)).log_prob
    assert torch.allclose(whole, model.log_prob(x).double(), rtol=0, atol=1e-9)


def reversed_made(num_dims: int = 5) -> AutoregressiveModel:
    """On bits, with weights large enough that values depend on each other."""
    spec = DataSpec("bits", "vector", (num_dims,), 2, "probability")
    head = heads.auto(spec)
    net = MADE(spec, head.num_params, orders.make("raster", spec.shape), hidden_sizes=[9])
    model = AutoregressiveModel(net, head).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.double)
            weight.copy_(1.5 * noise)
    return model


@pytest.mark.parametrize("known", [[], [4], [1, 4]])
def test_errors_that_particles_state_are_their_errors(known):
    """Over 2,000 answers to one question: without bias, and z has the deviation of a normal."""
    model = reversed_made()
    x = torch.tensor([[1, 0, 1, 1, 0]], dtype=torch.uint8)
    asked = torch.tensor([False, False, True, False, False])
    condition = torch.tensor([i in known for i in range(5)])
    truth = enumerated(model, x, asked | condition) - enumerated(model, x, condition)
    found = model.log_prob_of(
        x.expand(2000, -1), asked, condition, num_particles=400,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert found.method == "likelihood weighting"
    z = (found.log_prob - truth) / found.standard_error
    assert float(z.std()) == pytest.approx(1, abs=0.08)
    assert abs(float(z.mean())) < 0.15
    assert float(found.log_prob.std()) < 0.2


def test_errors_of_a_mixture_are_those_of_its_terms():
    """Orders that answer exactly add no error; the others theirs, each by its own share."""
    made = reversed_made()
    several = [orders.make(name, (5,)) for name in ("raster", "reverse")]
    model = OrderMixture(made, several)
    x = torch.tensor([[1, 0, 1, 1, 0]], dtype=torch.uint8)
    asked = torch.tensor([True, False, False, False, False])
    truth = enumerated(model, x, asked)
    found = model.log_prob_of(
        x.expand(2000, -1), asked, num_particles=200, generator=torch.Generator().manual_seed(1)
    )
    assert found.method == "likelihood weighting"
    z = (found.log_prob - truth) / found.standard_error
    assert float(z.std()) == pytest.approx(1, abs=0.08)
    assert abs(float(z.mean())) < 0.15
    assert found.num_particles == 400  # of both orders
    assert model.log_prob_of(x, asked, num_particles=1).num_particles == 2
    exact = OrderMixture(made, several[:1]).log_prob_of(x, asked)
    assert exact.method == "exact"
    assert exact.num_particles == 0
    assert float(exact.log_prob) == pytest.approx(enumerated(made, x, asked), abs=1e-12)


def fitted_gmm(covariance: str, levels: int | None = None, num_dims: int = 4) -> GMM:
    measure = "density" if levels is None else "probability"
    spec = DataSpec("tiny", "vector", (num_dims,), levels, measure)
    model = GMM(spec, num_components=3, covariance_type=covariance).double()
    model.initialize([random_events(spec, 300, 1)])
    return model.eval()


def covariances(model: GMM) -> list:
    scale = model.scale.expand(3, *model.scale.shape[1:])
    if model.covariance_type in ("full", "tied"):
        return [(one @ one.T).numpy() for one in scale]
    return [torch.diag(one.expand(model.spec.num_dims) ** 2).numpy() for one in scale]


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussians_have_their_closed_forms(covariance):
    """Marginals by scipy; conditionals by the formulas of textbooks, component by component."""
    model = fitted_gmm(covariance)
    x = random_events(model.spec, 6, 9)
    asked, known = torch.tensor([0, 1, 0, 1]).bool(), torch.tensor([1, 0, 0, 0]).bool()
    found = model.log_prob_of(x, asked, known)
    assert found.method == "exact"
    a, k = asked.nonzero()[:, 0].numpy(), known.nonzero()[:, 0].numpy()
    means, weights = model.means.numpy(), model.log_weights.exp().numpy()
    for row, value in zip(x.numpy(), found.log_prob.tolist(), strict=True):
        density = marginal = 0.0
        for mean, cov, weight in zip(means, covariances(model), weights, strict=True):
            p = weight * multivariate_normal.pdf(row[k], mean[k], cov[k][:, k])
            gain = cov[a][:, k] @ torch.tensor(cov[k][:, k]).inverse().numpy()
            centre = mean[a] + gain @ (row[k] - mean[k])
            spread = cov[a][:, a] - gain @ cov[k][:, a]
            density += p * multivariate_normal.pdf(row[a], centre, spread)
            marginal += p
        assert value == pytest.approx(math.log(density / marginal), abs=1e-9)


def test_cells_of_full_gaussians_are_estimated():
    """Against the distribution function of a normal on the plane, within the stated error."""
    model = fitted_gmm("full", 4, num_dims=3)
    x = torch.tensor([[1, 3, 2]], dtype=torch.uint8)
    asked, known = torch.tensor([True, False, False]), torch.tensor([False, False, True])

    def cell(dims: list[int]) -> float:
        lower = [-40.0 if x[0, d] == 0 else float(x[0, d]) for d in dims]
        upper = [40.0 if x[0, d] == 3 else float(x[0, d]) + 1 for d in dims]
        return sum(
            float(w) * multivariate_normal(m[dims], c[dims][:, dims]).cdf(upper, lower_limit=lower)
            for w, m, c in zip(
                model.log_weights.exp(), model.means.numpy(), covariances(model), strict=True
            )
        )

    truth = math.log(cell([0, 2]) / cell([2]))
    found = model.log_prob_of(
        x.expand(500, -1), asked, known, num_particles=100,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    z = (found.log_prob - truth) / found.standard_error
    assert float(z.std()) == pytest.approx(1, abs=0.15)
    assert abs(float(z.mean())) < 0.25
    assert float(found.standard_error.max()) < 0.2


@pytest.mark.parametrize("levels", [None, 3])
def test_a_joint_histogram_sums_cells(levels):
    measure = "density" if levels is None else "probability"
    spec = DataSpec("tiny", "vector", (3,), levels, measure)
    model = Histogram(spec, num_bins=3, joint=True).double()
    model.initialize([random_events(spec, 100, 1)])
    x = random_events(spec, 4, 2)
    asked = torch.tensor([True, False, True])
    found = model.log_prob_of(x, asked).log_prob
    if levels is None:  # cells of the second value: two tails and three bins
        grid = torch.linspace(-60, 60, 240_001, dtype=torch.double)
        events = x[:1].repeat(len(grid), 1)
        events[:, 1] = grid
        total = (model.log_prob(events).logsumexp(0) + math.log(120 / 240_000)).item()
        assert float(found[0]) == pytest.approx(total, abs=1e-3)
    else:
        for i in range(4):
            truth = enumerated(model, x[i : i + 1], asked)
            assert float(found[i]) == pytest.approx(truth, abs=1e-9)


def test_original_units_count_the_queried_columns_alone():
    """The density of a column in its own units is that of the normal with its own deviation."""
    scale = Standardization(("a", "b", "c"), (3.0, 0.0, -1.0), (2.0, 5.0, 0.1))
    spec = DataSpec("units", "vector", (3,), None, "density", scale.log_det, standardization=scale)
    part = torch.tensor([[True, False, True], [False, True, False]])
    found = spec.log_det_of(part)
    assert found.tolist() == pytest.approx([-math.log(2 * 0.1), -math.log(5)], abs=1e-12)
    assert float(spec.log_det_of(part.any(0))) == pytest.approx(spec.log_det, abs=1e-12)
    bits = DataSpec("bits", "vector", (3,), 2, "probability")
    assert bits.log_det_of(part).tolist() == [0, 0]
    other = dataclasses.replace(spec, standardization=None)
    with pytest.raises(ValueError, match="whole examples alone$"):
        other.log_det_of(part)


def test_values_outside_of_the_question_change_nothing():
    model = reversed_made()
    x = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 1, 0, 1]], dtype=torch.uint8)
    asked, known = torch.tensor([0, 1, 0, 0, 0]).bool(), torch.tensor([1, 0, 0, 0, 0]).bool()
    first, second = model.log_prob_of(x, asked, known).log_prob
    assert first == second
    # One mask for all events, or one each.
    each = model.log_prob_of(x, asked.expand(2, -1), known.expand(2, -1))
    assert each.log_prob.tolist() == [first, second]


@pytest.mark.parametrize(
    ("asked", "known", "more", "message"),
    [
        ([1, 1], [1, 0], {}, "a value is both asked and known; what is known has probability 1$"),
        ([0, 0], [1, 0], {}, "nothing is asked of an event; name at least one value of it$"),
        ([1, 0], None, {"num_particles": 0}, "num_particles is 0; it must be at least 1"),
        ([1, 0, 1], None, {}, r"asked has shape \(3,\), the events \(2,\)$"),
    ],
)
def test_questions_that_make_no_sense_are_refused(asked, known, more, message):
    model = reversed_made(2)
    x = torch.zeros(1, 2, dtype=torch.uint8)
    masks = [None if one is None else torch.tensor(one).bool() for one in (asked, known)]
    with pytest.raises(ValueError, match=message):
        model.log_prob_of(x, *masks, **more)


def test_what_is_impossible_is_refused():
    spec = DataSpec("tiny", "vector", (2,), 3, "probability")
    model = Histogram(spec, num_bins=3, joint=True, smoothing=0.0).double()
    model.initialize([torch.tensor([[0, 1], [1, 2]], dtype=torch.uint8)])
    x, first = torch.tensor([[2, 1]], dtype=torch.uint8), torch.tensor([True, False])
    with pytest.raises(ValueError, match="^the known values have probability 0"):
        model.log_prob_of(x, ~first, first)
    assert model.log_prob_of(x, first).log_prob.tolist() == [-math.inf]


def test_a_pixel_asked_in_part_is_refused():
    case = CASES["pixelcnn-rgb-joint"]
    asked = torch.zeros(case.spec.shape, dtype=torch.bool)
    asked[0] = True
    with pytest.raises(ValueError, match="all channels of a pixel in one step"):
        case.build(0).log_prob_of(case.events(1), asked)


def test_the_least_model_tells_of_whole_events_alone():
    case = CASES["least"]
    model, x = case.build(0), case.events(2)
    whole = torch.ones(case.spec.shape, dtype=torch.bool)
    assert torch.equal(model.log_prob_of(x, whole).log_prob, model.log_prob(x))
    part = whole.clone()
    part.view(-1)[0] = False
    with pytest.raises(ValueError, match="tells nothing of a part of an event$"):
        model.log_prob_of(x, part)


def test_a_pixel_of_a_resampled_model_moves_as_a_whole():
    """It was trained on orders of pixels: particles sum out a channel that comes before."""
    case = CASES["nade-resampled"]
    model, x = case.build(0), case.events(1)
    pixel, channel = (torch.zeros(case.spec.shape, dtype=torch.bool) for _ in range(2))
    pixel[:, 0, 1] = True
    channel[1, 0, 1] = True
    assert model.log_prob_of(x, pixel, ~pixel).method == "exact"
    assert model.log_prob_of(x, channel, ~pixel).method == "likelihood weighting"


def test_one_noise_for_both_parts_leaves_less_error():
    """Of what both walks draw alike, the ratio keeps nothing."""
    model = reversed_made()
    x = torch.tensor([[1, 0, 1, 1, 0]], dtype=torch.uint8).expand(20, -1)
    asked, known = torch.tensor([1, 0, 0, 0, 0]).bool(), torch.tensor([0, 0, 0, 0, 1]).bool()
    errors = [
        model.log_prob_of(x, *masks, generator=torch.Generator().manual_seed(1)).standard_error
        for masks in ((asked, known), (asked | known,), (known,))
    ]
    assert float(errors[0].mean()) < 0.7 * float(torch.hypot(errors[1], errors[2]).mean())


def test_a_query_hears_the_context():
    """Of each event its own, in closed form and by particles."""
    model = CASES["made"].build(0, LABEL)
    x = CASES["made"].events(1, seed=3).expand(3, -1)
    labels = torch.tensor([0, 1, 2])
    first, last = torch.arange(6) < 2, torch.arange(6) > 3
    events = every_event(model.spec)
    for asked in (first, last):
        found = model.log_prob_of(
            x, asked, context=labels, num_particles=500,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert found.method == ("exact" if asked is first else "likelihood weighting")
        assert len({*found.log_prob.tolist()}) == 3
        for i in range(3):
            of_label = model.log_prob(events, labels[i].expand(len(events))).detach()
            truth = float(of_label[matching(events, x[:1], asked)].logsumexp(0))
            bound = 1e-9 + 5 * float(found.standard_error[i])
            assert float(found.log_prob[i]) == pytest.approx(truth, abs=bound)
    with pytest.raises(ValueError, match="is conditioned on label: give one for each event$"):
        model.log_prob_of(x, first)


# The verb


def column(path, name: str) -> list[float]:
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Gaussian mixture of a table in units of its own, and a MADE of pictures."""
    folder = tmp_path_factory.mktemp("query")
    noise = np.random.default_rng(0).normal(size=(90, 3)).cumsum(1)
    rows = noise * [1, 50, 1e-3] + [0, 2000, 5]
    np.savetxt(folder / "mine.csv", rows, delimiter=",", header="a,b,c", comments="")
    done(folder, "train", "data=table", "data.path=mine.csv", "model=gmm", "recipe=default",
         "model.num_components=2", *QUICK, "out=table")  # fmt: skip
    done(folder, "train", *TINY, "data.kind=image", "data.shape=[1,4,3]", "data.levels=3",
         "trainer.max_steps=3", "out=pictures")  # fmt: skip
    return folder


def test_parts_of_a_table_add_up_to_its_score(folder):
    """In the table's own units: conditional, marginal and whole."""
    shown = done(folder, "query", "table", "of=[a]", "given=[b,c]", "out=given.csv")
    assert "nats of p(a | b, c), 1 value of an example (exact)\n" in shown
    done(folder, "query", "table", "of=[b,c]", "out=marginal.csv")
    done(folder, "score", "table", "out=whole.csv")
    parts, marginals, whole = (
        column(folder / f"{name}.csv", "nats") for name in ("given", "marginal", "whole")
    )
    assert len(whole) == 9
    assert np.add(parts, marginals) == pytest.approx(whole, abs=1e-9)
    mean = np.mean(parts)
    assert f"mean   {mean:.4f} nats" in shown


@pytest.mark.slow
def test_parts_of_pictures(folder):
    """By words and by masks; what is given, and all the rest, where nothing else is asked."""
    shown = done(folder, "query", "pictures", "given=top", "device=cpu")
    assert "nats of p(rest | top, 0.5), 6 values of an example (exact)\n" in shown
    (path,) = folder.glob("pictures/query-rest-given-top-0.5-*.csv")
    np.save(folder / "below.npy", np.arange(12).reshape(4, 3) >= 6)
    words = ("query", "pictures", "device=cpu", "of=below.npy", "given=top", "out=mask.csv")
    done(folder, *words)
    assert column(folder / "mask.csv", "nats") == pytest.approx(column(path, "nats"))
    shown = done(folder, "query", "pictures", "of=bottom", "keep=0.25", "num_examples=5",
                 "num_particles=300", "device=cpu", "out=below.csv")  # fmt: skip
    assert "(estimated by particles, standard error 0." in shown
    assert len(column(folder / "below.csv", "nats")) == 5
    assert all(0 < error < 0.5 for error in column(folder / "below.csv", "standard_error"))


def test_hidden_cells_are_filled_beside_imputers(folder):
    shown = done(folder, "query", "table", "impute=0.3", "num_completions=20", "out=cells.csv")
    with open(folder / "cells.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [*rows] == ["the model", "SimpleImputer", "KNNImputer", "IterativeImputer"]
    assert rows["SimpleImputer"]["nats_per_cell"] == ""
    assert float(rows["the model"]["rmse"]) < float(rows["SimpleImputer"]["rmse"])
    assert f"{float(rows['the model']['nats_per_cell']):.4f} nats a cell\n" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing is asked: say of what, such as of=[alcohol] given=[pH] of a table, "
             "of=bottom given=top of pictures, or given=top alone, which asks for all the rest"),
        (("of=[a,b]", "given=[b]"), "of and given share 1 value of an example, and what is given "
             "has probability 1; name other parts, or choose a smaller keep"),
        (("of=[A]",), "of names 'A'; the columns are a, b, c"),
        (("of=top", "keep=0"), "of=top is no value of an example, so that nothing is asked; of a "
             "word, keep=0 says how much it stands for"),
        (("of=[a]", "impute=0.1"),
             "of=[a] goes with of=PART, not with impute=SHARE; leave it out"),
        (("impute=1.5",), "impute is 1.5; it must be above 0 and below 1"),
        (("of=[a]", "keep=0.3"), "keep=0.3 says how much a word stands for (top, bottom, left, "
             "right, border, random), and none is named; leave it out"),
        (("given=top", "keep=1"), "given=top is all of an example, so that nothing is left to "
             "ask; give less of it, or name what is asked by of="),
        (("of=none.png",), "mask none.png does not exist"),
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_refused(folder, words, message):
    assert armodels(folder, "query", "table", *words, "out=refused.csv").error == message
    assert not (folder / "refused.csv").exists()


def test_each_question_has_a_file_of_its_own(tmp_path):
    """Whatever letters its columns have, and of however few examples it is asked."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text("ä b,ä-b,x\n" + text, encoding="utf-8")
    done(tmp_path, "train", "data=table", "data.path=t.csv", "model=gmm", *QUICK, "out=run")
    for words in (("of=[ä b]",), ("of=[ä-b]",), ("of=[x]",), ("of=[x]", "num_examples=2")):
        done(tmp_path, "query", "run", *words)
    assert len(list((tmp_path / "run").glob("query-*.csv"))) == 4


def weighed(
    spread: float, num_answers: int, num_particles: int, terms: int = 1
) -> query.LogProbOf:
    """Answers whose truth is 0, by weights exp(spread z - spread^2 / 2) of normal z."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_answers, terms, num_particles)
    z = torch.randn(shape, generator=generator, dtype=torch.double)
    weights = spread * z - spread**2 / 2
    return query.answer(query.Weights(weights, torch.zeros_like(weights), False))


def test_effective_particles_by_hand():
    found = weighed(1.0, 50, 40)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 40, generator=generator, dtype=torch.double)
    own = 1 / z.softmax(1).square().sum(1)
    torch.testing.assert_close(found.effective_sample_size, own, rtol=1e-9, atol=0)
    # The worse of both parts counts.
    turned = query.answer(query.Weights(torch.zeros(50, 1, 40), z[:, None], False))
    torch.testing.assert_close(turned.effective_sample_size, own, rtol=1e-9, atol=0)
    # Terms that differ, each without error, are as good as all their particles.
    terms = torch.tensor([0.0, -9.0]).view(1, 2, 1).expand(1, 2, 30)
    apart = query.answer(query.Weights(terms, torch.zeros_like(terms), False))
    assert float(apart.effective_sample_size) == pytest.approx(60)
    assert not apart.doubtful.any()
    exact = query.answer(query.exactly(torch.zeros(3), torch.zeros(3)))
    assert exact.effective_sample_size.isinf().all()
    assert not exact.doubtful.any()


def test_errors_that_too_few_particles_state_are_doubtful():
    """Where the truth is known: those of many hold, and those of few say so and are not too small.

    By the delta method alone the errors of few would be stated half as large as they are.
    """
    many = weighed(1.0, 3000, 400)
    assert not many.doubtful.any()
    z = many.log_prob / many.standard_error
    assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=0.1)
    few = weighed(3.0, 3000, 200)
    assert float(few.doubtful.double().mean()) > 0.97
    z = (few.log_prob / few.standard_error)[few.doubtful]
    assert 0.5 < float(z.square().mean().sqrt()) < 3
    for terms in (1, 2):
        assert weighed(0.3, 9, 200, terms).effective_sample_size.min() > 150 * terms


def test_one_particle_that_outweighs_all_others_in_both_parts_is_no_certainty():
    """Its weights take each other off, so that the delta method sees no error at all."""
    generator = torch.Generator().manual_seed(0)
    both, known = torch.randn(2, 1, 1, 100, generator=generator, dtype=torch.double)
    both[..., 7], known[..., 7] = 60.0, 50.0
    found = query.answer(query.Weights(both, known, False))
    assert float(found.log_prob) == pytest.approx(10)
    assert float(found.effective_sample_size) == pytest.approx(1)
    assert 3 < float(found.standard_error) < 8  # without it the answer is about 0, 10 away
    assert found.doubtful.all()


def test_a_query_says_how_many_particles_count(folder):
    done(folder, "train", "data=table", "data.path=mine.csv", "model=made", "recipe=default",
         "trainer.max_steps=5", *QUICK, "out=steps")  # fmt: skip
    words = ("query", "steps", "of=[c]", "given=[b]", "device=cpu")
    for number in (10, 3000):
        shown = armodels(folder, *words, f"num_particles={number}", f"out={number}.csv")
        sizes = column(folder / f"{number}.csv", "effective_particles")
        told = f"effective particles {np.mean(sizes):.1f} (least {min(sizes):.1f}) of {number})"
        assert told in shown.out
        doubtful = sum(size < 20 for size in sizes)
        assert ("fewer than 20 particles count" in shown.err) == bool(doubtful)
        assert bool(doubtful) == (number == 10)
        assert max(sizes) <= number + 1e-6
    shown = armodels(folder, "query", "steps", "impute=0.3", "num_completions=5",
                     "num_particles=10", "device=cpu", "out=few.csv")  # fmt: skip
    with open(folder / "few.csv", newline="") as file:
        own = next(csv.DictReader(file))
    assert 1 <= float(own["effective_particles"]) <= 10
    least = f"effective particles at least {float(own['effective_particles']):.1f} of 10)"
    assert least in shown.out
    assert "fewer than 20 particles count" in shown.err


def test_one_particle_says_nothing_of_its_error():
    model = reversed_made()
    x = torch.zeros(2, 5, dtype=torch.uint8)
    asked = torch.tensor([False] * 4 + [True])
    found = model.log_prob_of(x, asked, num_particles=1)
    assert found.standard_error.isinf().all()
    assert found.log_prob.isfinite().all()


def test_hidden_cells_by_hand():
    """RMSE of the mean of train is that of numpy; nats are those of the hidden cells alone."""
    generator = torch.Generator().manual_seed(0)
    train, x = (
        3 * torch.randn(n, 4, generator=generator, dtype=torch.double) + 1 for n in (200, 50)
    )
    known = imputation.hide(x, 0.3, 1)
    assert 0.6 < float(known.double().mean()) < 0.8
    simple = imputation.by_imputers(x, known, train)[0]
    errors = ((train.mean(0) - x) / train.std(0, correction=0))[~known]
    assert simple.rmse == pytest.approx(float(errors.square().mean().sqrt()), abs=1e-9)
    spec = DataSpec("tiny", "vector", (4,), None, "density")
    model = Independent(spec).double()
    model.initialize([train])
    config = {"num_completions": 300, "num_particles": 2, "seed": 0}
    own = imputation.by_model(model.eval(), spec, x, known, train, config)
    normal = torch.distributions.Normal(train.mean(0), train.std(0, correction=0))
    nats = -float(normal.log_prob(x)[~known].mean())
    assert own.nats == pytest.approx(nats, abs=1e-9)
    assert own.standard_error == 0
    assert own.rmse == pytest.approx(simple.rmse, rel=0.01)
    with pytest.raises(ValueError, match="hides none of the 200 cells; raise it$"):
        imputation.hide(x, 1e-9, 0)
