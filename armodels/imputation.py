"""Hidden cells of a table: what a model and scikit-learn's imputers make of them."""

import math
import time
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from armodels.density.base import DensityModel
from armodels.spec import DataSpec

LARGEST_BATCH = 100_000
"""So many rows, each as often as it has particles, are filled at a time."""


class Filled(NamedTuple):
    """How well hidden cells were filled.

    Attributes:
        method: By whom.
        rmse: Root mean square error of the cells, in standard deviations of their columns in
            train.
        nats: Mean negative log-probability of a hidden cell given what is known of its row, in the
            table's units; None of what states no probability.
        standard_error: Of ``nats``, by the particles alone; 0 where the answers are exact.
        seconds: It took.
        effective_particles: The least of a row; None where the answers are exact, or none.
        doubtful: Rows of which too few particles count for the error to be trusted.
        num_particles: Of each row, of every order or component; 0 where the answers are exact.
    """

    method: str
    rmse: float
    nats: float | None
    standard_error: float
    seconds: float
    effective_particles: float | None = None
    doubtful: int = 0
    num_particles: int = 0


def hide(x: Tensor, share: float, seed: int) -> Tensor:
    """Boolean (N, D), True where a cell stays known: others are hidden at random.

    Args:
        x: (N, D).
        share: Of the cells that is hidden, above 0 and below 1.
        seed: Of the draw.

    Raises:
        ValueError: The draw hid no cell.
    """
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    known = noise >= share
    if known.all():
        raise ValueError(f"impute={share:g} hides none of the {x.numel()} cells; raise it")
    return known


def rmse(filled: Tensor, x: Tensor, known: Tensor, train: Tensor) -> float:
    """Root mean square error of hidden cells, in standard deviations of their columns in train.

    Args:
        filled: (N, D).
        x: (N, D), the truth.
        known: Boolean (N, D).
        train: (M, D).
    """
    std = train.double().std(0, correction=0).clamp_min(1e-12)
    errors = ((filled.double() - x.double()) / std)[~known]
    return float(errors.square().mean().sqrt())


def by_imputers(x: Tensor, known: Tensor, train: Tensor) -> list[Filled]:
    """Hidden cells filled by imputers of scikit-learn with their defaults, fitted on train.

    Values are standardized by train first, as distances between rows need it.

    Args:
        x: (N, D).
        known: Boolean (N, D).
        train: (M, D).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    mean, std = train.double().mean(0), train.double().std(0, correction=0).clamp_min(1e-12)
    scaled = ((train.double() - mean) / std).cpu().numpy()
    holes = ((x.double() - mean) / std).masked_fill(~known, torch.nan).cpu().numpy()
    imputers = {
        "SimpleImputer": SimpleImputer(),
        "KNNImputer": KNNImputer(),
        "IterativeImputer": IterativeImputer(random_state=0),
    }
    done = []
    for name, imputer in tqdm(imputers.items(), desc="imputing", delay=1, disable=None):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # its defaults are what is compared
            filled = torch.from_numpy(imputer.fit(scaled).transform(holes)) * std + mean
        seconds = time.perf_counter() - start
        done.append(Filled(name, rmse(filled, x, known, train), None, 0.0, seconds))
    return done


def by_model(
    model: DensityModel, spec: DataSpec, x: Tensor, known: Tensor, train: Tensor, config: Mapping
) -> Filled:
    """Hidden cells filled by the mean of a model's draws given what is known of the row.

    Args:
        model: Of a table, without a context.
        spec: What a datum is.
        x: (N, D), on the device of the model.
        known: Boolean (N, D).
        train: (M, D).
        config: num_completions, num_particles and seed.
    """
    start, draws = time.perf_counter(), config["num_completions"]
    generator = torch.Generator().manual_seed(config["seed"])
    filled = x.double().clone()
    log_probs, squares, counts, doubtful = [], [], [], 0
    size = max(1, LARGEST_BATCH // (draws * config["num_particles"]))
    rows = (~known).any(1).nonzero()[:, 0]
    for batch in tqdm(rows.split(size), desc="filling", unit="batch", delay=1, disable=None):
        drawn = model.complete(
            x[batch].repeat_interleave(draws, 0),
            known[batch].repeat_interleave(draws, 0),
            num_particles=config["num_particles"],
            generator=generator,
        )
        mean = drawn.values.double().unflatten(0, (-1, draws)).mean(1)
        filled[batch] = torch.where(known[batch], filled[batch], mean)
        found = model.log_prob_of(
            x[batch],
            ~known[batch],
            known[batch],
            num_particles=config["num_particles"],
            generator=generator,
        )
        log_probs.append(found.log_prob + spec.log_det_of(~known[batch]))
        squares.append(found.standard_error.square())
        counts.append(found.effective_sample_size)
        doubtful += int(found.doubtful.sum())
    cells, least = int((~known).sum()), float(torch.cat(counts).min())
    return Filled(
        "the model",
        rmse(filled, x, known, train),
        -float(torch.cat(log_probs).sum()) / cells,
        float(torch.cat(squares).sum().sqrt()) / cells,
        time.perf_counter() - start,
        None if least == math.inf else least,
        doubtful,
        found.num_particles,
    )
