"""Mixtures of one model's distributions under several orders."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from armodels import orders
from armodels.density import query
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.completion import Completion, as_mask, complete, known_first
from armodels.density.samplers import Sampler
from armodels.density.speculative import require_draft
from armodels.density.walk import check_draw, draw_noise, sampling
from armodels.objectives import MixtureOrder, Objective, for_orders
from armodels.orders import Order, OrderName


@final
class OrderMixture(DensityModel):
    """The uniform mixture of one model's distributions under several orders, sharing weights.

    p(x) = 1/N sum{ p(x | order i) }: the mean of *joint* probabilities. Averaging logits or
    conditionals instead would not be a distribution.

    Args:
        model: Its network must support ``with_order``.
        orders: One each; its seed is that of random connectivity, too.
    """

    def __init__(self, model: AutoregressiveModel, orders: list[Order]):
        super().__init__()
        self.spec = model.spec
        self.context = model.context
        self.model = model
        self.orders = orders

    @property
    def description(self) -> str:
        """Number of orders and what they share."""
        num = len(self.orders)
        return f"mixture of {num} order{'s' * (num != 1)} of {self.model.description}"

    @property
    def num_terms(self) -> int:
        """One for each order."""
        return len(self.orders)

    def term(self, i: int) -> AutoregressiveModel:
        """``component``."""
        return self.component(i)

    def component(self, i: int) -> AutoregressiveModel:
        """The model under order ``i``; made when asked for, so weights exist once."""
        order = self.orders[i]
        return self.model.with_order(order, seed=order.seed)

    def _components(self) -> Iterator[AutoregressiveModel]:
        # One at a time: the masks of many wide layers would not fit into memory.
        return (self.component(i) for i in range(len(self.orders)))

    @property
    def any_order(self) -> bool:
        """Trained for all orders, not for those of the mixture alone."""
        return self.model.any_order

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        joint = torch.stack([model._log_prob(x, context) for model in self._components()])
        return joint.logsumexp(0) - torch.log(torch.tensor(len(self.orders), dtype=joint.dtype))

    def _weights_of(self, one: query.Query) -> query.Weights:
        return query.together([query.by_steps(model, one) for model in self._components()])

    def default_objective(self) -> Objective:
        """One order's log-probability; a model for all orders draws from all of them.

        Unless its orders are canonical ones.
        """
        if self.model.canonical:
            return for_orders(self.model, self.orders)
        # A model for all orders trains without the masks of the mixture's own.
        return self.model.default_objective() if self.any_order else MixtureOrder(self)

    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Initialize the shared weights."""
        self.model.initialize(batches, progress=progress)

    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
        sampler: str | Sampler = "auto",
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Each event is drawn under an order chosen at random, as that order's model draws."""
        check_draw(temperature, n)
        self.check_context(context, n)
        sampler = Sampler.of(sampler)
        self._require_draft(sampler, temperature, range(len(self.orders)))
        device = self.model.net.order_table.device
        which = (draw_noise((n,), generator, device) * len(self.orders)).long()
        options: dict[str, Any] = {"temperature": temperature, "generator": generator}
        options |= {"progress": progress, "sampler": sampler}
        options |= {"top_k": top_k, "top_p": top_p}
        x = self.model.empty(n)
        for i in which.unique().tolist():
            rows = (which == i).nonzero()[:, 0]
            own = None if context is None else context[rows]
            x[rows] = self.component(i).sample(len(rows), context=own, **options)
        with sampling(self, naive=True):
            return x, self._log_prob(x, context)

    def _require_draft(self, sampler: Sampler, temperature: float, which: Iterable[int]) -> None:
        """Raise ValueError, before anything is drawn, unless a draft suits each of some orders."""
        if sampler.name == "speculative":
            for i in which:
                require_draft(sampler.draft, self.component(i), temperature)

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        num_particles: int = 1,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
        sampler: str | Sampler = "auto",
    ) -> Completion:
        """Under those orders alone that put the known values first, where there are some: exact.

        Otherwise by particles from every order, weighted together.
        """
        known = as_mask(known, x)
        every = range(len(self.orders))
        fitting = [i for i in every if known_first(known, self.orders[i].table)]
        chosen = every if self.any_order else fitting or every
        sampler = Sampler.of(sampler)
        self._require_draft(sampler, temperature, () if self.any_order else chosen)
        done = complete(
            (self.component(i) for i in chosen),
            x,
            known,
            num_particles=num_particles,
            context=context,
            temperature=temperature,
            generator=generator,
            progress=progress,
            sampler=sampler,
        )
        return replace(done, order_chosen=done.order_chosen or len(chosen) < len(every))


def over_orders(
    model: AutoregressiveModel | OrderMixture, name: OrderName, seeds: Iterable[int]
) -> OrderMixture:
    """The uniform mixture of a model's distributions under several orders of a kind.

    Args:
        model: Its weights serve every order; of a mixture the orders are left behind.
        name: See ``orders.make``.
        seeds: One for each order.

    Raises:
        ValueError: Some would be the same distribution: there are not so many orders.
    """
    one = model.model if isinstance(model, OrderMixture) else model
    net = one.net
    make = functools.partial(orders.make, name, one.spec.shape, joint=net.order.joint)
    made = [make(seed=seed) for seed in seeds]
    different = {order.table.numpy().tobytes() for order in made}
    # Random ones may coincide where there are few; the others repeat themselves.
    if name != "random" and len(different) < len(made) and not net.random_connectivity:
        raise ValueError(
            f"{len(made)} orders called {name} are asked for, but only {len(different)} of "
            f"them {'is' if len(different) == 1 else 'are'} different; ask for no more, or "
            f"train with model.order=random"
        )
    return OrderMixture(one, made)
