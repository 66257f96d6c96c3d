"""The contract of every network: what do earlier values say about each step?"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from armodels.checks import require_class
from armodels.networks import layers
from armodels.networks.interface import OWN_NAMES, require_interface
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class State(dict[str, Tensor]):
    """All that changes in a walk: tensors by name, the first dimension of each counts events.

    Attributes:
        views: Slices of the tensors that a network keeps at hand, because making them anew would
            cost as much as a step. They are derived: a fork makes its own.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__(tensors)
        self.views: Any = None

    def fork(self, rows: Tensor | None = None) -> "State":
        """A state of its own, to go on from another time.

        Args:
            rows: (N,) int64, the event that each of N events goes on from; None: each from itself.

        Raises:
            ValueError: The rows are no int64 tensor (N,), or some are not those of an event.
        """
        if rows is None:
            return State({name: tensor.clone() for name, tensor in self.items()})
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1:
            what = type(rows).__name__
            if isinstance(rows, Tensor):
                what = f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
            problem = f"a state is forked by an int64 tensor of rows, (N,), but got {what}; "
            raise ValueError(f"{problem}of a mask that is mask.nonzero()[:, 0]")
        try:
            return State({name: tensor.index_select(0, rows) for name, tensor in self.items()})
        except IndexError as error:  # Torch looks at the rows itself: no check of ours takes time.
            last, found = len(next(iter(self.values()))) - 1, rows.tolist()
            raise ValueError(
                f"a state is forked by rows from 0 to {last}, but got {min(found)} to {max(found)}"
            ) from error


class Steps(Protocol):
    """A way to compute a network's parameters step after step (see ``Network``)."""

    def pack(self) -> Any: ...

    def start(self, pack: Any, n: int, context: Tensor | None = None) -> State:
        """The state before the first step.

        Args:
            pack: What ``pack`` gave.
            n: Events, B.
            context: (B, *context.shape), where the network has one.
        """
        ...

    def step(self, values: Tensor | None, s: int, state: State, pack: Any) -> tuple[Tensor, State]:
        """Parameters (B, P) of step s, and the state after it.

        Args:
            values: (B, K) of step s - 1; None before the first.
            s: The step.
            state: The state before it.
            pack: What ``pack`` gave.
        """
        ...


def check_params(net: "Network", params: object, n: int) -> Tensor:
    """Parameters of n events as a network's forward pass returned them.

    Args:
        net: The network.
        params: What it returned.
        n: Events, B.

    Raises:
        ValueError: They are no floats (B, S, P), in a tensor.
    """
    expected = (n, net.num_steps, net.num_params)
    if isinstance(params, Tensor) and params.shape == expected and params.is_floating_point():
        return params
    what: object = type(params).__name__
    if isinstance(params, Tensor):
        what = tuple(params.shape) if params.is_floating_point() else f"integers, {params.dtype}"
    raise ValueError(
        f"model {type(net).__name__} must return parameters {expected}, (B, S, P), "
        f"but returned {what}"
    )


class Network(nn.Module, ABC):
    """Maps an event to the parameters of the conditional at every step.

    Row s of the output depends only on values written before step s. A faster way to sample is
    an override of ``pack``, ``start`` and ``step``; ``NaiveSteps`` stays, and it defines them.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P (from the head).
        order: Which values are written at each step.
        context: What the model is conditioned on, if anything.

    Raises:
        ValueError: The network does not take data of that kind, or not that order.
        TypeError: The spec, the order or the context is of another class.
    """

    kinds: ClassVar[frozenset[str]]
    """Kinds of data that the network accepts."""

    otherwise: ClassVar[str] = "made"
    """The model's config that takes the other kinds, for the sentence that refuses them."""

    any_order: ClassVar[bool] = False
    """Answers to any known part (``AnyOrderNetwork``) and is trained for all orders at once."""

    raster_only: ClassVar[bool] = False
    """Follows the raster order and no other; its config names none."""

    takes_context: ClassVar[bool] = True
    """May be conditioned; else neither its arguments nor its config name a context."""

    num_components: ClassVar[int] = 10
    """Gaussians of each conditional on real values, where the user names no number of them."""

    order_table: Tensor
    """(S, K) flat indices of the event, see ``Order``."""

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        context: ContextSpec | None = None,
    ):
        super().__init__()
        require_interface(type(self))
        require_class("spec", spec, DataSpec, "such as splits.spec")
        require_class("order", order, Order, "such as armodels.orders.make gives")
        if context is not None:
            require_class("context", context, ContextSpec, "such as splits.spec.contexts has")
        name = type(self).__name__
        if spec.kind not in self.kinds:
            raise ValueError(
                f"model {name} takes {' or '.join(sorted(self.kinds))} data, but {spec.name} is "
                f"{spec.kind} data; use a model that takes it, such as model={self.otherwise}"
            )
        if self.raster_only and order.name != "raster":
            raise ValueError(f"model {name} follows the raster order only, not {order.name}")
        self.spec = spec
        self.num_params = num_params
        self.context, self.order = context, order
        # Tables follow from the config that a checkpoint stores, as masks do: none is saved twice.
        self.register_buffer("order_table", order.table, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # A weight under one of these names would take the place of what walks and scores read.
        if name in OWN_NAMES and isinstance(value, (Tensor, nn.Module)):
            raise ValueError(
                f"model {type(self).__name__} sets self.{name}, which every network has for what "
                f"it is about; call the weights by another name"
            )
        super().__setattr__(name, value)

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.order_table)

    @property
    def values_dtype(self) -> torch.dtype:
        """Of the events that it writes."""
        # Real values are as precise as the weights: a float32 copy would be another event.
        weights = None if self.spec.levels else next(self.parameters(), None)
        return self.spec.dtype if weights is None else weights.dtype

    @property
    def random_connectivity(self) -> bool:
        """Whether ``with_order`` under the same order and another seed is another distribution."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P), in generation order; context (B, *context.shape) if any."""

    def pack(self) -> Any:
        """What is constant in every walk and knows no row: weights sorted or folded once.

        Never written to by ``start`` or ``step``, so that any number of walks may share it.
        """
        return NaiveSteps(self).pack()

    def start(self, pack: Any, n: int, context: Tensor | None = None) -> "State":
        """The state of n events before their first step.

        Args:
            pack: What ``pack`` returned.
            n: Events of the walk, B.
            context: (B, *context.shape) what they are conditioned on: heard here, once.
        """
        return NaiveSteps(self).start(pack, n, context)

    def step(
        self, values: Tensor | None, s: int, state: "State", pack: Any
    ) -> tuple[Tensor, "State"]:
        """Parameters of step s, given the values of the step before.

        Args:
            values: (B, K) values written at step s - 1; None at step 0.
            s: The step, called in turn from 0 to S - 1.
            state: What ``start`` or the previous call returned; it is used up. Who wants to go on
                from it twice forks it before.
            pack: What ``pack`` returned.

        Returns:
            (B, P) parameters and the state after the step.
        """
        return NaiveSteps(self).step(values, s, state, pack)

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

    def with_order(self, order: Order, *, seed: int | None = None) -> "Network":
        """The same weights under another order.

        Args:
            order: It writes as many values at each step.
            seed: Of random connectivity; None: as it is.

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


@final
class NaiveSteps:
    """The steps that define all others: each a whole forward pass over what is written so far."""

    def __init__(self, net: Network):
        self.net = net

    @property
    def num_steps(self) -> int:
        """S."""
        return self.net.num_steps

    def pack(self) -> None:
        """Nothing is computed ahead."""

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """Events of zeros, and their context.

        Args:
            pack: None.
            n: Events, B.
            context: (B, *context.shape), where the network has one.
        """
        net, device = self.net, self.net.order_table.device
        x = torch.zeros(n, net.spec.num_dims, dtype=net.values_dtype, device=device)
        return State({"x": x} if context is None else {"x": x, "context": context})

    def write(self, values: Tensor | None, s: int, state: State) -> Tensor:
        """Events so far (B, *event), in which the values of the step before are written.

        Args:
            values: (B, K) of step s - 1; None before the first.
            s: The step.
            state: The state before it.
        """
        x = state["x"]
        if values is not None:
            x[:, self.net.order_table[s - 1]] = values.to(x.dtype)
        return x.view(-1, *self.net.spec.shape)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """One forward pass, of which one row is used.

        Args:
            values: (B, K) of step s - 1; None before the first.
            s: The step.
            state: The state before it.
            pack: None.
        """
        x = self.write(values, s, state)
        return check_params(self.net, self.net(x, state.get("context")), len(x))[:, s], state


class RasterNetwork(Network):
    """An image network that follows the raster order only, pixel after pixel.

    A pixel is written in G steps, its groups (``num_groups``): with C > 1, R, G and B one after
    another (G = C), or all at once (G = 1) where the head takes whole pixels.

    Subclasses add ``bias``, (S, P) output biases, to their parameters.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        context: What the model is conditioned on, if anything.
    """

    kinds = frozenset({"image"})
    raster_only = True

    def __init__(
        self, spec: DataSpec, num_params: int, order: Order, context: ContextSpec | None
    ) -> None:
        super().__init__(spec, num_params, order, context)
        channels, height, width = spec.shape
        self.size = (height, width)
        self.num_groups = channels // order.width
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))

    def set_marginals(self, params: Tensor) -> None:
        """Output biases at the marginals."""
        with torch.no_grad():
            self.bias.copy_(params)

    def _position(self, s: int) -> tuple[int, int, int]:
        """Row, column and group of a step."""
        pixel, group = divmod(s, self.num_groups)
        return *divmod(pixel, self.size[1]), group


class FreeOrderNetwork(Network):
    """A network whose weights serve any order: all are laid out by event, not by step.

    Subclasses set ``bias``, (S, P) output biases, then call ``_set_order``, which they extend by
    the masks that follow from an order.
    """

    bias: Tensor
    slots: Tensor
    """(S,) where each step's own weights are stored."""

    def _set_order(self, order: Order, seed: int | None = None) -> None:
        """Derive all that follows from an order; none of it is saved.

        Args:
            order: Which values are written at each step.
            seed: Of random connectivity; None: as it is.
        """
        self.order = order
        table = order.table.to(self.bias.device)
        self.register_buffer("order_table", table, persistent=False)
        # Weights are stored with the first value that the step writes; with the pixel, where it
        # writes a whole one.
        self.register_buffer("slots", table[:, 0] % len(table), persistent=False)

    def with_order(self, order: Order, *, seed: int | None = None) -> "FreeOrderNetwork":
        """The same weights under another order."""
        view = copy.copy(self)
        view._buffers = dict(self._buffers)
        view._set_order(order, seed)
        return view

    def set_marginals(self, params: Tensor) -> None:
        """Output biases at the marginals."""
        with torch.no_grad():
            self.bias[self.slots] = params.to(self.bias)


class AnyOrderNetwork(FreeOrderNetwork):
    """A network that reads which values are known, and so serves every order.

    Training never asks for the conditionals of one order: ``density.AutoregressiveModel`` draws
    the known part and needs one pass of ``params_given``. The exact conditionals of an order take
    one pass for each step; ``forward`` makes them in chunks.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.
    """

    any_order = True

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ) -> None:
        super().__init__(spec, num_params, order, context)
        self.encode = layers.Encoding(spec, encoding)
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        self._set_order(order)

    def _read_known(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """What is known, by event.

        Args:
            x: (B, *event).
            known: (B, S) bool, in generation order.

        Returns:
            (B, D, E) features of the values, zeros where they are unknown, and what is known by
            slot, (B, S) bool.
        """
        by_slot = torch.empty_like(known)
        by_slot[:, self.slots] = known
        by_value = by_slot.repeat(1, self.order.width)  # A pixel's channels are known together.
        features = self.encode(x.flatten(1), self.bias.dtype)
        return features.masked_fill(~by_value[..., None], 0), by_slot

    @abstractmethod
    def params_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of every step, given the values of the known steps.

        Args:
            x: (B, *event); values of unknown steps are ignored.
            known: (B, S) bool, True = known, in generation order.
            context: What the model is conditioned on.

        Returns:
            (B, S, P), in generation order; rows of known steps mean nothing.
        """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P)."""
        return self.params_at(x, 0, self.num_steps, context)

    def params_at(self, x: Tensor, first: int, end: int, context: Tensor | None = None) -> Tensor:
        """The rows of ``forward`` of some steps: a pass for each step, several at once.

        Args:
            x: (B, *event).
            first: The first of the steps.
            end: The step after the last of them.
            context: What the model is conditioned on.

        Returns:
            (B, end - first, P).
        """
        num_steps, chunk = self.num_steps, max(1, 256 // max(1, len(x)))
        parts = []
        for start in range(first, end, chunk):
            steps = torch.arange(start, min(start + chunk, end), device=x.device)
            known = torch.arange(num_steps, device=x.device) < steps[:, None]  # (c, S)
            params = self.params_given(
                x.repeat_interleave(len(steps), 0),
                known.repeat(len(x), 1),
                None if context is None else context.repeat_interleave(len(steps), 0),
            ).unflatten(0, (-1, len(steps)))  # (B, c, S, P)
            parts.append(params[:, torch.arange(len(steps)), steps])
        return torch.cat(parts, 1)

    def step(self, values: Tensor | None, s: int, state: State, pack: Any) -> tuple[Tensor, State]:
        """Write the values; one pass, for this step alone."""
        x = NaiveSteps(self).write(values, s, state)
        known = (torch.arange(self.num_steps, device=x.device) < s).expand(len(x), -1)
        return self.params_given(x, known, state.get("context"))[:, s], state
