"""Entropies of conditionals, and pictures of them and of a draw step by step."""

import math

import pytest
import torch
from cases import Case, every_event
from test_invariants import countable, over, refuses

from armodels import DataSpec, heads, orders, pictures
from armodels.density.entropy import entropies

over_steps = over(lambda case: case.steps and countable(case) and case.spec.num_dims > 1)


def before(model, value: int) -> list[int]:
    """Flat indices of the values that are written before one, the order's table read by hand."""
    written = model.net.order_table.flatten().tolist()
    return written[: written.index(value)]


def entropy_given(x, probs, value: int, earlier: list[int]) -> float:
    """H(value | earlier values) from the probabilities of all events, nats."""

    def joint(columns: list[int]) -> float:
        if not columns:
            return 0.0
        _, group = x[:, columns].unique(dim=0, return_inverse=True)
        return float(torch.special.entr(probs.new_zeros(len(x)).index_add(0, group, probs)).sum())

    return joint([*earlier, value]) - joint(earlier)


@over_steps
@torch.no_grad()
def test_expected_entropies_are_those_of_all_events(case: Case):
    """Each value's own, so that none stands in another one's place."""
    model, x = case.build(0), every_event(case.spec)
    probs = model.log_prob(x).exp()
    maps = model.entropy_map(x)
    assert maps.shape == x.shape
    expected = (probs[:, None] * maps.flatten(1)).sum(0)
    flat = x.flatten(1)
    for value in {0, 1, case.spec.num_dims - 1}:
        wanted = entropy_given(flat, probs, value, before(model, value))
        assert float(expected[value]) == pytest.approx(wanted, abs=1e-9)


@over_steps
def test_values_know_their_step(case: Case):
    model = case.build(0)
    steps = model.steps_of_values.flatten()
    for s, row in enumerate(model.net.order_table.tolist()):
        assert steps[row].tolist() == [s] * len(row)


def test_entropies_in_parts_are_those_at_once(monkeypatch):
    spec = DataSpec("grey", "image", (1, 2, 3), 4, "probability")
    head = heads.Categorical(spec)
    params, values = torch.randn(5, 6, 4).double(), torch.zeros(5, 6, 1, dtype=torch.uint8)
    whole = entropies(head, params, values)
    monkeypatch.setattr("armodels.density.entropy.MAX_LISTED", 1)
    assert entropies(head, params, values).equal(whole)
    probs = params.softmax(-1)
    torch.testing.assert_close(whole[..., 0], -(probs * probs.log()).sum(-1))


def test_a_certain_value_has_no_entropy():
    head = heads.Categorical(DataSpec("grey", "image", (1, 1, 1), 4, "probability"))
    certain = torch.tensor([[[0.0, -math.inf, -math.inf, -math.inf]]])
    assert float(entropies(head, certain, torch.zeros(1, 1, 1, dtype=torch.uint8))) == 0


def test_real_values_have_no_entropies():
    head = heads.GaussianMixture(DataSpec("own", "vector", (2,), None, "density"))
    sentence = (
        "head gaussian_mixture has no level_log_probs: real values have a density, not levels"
    )
    with refuses(sentence):
        entropies(head, torch.zeros(1, 2, head.num_params), torch.zeros(1, 2, 1))


def test_a_film_begins_with_nothing_and_ends_with_the_event():
    spec = DataSpec("grey", "image", (1, 4, 5), 4, "probability")
    x = torch.randint(0, 4, (2, 1, 4, 5), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    steps = orders.ranks(orders.make("columns", spec.shape).table).view(spec.shape)
    film = pictures.film(x, steps, spec, moments=5)
    assert film.shape[0] == 3
    whole = pictures.events(x.repeat_interleave(6, 0), spec, columns=6, titles=[("", 6)])
    none = pictures.events(
        x.repeat_interleave(6, 0),
        spec,
        columns=6,
        titles=[("", 6)],
        known=torch.zeros(12, 1, 4, 5, dtype=torch.bool),
    )
    pitch = (film.shape[-1] - 2) // 6
    below = slice(18, None)  # of the line of titles
    assert film[:, below, :pitch].equal(none[:, below, :pitch])
    assert film[:, below, -pitch:].equal(whole[:, below, -pitch:])
    # After a fifth of the order of columns the first column alone is there: 12 of 60 pixels wide.
    first = film[:, 18 + 2 : 18 + 50, pitch + 2 : 2 * pitch]
    assert first[..., :12].equal(whole[:, 18 + 2 : 18 + 50, pitch + 2 : pitch + 14])
    assert first[..., 12:].equal(none[:, 18 + 2 : 18 + 50, pitch + 14 : 2 * pitch])


def test_no_film_of_a_text_or_of_real_values():
    for spec in (DataSpec("own", "vector", (3,), None, "density"),):
        assert pictures.film(torch.zeros(2, 3), torch.arange(3), spec) is None


def test_entropies_have_their_scale():
    none = pictures.entropies(torch.zeros(1, 1, 2, 2), 256)
    most = pictures.entropies(torch.full((1, 1, 2, 2), math.log(256)), 256)
    half = pictures.entropies(torch.full((1, 1, 2, 2), math.log(256) / 2), 256)
    assert none[:, -10, -10].tolist() == [0, 0, 4]
    assert half[:, -10, -10].tolist() == [186, 54, 85]
    assert most[:, -10, -10].tolist() == [252, 255, 164]
