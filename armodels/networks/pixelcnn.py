"""PixelCNN, plain and gated: masked convolutions over images in raster order."""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks
from armodels.checks import Count, Depth, Share
from armodels.networks import layers
from armodels.networks.base import RasterNetwork
from armodels.spec import ContextSpec, DataSpec


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
            begin, end = _span(in_groups, group)
            self.slots.append([one[:, begin:end] for one in self.row.unbind(1)] * repeats)
            known = left * inputs + (begin if strict else end)
            starts = range(0, places * inputs, inputs)
            self.windows.append([row[:, at : at + known] for at in starts] * repeats)
            outputs = slice(*_span(out_groups, group))
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


def _span(groups: Tensor, group: int) -> tuple[int, int]:
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


class PixelCNNCache(NamedTuple):
    """What has been read, by convolution in the order of the forward pass."""

    along: list[Along]
    """The current row of every convolution."""
    above: list[tuple[Along, Above, list[Tensor]]]
    """Of those of several rows: the current row, the rows above, and the biases of each row."""
    last: list[Along]
    """The last two layers."""


class PixelCNN(MaskedNetwork):
    """PixelCNN: masked convolutions; every pixel's parameters in one pass.

    The first convolution does not see the pixel itself (mask A), later ones do (mask B). With
    colours, a third of the channels each serve R, G and B: B's parameters see R and G of the
    same pixel.

    Blind spot: rows above are seen only within a triangle that widens to the right by
    kernel_size // 2 columns a row (kernel_size = 3: one), beyond the first convolution. What
    stands above and further right never matters, however many layers there are.

    Accepts: image. Order: raster.
    Context: a bias on every spatial convolution.
    Cache: each convolution's input, of which only the new pixel is computed; what the rows above
    say about a row is computed once, as that row begins.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        num_layers: Spatial convolutions, the first included.
        num_channels: Channels of each, h; residual blocks lead from 2h to 2h.
        kernel_size: Of all but the first.
        first_kernel_size: Of the first.
        residual: Blocks of a 1x1 convolution from 2h to h, the spatial one, and a 1x1 back to
            2h, added to what they read. Otherwise the spatial ones alone, one after another.
        activation: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a channel's value at a pixel in training, in each layer.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016)
        https://arxiv.org/abs/1601.06759

    Differs from the paper: a plane of ones beside the image shows its borders; each step has
    output biases of its own, which start at the marginals; dropout.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        num_layers: Depth = 7,
        num_channels: Count = 32,
        kernel_size: Count = 3,
        first_kernel_size: Count = 7,
        residual: bool = True,
        activation: str = "relu",
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._check_sizes(
            num_layers, num_channels, kernel_size=kernel_size, first_kernel_size=first_kernel_size
        )
        self.residual = residual
        narrow = self.groups_of(num_channels)
        wide = self.groups_of(2 * num_channels) if residual else narrow

        def spatial(*groups: Tensor, size: int, strict: bool = False) -> MaskedConvolution:
            return MaskedConvolution(*groups, size // 2 + 1, size, strict=strict)

        self.first = spatial(self.input_groups, wide, size=first_kernel_size, strict=True)
        self.layers = nn.ModuleList()
        for _ in range(num_layers - 1):
            layer = [spatial(narrow, narrow, size=kernel_size)]
            if residual:
                out = MaskedConvolution(narrow, wide, bias=False)
                layer = [MaskedConvolution(wide, narrow), *layer, out]
            self.layers.append(nn.ModuleList(layer))
        self.last = nn.ModuleList([MaskedConvolution(wide, wide), self.output(wide)])
        widths = [len(wide), *[num_channels] * (num_layers - 1)]
        self.conditioning = layers.conditioning(context, widths, self.size)

    def forward(self, x, context=None):
        """(B, C, H, W) -> (B, S, P)."""
        given = [read(context) for read in self.conditioning]
        h = self.first(self.planes(x))
        if given:
            h = h + given[0]
        for i, layer in enumerate(self.layers, 1):
            u = h
            for conv in layer:
                u = conv(self.activation(u))
                if given and conv.is_spatial:
                    u = u + given[i]
            u = self.dropout(u)
            h = h + u if self.residual else u
        return self.params(h)

    def start(self, pack, batch_size, context=None):
        """Nothing read yet; the bias of every convolution, for each row."""
        given = iter([read(context) for read in self.conditioning])
        along, above = [], []
        for conv in (self.first, *itertools.chain(*self.layers)):
            along.append(conv.along(batch_size, self.width))
            if conv.is_spatial:
                biases = row_biases(conv.conv.bias, next(given, None), self.height)
                above.append((along[-1], conv.above(batch_size, self.width), biases))
            elif conv.conv.bias is not None:
                along[-1].begin(conv.conv.bias.expand(batch_size, self.width, -1))
        return PixelCNNCache(along, above, self._walk_last(batch_size))

    def _begin_row(self, i: int, cache: PixelCNNCache) -> None:
        """What the rows above say about a row."""
        for along, above, biases in cache.above:
            if i > 0:
                above.push(along.row)
            along.begin(above.read() + biases[i])

    def step(self, values, s, cache, pack):
        """Read what was just written, then compute each layer at the pixel, for one group."""
        first, *hidden = cache.along
        self._read_values(values, s, first)
        i, j, group = self._place(s)
        if j == group == 0:
            self._begin_row(i, cache)
        convs = iter(hidden)
        h = first.read(j, group)
        for _ in self.layers:
            if self.residual:
                u = next(convs).pass_on(j, group, self.activation(h))
                u = next(convs).pass_on(j, group, self.activation(u))
                h = next(convs).pass_on(j, group, self.activation(u), h)
            else:
                h = next(convs).pass_on(j, group, self.activation(h))
        return self._step_params(h, s, cache.last), cache


class GateCache(NamedTuple):
    """One group's gates at the pixel; F' of the F channels are the group's."""

    pair: tuple[Tensor, Tensor, Tensor]
    """(B, 2 F') and its halves, a and b; every layer's in turn."""
    gates: list[Tensor]
    """(B, F') of each layer."""
    seen: list[Tensor]
    """(B, .) of each layer: this group's gates and those of earlier ones."""
    residual: list[Tensor]
    """(., F') from those to the next layer."""
    skip: Tensor
    """(layers F, F') from all gates to the output."""
    bias: Tensor
    """(F') of the skips."""


class GatedPixelCNNCache(NamedTuple):
    """What has been read, by layer."""

    above: list[Above]
    """Rows of the vertical stack."""
    vertical: list[list[Tensor]]
    """Biases of the vertical stack for each row, (., ., 2 F)."""
    feed: list[tuple[Tensor, list[Tensor]]]
    """From the vertical to the horizontal stack: (2 F, 2 F), and the biases of each row."""
    along: list[Along]
    """The current row of the horizontal stack."""
    gates: Tensor
    """(B, layers F) of the horizontal stack at the pixel."""
    groups: list[GateCache]
    """Views of the gates, and what reads them, by group."""
    last: list[Along]
    """The last two layers."""


class GatedPixelCNN(MaskedNetwork):
    """Gated PixelCNN: a vertical stack sees all rows above, a horizontal one the pixel's own row.

    Each layer of both is a convolution and a gate, tanh(a) sigmoid(b). The vertical stack needs
    no mask, so that its view widens to both sides: no blind spot. It feeds the horizontal stack,
    whose layers add up (residuals) and all feed the output (skips).

    Accepts: image. Order: raster.
    Context: a bias in every gate of both stacks.
    Cache: of the horizontal stack the current row, of which only the new pixel is computed; the
    vertical stack is computed once a row, as the row begins.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        num_layers: Of each stack.
        num_channels: Of each stack, F.
        kernel_size: Of all layers but the first.
        first_kernel_size: Of the first.
        activation: Of the output layers: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a gate in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
        https://arxiv.org/abs/1606.05328

    Differs from the paper: the vertical stack's first layer leaves the pixel's own row out and
    later ones include it, which saves shifting its result down; a plane of ones beside the image
    shows its borders; skips to the output; each step has output biases of its own, which start
    at the marginals; dropout.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        num_layers: Depth = 7,
        num_channels: Count = 32,
        kernel_size: Count = 3,
        first_kernel_size: Count = 7,
        activation: str = "relu",
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._check_sizes(
            num_layers, num_channels, kernel_size=kernel_size, first_kernel_size=first_kernel_size
        )
        groups = self.groups_of(num_channels)
        pair = groups.repeat(2)
        self.vertical, self.feed, self.horizontal, self.out = (nn.ModuleList() for _ in range(4))
        for i in range(num_layers):
            size = kernel_size if i else first_kernel_size
            height = size // 2 + (i > 0)  # without, then with the pixel's own row
            padding = (size // 2, size // 2)
            inputs = groups if i else self.input_groups
            self.vertical.append(
                nn.Conv2d(len(inputs), len(pair), (height, size), padding=padding)
            )
            self.feed.append(nn.Conv2d(len(pair), len(pair), 1))
            self.horizontal.append(
                MaskedConvolution(inputs, pair, 1, size, strict=i == 0, bias=False)
            )
            ends = i == num_layers - 1  # nothing but the skip, with the bias of all skips
            self.out.append(MaskedConvolution(groups, groups if ends else pair, bias=ends))
        self.last = nn.ModuleList([MaskedConvolution(groups, groups), self.output(groups)])
        widths = [len(pair)] * 2 * num_layers
        self.conditioning = layers.conditioning(context, widths, self.size)

    def forward(self, x, context=None):
        """(B, C, H, W) -> (B, S, P)."""
        given = [read(context) for read in self.conditioning]
        h = v = self.planes(x)
        skip = 0
        for i, vertical in enumerate(self.vertical):
            rows = vertical(v)[:, :, : self.height]
            if given:
                rows = rows + given[2 * i]
            u = self.horizontal[i](h) + self.feed[i](rows)
            if given:
                u = u + given[2 * i + 1]
            v = self.dropout(_gate(rows))
            out = self.out[i](self.dropout(_gate(u)))
            if i < len(self.vertical) - 1:
                more, out = out.chunk(2, 1)
                h = h + more if i else more
            skip = skip + out
        return self.params(skip)

    def start(self, pack, batch_size, context=None):
        """Nothing read yet; weights by group."""
        num_layers, groups = len(self.vertical), self.last[0].groups[0]
        given = iter([read(context) for read in self.conditioning])
        # Of each group its a, then its b; sigmoid(b) = (1 + tanh(b / 2)) / 2, so that one tanh
        # serves both. The half outside stands in the weights that read the gates.
        pair = groups.repeat(2)
        by_group = pair.argsort(stable=True)
        scale = self.bias.new_ones(len(pair))
        scale[len(groups) :] = 0.5
        by_group, scale = by_group.to(scale.device), scale[by_group, None]
        above, vertical, feed, along, out = [], [], [], [], []
        for i, conv in enumerate(self.vertical):
            above.append(Above(conv.weight, batch_size, self.width))
            matrix = self.feed[i].weight[by_group, :, 0, 0] * scale
            vertical.append(row_biases(conv.bias, next(given, None), self.height))
            fed = row_biases(self.feed[i].bias, next(given, None), self.height)
            feed.append((matrix, [bias[..., by_group] * scale[:, 0] for bias in fed]))
            weight = self.horizontal[i].weight()[by_group, :, 0] * scale[:, None]
            inputs, strict = self.horizontal[i].groups[0], i == 0
            along.append(Along(weight, inputs, pair.sort().values, strict, batch_size, self.width))
            out.append(self.out[i].weight()[:, :, 0, 0].T / 2)  # (F, 2 F or F)
        gates = out[0].new_zeros(batch_size, num_layers, len(groups))
        skip = torch.cat([matrix[:, -len(groups) :] for matrix in out])
        per_group = []
        for group in range(self.num_groups):
            begin, end = _span(groups, group)
            both = gates.new_zeros(batch_size, 2 * (end - begin))
            per_group.append(
                GateCache(
                    (both, *both.chunk(2, 1)),
                    list(gates[:, :, begin:end].unbind(1)),
                    list(gates[:, :, :end].unbind(1)),
                    [matrix[:end, begin:end].contiguous() for matrix in out[:-1]],
                    skip[:, begin:end].contiguous(),
                    self.out[-1].conv.bias[begin:end],
                )
            )
        last = self._walk_last(batch_size)
        return GatedPixelCNNCache(above, vertical, feed, along, gates.flatten(1), per_group, last)

    def _begin_row(self, i: int, cache: GatedPixelCNNCache) -> None:
        """The vertical stack at a row."""
        v = cache.along[0].row if i > 0 else None
        for layer, above in enumerate(cache.above):
            if v is not None:
                above.push(v)
            rows = above.read() + cache.vertical[layer][i]
            matrix, biases = cache.feed[layer]
            cache.along[layer].begin(F.linear(rows, matrix) + biases[i])
            v = _gate(rows, -1)

    def step(self, values, s, cache, pack):
        """Read what was just written, then compute each layer at the pixel, for one group."""
        self._read_values(values, s, cache.along[0])
        i, j, group = self._place(s)
        if j == group == 0:
            self._begin_row(i, cache)
        own = cache.groups[group]
        both, a, b = own.pair
        for layer, along in enumerate(cache.along):
            along.read(j, group, out=both).tanh_()
            torch.addcmul(a, a, b, out=own.gates[layer])
            if layer < len(own.residual):
                gates, matrix = own.seen[layer], own.residual[layer]
                after = cache.along[layer + 1].slots[group][j]
                if layer == 0:
                    torch.mm(gates, matrix, out=after)
                else:
                    torch.addmm(along.slots[group][j], gates, matrix, out=after)
        h = torch.addmm(own.bias, cache.gates, own.skip)
        return self._step_params(h, s, cache.last), cache


def _gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh(a) sigmoid(b) of halves a and b."""
    a, b = x.chunk(2, dim)
    return a.tanh() * b.sigmoid()
