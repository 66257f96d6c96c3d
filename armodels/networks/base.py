"""The contract of every network: what do earlier values say about each step?"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from armodels.spec import ContextSpec, DataSpec


class Network(nn.Module, ABC):
    """Maps an event to the parameters of the conditional at every step.

    Row s of the output depends only on values written before step s. A faster way to sample is
    an override of ``init_cache`` and ``step``; the ones below stay, and they define it.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P (from the head).
        order: Flat indices written at each step, (S, K).
        context: What the model is conditioned on, if anything.
    """

    kinds: ClassVar[frozenset[str]]
    """Kinds of data that the network accepts."""

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        context: ContextSpec | None = None,
    ):
        super().__init__()
        if spec.kind not in self.kinds:
            raise ValueError(
                f"model {type(self).__name__} takes {' or '.join(sorted(self.kinds))} data, "
                f"but {spec.name} is {spec.kind} data"
            )
        self.spec = spec
        self.num_params = num_params
        self.context = context
        # Rebuilt from the config that a checkpoint stores, as every mask is: never saved twice.
        self.register_buffer("order", order, persistent=False)

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.order)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P), in generation order; context (B, *context.shape) if any."""

    def init_cache(self, batch_size: int, context: Tensor | None = None) -> Any:
        """State before the first step; a plain value that ``step`` takes and returns.

        The context is given here, once, so that what follows from it is computed once.
        """
        # Real values are as precise as the weights: a float32 copy would be another event.
        real = self.spec.levels is None
        dtype = next(self.parameters()).dtype if real else self.spec.dtype
        x = torch.zeros(batch_size, self.spec.num_dims, dtype=dtype, device=self.order.device)
        return x, context

    def step(self, values: Tensor | None, s: int, cache: Any) -> tuple[Tensor, Any]:
        """Parameters of step s, given the values of the step before.

        Args:
            values: (B, K) values written at step s - 1; None at step 0.
            s: The step, called in turn from 0 to S - 1.
            cache: What ``init_cache`` or the previous call returned.

        Returns:
            (B, P) parameters and the cache.
        """
        x, context = cache
        if s > 0:
            x[:, self.order[s - 1]] = values
        return self(x.view(-1, *self.spec.shape), context)[:, s], cache

    def fused_walk(
        self, family: str, noise: Tensor, temperature: float, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """The whole sampling loop in compiled code, for the heads that the network knows.

        Args:
            family: ``Head.family``.
            noise: (B, S, num_noise) uniforms.
            temperature: As in ``Head.sample``.
            context: What the model is conditioned on.

        Returns:
            (B, S, K) values and (B, S, P) parameters, or None where the loop must do it.
        """
        return None

    def with_order(self, order: Tensor, *, seed: int = 0) -> "Network":
        """The same weights under another order; ``seed`` is for random connectivity.

        Raises:
            ValueError: The network follows one order only.
        """
        raise ValueError(f"model {type(self).__name__} follows one order only; use num_orders=1")

    def set_marginals(self, params: Tensor) -> None:
        """Let training start at the marginals of the data: (S, P) for the output biases."""
        return

    def initialize(self, x: Tensor) -> None:
        """Hook before training: data-dependent weights, from the first events (B, *event)."""
        return
