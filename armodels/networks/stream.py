"""Networks over streams: what they say next depends on what they have read, not on a place.

A text has no fixed length, so these networks have no parameters of a step. One method says what
they know, ``read``, and all else follows from it: the forward pass, the cached step, the exact
evaluation of a whole text and what a prompt says. Shapes: B batch, t values read at once, K values
of a step, P parameters of a step, E features of a value.
"""

import copy
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from armodels import orders
from armodels.networks import layers
from armodels.networks.base import Network, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

CHUNK = 1024
"""Values that are read at once, where nothing else says how many."""


class StreamNetwork(Network):
    """A network that reads values one after another, however they are chopped.

    Reading the same values in one piece or in several gives the same parameters. The length of
    an event is a matter of training, never of the distribution: ``with_length`` is the same
    network over events of another length.
    """

    kinds = frozenset({"sequence"})
    raster_only = True

    @abstractmethod
    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """What is said before anything is read.

        Args:
            n: Streams, B.
            context: (B, *context.shape), heard here, once.

        Returns:
            Parameters (B, P) of the first value, and the state of each stream.
        """

    @abstractmethod
    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """What is said after each of the next values.

        Args:
            values: (B, t, K), t of 1 or more.
            state: What ``begin`` or the previous call returned; it is used up.

        Returns:
            Parameters (B, t, P), those at i of the value after value i; and the state.
        """

    def learn(self, pieces: Iterable[Tensor]) -> bool:
        """Hook before training: fit in closed form whatever can be.

        Args:
            pieces: The sequences (T,) of the training split, each read where it is asked for.

        Returns:
            Whether that was all, so that no output biases are set.
        """
        return False

    def absorb(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``read``, but what a network counts grows by each value before it says what follows.

        Counts change in place. What is not counted is learned by gradients
        (``density.adaptive``).

        Args:
            values: (1, t, K), of one stream.
            state: As in ``read``.
        """
        return self.read(values, state)

    def with_length(self, length: int) -> "StreamNetwork":
        """The same weights over events of ``length`` values."""
        view = copy.copy(self)
        view._buffers = dict(self._buffers)
        view.spec = replace(self.spec, shape=(length,))
        view.order = orders.make("raster", (length,))
        table = view.order.table.to(self.order_table.device)
        view.register_buffer("order_table", table, persistent=False)
        return view

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, S, P)."""
        first, state = self.begin(len(x), context)
        if x.shape[1] == 1:
            return first[:, None]
        others, _ = self.read(x[:, :-1, None], state)
        return torch.cat([first[:, None], others], 1)

    def pack(self) -> None:
        """The weights are read as they are."""
        return

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """The state of n events before their first step, with what it says of that step."""
        params, state = self.begin(n, context)
        return State({**state, "first": params})

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """Read the values of the step before."""
        if values is None:
            first = state.pop("first")
            return first, state
        params, state = self.read(values[:, None], state)
        return params[:, 0], state


@final
class After:
    """The steps of a network after a text that it has read: what a walk goes on from.

    Args:
        net: Reads.
        values: (t, K) what every event begins with; it is read once, ``CHUNK`` values at a time.
    """

    def __init__(self, net: StreamNetwork, values: Tensor):
        self.net = net
        self.values = values

    def pack(self) -> None:
        """The weights are read as they are."""
        return

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """The state of n events, all of which have read the same.

        Args:
            pack: None.
            n: Events, B.
            context: (B, *context.shape), of which the first is that of all.
        """
        params, state = self.net.begin(1, None if context is None else context[:1])
        for first in range(0, len(self.values), CHUNK):
            read, state = self.net.read(self.values[None, first : first + CHUNK], state)
            params = read[:, -1]
        rows = torch.zeros(n, dtype=torch.int64, device=params.device)
        return State({**state, "first": params}).fork(rows)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """As the network's own.

        Args:
            values: (B, K) of the step before; None before the first that is written.
            s: The step, counted from what was read.
            state: The state before it.
            pack: None.
        """
        return self.net.step(values, s, state, pack)


class FeatureStream(StreamNetwork):
    """A network that reads values by their features, and has some for the beginning.

    Subclasses say what a state is before anything is read (``empty``), and what features mean
    (``run``); a context is a bias of the features.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        num_features: E.
        context: What the model is conditioned on, if anything.
    """

    params: nn.Linear
    """Features -> parameters (B, t, P); subclasses set it."""

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        num_features: int,
        context: ContextSpec | None,
    ):
        super().__init__(spec, num_params, order, context)
        self.embed = layers.Embedding(spec, num_features)
        self.begins = nn.Parameter(torch.zeros(num_features))
        self.conditioning = None
        if context is not None:
            self.conditioning = layers.Conditioning(context, num_features)

    @abstractmethod
    def empty(self, n: int) -> dict[str, Tensor]:
        """What the state of n streams holds before the features of the beginning are read."""

    @abstractmethod
    def run(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters (B, t, P) after each of the features (B, t, E); and the state then.

        Args:
            x: (B, t, E).
            state: That of ``empty``, or of the call before.
        """

    def set_marginals(self, params: Tensor) -> None:
        """Output biases at the mean marginal: no value has a place of its own."""
        with torch.no_grad():
            self.params.bias.copy_(params.mean(0))

    def _first(self, n: int, context: Tensor | None) -> State:
        state = State(self.empty(n))
        if self.conditioning is not None:
            assert context is not None
            state["context"] = self.conditioning(context)
        return state

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if (bias := state.pop("context", None)) is not None:
            x = x + bias[:, None]
        params, after = self.run(x, state)
        return params, State(after if bias is None else {**after, "context": bias})

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """As if a symbol for the beginning had been read."""
        params, state = self._run(self.begins.expand(n, 1, -1), self._first(n, context))
        return params[:, 0], state

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, 1) -> (B, t, P)."""
        return self._run(self.embed(values[..., 0]), state)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, S, P), the beginning and all values but the last at once."""
        begins = self.begins.expand(len(x), 1, -1)
        features = torch.cat([begins, self.embed(x[:, :-1])], 1)
        return self._run(features, self._first(len(x), context))[0]
