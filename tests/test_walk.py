"""What choosers make of the one walk: an entropy coder, too."""

import math

import pytest
import torch
from cases import CASES, every
from torch import Tensor

from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.walk import Choose, Scored, draw, draw_noise, follow, keep, walk

CODED = {
    name: case
    for name, case in CASES.items()
    if case.steps and case.spec.levels is not None and case.num_orders == 1
}
TOTAL = 2**52
"""Integer frequencies of all levels of a value add up to this."""

START = TOTAL**2
"""What a number holds before its first value; the larger, the less is lost by whole numbers."""


def intervals(model: AutoregressiveModel, params: Tensor, earlier: Tensor) -> list[list[int]]:
    """Of each event, where the levels of its next value begin in [0, TOTAL], and the end."""
    probs = model.head.level_log_probs(params, earlier).exp()  # (B, L)
    levels = probs.shape[-1]
    counts = (probs * (TOTAL - levels)).floor().long() + 1
    left_over = TOTAL - counts.sum(1, keepdim=True)
    counts.scatter_add_(1, counts.argmax(1, keepdim=True), left_over)
    return [[0, *row] for row in counts.cumsum(1).tolist()]


def encoding(model: AutoregressiveModel, values: Tensor, spans: list) -> Choose:
    """Follow values (B, S, K), and note the interval of each as it is written."""

    def choose(s: int, params: Tensor) -> Tensor:
        for k in range(values.shape[2]):
            edges = intervals(model, params, values[:, s, :k])
            levels = values[:, s, k].tolist()
            for row, level in zip(edges, levels, strict=True):
                spans.append((row[level], row[level + 1]))
        return values[:, s]

    return choose


def encoded(spans: list[tuple[int, int]]) -> int:
    """One number that holds all values: asymmetric numeral systems, the last value first."""
    number = START
    for low, high in reversed(spans):
        number = number // (high - low) * TOTAL + low + number % (high - low)
    return number


class Decoding:
    """Read the values of every step off a number, which is used up."""

    def __init__(self, model: AutoregressiveModel, number: int, width: int):
        self.model, self.number, self.width = model, number, width

    def __call__(self, s: int, params: Tensor) -> Tensor:
        values = torch.empty(len(params), 0, dtype=self.model.spec.dtype)
        for _ in range(self.width):
            column = []
            for edges in intervals(self.model, params, values):
                slot = self.number % TOTAL
                level = sum(edge <= slot for edge in edges) - 1
                low, high = edges[level : level + 2]
                self.number = self.number // TOTAL * (high - low) + slot - low
                column.append(level)
            values = torch.cat([values, torch.tensor(column).to(values)[:, None]], 1)
        return values


@every(CODED, "name")
@torch.no_grad()
def test_a_chooser_that_reads_a_number_decodes_what_another_wrote(name):
    model, x = CASES[name].build(0), CASES[name].events(5, seed=2)
    values, spans = model._to_steps(x), []
    walk(model.net, len(x), encoding(model, values, spans))
    number = encoded(spans)
    bits = -float(model.log_prob(x).sum()) / math.log(2)
    # A bit more than log p says, of the number's start and of frequencies that are integers.
    assert math.log2(number) - math.log2(START) == pytest.approx(bits, abs=1e-2)
    decoding = Decoding(model, number, values.shape[2])
    assert torch.equal(walk(model.net, len(x), decoding), values)
    assert decoding.number == START


def test_choosers_are_asked_in_turn_and_wrap_one_another():
    model = CASES["made"].build(0)
    x = CASES["made"].events(4)
    values = model._to_steps(x)
    known = torch.zeros(values.shape[:2], dtype=torch.bool)
    known[:, ::2] = True
    noise = draw_noise((4, model.net.num_steps, model.head.num_noise), None, "cpu")
    drawing, asked = draw(model.head, noise), []

    def noting(s, params):
        asked.append(s)
        return drawing(s, params)

    chooser = Scored(model.head, keep(values, known, noting))
    with torch.no_grad():
        written = walk(model.net, 4, chooser)
        again = Scored(model.head, follow(written))
        walk(model.net, 4, again)
    assert asked == list(range(model.net.num_steps))
    assert torch.equal(written[known], values[known])
    torch.testing.assert_close(chooser.log_probs(), again.log_probs(), rtol=0, atol=0)
    expected = model.log_prob(model._to_event(written))
    torch.testing.assert_close(chooser.log_probs().sum(1), expected, rtol=0, atol=1e-10)
