"""Masked convolutions over images in raster order, and how they walk."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks
from armodels.checks import Share
from armodels.networks import layers
from armodels.networks.base import RasterNetwork, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class MaskedConvolution(nn.Module):
    """A convolution that sees rows above and the pixel's own row up to it; the size is kept.

    Rows below are not even stored: the kernel's last row is the pixel's own.

    Args:
        in_groups: (I,) group of each input channel, see ``masks.convolution_mask``.
        out_groups: (O,) group of each output channel.
        height: Rows of the kernel, the pixel's own included.
        width: Columns of the kernel, odd.
        strict: Mask A (of the pixel itself, earlier groups only) rather than B.
        bias: Add a bias to each output channel.
    """

    mask: Tensor

    def __init__(
        self,
        in_groups: Tensor,
        out_groups: Tensor,
        height: int = 1,
        width: int = 1,
        *,
        strict: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.groups = in_groups, out_groups
        self.strict = strict
        self.is_spatial = width > 1
        padding = (height - 1, width // 2)
        sizes = len(in_groups), len(out_groups)
        self.conv = nn.Conv2d(*sizes, (height, width), padding=padding, bias=bias)
        mask = masks.convolution_mask(in_groups, out_groups, height, width, strict=strict)
        # The mask has the dtype of the weights: a boolean one would be converted at every step.
        self.register_buffer("mask", mask.to(self.conv.weight), persistent=False)

    def weight(self) -> Tensor:
        """(O, I, height, width), masked."""
        return self.conv.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        y = F.conv2d(x, self.weight(), self.conv.bias, padding=self.conv.padding)
        return y[:, :, : x.shape[2]]

    def rows_above(self, name: str, num_columns: int) -> "RowsAbove":
        """In a walk, what it reads of the rows above the pixel's own, and its bias."""
        return RowsAbove(name, self.weight()[:, :, :-1], layers.bias_of(self.conv), num_columns)

    def own_row(self, name: str, num_columns: int, *, begins: bool = False) -> "OwnRow":
        """In a walk, what it reads of the pixel's own row.

        Args:
            name: Of the convolution in the state.
            num_columns: W.
            begins: Each row begins with a base of its own, of which the bias is a part.
        """
        weight, bias = self.weight()[:, :, -1], None if begins else self.conv.bias
        return OwnRow(name, weight, *self.groups, self.strict, num_columns, bias, begins=begins)


@final
class RowBiases:
    """In a walk, the biases of feature maps, and what a context adds to them.

    Under a context the state holds their sum: ``NAME.biases`` (B, H or 1, W or 1, F).

    Args:
        name: Of the maps in the state.
        bias: (F,).
    """

    def __init__(self, name: str, bias: Tensor):
        self.name = f"{name}.biases"
        self.bias = bias

    def start(self, maps: Tensor | None) -> dict[str, Tensor]:
        """What the state holds, of a context's maps (B, F, H or 1, W or 1), if any."""
        return {} if maps is None else {self.name: self.bias + maps.permute(0, 2, 3, 1)}

    def of_row(self, i: int, state: State) -> Tensor:
        """Of row i: (F,) or (B, W or 1, F)."""
        sums = state.get(self.name)
        return self.bias if sums is None else sums[:, min(i, sums.shape[1] - 1)]


@final
class RowsAbove:
    """In a walk, what a convolution reads of the rows above the pixel's own.

    The state holds the last R rows that it read: ``NAME.above`` (B, R, W + width - 1, I).

    Args:
        name: Of the convolution in the state.
        weight: (O, I, R, width) of the last R rows.
        bias: (O,).
        num_columns: W.
    """

    def __init__(self, name: str, weight: Tensor, bias: Tensor, num_columns: int):
        height, width = weight.shape[2:]
        self.name = f"{name}.above"
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.biases = RowBiases(name, bias)
        self.columns = slice(width // 2, width // 2 + num_columns)
        self.shape = height, num_columns + width - 1, weight.shape[1]

    def start(self, n: int, maps: Tensor | None) -> dict[str, Tensor]:
        """What the state of n events holds before the first row.

        Args:
            n: B.
            maps: (B, O, H or 1, W or 1) what a context adds to the outputs, if anything.
        """
        return {self.name: self.weight.new_zeros(n, *self.shape), **self.biases.start(maps)}

    def push(self, row: Tensor, state: State) -> None:
        """One row more: (B, W, I)."""
        rows = state[self.name]
        rows[:, :-1] = rows[:, 1:].clone()
        rows[:, -1, self.columns] = row

    def read(self, i: int, state: State, out: Tensor | None = None) -> Tensor:
        """The outputs of row i, less what its own inputs add: (B, W, O).

        Args:
            i: The row.
            state: Of the walk.
            out: (B, W, O) to write them to; None: a new tensor.
        """
        rows = state[self.name].permute(0, 3, 1, 2)
        sums = F.conv2d(rows, self.weight)[:, :, 0].transpose(1, 2)
        return torch.add(sums, self.biases.of_row(i, state), out=out)


@final
class OwnRow:
    """In a walk, what a convolution reads of the pixel's own row, one group after another.

    The state holds the inputs of the row so far, after zeros for what lies left of the image:
    ``NAME.row`` (B, (width // 2 + W) I). A kernel of one pixel reads no pixel again, so that one
    position serves all columns.

    What the row's inputs are added to is the bias, or where rows begin with it ``NAME.base``
    (B, W, O) of the state, or what each call gives.

    Args:
        name: Of the convolution in the state.
        weight: (O, I, width) of the own row, masked; output channels sorted by group.
        in_groups: (I,), sorted.
        out_groups: (O,), sorted.
        strict: Mask A rather than B.
        num_columns: W.
        bias: (O,), if the inputs are added to it.
        begins: Each row begins with a base of its own.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        in_groups: Tensor,
        out_groups: Tensor,
        strict: bool,
        num_columns: int,
        bias: Tensor | None = None,
        *,
        begins: bool = False,
    ):
        self.row, self.base = f"{name}.row", f"{name}.base"
        outputs, self.num_inputs, width = weight.shape
        self.left = width // 2
        self.num_columns = num_columns
        self.num_positions = num_columns if self.left else 1
        self.base_shape = (num_columns, outputs) if begins else None
        num_groups = int(out_groups.max()) + 1
        self.forgets = num_groups == 1 and not self.left
        matrix = weight[:, :, : self.left + 1].permute(2, 1, 0).flatten(0, 1)
        self.inputs = [slice(*span(in_groups, group)) for group in range(num_groups)]
        self.outputs = [slice(*span(out_groups, group)) for group in range(num_groups)]
        # A group reads so many inputs, from the left of its kernel on.
        self.reach = [
            self.left * self.num_inputs + (one.start if strict else one.stop)
            for one in self.inputs
        ]
        self.weights = [
            matrix[:reach, outputs].contiguous()
            for reach, outputs in zip(self.reach, self.outputs, strict=True)
        ]
        self.biases = None if bias is None else [bias[outputs] for outputs in self.outputs]

    def start(self, n: int) -> dict[str, Tensor]:
        """What the state of n events holds before the first row."""
        new_zeros = self.weights[0].new_zeros
        tensors = {}
        if not self.forgets:
            length = (self.left + self.num_positions) * self.num_inputs
            tensors[self.row] = new_zeros(n, length)
        if self.base_shape:
            tensors[self.base] = new_zeros(n, *self.base_shape)
        return tensors

    def positions(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inputs of the row, (B, W or 1, I), within the tensors of a state."""
        row = tensors[self.row]
        cells = row.view(len(row), self.left + self.num_positions, self.num_inputs)
        return cells[:, self.left :]

    def bind(self, state: State) -> "BoundRow":
        """On the tensors of one state."""
        return BoundRow(self, state)


@final
class BoundRow:
    """An ``OwnRow`` on the tensors of one state, with a slice at hand for each column and group.

    A fork makes its own, for it holds no number that is not in the state or the pack.

    Args:
        own: The constants.
        state: Its tensors are written in place.
    """

    def __init__(self, own: OwnRow, state: State):
        repeats = own.num_columns // own.num_positions
        self.weights, self.outputs, self.forgets = own.weights, own.outputs, own.forgets
        self.base = state.get(own.base)
        self.windows: list[list[Tensor]] = []
        self.slots: list[list[Tensor]] = []
        if not own.forgets:
            row = state[own.row]
            self.row = own.positions(state)
            starts = range(0, own.num_positions * own.num_inputs, own.num_inputs)
            cells = self.row.unbind(1)
            for inputs, reach in zip(own.inputs, own.reach, strict=True):
                self.slots.append([one[:, inputs] for one in cells] * repeats)
                self.windows.append([row[:, at : at + reach] for at in starts] * repeats)
        self.bases: list[Sequence[Tensor]] = []
        if self.base is not None:
            self.bases = [self.base[:, :, outputs].unbind(1) for outputs in own.outputs]
        elif own.biases is not None:
            self.bases = [[bias] * own.num_columns for bias in own.biases]

    def write(self, j: int, group: int, x: Tensor) -> None:
        """Write the input channels of a group at a column.

        Args:
            j: The column.
            group: Of the channels.
            x: (B, .).
        """
        self.slots[group][j].copy_(x)

    def read(self, j: int, group: int, out: Tensor | None = None) -> Tensor:
        """The output channels of a group at a column: (B, .).

        Args:
            j: The column.
            group: Of the channels.
            out: (B, .) to write them to; None: a new tensor.
        """
        base, window = self.bases[group][j], self.windows[group][j]
        return torch.addmm(base, window, self.weights[group], out=out)

    def pass_on(self, j: int, group: int, x: Tensor, base: Tensor | None = None) -> Tensor:
        """Write the input channels of a group at a column, and read its output channels: (B, .).

        Args:
            j: The column.
            group: Of the channels.
            x: (B, .) the inputs.
            base: (B, .) or (.,) to which they are added; None: the row's, or the bias.
        """
        if not self.forgets:
            self.slots[group][j].copy_(x)
            x = self.windows[group][j]
        if base is None:
            base = self.bases[group][j]
        return torch.addmm(base, x, self.weights[group])


def span(groups: Tensor, group: int) -> tuple[int, int]:
    """First and one past the last channel of a group, of sorted groups."""
    return int((groups < group).sum()), int((groups <= group).sum())


class MaskedNetwork(RasterNetwork):
    """What PixelCNNs and PixelRNNs share: how they read an image, and their last two layers.

    Hidden channels are shared out among the groups, and those of group g see, of the pixel
    itself, the values of groups < g.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K); raster order only.
        activation: Of the hidden layers: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a value of a layer's result in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.
    """

    last: "layers.ModuleListOf[MaskedConvolution]"
    """Two 1x1 layers that lead to the parameters; subclasses set them."""

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        activation: layers.Activation,
        dropout: Share,
        encoding: layers.EncodingName,
        context: ContextSpec | None,
    ) -> None:
        super().__init__(spec, num_params, order, context)
        self.height, self.width = self.size
        self.activation = layers.activation(activation)
        self.dropout = layers.Dropout(dropout)
        self.encode = layers.Encoding(spec, encoding)
        # A plane of ones (group -1: seen by all) tells the image from the zeros around it.
        values = torch.arange(spec.shape[0]) % self.num_groups
        values = values.repeat_interleave(self.encode.num_features)
        self.input_groups = torch.cat([torch.tensor([-1]), values])

    def _check_channels(self, **counts: int) -> None:
        """Refuse fewer channels than groups."""
        for name, count in counts.items():
            if count < self.num_groups:
                raise ValueError(
                    f"{name} is {count}, but a pixel has {self.num_groups} values; "
                    f"each needs a channel of its own"
                )

    def groups_of(self, num_channels: int) -> Tensor:
        """Group of each of F hidden channels, as even as can be: (F,)."""
        return masks.even_degrees(num_channels, self.num_groups + 1)

    def output(self, in_groups: Tensor) -> MaskedConvolution:
        """The last layer: P parameters for each group."""
        out_groups = torch.arange(self.num_groups).repeat_interleave(self.num_params)
        layer = MaskedConvolution(in_groups, out_groups, bias=False)
        nn.init.normal_(layer.conv.weight, std=0.01)
        return layer

    def planes(self, x: Tensor) -> Tensor:
        """What the first layer reads: (B, C, H, W) -> (B, 1 + C E, H, W), channels last."""
        values = self.encode(x.flatten(1), self.bias.dtype)
        values = values.view(*x.shape, self.encode.num_features)
        values = values.permute(0, 2, 3, 1, 4).flatten(3)  # (B, H, W, C E)
        return F.pad(values, (1, 0), value=1.0).permute(0, 3, 1, 2)

    def params(self, h: Tensor) -> Tensor:
        """From the features of the last two layers: (B, F, H, W) -> (B, S, P)."""
        for conv in self.last:
            h = conv(self.activation(h))
        return h.permute(0, 2, 3, 1).reshape(len(h), *self.bias.shape) + self.bias

    def _pack_last(self) -> list[OwnRow]:
        """In a walk, the last two layers."""
        return [conv.own_row(f"last.{i}", self.width) for i, conv in enumerate(self.last)]

    def _step_params(self, h: Tensor, s: int, last: Sequence[BoundRow]) -> Tensor:
        """In a walk, what ``params`` says of step s, from its group's features: (B, P)."""
        _, j, group = self._position(s)
        h = last[0].pass_on(j, group, self.activation(h))
        return last[1].pass_on(j, group, self.activation(h), self.bias[s])

    def _start_values(self, first: OwnRow, n: int) -> dict[str, Tensor]:
        """In a walk, what the first convolution has read: nothing but the plane of ones."""
        tensors = first.start(n)
        first.positions(tensors)[:, :, 0] = 1
        return tensors

    def _read_values(self, values: Tensor | None, s: int, first: BoundRow) -> None:
        """In a walk, hand the first convolution the values (B, K) of the step before."""
        if values is not None:
            _, j, group = self._position(s - 1)
            first.write(j, group, self.encode(values, self.bias.dtype).flatten(1))
