"""Gated PixelCNN: a vertical and a horizontal stack, images in raster order."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Depth, KernelSize, Share, checked
from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.masked import (
    BoundRow,
    MaskedConvolution,
    MaskedNetwork,
    OwnRow,
    RowBiases,
    RowsAbove,
    span,
)
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


class GatePack(NamedTuple):
    """What reads the gates of one group; F' of the F channels are the group's."""

    channels: slice
    """The group's, of all F."""
    residual: list[Tensor]
    """(., F') from this group's gates and those of earlier ones to the next layer."""
    skip: Tensor
    """(layers F, F') from all gates to the output."""
    bias: Tensor
    """(F') of the skips."""


class GatedPixelCNNPack(NamedTuple):
    """Constants of a walk, by layer."""

    by_group: Tensor
    """(2 F,) channels of a pair of gates, each group's a and then its b."""
    scale: Tensor
    """(2 F,) by which those are computed."""
    vertical: list[RowsAbove]
    """What the vertical stack reads."""
    feed: list[tuple[Tensor, RowBiases]]
    """From the vertical to the horizontal stack: (2 F, 2 F), and biases."""
    horizontal: list[OwnRow]
    """What the horizontal stack reads of the current row."""
    gates: list[GatePack]
    """By group."""
    last: list[OwnRow]
    """The last two layers."""


class GateViews(NamedTuple):
    """One group's gates at the pixel, slices of the state."""

    pair: tuple[Tensor, Tensor, Tensor]
    """(B, 2 F') and its halves, a and b: room for every layer's in turn, not kept."""
    gates: list[Tensor]
    """(B, F') of each layer."""
    seen: list[Tensor]
    """(B, .) of each layer: this group's gates and those of earlier ones."""


class GatedPixelCNNViews(NamedTuple):
    """Slices of a state, as in the pack."""

    horizontal: list[BoundRow]
    all_gates: Tensor
    """(B, layers F)."""
    gates: list[GateViews]
    last: list[BoundRow]


@final
class GatedPixelCNN(MaskedNetwork):
    """Gated PixelCNN: a vertical stack sees all rows above, a horizontal one the pixel's own row.

    Each layer of both is a convolution and a gate, tanh(a) sigmoid(b). The vertical stack needs
    no mask, so that its view widens to both sides: no blind spot. It feeds the horizontal stack,
    whose layers add up (residuals) and all feed the output (skips).

    Accepts: image. Order: raster.
    Context: a bias in every gate of both stacks.
    State: of the horizontal stack the current row, of which only the new pixel is computed; the
    vertical stack is computed once a row, as the row begins.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
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

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_layers: Depth = 7,
        num_channels: Count = 32,
        kernel_size: KernelSize = 3,
        first_kernel_size: KernelSize = 7,
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._check_channels(num_channels=num_channels)
        groups = self.groups_of(num_channels)
        pair = groups.repeat(2)
        self.vertical: layers.ModuleListOf[nn.Conv2d] = layers.ModuleListOf()
        self.feed: layers.ModuleListOf[nn.Conv2d] = layers.ModuleListOf()
        self.horizontal: layers.ModuleListOf[MaskedConvolution] = layers.ModuleListOf()
        self.out: layers.ModuleListOf[MaskedConvolution] = layers.ModuleListOf()
        for i in range(num_layers):
            size = kernel_size if i else first_kernel_size
            height = size // 2 + (i > 0)  # The first layer leaves the pixel's own row out.
            padding = (size // 2, size // 2)
            inputs = groups if i else self.input_groups
            self.vertical.append(
                nn.Conv2d(len(inputs), len(pair), (height, size), padding=padding)
            )
            self.feed.append(nn.Conv2d(len(pair), len(pair), 1))
            self.horizontal.append(
                MaskedConvolution(inputs, pair, 1, size, strict=i == 0, bias=False)
            )
            ends = i == num_layers - 1  # The last leads to the skip alone, with the bias of all.
            self.out.append(MaskedConvolution(groups, groups if ends else pair, bias=ends))
        self.last = layers.ModuleListOf([MaskedConvolution(groups, groups), self.output(groups)])
        widths = [len(pair)] * 2 * num_layers
        self.conditioning = layers.conditioning(context, widths, self.size)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, S, P)."""
        maps = [read(context) for read in self.conditioning]
        h = v = self.planes(x)
        skip: Tensor | int = 0
        for i, vertical in enumerate(self.vertical):
            rows = vertical(v)[:, :, : self.height]
            if maps:
                rows = rows + maps[2 * i]
            u = self.horizontal[i](h) + self.feed[i](rows)
            if maps:
                u = u + maps[2 * i + 1]
            v = self.dropout(_gate(rows))
            out = self.out[i](self.dropout(_gate(u)))
            if i < len(self.vertical) - 1:
                more, out = out.chunk(2, 1)
                h = h + more if i else more
            skip = skip + out
        assert isinstance(skip, Tensor)  # There is one layer or more.
        return self.params(skip)

    def pack(self) -> GatedPixelCNNPack:
        """Weights, masked and sorted by group."""
        groups = self.last[0].groups[0]
        # Channels are sorted by group, each group's a before its b. Since sigmoid(b) is
        # (1 + tanh(b / 2)) / 2, one tanh serves both; the half outside stands in the weights that
        # read the gates.
        pair = groups.repeat(2)
        by_group = pair.argsort(stable=True)
        scale = self.bias.new_ones(len(pair))
        scale[len(groups) :] = 0.5
        by_group, scale = by_group.to(scale.device), scale[by_group]
        vertical, feed, horizontal, out = [], [], [], []
        for i, conv in enumerate(self.vertical):
            vertical.append(
                RowsAbove(f"vertical.{i}", conv.weight, layers.bias_of(conv), self.width)
            )
            matrix = self.feed[i].weight[by_group, :, 0, 0] * scale[:, None]
            feed.append(
                (matrix, RowBiases(f"feed.{i}", layers.bias_of(self.feed[i])[by_group] * scale))
            )
            own = self.horizontal[i]
            weight = own.weight()[by_group, :, 0] * scale[:, None, None]
            sides = own.groups[0], pair.sort().values
            name = f"horizontal.{i}"
            horizontal.append(OwnRow(name, weight, *sides, own.strict, self.width, begins=True))
            out.append(self.out[i].weight()[:, :, 0, 0].T / 2)  # (F, 2 F or F)
        skip = torch.cat([matrix[:, -len(groups) :] for matrix in out])
        gates = []
        for group in range(self.num_groups):
            begin, end = span(groups, group)
            residual = [matrix[:end, begin:end].contiguous() for matrix in out[:-1]]
            bias = layers.bias_of(self.out[-1].conv)[begin:end]
            channels = slice(begin, end)
            gates.append(GatePack(channels, residual, skip[:, channels].contiguous(), bias))
        last = self._pack_last()
        return GatedPixelCNNPack(by_group, scale, vertical, feed, horizontal, gates, last)

    def start(self, pack: GatedPixelCNNPack, n: int, context: Tensor | None = None) -> State:
        """Nothing read yet."""
        maps = (read(context) for read in self.conditioning)
        tensors = self._start_values(pack.horizontal[0], n)
        for own in (*pack.horizontal[1:], *pack.last):
            tensors |= own.start(n)
        for vertical, (_, biases) in zip(pack.vertical, pack.feed, strict=True):
            tensors |= vertical.start(n, next(maps, None))
            fed = next(maps, None)
            scale = pack.scale[:, None, None]
            tensors |= biases.start(None if fed is None else fed[:, pack.by_group] * scale)
        num_gates = len(self.last[0].groups[0])
        tensors["gates"] = self.bias.new_zeros(n, len(self.vertical), num_gates)
        return State(tensors)

    def _views(self, state: State, pack: GatedPixelCNNPack) -> GatedPixelCNNViews:
        """Slices of the state."""
        all_gates, gates = state["gates"], []
        for one in pack.gates:
            begin, end = one.channels.start, one.channels.stop
            both = all_gates.new_zeros(len(all_gates), 2 * (end - begin))
            own, seen = (list(all_gates[:, :, at:end].unbind(1)) for at in (begin, 0))
            a, b = both.chunk(2, 1)
            gates.append(GateViews((both, a, b), own, seen))
        horizontal, last = ([own.bind(state) for own in part]
                            for part in (pack.horizontal, pack.last))  # fmt: skip
        return GatedPixelCNNViews(horizontal, all_gates.flatten(1), gates, last)

    def _begin_row(self, i: int, state: State, pack: GatedPixelCNNPack) -> None:
        """The vertical stack at a row, and what it says to the horizontal one."""
        v = state.views.horizontal[0].row if i > 0 else None
        for vertical, (matrix, biases), own in zip(
            pack.vertical, pack.feed, state.views.horizontal, strict=True
        ):
            if v is not None:
                vertical.push(v, state)
            rows = vertical.read(i, state)
            torch.add(F.linear(rows, matrix), biases.of_row(i, state), out=own.base)
            v = _gate(rows, -1)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: GatedPixelCNNPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then compute each layer at the pixel, for one group."""
        if state.views is None:
            state.views = self._views(state, pack)
        views = state.views
        self._read_values(values, s, views.horizontal[0])
        i, j, group = self._position(s)
        if j == group == 0:
            self._begin_row(i, state, pack)
        reads, gates = pack.gates[group], views.gates[group]
        both, a, b = gates.pair
        for layer, own in enumerate(views.horizontal):
            own.read(j, group, out=both).tanh_()
            torch.addcmul(a, a, b, out=gates.gates[layer])
            if layer < len(reads.residual):
                seen, matrix = gates.seen[layer], reads.residual[layer]
                after = views.horizontal[layer + 1].slots[group][j]
                if layer == 0:
                    torch.mm(seen, matrix, out=after)
                else:
                    torch.addmm(own.slots[group][j], seen, matrix, out=after)
        h = torch.addmm(reads.bias, views.all_gates, reads.skip)
        return self._step_params(h, s, views.last), state


def _gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh(a) sigmoid(b) of halves a and b."""
    a, b = x.chunk(2, dim)
    return a.tanh() * b.sigmoid()
