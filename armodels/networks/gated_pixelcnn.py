"""Gated PixelCNN: a vertical and a horizontal stack, images in raster order."""

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
    span,
)
from armodels.spec import ContextSpec, DataSpec


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
            begin, end = span(groups, group)
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
