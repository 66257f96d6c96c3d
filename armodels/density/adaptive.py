"""Models that learn from a text while they read it: each value is scored before it is learned."""

import copy
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.stream import Piece, reader
from armodels.density.walk import score
from armodels.networks.base import State
from armodels.networks.stream import CHUNK, StreamNetwork

STEP = 32
"""Symbols, or frames, between two steps of a gradient."""

FORGETTING = 0.999
"""Decay of the mean squares of gradients, by whose roots steps are divided."""


def _learner(
    model: DensityModel, rate: float
) -> tuple[AutoregressiveModel, torch.optim.Optimizer | None]:
    """A copy of a model, and what moves its weights, if it has any.

    Raises:
        ValueError: It does not read, or has a context.
    """
    reader(model)
    if model.context is not None:
        raise ValueError(
            f"{model.description} is conditioned on {model.context.name}, and cannot learn "
            f"while it is scored; leave adapt out, or train a model without a context"
        )
    assert isinstance(model, AutoregressiveModel)
    own = copy.deepcopy(model).eval().requires_grad_(True)
    weights = list(own.parameters())
    # Without momentum, Adam divides by the root mean squares and does no more.
    return own, torch.optim.Adam(weights, lr=rate, betas=(0.0, FORGETTING)) if weights else None


@final
class Adaptive:
    """A copy of a model that learns from what it reads; the model itself stays as it is.

    Counts grow by each value before the next is scored. Weights take a step of the gradient after
    every ``STEP`` symbols, which were scored before it; the state is carried on, without gradient.
    So the numbers are those of one distribution over texts: prequential, by the chain rule.
    Sources: Krause et al., 2018, https://arxiv.org/abs/1709.07432 (dynamic evaluation); Dawid,
    1984, https://doi.org/10.2307/2981683 (prequential).
    Differs from the paper: mean squares of gradients are those of the text that is read, not of
    train, and weights are not drawn back to where they began.

    Args:
        model: It reads, and has no context.
        rate: Of a step, in which a weight moves by about this much.

    Raises:
        ValueError: It does not read, or has a context.
    """

    def __init__(self, model: DensityModel, rate: float):
        self.model, self._optimizer = _learner(model, rate)

    def log_probs(self, piece: Piece) -> Iterator[Tensor]:
        """Log-probability of each value of a sequence, nats, given what was learned before it.

        Args:
            piece: (T,).

        Yields:
            (t,), of a chunk after the other.
        """
        with torch.no_grad():
            before, state = reader(self.model).begin(1)
        size = (STEP if self._optimizer else CHUNK) * self.model.spec.unit_size
        for start in range(0, len(piece), size):
            values = piece[start : start + size].to(before.device)[None, :, None]
            found, before, state = self._score_and_learn(values, before, state)
            yield found

    def _score_and_learn(
        self, values: Tensor, before: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        """Log-probabilities (t,) of values, what is said after the last of them, and the state.

        Args:
            values: (1, t, 1).
            before: (1, P), what was said of the first of them.
            state: Of the text before them.
        """
        # The kernels of a GPU's recurrent layers have no gradient in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
            after, state = reader(self.model).absorb(values, state)
            params = torch.cat([before[:, None], after[:, :-1]], 1)
            found = score(self.model.head, params, values)[0]
            if self._optimizer and found.requires_grad:
                self._optimizer.zero_grad()
                (-found.mean()).backward()
                self._optimizer.step()
        kept = {name: one.detach() for name, one in state.items()}
        return found.detach(), after[:, -1].detach(), State(kept)


@final
class Learning:
    """The steps of one sequence under a copy of a model that learns from what is written.

    For a walk what ``Adaptive`` is for an evaluation: up to rounding the numbers are the same, and
    those of a step follow from the values before it alone, so that a decoder has them, too.

    Args:
        model: As of ``Adaptive``.
        rate: As of ``Adaptive``.
        num_steps: S, values of the sequence.
    """

    def __init__(self, model: DensityModel, rate: float, num_steps: int):
        self.num_steps = num_steps
        self._own, self._optimizer = _learner(model, rate)
        self._before: Tensor | None = None
        self._scores: list[Tensor] = []

    @property
    def _net(self) -> StreamNetwork:
        return reader(self._own)

    def pack(self) -> None:
        """Nothing is constant."""

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """As of the network.

        Args:
            pack: None.
            n: 1: sequences side by side would learn from each other.
            context: None.
        """
        assert n == 1
        return self._net.start(None, n)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """Learn from the value of the step before.

        Args:
            values: (1, 1) of step s - 1; None before the first.
            s: The step.
            state: The state before it.
            pack: None.
        """
        if values is None:
            params = state.pop("first").detach()
        else:
            with torch.enable_grad():
                params, state = self._read(values[:, None], state)
        self._before = params
        return params.detach(), state

    def _read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """What is said after a value (1, 1, 1), with the gradient of those since the last step."""
        assert self._before is not None
        self._scores.append(score(self._own.head, self._before[:, None], values))
        after, state = self._net.absorb(values, state)
        if len(self._scores) < STEP * self._own.spec.unit_size:
            return after[:, 0], state
        loss = -torch.cat(self._scores, 1).mean()
        self._scores = []
        if self._optimizer is not None and loss.requires_grad:
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return after[:, 0].detach(), State({name: one.detach() for name, one in state.items()})
