"""A multi-scale network: a small picture first, then what lies between its pixels, at once."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import orders
from armodels.checks import Count, Depth, Share, checked
from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNPack
from armodels.networks.grouped import GroupedNetwork
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

PHASES = ((0, 1), (1, 0), (1, 1))
"""Rows and columns by which pixels between those of the smaller picture are shifted: those to the
right of them, those below, and those below to the right, in the order of their writing."""


class Group(NamedTuple):
    """Pixels that are written at once."""

    level: int
    """Of the picture that it belongs to: one of every ``2 ** level`` pixels in a row."""
    phase: int
    """Its number in ``PHASES``."""
    channel: int
    """Which channel is written; 0 where the head takes whole pixels."""


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of every second pixel of every second row."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def sizes_of(size: tuple[int, int], base_size: int) -> list[tuple[int, int]]:
    """Rows and columns of the picture, of every second pixel of it, and so on.

    Args:
        size: (H, W).
        base_size: The last of them has at most so many rows and columns.
    """
    sizes = [size]
    while max(sizes[-1]) > base_size:
        sizes.append(halved(sizes[-1]))
    return sizes


@final
class Between(nn.Module):
    """What the known pixels of a picture say about one phase between them.

    Args:
        num_known: Features of the phases that are known, at a pixel of the smaller picture.
        num_earlier: Features of earlier channels of the same phase, for each channel in turn.
        num_channels: F.
        num_blocks: Residual blocks.
        num_params: P.
        activation: Of the convolutions.
        dropout: Probability of dropping a feature.
        size: (h, w) of the smaller picture.
        context: What the model is conditioned on, if anything.
    """

    def __init__(
        self,
        num_known: int,
        num_earlier: list[int],
        num_channels: int,
        num_blocks: int,
        num_params: int,
        activation: layers.Activation,
        dropout: float,
        size: tuple[int, int],
        context: ContextSpec | None,
    ):
        super().__init__()
        self.activation = layers.activation(activation)
        self.dropout = layers.Dropout(dropout)

        def convolution(num_inputs: int, num_outputs: int) -> nn.Conv2d:
            return nn.Conv2d(num_inputs, num_outputs, 3, padding=1)

        # A plane of ones tells the border from values of zero.
        self.first = convolution(num_known + 1, num_channels)
        self.blocks: layers.ModuleListOf[layers.ModuleListOf[nn.Conv2d]] = layers.ModuleListOf(
            layers.ModuleListOf(convolution(num_channels, num_channels) for _ in range(2))
            for _ in range(num_blocks)
        )
        self.earlier = layers.ModuleListOf(
            convolution(count, num_channels) for count in num_earlier[1:]
        )
        self.mix = layers.ModuleListOf(
            nn.Conv2d(num_channels, num_channels, 1) for _ in num_earlier
        )
        self.output = layers.ModuleListOf(
            nn.Conv2d(num_channels, num_params, 1, bias=False) for _ in num_earlier
        )
        for layer in self.output:
            nn.init.normal_(layer.weight, std=0.01)
        widths = [num_channels] * (context is not None)
        self.conditioning = layers.conditioning(context, widths, size)

    def features(self, known: Tensor, context: Tensor | None) -> Tensor:
        """(B, num_known, h, w) -> (B, F, h, w)."""
        planes = F.pad(known, (0, 0, 0, 0, 0, 1), value=1.0)
        h = self.first(planes.contiguous(memory_format=torch.channels_last))
        for layer in self.conditioning:
            h = h + layer(context)
        for first, second in self.blocks:
            u = self.dropout(self.activation(first(self.activation(h))))
            h = h + second(u)
        return h

    def params(self, h: Tensor, earlier: Tensor, channel: int) -> Tensor:
        """Of one channel, less the biases of its steps: (B, P, h, w).

        Args:
            h: (B, F, h, w), what ``features`` gave.
            earlier: (B, ., h, w) features of the channels before it.
            channel: Its number.
        """
        if channel:
            h = h + self.earlier[channel - 1](earlier)
        return self.output[channel](self.activation(self.mix[channel](self.activation(h))))


@final
class MultiScale(GroupedNetwork):
    """A small picture, pixel by pixel, then every picture of twice its size in a few passes.

    The small picture is every 2^n-th pixel of every 2^n-th row of the image itself: a split, and
    no average, so that the likelihood is exact. A Gated PixelCNN writes it. What lies between its
    pixels is written in three phases, to the right, below, and below to the right, all pixels of
    a phase (or one channel of them) at once: they are independent given all that is written.

    Accepts: image. Order: its own, level after level.
    Context: a bias of the Gated PixelCNN's gates and of each phase's features.
    State: of the Gated PixelCNN its own; then the values so far, features of the phase, and the
    parameters of the group.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order, from which its own is made.
        base_size: Rows and columns that the small picture has at most.
        base_layers: Of the Gated PixelCNN.
        base_channels: Of the Gated PixelCNN.
        num_blocks: Residual blocks of each phase.
        num_channels: Of each phase, F.
        activation: Of the phases' convolutions and the Gated PixelCNN's output layers: relu,
            sigmoid, tanh or elu.
        dropout: Probability of dropping a feature in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Parallel Multiscale Autoregressive Density Estimation (Reed et al., 2017)
        https://arxiv.org/abs/1703.03664
        Generating High Fidelity Images with Subscale Pixel Networks and Multidimensional
        Upscaling (Menick & Kalchbrenner, 2019) https://arxiv.org/abs/1812.01608

    Differs from the papers: a Gated PixelCNN for the base, any base size and sizes that are not
    powers of two; each phase has residual blocks of its own at the size of the smaller picture,
    at each level; channels of a phase one after another, or whole pixels, by the head; output
    biases of each step, which start at the marginals.
    """

    kinds = frozenset({"image"})
    raster_only = True

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        base_size: Count = 4,
        base_layers: Depth = 4,
        base_channels: Count = 32,
        num_blocks: Count = 3,
        num_channels: Count = 32,
        activation: layers.Activation = "elu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        channels, height, width = spec.shape
        self.sizes = sizes_of((height, width), base_size)
        self.encode = layers.Encoding(spec, encoding)
        coarse = replace(spec, shape=(channels, *self.sizes[-1]))
        self.base = GatedPixelCNN(
            coarse,
            num_params,
            orders.make("raster", coarse.shape, joint=order.joint),
            num_layers=base_layers,
            num_channels=base_channels,
            activation=activation,
            dropout=dropout,
            encoding=encoding,
            context=context,
        )
        self.later = list(self._groups_above(channels // order.width))
        self._follow_levels(order.width)
        num_features = channels * self.encode.num_features
        earlier = [c * self.encode.num_features for c in range(channels // order.width)]
        self.between = nn.ModuleDict()
        for level, phase, channel in self.later:
            if channel == 0:
                self.between[f"level_{level}_phase_{phase}"] = Between(
                    num_features * (1 + phase),
                    earlier,
                    num_channels,
                    num_blocks,
                    num_params,
                    activation,
                    dropout,
                    self.sizes[level + 1],
                    context,
                )
        self.bias = nn.Parameter(torch.zeros(self.num_steps - self.base.num_steps, num_params))

    def _groups_above(self, num_channels: int) -> Iterator[Group]:
        """Groups that are written after the small picture."""
        for level in reversed(range(len(self.sizes) - 1)):
            for phase, (down, right) in enumerate(PHASES):
                if down < self.sizes[level][0] and right < self.sizes[level][1]:
                    yield from (Group(level, phase, c) for c in range(num_channels))

    def _follow_levels(self, num_together: int) -> None:
        """Make the order of the levels its own, K values together."""
        channels, height, width = self.spec.shape
        grid = torch.arange(self.spec.num_dims).view(channels, height, width)
        small = grid[self._level(len(self.sizes) - 1)]
        parts = [small.flatten(1).T.reshape(-1, num_together)]
        for level, phase, c in self.later:
            down, right = PHASES[phase]
            pixels = grid[self._level(level)][c : c + num_together, down::2, right::2]
            parts.append(pixels.flatten(1).T)
        self.order = Order(torch.cat(parts))
        self.register_buffer("order_table", self.order.table, persistent=False)
        num_base = self.base.num_steps
        ends = accumulate(map(len, parts[1:]), initial=num_base)
        self._set_groups([*range(num_base), *ends][: num_base + len(self.later)])

    def _level(self, level: int) -> tuple[Any, ...]:
        """Index of every ``2 ** level``-th pixel of every such row."""
        return (..., slice(None, None, 2**level), slice(None, None, 2**level))

    def _read(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Values (B, C, h', w') as features of a picture of (h, w), zeros where there are none."""
        read = self.encode(x.flatten(1), self.bias.dtype)
        read = read.view(*x.shape, self.encode.num_features)
        read = read.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return F.pad(read, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))

    def _phase(self, picture: Tensor, phase: int) -> Tensor:
        down, right = PHASES[phase]
        return picture[..., down::2, right::2]

    def _features(self, x: Tensor, group: Group, context: Tensor | None) -> Tensor:
        """What is known before a phase says: (B, C, H, W) -> (B, F, h, w)."""
        picture, size = x[self._level(group.level)], self.sizes[group.level + 1]
        known = [picture[..., ::2, ::2], *(self._phase(picture, p) for p in range(group.phase))]
        read = torch.cat([self._read(one, size) for one in known], 1)
        return self._net(group).features(read, context)

    def _net(self, group: Group) -> Between:
        net = self.between[f"level_{group.level}_phase_{group.phase}"]
        assert isinstance(net, Between)
        return net

    def _params(self, x: Tensor, group: Group, features: Tensor) -> Tensor:
        """Of a group's steps, less their biases: (B, n, P)."""
        own = self._phase(x[self._level(group.level)], group.phase)
        earlier = self._read(own[:, : group.channel], self.sizes[group.level + 1])
        params = self._net(group).params(features, earlier, group.channel)
        return params[..., : own.shape[-2], : own.shape[-1]].flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, S, P): each group given what stands in the event before it."""
        parts = [x.new_zeros(len(x), 0, self.num_params, dtype=self.bias.dtype)]
        features = None
        for group in self.later:
            if group.channel == 0:
                features = self._features(x, group, context)
            assert features is not None  # channel 0 comes first
            parts.append(self._params(x, group, features))
        small = self.base(x[self._level(len(self.sizes) - 1)], context)
        return torch.cat([small, torch.cat(parts, 1) + self.bias], 1)

    def set_marginals(self, params: Tensor) -> None:
        """Output biases at the marginals."""
        num_base = self.base.num_steps
        self.base.set_marginals(params[:num_base])
        with torch.no_grad():
            self.bias.copy_(params[num_base:])

    def pack(self) -> GatedPixelCNNPack:
        """That of the small picture's network."""
        return self.base.pack()

    def start(self, pack: GatedPixelCNNPack, n: int, context: Tensor | None = None) -> State:
        """The small picture's state, and values of zero."""
        state = self.base.start(pack, n, context)
        state["x"] = self.bias.new_zeros(n, self.spec.num_dims, dtype=self.values_dtype)
        if context is not None:
            state["context"] = context
        return state

    def group_params(
        self, values: Tensor | None, g: int, state: State, pack: GatedPixelCNNPack
    ) -> tuple[Tensor, State]:
        """One step of the small picture's network, or one pass of a phase's."""
        num_base = self.base.num_steps
        if g < num_base:
            params, state = self.base.step(values, g, state, pack)
            return params[:, None], state
        group = self.later[g - num_base]
        x = state["x"].view(-1, *self.spec.shape)
        if group.channel == 0:
            state["features"] = self._features(x, group, state.get("context"))
        first = self.group_starts[g] - num_base
        params = self._params(x, group, state["features"])
        return params + self.bias[first : first + params.shape[1]], state
