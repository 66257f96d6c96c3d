"""PixelRNN: recurrent layers over images in raster order, Row LSTM and Diagonal BiLSTM."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Depth, Share
from armodels.networks import layers
from armodels.networks.masked import (
    Above,
    Along,
    MaskedConvolution,
    MaskedNetwork,
    row_biases,
)
from armodels.spec import ContextSpec, DataSpec


def _cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
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


class PixelRNNCache(NamedTuple):
    """What has been read: the first convolution, the recurrent layers, the last two layers."""

    above: Above
    biases: list[Tensor]
    """Of the first convolution, for each row."""
    first: Along
    layers: list["LayerWalk"]
    last: list[Along]


class LayerWalk(ABC):
    """A recurrent layer in a walk: a plain value of the cache, one pixel after another."""

    @abstractmethod
    def begin_row(self, i: int, row: Tensor) -> None:
        """All that the rows above say about row i, the last of which is ``row`` (B, W, I)."""

    @abstractmethod
    def at(self, j: int, group: int, u: Tensor) -> Tensor:
        """The layer's output for one group at column j, of its input (B, .)."""


class PixelRNN(MaskedNetwork):
    """What both PixelRNNs share: all but the recurrent layers.

    A masked convolution, recurrent layers whose results are added to what they read, and two
    1x1 layers. Subclasses end their constructor by ``_build``.
    """

    def _build(
        self, num_layers: int, num_channels: int, first_kernel_size: int, num_output_channels: int
    ) -> None:
        """All layers."""
        self._check_sizes(num_layers, num_channels, first_kernel_size=first_kernel_size)
        self._check_channels(num_output_channels=num_output_channels)
        units, wide = self.groups_of(num_channels), self.groups_of(2 * num_channels)
        out = self.groups_of(num_output_channels)
        rows = first_kernel_size // 2 + 1
        self.first = MaskedConvolution(
            self.input_groups, wide, rows, first_kernel_size, strict=True
        )
        self.layers = nn.ModuleList(self.layer(wide, units) for _ in range(num_layers))
        self.last = nn.ModuleList([MaskedConvolution(wide, out), self.output(out)])
        self.conditioning = layers.conditioning(self.context, [len(wide)], self.size)

    @abstractmethod
    def layer(self, wide: Tensor, units: Tensor) -> nn.Module:
        """A recurrent layer: features (B, 2F, H, W), planes, context -> (B, 2F, H, W).

        Args:
            wide: (2F,) group of each input and output channel.
            units: (F,) group of each unit.
        """

    def forward(self, x, context=None):
        """(B, C, H, W) -> (B, S, P)."""
        planes = self.planes(x)
        h = self.first(planes)
        for read in self.conditioning:
            h = h + read(context)
        for layer in self.layers:
            h = h + self.dropout(layer(h, planes, context))
        return self.params(h)

    def start(self, pack, batch_size, context=None):
        """Nothing read yet."""
        given = iter([read(context) for read in self.conditioning])
        return PixelRNNCache(
            self.first.above(batch_size, self.width),
            row_biases(self.first.conv.bias, next(given, None), self.height),
            self.first.along(batch_size, self.width),
            [layer.walk(batch_size, context) for layer in self.layers],
            self._walk_last(batch_size),
        )

    def step(self, values, s, cache, pack):
        """Read what was just written, then compute each layer at the pixel, for one group."""
        self._read_values(values, s, cache.first)
        i, j, group = self._place(s)
        if j == group == 0:
            if i > 0:
                cache.above.push(cache.first.row)
            cache.first.begin(cache.above.read() + cache.biases[i])
            for layer in cache.layers:
                layer.begin_row(i, cache.first.row)
        h = cache.first.read(j, group)
        for layer in cache.layers:
            h = layer.at(j, group, h)
        return self._step_params(h, s, cache.last), cache


class RowLSTMLayer(nn.Module):
    """An LSTM from row to row, all columns at once.

    Args:
        wide: (2F,) group of each input and output channel.
        units: (F,) group of each unit.
        context: What the model is conditioned on, if anything.
        size: (H, W).
        kernel_size: Of the convolutions of the input and of the state of the row above.
    """

    def __init__(self, wide, units, context, size, kernel_size: int):
        super().__init__()
        self.size = size
        gates = units.repeat_interleave(4)
        self.input_to_state = MaskedConvolution(wide, gates, 1, kernel_size)
        # The row above is known wholly: no mask.
        fan_in = len(units) * kernel_size
        self.state_to_state = _uniform(len(gates), len(units), kernel_size, fan_in=fan_in)
        self.up = MaskedConvolution(units, wide, bias=False)
        self.conditioning = layers.conditioning(context, [len(gates)], size)
        _keep_at_first(self.input_to_state.conv.bias)

    def above(self, state: Tensor) -> Tensor:
        """What a row's state says to the row below: (B, F, W) -> (B, 4F, W)."""
        padding = self.state_to_state.shape[-1] // 2
        return F.conv1d(state, self.state_to_state, padding=padding)

    def forward(self, x: Tensor, planes: Tensor, context: Tensor | None) -> Tensor:
        """(B, 2F, H, W) -> (B, 2F, H, W)."""
        given = self.input_to_state(x)
        for read in self.conditioning:
            given = given + read(context)
        states, cell = [], x.new_zeros(())
        for row in given.unbind(2):  # (B, 4F, W)
            if states:
                row = row + self.above(states[-1])
            state, cell = _cell(row.transpose(1, 2), cell)
            states.append(state.transpose(1, 2))
        return self.up(torch.stack(states, 2))

    def walk(self, batch_size: int, context: Tensor | None) -> "RowLSTMWalk":
        """Nothing read yet."""
        return RowLSTMWalk(self, batch_size, context)


class RowLSTMWalk(LayerWalk):
    """Keeps the state of the last row, which the current one replaces column by column."""

    def __init__(self, layer: RowLSTMLayer, batch_size: int, context: Tensor | None):
        height, width = layer.size
        self.layer = layer
        given = iter([read(context) for read in layer.conditioning])
        bias = layer.input_to_state.conv.bias
        self.biases = row_biases(bias, next(given, None), height)
        self.gates = layer.input_to_state.along(batch_size, width)
        self.up = layer.up.along(batch_size, width)
        num_units = layer.state_to_state.shape[1]
        self.state, self.cell = bias.new_zeros(2, batch_size, width, num_units)

    def begin_row(self, i, row):
        """Convolve the state of the row above."""
        said = self.layer.above(self.state.transpose(1, 2)).transpose(1, 2)
        self.gates.begin(said + self.biases[i])

    def at(self, j, group, u):
        """One pixel's step of the LSTM."""
        gates = self.gates.pass_on(j, group, u)
        own = self.gates.outputs[group]
        own = slice(own.start // 4, own.stop // 4)
        state, self.cell[:, j, own] = _cell(gates, self.cell[:, j, own])
        self.state[:, j, own] = state
        return self.up.pass_on(j, group, state, u)


class RowLSTM(PixelRNN):
    """PixelRNN with Row LSTM layers: each row's LSTM state comes from the row above.

    Blind spot: the state sees the row above kernel_size // 2 columns to each side, so that what
    stands above and further right than this triangle (beyond the first convolution) never
    matters. To the left the input convolutions widen it with every layer.

    Accepts: image. Order: raster.
    Context: a bias on the first convolution and on the gates of every layer.
    Cache: of every layer, the state of the row above and the current row's inputs.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        num_layers: Recurrent layers.
        num_channels: Units of each layer, F; between them 2F features.
        kernel_size: Of the input-to-state and state-to-state convolutions, odd.
        first_kernel_size: Of the convolution that reads the values, odd.
        num_output_channels: Of the layer before the last.
        activation: Of the last two layers: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a layer's result in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016)
        https://arxiv.org/abs/1601.06759

    Differs from the paper: a plane of ones beside the image shows its borders; LSTMs start by
    keeping their cells; no skips to the output; each step has output biases of its own, which
    start at the marginals; dropout.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        num_layers: Depth = 4,
        num_channels: Count = 16,
        kernel_size: Count = 3,
        first_kernel_size: Count = 7,
        num_output_channels: Count = 32,
        activation: str = "relu",
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        layers.require_odd(kernel_size=kernel_size)
        self.kernel_size = kernel_size
        self._build(num_layers, num_channels, first_kernel_size, num_output_channels)

    def layer(self, wide, units):
        """A Row LSTM."""
        return RowLSTMLayer(wide, units, self.context, self.size, self.kernel_size)


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


class DiagonalBiLSTMLayer(nn.Module):
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

    def __init__(self, wide, units, context, size, num_planes: int):
        super().__init__()
        self.size = size
        gates, num_units = units.repeat_interleave(4), len(units)
        self.input_to_state = MaskedConvolution(wide, gates)
        self.up = MaskedConvolution(units, wide, bias=False)
        # Used by the row below alone, to which the whole row is known: no masks.
        self.right_input = nn.Conv2d(len(wide), len(gates), 1)
        self.right_values = nn.Conv2d(num_planes, len(gates), 1, bias=False)
        self.right_up = nn.Conv2d(num_units, len(wide), 1, bias=False)
        # For each direction, from the neighbour in the row and from the one above.
        self.state_to_state = _uniform(2, 2, num_units, len(gates), fan_in=2 * num_units)
        self.conditioning = layers.conditioning(context, [len(gates), len(gates)], size)
        for conv in (self.input_to_state.conv, self.right_input):
            _keep_at_first(conv.bias)

    def scan(self, gates: Tensor) -> Tensor:
        """Both LSTMs, from left to right: (2, B, 4F, H, W) -> (2, B, F, H, W)."""
        weight = self.state_to_state.flatten(1, 2)  # (2, 2F, 4F)
        diagonals = skew(gates).permute(4, 0, 1, 3, 2)  # (D, 2, B, H, 4F)
        state = cell = gates.new_zeros(*diagonals.shape[1:4], weight.shape[1] // 2)
        states = []
        # Left of the image the gates are zero, and so remain the states: a row starts from zero.
        for diagonal in diagonals:
            above = F.pad(state[:, :, :-1], (0, 0, 1, 0))
            before = torch.cat([state, above], -1).flatten(1, 2)  # (2, B H, 2F)
            said = torch.bmm(before, weight).unflatten(1, state.shape[1:3])
            state, cell = _cell(diagonal + said, cell)
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
        # One row down: what has read the pixel itself and those right of it says it below.
        right = F.pad(self.right_up(right.flip(-1))[:, :, :-1], (0, 0, 1, 0))
        return self.up(left) + right

    def walk(self, batch_size: int, context: Tensor | None) -> "DiagonalBiLSTMWalk":
        """Nothing read yet."""
        return DiagonalBiLSTMWalk(self, batch_size, context)


class DiagonalBiLSTMWalk(LayerWalk):
    """Keeps the last row's states of both directions, and that row's inputs."""

    def __init__(self, layer: DiagonalBiLSTMLayer, batch_size: int, context: Tensor | None):
        height, width = layer.size
        given = iter([read(context) for read in layer.conditioning])
        bias = layer.input_to_state.conv.bias
        self.biases = row_biases(bias, next(given, None), height)
        self.right_biases = row_biases(layer.right_input.bias, next(given, None), height)
        self.gates = layer.input_to_state.along(batch_size, width)
        self.up = layer.up.along(batch_size, width)
        self.weights = layer.state_to_state
        left = layer.state_to_state[0, 0]
        self.from_left = [left[:, own].contiguous() for own in self.gates.outputs]
        self.right_input = layer.right_input.weight.flatten(1)
        self.right_values = layer.right_values.weight.flatten(1)
        self.right_up = layer.right_up.weight.flatten(1)
        num_units = layer.state_to_state.shape[2]
        # By column; the left one has a column more, of zeros, before the image.
        self.left, self.cell = bias.new_zeros(2, batch_size, width + 1, num_units)
        self.right = bias.new_zeros(batch_size, width, num_units)
        self.inputs = bias.new_zeros(batch_size, width, len(self.right_up))
        self.said: list[tuple[Tensor, ...]] | None = None

    def _read_right(self, i: int, row: Tensor) -> None:
        """The LSTM from the right, along row i, which has just been written."""
        gates = F.linear(self.inputs, self.right_input) + F.linear(row, self.right_values)
        gates = gates + self.right @ self.weights[1, 1] + self.right_biases[i]
        state = cell = self.right.new_zeros(len(self.right), self.right.shape[2])
        for j in reversed(range(self.right.shape[1])):
            state, cell = _cell(torch.addmm(gates[:, j], state, self.weights[1, 0]), cell)
            self.right[:, j] = state

    def begin_row(self, i, row):
        """What the rows above say, by both directions."""
        if i > 0:
            self._read_right(i - 1, row)
            said = F.linear(self.right, self.right_up)
            self.said = [said[:, :, own].unbind(1) for own in self.up.outputs]
        self.gates.begin(self.left[:, 1:] @ self.weights[0, 1] + self.biases[i])

    def at(self, j, group, u):
        """One pixel's step of the LSTM from the left."""
        self.inputs[:, j, self.up.outputs[group]] = u
        base = torch.addmm(self.gates.before[group][j], self.left[:, j], self.from_left[group])
        gates = self.gates.pass_on(j, group, u, base)
        own = self.gates.outputs[group]
        own = slice(own.start // 4, own.stop // 4)
        state, self.cell[:, j + 1, own] = _cell(gates, self.cell[:, j, own])
        self.left[:, j + 1, own] = state
        if self.said is not None:
            u = u + self.said[group][j]
        return self.up.pass_on(j, group, state, u)


class DiagonalBiLSTM(PixelRNN):
    """PixelRNN with Diagonal BiLSTM layers: every earlier pixel is seen, by the first layer.

    Accepts: image. Order: raster.
    Context: a bias on the first convolution and on the gates of every layer.
    Cache: of every layer, the states of the row above in both directions and the current row's
    of the direction from the left; the other direction reads a row once it is complete.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        num_layers: Recurrent layers.
        num_channels: Units of each direction of a layer, F; between layers 2F features.
        first_kernel_size: Of the convolution that reads the values, odd.
        num_output_channels: Of the layer before the last.
        activation: Of the last two layers: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a layer's result in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016)
        https://arxiv.org/abs/1601.06759

    Differs from the paper: the direction from the right, which the row below alone uses, has no
    mask between colours and reads the values too, without which the last pixel of the row above
    is a blind spot; a plane of ones beside the image shows its borders; LSTMs start by
    keeping their cells; no skips to the output; each step has output biases of its own, which
    start at the marginals; dropout.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        num_layers: Depth = 3,
        num_channels: Count = 16,
        first_kernel_size: Count = 7,
        num_output_channels: Count = 32,
        activation: str = "relu",
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._build(num_layers, num_channels, first_kernel_size, num_output_channels)

    def layer(self, wide, units):
        """A Diagonal BiLSTM."""
        num_planes = len(self.input_groups)
        return DiagonalBiLSTMLayer(wide, units, self.context, self.size, num_planes)
