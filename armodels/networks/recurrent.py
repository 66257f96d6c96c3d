"""Recurrent networks over sequences: vanilla, GRU and LSTM, in PyTorch's own kernels."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from armodels.checks import Count, Share, checked
from armodels.networks.base import State
from armodels.networks.layers import Dropout
from armodels.networks.stream import FeatureStream
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

Cell = Literal["lstm", "gru", "vanilla"]

CELLS: dict[Cell, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "vanilla": nn.RNN}


@final
class Recurrent(FeatureStream):
    """A recurrent network: its hidden state is all that it knows of the past.

    Accepts: sequence, with levels or real values. Order: raster only. Sampling: a step reads one
    value, whatever lies before it.
    Sources: Elman, 1990, https://doi.org/10.1016/0364-0213(90)90002-E (vanilla); Hochreiter and
    Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735 (LSTM); Cho et al., 2014,
    https://arxiv.org/abs/1406.1078 (GRU); the character model: Graves, 2013,
    https://arxiv.org/abs/1308.0850.
    Differs from the papers: dropout between layers, on the embedding and before the parameters
    (Zaremba et al., 2014, https://arxiv.org/abs/1409.2329); no connections that skip layers.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        cell: ``"lstm"``, ``"gru"`` or ``"vanilla"``.
        hidden_size: Units of each layer.
        num_layers: Layers.
        embedding_size: Features by which a value is read; None: as many as a layer has units.
        dropout: Probability of dropping a feature in training.
        context: What the model is conditioned on: a bias of the embedding.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        cell: Cell = "lstm",
        hidden_size: Count = 512,
        num_layers: Count = 1,
        embedding_size: Count | None = None,
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        size = embedding_size or hidden_size
        super().__init__(spec, num_params, order, size, context)
        self.dropout = Dropout(dropout)
        self.cell = CELLS[cell](
            size,
            hidden_size,
            num_layers,
            batch_first=True,
        )
        self.params = nn.Linear(hidden_size, num_params)

    @property
    def receptive_field(self) -> None:
        """None: the hidden state hears of all values."""
        return

    @property
    def _names(self) -> tuple[str, ...]:
        """What the state calls its tensors (B, layers, H)."""
        return ("hidden", "cell") if isinstance(self.cell, nn.LSTM) else ("hidden",)

    def empty(self, n: int) -> dict[str, Tensor]:
        """Zeros."""
        shape = (n, self.cell.num_layers, self.cell.hidden_size)
        return {name: self.begins.new_zeros(shape) for name in self._names}

    def _layers(self, x: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, Sequence[Tensor]]:
        """What the last layer says at each value, and what the layers hold after the last."""
        if not (self.training and self.dropout.probability):
            out, hidden = self.cell(x, before if len(before) > 1 else before[0])
            return out, hidden if isinstance(hidden, tuple) else (hidden,)
        # PyTorch's own dropout between layers would draw for the examples at hand alone.
        layer = getattr(torch, self.cell.mode.lower())
        found: list[Sequence[Tensor]] = []
        for i, weights in enumerate(self.cell.all_weights):
            x = self.dropout(x) if i else x
            own = [one[i : i + 1] for one in before]
            held = own if len(own) > 1 else own[0]
            x, *hidden = layer(x, held, weights, True, 1, 0.0, True, False, True)
            found.append(hidden)
        return x, [torch.cat(one) for one in zip(*found, strict=True)]

    def run(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """By PyTorch's own kernels."""
        before = tuple(state[name].transpose(0, 1).contiguous() for name in self._names)
        x = self.dropout(x)
        with contextlib.ExitStack() as stack:
            if x.device.type == "cpu":  # its kernels of half precision are not for every cell
                stack.enter_context(torch.autocast("cpu", enabled=False))
                x = x.to(self.begins)
            out, hidden = self._layers(x, before)
        after = (one.transpose(0, 1) for one in hidden)
        return self.params(self.dropout(out)), dict(zip(self._names, after, strict=True))
