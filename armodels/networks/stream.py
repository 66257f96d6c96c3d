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
from typing import Any, final

import torch
from torch import Tensor, nn

from armodels import orders
from armodels.networks import layers
from armodels.networks.base import NaiveSteps, Network, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

CHUNK = 1024
"""Values of a sequence that are read at once, so that their parameters fit into memory."""


class StreamNetwork(Network):
    """A network that reads values one after another, however they are chopped.

    Reading the same values in one piece or in several gives the same parameters. The length of
    an event is a matter of training, never of the distribution: ``with_length`` is the same
    network over events of another length.
    """

    kinds = frozenset({"sequence"})
    raster_only = True

    @property
    @abstractmethod
    def receptive_field(self) -> int | None:
        """What is said of a value depends on so many values before it at most; None: on all."""

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

    @property
    def bytes_to_learn(self) -> int:
        """Memory at least that ``learn`` takes for each symbol of the training split."""
        return 0

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

    def pack(self) -> Any:
        """The weights are read as they are."""
        return None

    def start(self, pack: Any, n: int, context: Tensor | None = None) -> State:
        """The state of n events before their first step, with what it says of that step."""
        return self.start_after(pack, *self.begin(n, context))

    def step(self, values: Tensor | None, s: int, state: State, pack: Any) -> tuple[Tensor, State]:
        """Read the values of the step before."""
        if values is None:
            first = state.pop("first")
            return first, state
        params, state = self.read(values[:, None], state)
        return params[:, 0], state

    def start_after(self, pack: Any, params: Tensor, state: State) -> State:
        """As ``start``, of a walk that goes on with what was read.

        Args:
            pack: What ``pack`` gave.
            params: (B, P), what was said last.
            state: What ``begin`` or ``read`` returned with it.
        """
        return State({**state, "first": params})


def require_levels(name: str, spec: DataSpec, num_params: int) -> None:
    """Raise ValueError unless a head reads a number for each level.

    Args:
        name: Of the model that gives each level a probability.
        spec: What a datum is.
        num_params: Parameters per step, P.
    """
    bits = (spec.levels, num_params) == (2, 1)  # head=bernoulli reads one logit
    if num_params != spec.num_levels and not bits:
        raise ValueError(
            f"model {name} gives each of {spec.num_levels} levels a probability; use "
            f"head=categorical"
        )


@final
class AfterPrompt:
    """The steps of what follows a prompt, which is read at once before the first of them.

    Args:
        net: Reads.
        prompt: (t,) of levels or real values; none: as if the network itself were walked.
        num_steps: Values that follow.
    """

    def __init__(self, net: StreamNetwork, prompt: Tensor, num_steps: int):
        self._net, self._prompt, self.num_steps = net, prompt, num_steps

    def pack(self) -> None:
        """As of the network."""
        return self._net.pack()

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """As of the network, after the prompt.

        Args:
            n: Events, B.
            context: (B, *context.shape), where the network has one.
        """
        first, state = self._net.begin(n, context)
        for part in self._prompt.split(CHUNK) if len(self._prompt) else ():
            after, state = self._net.read(part.expand(n, -1)[..., None], state)
            first = after[:, -1]
        return first, state

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """As of the network."""
        return self._net.read(values, state)

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """The state of n events that begin with the prompt.

        Args:
            pack: What ``pack`` gave.
            n: Events, B.
            context: (B, *context.shape), where the network has one.
        """
        return self._net.start_after(pack, *self.begin(n, context))

    def by(self, net: StreamNetwork) -> "AfterPrompt":
        """The same of another network."""
        return AfterPrompt(net, self._prompt, self.num_steps)

    def naive(self) -> "NaiveAfterPrompt":
        """The steps that define these ones."""
        length = len(self._prompt) + self.num_steps
        return NaiveAfterPrompt(self._net.with_length(length), self._prompt)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """Read the values of the step before.

        Args:
            values: (B, 1) of step s - 1; None before the first.
            s: The step.
            state: The state before it.
            pack: What ``pack`` gave.
        """
        return self._net.step(values, s, state, pack)


@final
class NaiveAfterPrompt:
    """The same steps, each a whole forward pass over the prompt and what is written so far.

    Args:
        net: Reads; its events are as long as the prompt and what follows it.
        prompt: (t,) of levels or real values.
    """

    def __init__(self, net: StreamNetwork, prompt: Tensor):
        self._steps, self._prompt = NaiveSteps(net), prompt
        self.num_steps = net.num_steps - len(prompt)

    def pack(self) -> None:
        """Nothing is computed ahead."""

    def start(self, pack: None, n: int, context: Tensor | None = None) -> State:
        """Events that begin with the prompt.

        Args:
            pack: None.
            n: Events, B.
            context: (B, *context.shape), where the network has one.
        """
        state = self._steps.start(pack, n, context)
        state["x"][:, : len(self._prompt)] = self._prompt
        return state

    def step(
        self, values: Tensor | None, s: int, state: State, pack: None
    ) -> tuple[Tensor, State]:
        """One forward pass, of which one row is used.

        Args:
            values: (B, 1) of step s - 1; None before the first.
            s: The step, counted from the end of the prompt.
            state: The state before it.
            pack: None.
        """
        return self._steps.step(values, s + len(self._prompt), state, pack)


class FeatureStream(StreamNetwork):
    """A network that reads values by their features, and has some for the beginning.

    Subclasses say what a state is before anything is read (``empty``), and what features mean
    (``run``); a context is a bias of the features, unless the subclass has biases of its own.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        num_features: E.
        context: What the model is conditioned on, if anything.
        num_biases: Biases of the subclass's own that a context gives, which ``run`` finds in the
            state under ``context``: (B, num_biases); None: a context is a bias of the features.
    """

    params: nn.Linear
    """Features -> parameters (B, t, P); subclasses set it."""

    memory: int = 0
    """Steps at the beginning of an event that training reads without gradient, for the others
    alone (``objectives.AfterMemory``)."""

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        num_features: int,
        context: ContextSpec | None,
        num_biases: int | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        self.embed = (
            layers.Embedding(spec, num_features)
            if order.width == 1
            else layers.FrameEmbedding(spec, order.width, num_features)
        )
        self.begins = nn.Parameter(torch.zeros(num_features))
        self.conditioning = None
        if context is not None:
            self.conditioning = layers.Conditioning(context, num_biases or num_features)
        self._shifts_features = num_biases is None

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
        if (bias := state.get("context")) is not None and self._shifts_features:
            x = x + bias[:, None]
        params, after = self.run(x, state)
        return params, State(after if bias is None else {**after, "context": bias})

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """As if a symbol for the beginning had been read."""
        params, state = self._run(self.begins.expand(n, 1, -1), self._first(n, context))
        return params[:, 0], state

    def _features(self, values: Tensor) -> Tensor:
        """Of what steps have written: (B, t, K) -> (B, t, E)."""
        return self.embed(values if self.order.width > 1 else values[..., 0])

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, K) -> (B, t, P)."""
        return self._run(self._features(values), state)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, S K) -> (B, S, P), the beginning and all values but the last at once.

        In training no gradient flows through what is read for the steps of the memory.
        """
        begins = self.begins.expand(len(x), 1, -1)
        steps = x.unflatten(1, (-1, self.order.width))
        features = torch.cat([begins, self._features(steps[:, :-1])], 1)
        state = self._first(len(x), context)
        if not (self.training and 0 < self.memory < features.shape[1]):
            return self._run(features, state)[0]
        with torch.no_grad():
            before, read = self._run(features[:, : self.memory], state)
        if torch.is_autocast_enabled(x.device.type):
            # Older PyTorch keeps weights as it cast them here, without gradient (its issue 65766).
            torch.clear_autocast_cache()
        if (heard := state.get("context")) is not None:  # with its gradient
            read["context"] = heard
        after, _ = self._run(features[:, self.memory :], read)
        return torch.cat([before, after], 1)
