"""Frames of several values: a network over time conditions a network of the frame."""

from typing import Any, Literal, final

import torch
from torch import Tensor

from armodels import orders
from armodels.checks import Count, Share, checked
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork, State
from armodels.networks.made import MADE
from armodels.networks.nade import NADE
from armodels.networks.recurrent import Cell, Recurrent
from armodels.networks.stream import StreamNetwork
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

Inner = Literal["nade", "made"]


@final
class Frames(StreamNetwork):
    """RNN-NADE: a recurrent network reads frames, and conditions the NADE of the next one.

    A frame is ``spec.unit_size`` values, such as 88 keys (of data without frames, one). The outer
    network says a vector before each frame, given all frames before it; the inner one writes the
    frame's values one after another, given that vector as its context. In training all frames of
    a window are read at once: the outer network reads it, and the inner one has B * T frames.

    Accepts: sequence in frames, with levels or real values. Order: raster only. Sampling: a step
    takes one of the inner network, and a whole frame one of the outer.
    Source: Boulanger-Lewandowski, Bengio and Vincent, 2012, https://arxiv.org/abs/1206.6392
    (RNN-NADE, of a vanilla network).
    Differs from the paper: the state reaches the biases of the inner network by way of a vector
    of ``context_size`` values; no pre-training; dropout of what the outer network reads and says;
    LSTM by default; or a MADE of one layer, with direct connections, as the inner network.

    Args:
        spec: What a datum is; its notes say how many values are a frame.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        cell: Of the outer network: ``"lstm"``, ``"gru"`` or ``"vanilla"``.
        hidden_size: Units of each of its layers.
        num_layers: Its layers.
        context_size: Values of what it says before a frame, C.
        inner: The inner network: ``"nade"`` or ``"made"``.
        inner_size: Units of its hidden layer.
        activation: Of these units: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a feature of the outer network in training.
        context: What the model is conditioned on: a bias of what the outer network reads.

    Shapes:
        x: (B, T F) of F values a frame.
        returns: (B, T F, P).

    Raises:
        ValueError: A window holds no whole number of frames.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        cell: Cell = "lstm",
        hidden_size: Count = 200,
        num_layers: Count = 1,
        context_size: Count = 100,
        inner: Inner = "nade",
        inner_size: Count = 150,
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        size = spec.unit_size
        if spec.num_dims % size:
            raise ValueError(f"{spec.num_dims} values are no whole number of frames of {size}")
        self.size = size
        in_frames = Order(order.table.view(-1, size), order.name)
        self.outer = Recurrent(
            spec,
            context_size,
            in_frames,
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            context=context,
        )
        self.dropout = layers.Dropout(dropout)
        frame = DataSpec(f"a frame of {spec.name}", "vector", (size,), spec.levels, spec.measure)
        heard = ContextSpec("past", (context_size,), None)
        inner_order = orders.make("raster", frame.shape)
        self.inner: FreeOrderNetwork
        if inner == "nade":
            self.inner = NADE(
                frame,
                num_params,
                inner_order,
                hidden_size=inner_size,
                activation=activation,
                context=heard,
            )
        else:
            self.inner = MADE(
                frame,
                num_params,
                inner_order,
                hidden_sizes=[inner_size],
                activation=activation,
                direct_connections=True,
                context=heard,
            )

    @property
    def receptive_field(self) -> int | None:
        """That of the outer network, in values."""
        frames = self.outer.receptive_field
        return None if frames is None else frames * self.size

    def set_marginals(self, params: Tensor) -> None:
        """Output biases of the inner network at the mean marginals of each value of a frame."""
        self.inner.set_marginals(params.unflatten(0, (-1, self.size)).mean(0))

    def _params(self, values: Tensor, heard: Tensor) -> Tensor:
        """Parameters of all values of frames.

        Args:
            values: (B, t) of t values or fewer than so many frames have; the rest is unknown.
            heard: (B, n, C) of what the outer network says before each of n frames.

        Returns:
            (B, n F, P).
        """
        num = heard.shape[1]
        frames = layers.padded(values, num * self.size).unflatten(1, (num, self.size))
        params = self.inner(frames.flatten(0, 1), self.dropout(heard).flatten(0, 1))
        return params.unflatten(0, (len(values), num)).flatten(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, S, P), all frames at once."""
        num = -(-x.shape[1] // self.size)
        heard = self.outer(layers.padded(x, num * self.size), context)
        return self._params(x, heard)[:, : x.shape[1]]

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """Nothing is known; the state holds the frame as far as it is."""
        heard, outer = self.outer.begin(n, context)
        nothing = torch.zeros(n, 0, dtype=self.values_dtype, device=heard.device)
        state = State({**_named("outer", outer), "heard": heard, "frame": nothing})
        return self._params(nothing, heard[:, None])[:, 0], state

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, 1) -> (B, t, P)."""
        known = state["frame"].shape[1]
        values = torch.cat([state["frame"], values[..., 0]], 1)
        whole = values.shape[1] // self.size
        heard, outer = state["heard"][:, None], _of("outer", state)
        if whole:
            frames = values[:, : whole * self.size].unflatten(1, (whole, self.size))
            later, outer = self.outer.read(frames, outer)
            heard = torch.cat([heard, later], 1)
        params = self._params(values, heard)[:, known + 1 : values.shape[1] + 1]
        frame = values[:, whole * self.size :]
        return params, State({**_named("outer", outer), "heard": heard[:, -1], "frame": frame})

    def pack(self) -> Any:
        """That of the inner network."""
        return self.inner.pack()

    def start_after(self, pack: Any, params: Tensor, state: State) -> State:
        """Of both networks; the values of a frame are kept until it is whole.

        Raises:
            ValueError: What was read ends within a frame.
        """
        if state["frame"].shape[1]:
            raise ValueError(
                f"a walk goes on after whole frames of {self.size} values, but what was read ends "
                f"with {state['frame'].shape[1]} of one"
            )
        heard, outer = state["heard"], _of("outer", state)
        frame = torch.zeros(len(heard), self.size, dtype=self.values_dtype, device=heard.device)
        inner = self.inner.start(pack, len(heard), heard)
        return State({**_named("outer", outer), **_named("inner", inner), "frame": frame})

    def step(self, values: Tensor | None, s: int, state: State, pack: Any) -> tuple[Tensor, State]:
        """A step of the inner network, which begins anew once a frame is whole."""
        place, frame = s % self.size, state["frame"]
        outer, inner = _of("outer", state), _of("inner", state)
        if values is not None:
            frame[:, (s - 1) % self.size] = values[:, 0]
            if place == 0:
                heard, outer = self.outer.read(frame[:, None], outer)
                inner, values = self.inner.start(pack, len(frame), heard[:, 0]), None
        params, inner = self.inner.step(values, place, inner, pack)
        return params, State({**_named("outer", outer), **_named("inner", inner), "frame": frame})


def _named(part: str, state: State) -> dict[str, Tensor]:
    """Tensors of the state of a part, by their names in that of the whole."""
    return {f"{part}.{name}": tensor for name, tensor in state.items()}


def _of(part: str, state: State) -> State:
    """The state of a part."""
    return State(
        {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{part}.")
        }
    )
