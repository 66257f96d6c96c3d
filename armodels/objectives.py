"""What training maximizes: modules that hold a model, and what DDP and compile wrap.

This room lies below the models, each of which names the objective that suits it
(``DensityModel.default_objective``). Random draws come from the global random stream.

Shapes: B batch, S steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor, nn

from armodels import orders
from armodels.orders import Order
from armodels.spec import DataSpec


def draw_known(batch_size: int, num_steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random known parts for training on all orders at once.

    The number of known steps is uniform on 0..S-1, and so is the set of that size.

    Args:
        batch_size: B.
        num_steps: S.
        device: Where they are drawn.

    Returns:
        known (B, S) bool, and weights (B, S) of the steps' log-probabilities given the known
        ones: S over the number of unknown steps, 0 at known ones. The mean of the weighted sum is
        the mean of log p(x | order) over all orders.
    """
    num_known = torch.randint(num_steps, (batch_size, 1), device=device)
    order = torch.rand(batch_size, num_steps, device=device).argsort(1)
    first = torch.arange(num_steps, device=device) < num_known
    # Sorting is a good part of a small network's step: once, not once more for the ranks.
    known = torch.empty_like(first).scatter_(1, order, first)
    return known, known.logical_not() * (num_steps / (num_steps - num_known))


class Trained(Protocol):
    """What every objective asks of a model, see ``density.base.DensityModel``."""

    def require_context(self, context: Tensor | None) -> None:
        """Raise ValueError where a context lacks or is one too many."""
        ...

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor: ...


class Ordered(Protocol):
    """What an objective asks of a network, see ``networks.base.Network``."""

    @property
    def num_steps(self) -> int:
        """S."""
        ...

    @property
    def order(self) -> Order:
        """Which values are written at each step."""
        ...


class TrainedByOrder(Trained, Protocol):
    """A model that has an order, see ``density.autoregressive.AutoregressiveModel``."""

    @property
    def spec(self) -> DataSpec:
        """What a datum is."""
        ...

    @property
    def net(self) -> Ordered:
        """The network."""
        ...

    def log_prob_given_known(
        self, x: Tensor, known: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """log p(values of a step | the known steps), nats: (B, S).

        Args:
            x: (B, *event).
            known: (B, S) bool.
            context: What the model is conditioned on.
        """
        ...

    def with_order(self, order: Order, *, seed: int | None = None) -> Trained:
        """The same weights under another order."""
        ...


class TrainedMixture(Trained, Protocol):
    """A mixture over orders, see ``density.mixture.OrderMixture``."""

    @property
    def orders(self) -> Sequence[Order]:
        """One for each component."""
        ...

    def component(self, i: int) -> Trained:
        """The model under order ``i``."""
        ...


class Objective(nn.Module, ABC):
    """A number for each example, (B,) nats, the mean of which training maximizes.

    Args:
        model: The DensityModel that is trained.
    """

    model: Trained

    def __init__(self, model: Trained) -> None:
        super().__init__()
        self.model = model

    @final  # type: ignore[misc]  # PyTorch declares forward as an attribute.
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B,).

        Raises:
            ValueError: A context lacks, or is one too many.
        """
        # Check presence only: reading values would synchronize the device each step.
        self.model.require_context(context)
        return self._estimate(x, context)

    @abstractmethod
    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``forward`` with a context that is there where it must be."""


@final
class Likelihood(Objective):
    """log p(x)."""

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.model._log_prob(x, context)


@final
class AllOrders(Objective):
    """An unbiased estimate of the mean of log p(x | order) over all orders.

    For a network that is told which steps are known: each example has a random known part.
    """

    model: TrainedByOrder

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        known, weights = draw_known(len(x), self.model.net.num_steps, x.device)
        return (weights * self.model.log_prob_given_known(x, known, context)).sum(1)


@final
class RandomOrder(Objective):
    """log p(x | order) under a random order for each batch, out of all: its mean over them."""

    model: TrainedByOrder

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        seed = int(torch.randint(2**31, ()))
        joint = self.model.net.order.joint
        order = orders.make("random", self.model.spec.shape, joint=joint, seed=seed)
        return self.model.with_order(order, seed=seed)._log_prob(x, context)


@final
class MixtureOrder(Objective):
    """log p(x | order) under one of a mixture's orders, at random for each batch.

    Its mean bounds the mixture's log-probability from below.
    """

    model: TrainedMixture

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        i = int(torch.randint(len(self.model.orders), ()))
        return self.model.component(i)._log_prob(x, context)
