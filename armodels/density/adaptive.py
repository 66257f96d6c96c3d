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
from armodels.networks.stream import CHUNK

STEP = 32
"""Symbols, or frames, between two steps of a gradient."""

FORGETTING = 0.999
"""Decay of the mean squares of gradients, by whose roots steps are divided."""


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
        reader(model)
        if model.context is not None:
            raise ValueError(
                f"{model.description} is conditioned on {model.context.name}, and cannot learn "
                f"while it is scored; leave adapt out, or train a model without a context"
            )
        assert isinstance(model, AutoregressiveModel)
        self.model = copy.deepcopy(model).eval().requires_grad_(True)
        weights = list(self.model.parameters())
        # Without momentum, Adam divides by the root mean squares and does no more.
        self._optimizer = (
            torch.optim.Adam(weights, lr=rate, betas=(0.0, FORGETTING)) if weights else None
        )

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
