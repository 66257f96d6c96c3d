"""Recurrent layers over images in raster order: Row LSTM and Diagonal BiLSTM."""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.masked import MaskedConvolution, RowBiases
from armodels.spec import ContextSpec


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: (..., F 4) and (..., F) -> its output and its next cell."""
    # The gates of a unit stand side by side, so that units stay sorted by group.
    keep, write, show, value = gates.unflatten(-1, (-1, 4)).unbind(-1)
    cell = keep.sigmoid() * cell + write.sigmoid() * value.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _keep_at_first(bias: Tensor) -> None:
    """Biases of the gates: an LSTM that keeps its cell learns faster."""
    with torch.no_grad():
        bias.view(-1, 4).copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


class BoundLayer(ABC):
    """A recurrent layer in a walk, on the tensors of one state; it holds no number of its own."""

    @abstractmethod
    def begin_row(self, i: int, row: Tensor) -> None:
        """All that the rows above say about row i, the last of which is ``row`` (B, W, I)."""

    @abstractmethod
    def at(self, j: int, group: int, u: Tensor) -> Tensor:
        """The layer's output for one group at a column: (B, .).

        Args:
            j: The column.
            group: Of the channels.
            u: (B, .) the group's input at that column.
        """


class LayerPack(ABC):
    """The constants of a recurrent layer in a walk."""

    @abstractmethod
    def start(self, n: int, context: Tensor | None) -> dict[str, Tensor]:
        """What the state of n events holds before the first row."""

    @abstractmethod
    def bind(self, state: State) -> BoundLayer:
        """On the tensors of one state."""


class RecurrentLayer(nn.Module, ABC):
    """A layer of a PixelRNN."""

    @abstractmethod
    def forward(self, x: Tensor, planes: Tensor, context: Tensor | None) -> Tensor:
        """What is added to the features: (B, 2F, H, W) -> (B, 2F, H, W).

        Args:
            x: (B, 2F, H, W).
            planes: What the first convolution reads, (B, I, H, W).
            context: What the model is conditioned on.
        """

    @abstractmethod
    def pack(self, name: str) -> LayerPack:
        """Constants of a walk, in which the state calls the layer by this name."""


@final
class RowLSTMLayer(RecurrentLayer):
    """An LSTM from row to row, all columns at once.

    Args:
        wide: (2F,) group of each input and output channel.
        units: (F,) group of each unit.
        context: What the model is conditioned on, if anything.
        size: (H, W).
        kernel_size: Of the convolutions of the input and of the state of the row above.
    """

    def __init__(
        self,
        wide: Tensor,
        units: Tensor,
        context: ContextSpec | None,
        size: tuple[int, int],
        kernel_size: int,
    ):
        super().__init__()
        self.size = size
        gates = units.repeat_interleave(4)
        self.input_to_state = MaskedConvolution(wide, gates, 1, kernel_size)
        # The row above is known as a whole, so that no mask is needed.
        fan_in = len(units) * kernel_size
        self.state_to_state = _uniform(len(gates), len(units), kernel_size, fan_in=fan_in)
        self.up = MaskedConvolution(units, wide, bias=False)
        self.conditioning = layers.conditioning(context, [len(gates)], size)
        _keep_at_first(layers.bias_of(self.input_to_state.conv))

    def read_above(self, state: Tensor) -> Tensor:
        """What a row's state says to the row below: (B, F, W) -> (B, 4F, W)."""
        padding = self.state_to_state.shape[-1] // 2
        return F.conv1d(state, self.state_to_state, padding=padding)

    def forward(self, x: Tensor, planes: Tensor, context: Tensor | None) -> Tensor:
        """(B, 2F, H, W) -> (B, 2F, H, W)."""
        inputs = self.input_to_state(x)
        for read in self.conditioning:
            inputs = inputs + read(context)
        states: list[Tensor] = []
        cell = x.new_zeros(())
        for row in inputs.unbind(2):  # (B, 4F, W)
            if states:
                row = row + self.read_above(states[-1])
            state, cell = lstm_cell(row.transpose(1, 2), cell)
            states.append(state.transpose(1, 2))
        return self.up(torch.stack(states, 2))

    def pack(self, name: str) -> "RowLSTMPack":
        """Constants of a walk."""
        return RowLSTMPack(self, name)


@final
class RowLSTMPack(LayerPack):
    """Constants of a Row LSTM.

    The state holds by column, (B, W, F), the state and the cell of the last row, which the
    current one replaces column by column: ``NAME.state`` and ``NAME.cell``.

    Args:
        layer: Its weights are used as they are.
        name: Of the layer in the state.
    """

    def __init__(self, layer: RowLSTMLayer, name: str):
        self.layer = layer
        self.name = name
        width = layer.size[1]
        self.biases = RowBiases(f"{name}.gates", layers.bias_of(layer.input_to_state.conv))
        self.gates = layer.input_to_state.own_row(f"{name}.gates", width, begins=True)
        self.up = layer.up.own_row(f"{name}.up", width)

    def start(self, n: int, context: Tensor | None) -> dict[str, Tensor]:
        """Zeros; what the context says of every row."""
        maps = [read(context) for read in self.layer.conditioning]
        weight = self.layer.state_to_state
        state, cell = weight.new_zeros(2, n, self.layer.size[1], weight.shape[1])
        tensors = {f"{self.name}.state": state, f"{self.name}.cell": cell}
        tensors |= self.gates.start(n) | self.up.start(n)
        return tensors | self.biases.start(maps[0] if maps else None)

    def bind(self, state: State) -> "BoundRowLSTM":
        """On the tensors of one state."""
        return BoundRowLSTM(self, state)


@final
class BoundRowLSTM(BoundLayer):
    """A Row LSTM on the tensors of one state."""

    def __init__(self, pack: RowLSTMPack, tensors: State):
        self.pack, self.tensors = pack, tensors
        self.gates, self.up = pack.gates.bind(tensors), pack.up.bind(tensors)
        self.units = [slice(gates.start // 4, gates.stop // 4) for gates in self.gates.outputs]
        self.state, self.cell = (tensors[f"{pack.name}.{one}"] for one in ("state", "cell"))

    def begin_row(self, i: int, row: Tensor) -> None:
        """Convolve the state of the row above."""
        above = self.pack.layer.read_above(self.state.transpose(1, 2)).transpose(1, 2)
        torch.add(above, self.pack.biases.of_row(i, self.tensors), out=self.gates.base)

    def at(self, j: int, group: int, u: Tensor) -> Tensor:
        """One pixel's step of the LSTM."""
        gates = self.gates.pass_on(j, group, u)
        own = self.units[group]
        state, self.cell[:, j, own] = lstm_cell(gates, self.cell[:, j, own])
        self.state[:, j, own] = state
        return self.up.pass_on(j, group, state, u)


def skew(x: Tensor) -> Tensor:
    """Shift row i right by i columns: (..., H, W) -> (..., H, H + W - 1).

    A column then holds a diagonal: pixels whose left and upper neighbours stand in the column
    before, in the same row and in the row above.
    """
    height, width = x.shape[-2:]
    x = F.pad(x, (0, height)).flatten(-2)
    return x[..., : height * (height + width - 1)].unflatten(-1, (height, -1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of ``skew``: (..., H, H + W - 1) -> (..., H, W)."""
    height = x.shape[-2]
    width = x.shape[-1] - height + 1
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, -1))[..., :width]


@final
class DiagonalBiLSTMLayer(RecurrentLayer):
    """Two LSTMs along the diagonals: from the upper left and from the upper right.

    The second one's state at a pixel has read the pixels right of it, so that only the row
    below may use it. It also reads the values themselves: the features of a row do not know its
    last value, which the row below would not see.

    Args:
        wide: (2F,) group of each input and output channel.
        units: (F,) group of each unit of one direction.
        context: What the model is conditioned on, if anything.
        size: (H, W).
        num_planes: Channels of what the first convolution reads.
    """

    def __init__(
        self,
        wide: Tensor,
        units: Tensor,
        context: ContextSpec | None,
        size: tuple[int, int],
        num_planes: int,
    ):
        super().__init__()
        self.size = size
        gates, num_units = units.repeat_interleave(4), len(units)
        self.input_to_state = MaskedConvolution(wide, gates)
        self.up = MaskedConvolution(units, wide, bias=False)
        # The row below alone uses these; to it the whole row is known, so that they need no mask.
        self.right_input = nn.Conv2d(len(wide), len(gates), 1)
        self.right_values = nn.Conv2d(num_planes, len(gates), 1, bias=False)
        self.right_up = nn.Conv2d(num_units, len(wide), 1, bias=False)
        # Each direction has two weights: from the neighbour in the row and from the one above.
        self.state_to_state = _uniform(2, 2, num_units, len(gates), fan_in=2 * num_units)
        self.conditioning = layers.conditioning(context, [len(gates), len(gates)], size)
        for conv in (self.input_to_state.conv, self.right_input):
            _keep_at_first(layers.bias_of(conv))

    def scan(self, gates: Tensor) -> Tensor:
        """Both LSTMs, from left to right: (2, B, 4F, H, W) -> (2, B, F, H, W)."""
        weight = self.state_to_state.flatten(1, 2)  # (2, 2F, 4F)
        diagonals = skew(gates).permute(4, 0, 1, 3, 2)  # (D, 2, B, H, 4F)
        state = cell = gates.new_zeros(*diagonals.shape[1:4], weight.shape[1] // 2)
        states = []
        # The gates are zero left of the image, and so are the states: a row starts from zero.
        for diagonal in diagonals:
            above = F.pad(state[:, :, :-1], (0, 0, 1, 0))
            before = torch.cat([state, above], -1).flatten(1, 2)  # (2, B H, 2F)
            heard = torch.bmm(before, weight).unflatten(1, state.shape[1:3])
            state, cell = lstm_cell(diagonal + heard, cell)
            states.append(state)
        return unskew(torch.stack(states, -1).transpose(2, 3))

    def forward(self, x: Tensor, planes: Tensor, context: Tensor | None) -> Tensor:
        """(B, 2F, H, W) -> (B, 2F, H, W)."""
        left = self.input_to_state(x)
        right = self.right_input(x) + self.right_values(planes)
        if self.conditioning:
            left, right = (
                side + read(context)
                for side, read in zip((left, right), self.conditioning, strict=True)
            )
        left, right = self.scan(torch.stack([left, right.flip(-1)]))
        # The result moves one row down: what has read pixels to the right may be used below alone.
        right = F.pad(self.right_up(right.flip(-1))[:, :, :-1], (0, 0, 1, 0))
        return self.up(left) + right

    def pack(self, name: str) -> "DiagonalBiLSTMPack":
        """Constants of a walk."""
        return DiagonalBiLSTMPack(self, name)


@final
class DiagonalBiLSTMPack(LayerPack):
    """Constants of a Diagonal BiLSTM.

    The state holds by column: ``NAME.left`` and ``NAME.cell`` (B, W + 1, F), the LSTM from the
    left, whose last row the current one replaces (the first column, of zeros, lies before the
    image); ``NAME.right`` (B, W, F), the LSTM from the right along the last row; ``NAME.inputs``
    (B, W, 2F), what that one will read of the current row; ``NAME.above`` (B, W, 2F), what it
    says to the current row.

    Args:
        layer: Its weights are used as they are, or sorted.
        name: Of the layer in the state.
    """

    def __init__(self, layer: DiagonalBiLSTMLayer, name: str):
        self.layer = layer
        self.name = name
        width = layer.size[1]
        self.biases = RowBiases(f"{name}.gates", layers.bias_of(layer.input_to_state.conv))
        self.right_biases = RowBiases(f"{name}.right", layers.bias_of(layer.right_input))
        self.gates = layer.input_to_state.own_row(f"{name}.gates", width, begins=True)
        self.up = layer.up.own_row(f"{name}.up", width)
        left = layer.state_to_state[0, 0]
        self.from_left = [left[:, own].contiguous() for own in self.gates.outputs]
        self.right_input = layer.right_input.weight.flatten(1)
        self.right_values = layer.right_values.weight.flatten(1)
        self.right_up = layer.right_up.weight.flatten(1)

    def start(self, n: int, context: Tensor | None) -> dict[str, Tensor]:
        """Zeros; what the context says of every row."""
        left_maps, right_maps = [read(context) for read in self.layer.conditioning] or (None, None)
        weight, width = self.layer.state_to_state, self.layer.size[1]
        left, cell = weight.new_zeros(2, n, width + 1, weight.shape[2])
        right = weight.new_zeros(n, width, weight.shape[2])
        inputs, above = weight.new_zeros(2, n, width, len(self.right_up))
        each = {"left": left, "cell": cell, "right": right, "inputs": inputs, "above": above}
        tensors = {f"{self.name}.{key}": tensor for key, tensor in each.items()}
        tensors |= self.biases.start(left_maps) | self.right_biases.start(right_maps)
        return tensors | self.gates.start(n) | self.up.start(n)

    def bind(self, state: State) -> "BoundDiagonalBiLSTM":
        """On the tensors of one state."""
        return BoundDiagonalBiLSTM(self, state)


@final
class BoundDiagonalBiLSTM(BoundLayer):
    """A Diagonal BiLSTM on the tensors of one state."""

    def __init__(self, pack: DiagonalBiLSTMPack, tensors: State):
        self.pack, self.tensors = pack, tensors
        self.gates, self.up = pack.gates.bind(tensors), pack.up.bind(tensors)
        self.units = [slice(gates.start // 4, gates.stop // 4) for gates in self.gates.outputs]
        self.left, self.cell, self.right, self.inputs, self.above = (
            tensors[f"{pack.name}.{one}"] for one in ("left", "cell", "right", "inputs", "above")
        )
        self.above_by_group = [self.above[:, :, own].unbind(1) for own in self.up.outputs]

    def _read_right(self, i: int, row: Tensor) -> None:
        """The LSTM from the right, along row i, which has just been written."""
        pack = self.pack
        from_right, from_above = pack.layer.state_to_state[1]
        gates = F.linear(self.inputs, pack.right_input) + F.linear(row, pack.right_values)
        biases = pack.right_biases.of_row(i, self.tensors)
        gates = gates + self.right @ from_above + biases
        state = cell = self.right.new_zeros(len(self.right), self.right.shape[2])
        for j in reversed(range(self.right.shape[1])):
            state, cell = lstm_cell(torch.addmm(gates[:, j], state, from_right), cell)
            self.right[:, j] = state
        self.above.copy_(F.linear(self.right, pack.right_up))

    def begin_row(self, i: int, row: Tensor) -> None:
        """What the rows above say, by both directions."""
        if i > 0:
            self._read_right(i - 1, row)
        above = self.left[:, 1:] @ self.pack.layer.state_to_state[0, 1]
        torch.add(above, self.pack.biases.of_row(i, self.tensors), out=self.gates.base)

    def at(self, j: int, group: int, u: Tensor) -> Tensor:
        """One pixel's step of the LSTM from the left."""
        self.inputs[:, j, self.up.outputs[group]] = u
        from_left = self.pack.from_left[group]
        base = torch.addmm(self.gates.bases[group][j], self.left[:, j], from_left)
        gates = self.gates.pass_on(j, group, u, base)
        own = self.units[group]
        state, self.cell[:, j + 1, own] = lstm_cell(gates, self.cell[:, j, own])
        self.left[:, j + 1, own] = state
        return self.up.pass_on(j, group, state, u + self.above_by_group[group][j])
