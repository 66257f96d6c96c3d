"""A moving average of a model's weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from armodels.training.sharded import like


@final
class Average:
    """Exponential moving average of the weights, without bias towards their start.

    After t steps it is sum{ (1 - d) d^(t - i) w_i : i = 1..t } / (1 - d^t).

    Args:
        model: Its parameters are averaged.
        decay: d, between 0 and 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.params: list[Tensor] = list(model.parameters())
        self.values = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take in the weights after step ``t``, counted from 1."""
        weight = (1 - self.decay) / (1 - self.decay**t)
        torch._foreach_lerp_(self.values, [p.detach() for p in self.params], weight)

    def moved(self, model: torch.nn.Module) -> "Average":
        """The same averages of the same weights, which lie elsewhere now."""
        other = Average(model, self.decay)
        other.values = [like(v, p) for v, p in zip(self.values, other.params, strict=True)]
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.values, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside the block."""
        kept = [p.detach().clone() for p in self.params]
        torch._foreach_copy_(self.params, self.values)
        try:
            yield
        finally:
            torch._foreach_copy_(self.params, kept)
