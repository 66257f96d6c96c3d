"""What training maximizes: modules that hold a model, and what DDP and compile wrap.

This room lies below the models, each of which names the objective that suits it
(``DensityModel.default_objective``). Random draws come from the global random stream.

Shapes: B batch, S steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn

from armodels import draws, orders
from armodels.orders import Order
from armodels.spec import DataSpec

WHOLE = 0.5
"""How often training on a canonical order asks for log p(x) itself, which evaluation reads."""

SPREAD = 1.0
"""How much of a step's weight goes to all that is unknown at it, in training on a canonical order;
the rest goes to the next step alone, of which a pass would train one conditional in S."""

ObjectiveName = Literal["all_orders", "canonical"]
"""What a network that is told which values are known may be trained for."""


def _draw_below(end: int, batch_size: int, device: torch.device) -> Tensor:
    """A number of 0..end-1 for each example: (B, 1)."""
    return draws.drawn(lambda size: torch.randint(end, (size, 1), device=device), batch_size)


def _draw_noise(batch_size: int, num: int, device: torch.device) -> Tensor:
    """Numbers between 0 and 1 for each example: (B, num)."""
    return draws.drawn(lambda size: torch.rand(size, num, device=device), batch_size)


def _part(sizes: Tensor, noise: Tensor) -> Tensor:
    """Sets of steps, evenly among those of a size: (B, 1) sizes, (B, S) noise -> (B, S) bool."""
    order = noise.argsort(1)
    first = torch.arange(noise.shape[1], device=sizes.device) < sizes
    # Sorting is a good part of a small network's step: once, not once more for the ranks.
    return torch.empty_like(first).scatter_(1, order, first)


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
    num_known = _draw_below(num_steps, batch_size, device)
    known = _part(num_known, _draw_noise(batch_size, num_steps, device))
    return known, known.logical_not() * (num_steps / (num_steps - num_known))


def draw_asked(batch_size: int, num_steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random questions to a canonical order, and how far each is answered.

    A question is log p(x), half of the time, or log p(x | evidence), some steps, as a completion
    asks it: their number is uniform on 0..S-1, and so is the set of that size. Its answer is the
    other steps one after another, of which a uniform number is there already.

    Args:
        batch_size: B.
        num_steps: S.
        device: Where they are drawn.

    Returns:
        evidence (B, S) bool, and the number of steps of the answer that are there (B, 1).
    """
    num_given = _draw_below(num_steps, batch_size, device)
    whole = _draw_noise(batch_size, 1, device) < WHOLE
    noise = _draw_noise(batch_size, num_steps, device)
    evidence = _part(num_given.masked_fill(whole, 0), noise)
    num_asked = evidence.logical_not().sum(1, keepdim=True)
    return evidence, (_draw_noise(batch_size, 1, device) * num_asked).long()


def canonical_weights(evidence: Tensor, num_there: Tensor) -> tuple[Tensor, Tensor]:
    """What is known where a question is answered so far, and what its steps weigh then.

    Where ``num_there`` is uniform, the mean of the weighted log-probabilities is a sum over the
    steps of the answer: of the step's own, by ``1 - SPREAD``, and of the mean of all that are
    unknown at it, by ``SPREAD``.

    Args:
        evidence: (B, S) bool, in the canonical order.
        num_there: (B, 1) steps of the answer that are there.

    Returns:
        known (B, S) bool, and weights (B, S).
    """
    asked = evidence.logical_not()
    num_asked = asked.sum(1, keepdim=True)
    place = asked.cumsum(1) - 1  # of an asked step among those that are
    unknown = asked & (place >= num_there)
    share = SPREAD / (num_asked - num_there)
    weights = num_asked * (unknown * share + (asked & (place == num_there)) * (1 - SPREAD))
    return unknown.logical_not(), weights


class Trained(Protocol):
    """What every objective asks of a model, see ``density.base.DensityModel``."""

    def require_context(self, context: Tensor | None) -> None:
        """Raise ValueError where a context lacks or is one too many."""
        ...

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor: ...


class Ordered(Protocol):
    """What an objective asks of a network, see ``networks.base.Network``."""

    @property
    def any_order(self) -> bool:
        """Whether it is told which steps are known."""
        ...

    @property
    def num_steps(self) -> int:
        """S."""
        ...

    @property
    def order(self) -> Order:
        """Which values are written at each step."""
        ...


class TrainedByStep(Trained, Protocol):
    """A model that scores each step, see ``density.autoregressive.AutoregressiveModel``."""

    def _conditional_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor: ...


class TrainedByOrder(TrainedByStep, Protocol):
    """A model that has an order, see ``density.autoregressive.AutoregressiveModel``."""

    @property
    def canonical(self) -> bool:
        """Whether it is trained for canonical orders alone."""
        ...

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

    def with_order(self, order: Order, *, seed: int | None = None) -> TrainedByStep:
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
class AfterMemory(Objective):
    """log p of the values after the first ones, given these, scaled to the whole event.

    Its nats per value are those of log p(x) where each value has at least so many before it; the
    network reads the first ones without gradient (``networks.stream.FeatureStream``).

    Source: Dai et al., 2019, https://arxiv.org/abs/1901.02860.

    Args:
        model: It has a network with a memory.
        memory: Steps that are read and not scored, M.
    """

    model: TrainedByStep

    def __init__(self, model: TrainedByStep, memory: int) -> None:
        super().__init__(model)
        self.memory = memory

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        steps = self.model._conditional_log_prob(x, context)
        num_steps = steps.shape[1]
        return steps[:, self.memory :].sum(1) * (num_steps / (num_steps - self.memory))


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
class Canonical(Objective):
    """An estimate of what one canonical order says: of x, and of x where some steps are given.

    For a network that is told which steps are known. Whatever is asked, the unknown steps are
    written in that order, so that of the S 2^(S-1) conditionals of all orders 2^S - 1 are needed
    and trained, each as often as it is asked for: the given steps and the first ones of the others
    are known, the next one is said. Of several orders each example has one at random.

    Source: Shih, Sadigh & Ermon, 2022, https://arxiv.org/abs/2205.13554.
    Differs from the paper: half of the questions are log p(x); the others are completions, which
    its code calls inpainting, where the text asks for marginals; weights by what is asked, in
    place of what is known, so that their mean is known: a sum over the steps of the answers, of
    the mean over all that is unknown there (``SPREAD``).

    Args:
        model: It has a network for all orders.
        several: The canonical orders; None: the model's own.
    """

    model: TrainedByOrder
    places: Tensor
    """(N, S): at which step of an order the network's own steps come."""

    def __init__(self, model: TrainedByOrder, several: Sequence[Order] | None = None) -> None:
        super().__init__(model)
        first = model.net.order.table[:, 0]
        own = [model.net.order] if several is None else several
        places = torch.stack([orders.ranks(order.table)[first] for order in own])
        self.register_buffer("places", places.to(first.device), persistent=False)

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        known, weights = canonical_weights(*draw_asked(len(x), self.model.net.num_steps, x.device))
        places = self.places[_draw_below(len(self.places), len(x), x.device)[:, 0]]
        known, weights = known.gather(1, places), weights.gather(1, places)
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
class CanonicalOrder(Objective):
    """log p(x) under one canonical order, or log p(x | evidence) with the rest written in it.

    For a network that follows any order in one pass: whatever is given comes first, and all of
    the answer is trained at once, where ``Canonical`` trains what one pass says of it. A batch
    has one question, and of several orders one at random.

    Source: as of ``Canonical``.
    Differs from the paper: half of the questions are log p(x); the given values come before the
    others as they would in the canonical order, and are not trained.

    Args:
        model: It has a network that follows other orders than its own.
        several: The canonical orders; None: the model's own.
    """

    model: TrainedByOrder

    def __init__(self, model: TrainedByOrder, several: Sequence[Order] | None = None) -> None:
        super().__init__(model)
        self.several = several

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        own: Trained = self.model
        order = self.model.net.order
        if self.several is not None:
            order = self.several[int(torch.randint(len(self.several), ()))]
            own = self.model.with_order(order, seed=order.seed)
        if float(torch.rand(())) < WHOLE:
            return own._log_prob(x, context)
        evidence = draw_evidence(order, self.model.spec)
        view = self.model.with_order(
            order.permuted(evidence.logical_not().long().argsort(stable=True)),
            seed=int(torch.randint(2**31, ())),
        )
        return view._conditional_log_prob(x, context)[:, int(evidence.sum()) :].sum(1)


def pixels_of(table: Tensor, spec: DataSpec) -> Tensor:
    """Number of the pixel that each step of an order writes in; of other data of the value.

    Args:
        table: (S, K) of an order.
        spec: What a datum is.

    Returns:
        (S,), whatever the channel.
    """
    channels = spec.shape[0] if spec.kind == "image" else 1
    return table[:, 0] % (spec.num_dims // channels)


def draw_evidence(order: Order, spec: DataSpec) -> Tensor:
    """Random steps of an order that are given: (S,) bool, all channels of a pixel or none.

    Their number is uniform on all but the whole, and so is the set of that size.

    Args:
        order: Of the steps.
        spec: What a datum is.
    """
    pixels = pixels_of(order.table, spec)
    num_pixels = int(pixels.max()) + 1
    size = torch.randint(num_pixels, (1, 1), device=pixels.device)
    return _part(size, torch.rand(1, num_pixels, device=pixels.device))[0][pixels]


def for_orders(model: TrainedByOrder, several: Sequence[Order] | None = None) -> Objective:
    """What a model for all orders is trained for.

    Args:
        model: It says whether all orders count, or canonical ones, and how its network follows
            them.
        several: The canonical orders; None: the model's own.
    """
    if model.net.any_order:
        return Canonical(model, several) if model.canonical else AllOrders(model)
    return CanonicalOrder(model, several) if model.canonical else RandomOrder(model)


class Drawing(Trained, Protocol):
    """A model that turns noise into events by which it learns, see ``flows.InverseFlow``."""

    @property
    def spec(self) -> DataSpec:
        """What a datum is."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """What is trained."""
        ...

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Events and their log-probabilities, with gradients.

        Args:
            noise: (B, D), normal.
        """
        ...


@final
class Distillation(Objective):
    """log p(x) under a teacher less log p(x) under the model, at draws x of the model.

    Its mean is -KL(model || teacher), in nats: 0 at most, and reached where the two are the same;
    less the data's ``log_det``, so that what training reports as nats is the divergence. A model
    that leaves out modes of the teacher pays little there, but much in log p(data), which is mixed
    in by ``coverage``: what is reported are the divergence and the nats of the data, by shares.

    Source: van den Oord et al., 2017, https://arxiv.org/abs/1711.10433.
    Differs from the paper: the log-probability of one draw stands for the cross-entropy of each
    conditional; the likelihood of data, exact, in place of losses of power and of contrast.

    Args:
        model: It turns noise into events.
        teacher: Stays as it is, and where it is.
        coverage: Share of log p(data), 0 to 1; at 0 of the data their number alone counts.
    """

    model: Drawing

    def __init__(self, model: Drawing, teacher: Trained, coverage: float = 0.0) -> None:
        super().__init__(model)
        self._teacher = (teacher,)  # no part of what is trained, saved or switched to training
        self.coverage = coverage

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        like = next(iter(self.model.parameters()))
        num_dims = self.model.spec.num_dims

        def normal(size: int) -> Tensor:
            return torch.randn(size, num_dims, dtype=like.dtype, device=like.device)

        drawn, own = self.model.draw(draws.drawn(normal, len(x)))
        log_ratio = self._teacher[0]._log_prob(drawn, None).to(own) - own
        # What is reported adds it to log-probabilities, of which a ratio is none.
        log_ratio = log_ratio - self.model.spec.log_det
        if not self.coverage:
            return log_ratio
        return torch.lerp(log_ratio, self.model._log_prob(x, None), self.coverage)


@final
class MixtureOrder(Objective):
    """log p(x | order) under one of a mixture's orders, at random for each batch.

    Its mean bounds the mixture's log-probability from below.
    """

    model: TrainedMixture

    def _estimate(self, x: Tensor, context: Tensor | None) -> Tensor:
        i = int(torch.randint(len(self.model.orders), ()))
        return self.model.component(i)._log_prob(x, context)
