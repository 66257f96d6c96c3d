"""Autoregressive models: an order, a network and a head.

Shapes: B batch, S steps, K values per step, P parameters per step, N particles.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, final

import torch
from torch import Tensor

from armodels import heads, objectives, orders
from armodels.checks import checked, require_class
from armodels.density.base import DensityModel
from armodels.density.completion import Completion, Particles, as_mask, complete, known_first
from armodels.density.grouped import draw_groups
from armodels.density.walk import (
    Scored,
    check_draw,
    draw,
    draw_noise,
    keep,
    sampling,
    score,
    walk,
)
from armodels.heads import Head
from armodels.networks.base import AnyOrderNetwork, Network, check_params
from armodels.networks.grouped import GroupedNetwork
from armodels.networks.stream import FeatureStream
from armodels.objectives import Objective, ObjectiveName
from armodels.orders import Order
from armodels.spec import DataSpec

MAX_LOOKED_AT = 16
"""Steps at which it is looked whether a network hears a value too early."""

MAX_WIDENED = 4_000_000
"""Values that are widened at once where their marginals are counted: 32 MB of float64."""


@final
class _DrawOptions(TypedDict):
    """How particles are drawn, see ``AutoregressiveModel.particles``."""

    temperature: float
    generator: torch.Generator | None
    progress: bool


def _require_parts(net: Network, head: Head) -> None:
    """Raise TypeError or ValueError unless a network and a head make a model."""
    require_class("net", net, Network, "such as armodels.networks.made.MADE(...)")
    require_class("head", head, Head, "such as armodels.heads.auto(spec)")
    if not hasattr(net, "num_params"):
        raise ValueError(
            f"model {type(net).__name__} is not made whole; its __init__ must begin with "
            f"super().__init__(spec, num_params, order)"
        )
    if net.num_params != head.num_params:
        raise ValueError(
            f"model {type(net).__name__} gives {net.num_params} parameters a step, but head "
            f"{head.family} reads {head.num_params}; make the network with head.num_params"
        )


@final
class AutoregressiveModel(DensityModel):
    """p(x) = prod{ p(x[order[s]] | x[order[<s]]) : s = 1..S }: an order, a network and a head.

    Args:
        net: Says what earlier values tell about each step; holds the order.
        head: Says what the network's parameters mean.
        resample_orders: Train each batch under a random order of its own, with random
            connectivity of its own where the network has some.
        objective: What a model for all orders is trained for: all of them, or its own one, which
            is then the canonical one.

    Raises:
        TypeError: The network or the head is of another class.
        ValueError: The network is not made whole, or gives another number of parameters than
            the head reads, or the objective does not suit the network.
    """

    @checked
    def __init__(
        self,
        net: Network,
        head: Head,
        *,
        resample_orders: bool = False,
        objective: ObjectiveName = "all_orders",
    ):
        super().__init__()
        _require_parts(net, head)
        if objective == "canonical" and not (net.any_order or resample_orders):
            raise ValueError(
                f"objective is canonical, but model {type(net).__name__} is not trained for all "
                f"orders; leave it at all_orders, or use resample_orders=true"
            )
        self.resample_orders = resample_orders
        self.objective = objective
        self.spec = net.spec
        self.context = net.context
        self.net = net
        self.head = head

    @classmethod
    def of(cls, network: type[Network], spec: DataSpec, **options: Any) -> "AutoregressiveModel":
        """A network of that class with the head and the order that suit the data.

        Args:
            network: Such as ``armodels.networks.made.MADE``, or a class of your own.
            spec: What a datum is, such as ``splits.spec``.
            options: Of the network's class.

        Raises:
            TypeError: The class is none of networks, or the spec no DataSpec.
        """
        if not (isinstance(network, type) and issubclass(network, Network)):
            what = getattr(network, "__name__", type(network).__name__)
            raise TypeError(
                f"network is {what}; it must be a class of networks, such as "
                f"armodels.networks.made.MADE"
            )
        require_class("spec", spec, DataSpec, "such as splits.spec")
        few = None if spec.levels else network.num_components
        head = heads.auto(spec, num_components=few)
        order = orders.make("raster", spec.shape, joint=head.joint)
        return cls(network(spec, head.num_params, order, **options), head)

    @property
    def description(self) -> str:
        """Network and head."""
        return f"{type(self.net).__name__} with {self.head.family} head"

    def with_order(self, order: Order, *, seed: int | None = None) -> "AutoregressiveModel":
        """The same weights under another order; ``seed`` is for random connectivity."""
        net = self.net.with_order(order, seed=seed)
        view = AutoregressiveModel(
            net, self.head, resample_orders=self.resample_orders, objective=self.objective
        )
        return view.train(self.training)

    @property
    def any_order(self) -> bool:
        """Of the network, or trained so."""
        return self.net.any_order or self.resample_orders

    @property
    def canonical(self) -> bool:
        """Trained for all known parts, but for one order of what is unknown."""
        return self.objective == "canonical"

    def empty(self, n: int) -> Tensor:
        """Room for n events, (n, *event), where the model is."""
        dtype, device = self.net.values_dtype, self.net.order_table.device
        return torch.empty(n, *self.spec.shape, dtype=dtype, device=device)

    def _to_steps(self, x: Tensor) -> Tensor:
        """(B, *event) -> (B, S, K), in generation order."""
        table = self.net.order_table
        return x.flatten(1).index_select(1, table.flatten()).unflatten(1, table.shape)

    def _to_event(self, values: Tensor) -> Tensor:
        """(B, S, K) -> (B, *event)."""
        x = torch.empty_like(values).flatten(1)
        x[:, self.net.order_table.flatten()] = values.flatten(1)
        return x.view(-1, *self.spec.shape)

    def conditional_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(values of step s | earlier steps), nats: (B, *event) -> (B, S)."""
        require_class("x", x, Tensor, "such as torch.from_numpy(array) makes")
        self.check_context(context, len(x))
        return self._conditional_log_prob(x, context)

    def _conditional_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        values = self._to_steps(x)  # first: what forward did to x must not be scored
        params = check_params(self.net, self.net(x, context), len(x))
        return score(self.head, params, values)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._conditional_log_prob(x, context).sum(1)

    def require_causal(self, x: Tensor, context: Tensor | None = None) -> None:
        """Look whether the network hears a value before its step, as far as some steps tell.

        Two events, the given one and its opposite, take each other's values from a step on: the
        parameters up to that step must stay. Neither may the company of other events move them,
        nor what the network does to its input.

        Args:
            x: (1, *event).
            context: (1, *context.shape), where the model has one.

        Raises:
            ValueError: What is called a likelihood would be none.
        """
        one, last = self._to_steps(x), self.net.num_steps - 1
        levels = self.spec.levels
        other = one + 1 if levels is None else ((one.long() + 1) % levels).to(one.dtype)
        num = min(last + 1, MAX_LOOKED_AT)
        steps = sorted({round(i * last / max(num - 1, 1)) for i in range(num)})
        several = torch.cat([one.repeat(len(steps), 1, 1), other.repeat(len(steps), 1, 1)])
        changed = several.clone()
        for row, s in enumerate(steps):
            changed[row, s:] = other[0, s:]
            changed[len(steps) + row, s:] = one[0, s:]
        events = self._to_event(torch.cat([one, other, changed]))
        contexts = None if context is None else context.expand(len(events), *context.shape[1:])
        before = events.clone()
        params = check_params(self.net, self.net(events, contexts), len(events))
        if not events.equal(before):
            raise ValueError(
                f"model {type(self.net).__name__} writes to the events that it is given; let its "
                f"forward copy them first, x = x.clone()"
            )
        alone = check_params(self.net, self.net(x, context), 1)[0]
        bound = torch.finfo(params.dtype).eps ** 0.5 * (1 + params[:2].abs().amax())
        if bool(((params[0] - alone).abs() > bound).any()):
            raise ValueError(
                f"model {type(self.net).__name__} has no likelihood: its parameters of an event "
                f"change with the other events of the batch, or from call to call"
            )
        for row, s in enumerate(steps):
            for half in (0, 1):
                found = params[2 + half * len(steps) + row, : s + 1]
                moved = (found - params[half, : s + 1]).abs().flatten(1).amax(1) > bound
                if moved.any():
                    raise ValueError(
                        f"model {type(self.net).__name__} has no likelihood: its parameters of "
                        f"step {int(moved.nonzero()[0])} change with values that are written at "
                        f"step {s} or later; row s of what forward returns may depend only on "
                        f"values written before step s"
                    )

    def log_prob_given_known(
        self, x: Tensor, known: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """log p(values of a step | the known steps), of a network for all orders, nats: (B, S).

        Args:
            x: (B, *event).
            known: (B, S) bool; what the network has to say of known steps means nothing.
            context: What the model is conditioned on.
        """
        assert isinstance(self.net, AnyOrderNetwork)
        params = check_params(self.net, self.net.params_given(x, known, context), len(x))
        return score(self.head, params, self._to_steps(x))

    def default_objective(self) -> Objective:
        """Of a model for all orders an estimate of the mean over them, else the likelihood.

        Of one with a canonical order an estimate of what that order says, and of a network with
        a memory the likelihood of what follows it.
        """
        if self.any_order:
            return objectives.for_orders(self)
        if isinstance(self.net, FeatureStream) and self.net.memory:
            return objectives.AfterMemory(self, self.net.memory)
        return objectives.Likelihood(self)

    def log_prob_map(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """A step's log-probability, shared evenly by its K values."""
        steps = self.conditional_log_prob(x, context) / self.net.order.width
        return steps[:, orders.ranks(self.net.order_table)].view(-1, *self.spec.shape)

    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Start the output biases at the marginals of the data, and what else the network sets."""
        chunks: list[Tensor] = []
        size = 0
        first: Tensor | None = None
        for x in batches:
            first = x if first is None else first
            chunks.append(self._to_steps(x))
            size += chunks[-1].numel()
            # All values of a stream have one marginal; of another event each has its own.
            if size > (10_000_000 if isinstance(self.net, FeatureStream) else 100_000_000):
                break
        self.net.set_marginals(self._marginal_params(chunks))
        assert first is not None  # Without batches there was nothing to concatenate.
        self.net.initialize(first)

    def _marginal_params(self, chunks: Sequence[Tensor]) -> Tensor:
        """Of chunks (B, S, K): (S, P), a few steps at a time where heads count levels.

        Counting widens the values: of 100 million bits at once, to 800 MB. Other heads thin out
        all values alike before they take quantiles, so steps apart would give other numbers.
        """
        if self.head.family not in ("bernoulli", "categorical"):
            return self.head.marginal_params(torch.cat(list(chunks)))
        size = max(1, MAX_WIDENED // sum(len(chunk) for chunk in chunks))
        parts = zip(*(chunk.split(size, 1) for chunk in chunks), strict=True)
        return torch.cat([self.head.marginal_params(torch.cat(part)) for part in parts])

    def _draw(
        self,
        noise: Tensor,
        *,
        context: Tensor | None,
        temperature: float,
        progress: bool,
        naive: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Events under the noise (B, S, num_noise), by compiled code where the network has some.

        Returns:
            (B, S, K) values and their log-probabilities (B, S), nats, at temperature 1.
        """
        if not naive:
            fused = self.net.fused_walk(self.head.family, noise, temperature, context)
            if fused is not None:
                values, params = fused
                return values, score(self.head, params, values)
            if isinstance(self.net, GroupedNetwork):
                return draw_groups(self.net, self.head, noise, temperature, context, progress)
        chooser = Scored(self.head, draw(self.head, noise, temperature))
        values = walk(self.net, len(noise), chooser, context, naive=naive, progress=progress)
        return values, chooser.log_probs()

    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
        noise: Tensor | None = None,
        naive: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As in the base class.

        ``noise`` (n, S, num_noise) replaces the generator; ``naive`` walks by whole forward
        passes, which gives the same samples, slowly.

        Raises:
            ValueError: The draw cannot be made so, or the noise has another shape.
        """
        check_draw(temperature, n)
        self.check_context(context, n)
        shape = (n, self.net.num_steps, self.head.num_noise)
        if noise is not None and (not isinstance(noise, Tensor) or noise.shape != shape):
            what = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ValueError(
                f"noise is {what}; it must be a tensor {shape} of uniforms in (0, 1), as many for "
                f"each step of each event as the head draws by"
            )
        if noise is None:
            noise = draw_noise(shape, generator, self.net.order_table.device)
        if n == 0:  # No network need reshape tensors without rows.
            return self.empty(0), self.net.order_table.new_zeros(0, dtype=torch.float)
        with sampling(self, naive=naive):
            values, log_probs = self._draw(
                noise, context=context, temperature=temperature, progress=progress, naive=naive
            )
            return self._to_event(values), log_probs.sum(1)

    def particles(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        *,
        context: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> Particles:
        """Events that keep the known values, weighted by what the model says of those values.

        A model for all orders walks under one of them that puts the known values first, or, where
        none does, the pixels of which most is known.

        Args:
            x: (B, *event); values that are not known are ignored.
            known: Boolean, (*event) or (B, *event).
            num_particles: N, where the order does not put the known values first.
            context: What the events are conditioned on, if anything.
            temperature: Of the draws.
            generator: Seeds the draws.
            progress: Show a bar with an ETA once a second has passed.

        Raises:
            ValueError: A step that writes several values is known in part, or a known value lies
                outside the support.
        """
        known = as_mask(known, x)
        self.spec.check(x.masked_fill(~known, 0))
        self.check_context(context, len(x))
        each = self._to_steps(known)  # (B, S, K)
        if (each.any(-1) != each.all(-1)).any():
            raise ValueError(
                "the head writes all channels of a pixel in one step: "
                "each pixel must be known wholly or not at all"
            )
        steps = each.all(-1)
        options: _DrawOptions = {
            "temperature": temperature,
            "generator": generator,
            "progress": progress,
        }
        if not self.any_order or known_first(known, self.net.order_table):
            return self._weighted(x, known, steps, num_particles, context, options)
        return self._weighted_by_part(x, known, steps, num_particles, context, options)

    def _weighted(
        self,
        x: Tensor,
        known: Tensor,
        steps: Tensor,
        num_particles: int,
        context: Tensor | None,
        options: _DrawOptions,
    ) -> Particles:
        """Particles under the model's own order; known (B, *event), known steps (B, S)."""
        exact = known_first(known, self.net.order_table)
        n = 1 if exact else num_particles
        values = self._to_steps(x).repeat_interleave(n, 0)
        steps = steps.repeat_interleave(n, 0)
        if context is not None:
            context = context.repeat_interleave(n, 0)
        noise = draw_noise(
            (len(values), self.net.num_steps, self.head.num_noise), options["generator"], x.device
        )
        otherwise = draw(self.head, noise, options["temperature"])
        chooser = Scored(self.head, keep(values, steps, otherwise))
        with sampling(self):
            written = walk(self.net, len(values), chooser, context, progress=options["progress"])
            log_probs = chooser.log_probs()
        log_weights = log_probs.masked_fill(~steps, 0).sum(1).view(-1, n)
        return Particles(self._to_event(written).unflatten(0, (-1, n)), log_weights, exact, False)

    def _weighted_by_part(
        self,
        x: Tensor,
        known: Tensor,
        steps: Tensor,
        num_particles: int,
        context: Tensor | None,
        options: _DrawOptions,
    ) -> Particles:
        """Particles under an order for each known part: its values first, as far as may be."""
        parts, which = steps.unique(dim=0, return_inverse=True)
        done = []
        for i, part in enumerate(parts):
            rows = (which == i).nonzero()[:, 0]
            order = self.net.order.permuted(self._latest(part).argsort(stable=True))
            view = self.with_order(order)
            own = None if context is None else context[rows]
            own_steps = view._to_steps(known[rows]).all(-1)
            one = view._weighted(x[rows], known[rows], own_steps, num_particles, own, options)
            done.append((rows, one))
        exact = all(one.exact for _, one in done)
        n = 1 if exact else num_particles
        values = x[:, None].repeat_interleave(n, 1)
        log_weights = done[0][1].log_weights.new_empty(len(x), n)
        for rows, one in done:  # All particles of an exact draw are that one.
            values[rows], log_weights[rows] = one.values, one.log_weights
        return Particles(values, log_weights, exact, True)

    def _latest(self, steps: Tensor) -> Tensor:
        """How late each step comes in the order that is chosen for known steps: (S,) -> (S,).

        A network for all orders is trained on every one. ``resample_orders`` trains on orders of
        the pixels, each with its channels in turn, so there a pixel moves as a whole: by how many
        of its channels are unknown.
        """
        unknown = steps.logical_not().long()
        if self.net.any_order:
            return unknown
        pixel = objectives.pixels_of(self.net.order_table, self.spec)
        return unknown.new_zeros(self.spec.num_dims).index_add(0, pixel, unknown)[pixel]

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
    ) -> Completion:
        """Known values first in the order: exact. Otherwise by weighted particles.

        A model trained for all orders chooses one for each known part: exact, unless it was
        trained on orders of whole pixels and some pixel is known in part.
        """
        return complete(
            [self],
            x,
            known,
            num_particles=num_particles,
            context=context,
            temperature=temperature,
            generator=generator,
            progress=progress,
        )
