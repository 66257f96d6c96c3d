"""Masked convolutions over images in raster order, and how they walk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks
from armodels.networks import layers
from armodels.networks.base import RasterNetwork


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
        # In the dtype of the weights: a boolean mask would be converted at every step.
        self.register_buffer("mask", mask.to(self.conv.weight), persistent=False)

    def weight(self) -> Tensor:
        """(O, I, height, width), masked."""
        return self.conv.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        y = F.conv2d(x, self.weight(), self.conv.bias, padding=self.conv.padding)
        return y[:, :, : x.shape[2]]

    def above(self, batch_size: int, num_columns: int) -> "Above":
        """In a walk, what it reads of the rows above the pixel's own."""
        return Above(self.weight()[:, :, :-1], batch_size, num_columns)

    def along(self, batch_size: int, num_columns: int) -> "Along":
        """In a walk, what it reads of the pixel's own row."""
        weight = self.weight()[:, :, -1]
        return Along(weight, *self.groups, self.strict, batch_size, num_columns)


class Above:
    """In a walk, the last rows that a convolution still reads, and what they say.

    Args:
        weight: (O, I, R, width) of the last R rows that were pushed.
        batch_size: B.
        num_columns: W.
    """

    def __init__(self, weight: Tensor, batch_size: int, num_columns: int):
        _, inputs, height, width = weight.shape
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.columns = slice(width // 2, width // 2 + num_columns)
        self.rows = weight.new_zeros(batch_size, height, num_columns + width - 1, inputs)

    def push(self, row: Tensor) -> None:
        """One row more: (B, W, I)."""
        self.rows[:, :-1] = self.rows[:, 1:].clone()
        self.rows[:, -1, self.columns] = row

    def read(self) -> Tensor:
        """(B, W, O)."""
        return F.conv2d(self.rows.permute(0, 3, 1, 2), self.weight)[:, :, 0].transpose(1, 2)


class Along:
    """In a walk, what a convolution reads of the pixel's own row, one group after another.

    Args:
        weight: (O, I, width) of the own row, masked; output channels sorted by group.
        in_groups: (I,), sorted.
        out_groups: (O,), sorted.
        strict: Mask A rather than B.
        batch_size: B.
        num_columns: W.
    """

    def __init__(
        self,
        weight: Tensor,
        in_groups: Tensor,
        out_groups: Tensor,
        strict: bool,
        batch_size: int,
        num_columns: int,
    ):
        inputs, left = weight.shape[1], weight.shape[2] // 2
        # A kernel of one pixel reads no pixel again: one place serves all columns.
        places = num_columns if left else 1
        repeats = num_columns // places
        num_groups = int(out_groups.max()) + 1
        self.forgets = num_groups == 1 and not left
        row = weight.new_zeros(batch_size, (left + places) * inputs)
        self.row = row.view(batch_size, -1, inputs)[:, left:]  # (B, places, I)
        matrix = weight[:, :, : left + 1].permute(2, 1, 0).flatten(0, 1)  # ((left + 1) I, O)
        self.weights, self.windows, self.slots, self.outputs = [], [], [], []
        for group in range(num_groups):
            begin, end = span(in_groups, group)
            self.slots.append([one[:, begin:end] for one in self.row.unbind(1)] * repeats)
            known = left * inputs + (begin if strict else end)
            starts = range(0, places * inputs, inputs)
            self.windows.append([row[:, at : at + known] for at in starts] * repeats)
            outputs = slice(*span(out_groups, group))
            self.outputs.append(outputs)
            self.weights.append(matrix[:known, outputs].contiguous())
        self.before: list[tuple[Tensor, ...]] = []

    def begin(self, before: Tensor) -> None:
        """Start a row, of which (B, W, O) is known: all but what the row itself says."""
        self.before = [before[:, :, outputs].unbind(1) for outputs in self.outputs]

    def write(self, j: int, group: int, x: Tensor) -> None:
        """The input channels of a group at column j: (B, .)."""
        self.slots[group][j].copy_(x)

    def read(self, j: int, group: int, out: Tensor | None = None) -> Tensor:
        """The output channels of a group at column j: (B, .)."""
        before, window = self.before[group][j], self.windows[group][j]
        return torch.addmm(before, window, self.weights[group], out=out)

    def pass_on(self, j: int, group: int, x: Tensor, base: Tensor | None = None) -> Tensor:
        """Write, and read what is added to the base, if any, or to what was known: (B, .)."""
        if not self.forgets:
            self.slots[group][j].copy_(x)
            x = self.windows[group][j]
        if base is None:
            base = self.before[group][j]
        return torch.addmm(base, x, self.weights[group])


def span(groups: Tensor, group: int) -> tuple[int, int]:
    """First and one past the last channel of a group, of sorted groups."""
    return int((groups < group).sum()), int((groups <= group).sum())


def row_biases(bias: Tensor, given: Tensor | None, height: int) -> list[Tensor]:
    """Of each row, (F,) or (B, 1 or W, F): biases, and what a context adds to feature maps."""
    if given is None:
        return [bias] * height
    rows = given.expand(-1, -1, height, -1).permute(2, 0, 3, 1)
    return [bias + row for row in rows.unbind(0)]


class MaskedNetwork(RasterNetwork):
    """What PixelCNNs and PixelRNNs share: how they read an image, and their last two layers.

    Hidden channels are shared out among the groups, and those of group g see, of the pixel
    itself, the values of groups < g.
    """

    last: nn.ModuleList
    """Two 1x1 layers that lead to the parameters; subclasses set them."""

    def __init__(self, spec, num_params, order, activation, dropout, encoding, context):
        super().__init__(spec, num_params, order, context)
        self.height, self.width = self.size
        self.activation = layers.activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.encode = layers.Encoding(spec, encoding)
        # A plane of ones (group -1: seen by all) tells the image from the zeros around it.
        values = torch.arange(spec.shape[0]) % self.num_groups
        values = values.repeat_interleave(self.encode.num_features)
        self.input_groups = torch.cat([torch.tensor([-1]), values])

    def _check_sizes(self, num_layers: int, num_channels: int, **sizes: int) -> None:
        """Refuse what makes no network; ``sizes`` are those of kernels."""
        layers.require_positive(num_layers=num_layers, num_channels=num_channels)
        layers.require_odd(**sizes)
        self._check_channels(num_channels=num_channels)

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

    def _walk_last(self, batch_size: int) -> list[Along]:
        """In a walk, the last two layers."""
        first, last = (conv.along(batch_size, self.width) for conv in self.last)
        first.begin(self.last[0].conv.bias.expand(batch_size, self.width, -1))
        return [first, last]

    def _step_params(self, h: Tensor, s: int, walk: list[Along]) -> Tensor:
        """In a walk, what ``params`` says of step s, from its group's features: (B, P)."""
        _, j, group = self._place(s)
        first, last = walk
        h = first.pass_on(j, group, self.activation(h))
        return last.pass_on(j, group, self.activation(h), self.bias[s])

    def _read_values(self, values: Tensor | None, s: int, along: Along) -> None:
        """In a walk, hand the first convolution the values (B, K) of the step before."""
        if s == 0:
            along.row[:, :, 0] = 1  # the plane of ones
            return
        _, j, group = self._place(s - 1)
        along.write(j, group, self.encode(values, self.bias.dtype).flatten(1))
