"""LMConv: convolutions that are masked pixel by pixel, so that they follow any order."""

import functools
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import Count, DepthOrNone, KernelSize, Share, checked
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork, State
from armodels.networks.layers import concat_elu
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

MOST_PATTERNS = 4
"""Masking costs as much as six convolutions; with fewer masks than that, convolve with each."""


@final
class LocalMask(NamedTuple):
    """What the taps of one kernel see at each pixel, N = H W, and how to convolve with it."""

    seen: Tensor
    """(taps, N) 1 where the tap is seen, else 0."""
    kernels: Tensor | None
    """(Q, taps) masks of the kernel, or None where there are too many."""
    choice: Tensor
    """(Q, N) 1 at the pixels of each; without them (taps, N): seen *from* the tap's pixel."""


@functools.lru_cache(maxsize=64)  # A mixture asks for the same few orders at every batch.
def _local_mask(
    pixels: tuple[int, ...], size: tuple[int, int], kernel_size: int, dilation: int, centre: bool
) -> LocalMask:
    """Boolean masks under one order of the pixels.

    Args:
        pixels: (N,) flat indices in the order.
        size: (H, W).
        kernel_size: Of the square kernel.
        dilation: Distance of two taps.
        centre: A pixel sees itself.
    """
    ranks = orders.ranks(torch.tensor(pixels)[:, None])
    neighbours = masks.window(*size, kernel_size, dilation)  # (N, taps)
    seen = masks.local_mask(ranks, neighbours, strict=not centre)
    found = masks.patterns(seen, neighbours < len(neighbours), MOST_PATTERNS)
    if found is not None:
        kernels, which = found
        return LocalMask(seen.T, kernels, F.one_hot(which, len(kernels)).T)
    # A pixel hands its value on to those that see it: the tap's mirror image.
    none = seen.new_zeros(1, seen.shape[1])
    at_target = torch.cat([seen, none]).flip(1)
    return LocalMask(seen.T, None, at_target.gather(0, neighbours).T)


def pono(x: Tensor, dim: int) -> Tensor:
    """Positional normalization: each pixel's features get mean 0 and variance 1."""
    x = x - x.mean(dim, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)


@final
class LocalConv(nn.Module):
    """A convolution under a mask for each pixel; also a linear layer, with one tap.

    Args:
        num_groups: G groups of channels: the colours that are written one after another.
        in_features: I features a group.
        out_features: O features a group.
        kernel_size: Of the square kernel.
        dilation: Distance of two taps.
        bias: With biases: one a feature, and one for each tap that is seen.
    """

    def __init__(
        self,
        num_groups: int,
        in_features: int,
        out_features: int,
        kernel_size: Count = 1,
        dilation: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.sizes = (out_features, in_features)
        self.kernel_size = kernel_size
        self.dilation = dilation
        taps = kernel_size**2
        self.weight = nn.Parameter(
            torch.empty(num_groups * out_features, num_groups * in_features, taps)
        )
        # About half of the taps are seen.
        bound = (num_groups * in_features * (taps + 1) / 2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = self.tap_bias = None
        if bias:
            # Zeros would harm the pixel written first, which sees nothing but biases: normalizing
            # zeros multiplies its gradient by hundreds at every layer.
            self.bias = nn.Parameter(torch.empty(len(self.weight)).uniform_(-bound, bound))
            self.tap_bias = nn.Parameter(torch.zeros(len(self.weight), taps))

    def masked_weight(self, groups: Tensor) -> Tensor:
        """The weight without what a group may not see of its own pixel: (G O, G I, taps)."""
        if len(groups) == 1:
            return self.weight
        out_features, in_features = self.sizes
        seen = groups.repeat_interleave(out_features, 0).repeat_interleave(in_features, 1)
        centre = self.weight.shape[-1] // 2
        return torch.cat(
            [
                self.weight[..., :centre],
                self.weight[..., centre, None] * seen[..., None],
                self.weight[..., centre + 1 :],
            ],
            -1,
        )

    def biases(self, mask: LocalMask) -> Tensor:
        """(G O, N)."""
        assert self.tap_bias is not None
        assert self.bias is not None
        return self.tap_bias @ mask.seen + self.bias[:, None]

    def forward(self, x: Tensor, groups: Tensor, mask: LocalMask | None = None) -> Tensor:
        """(B, G I, H, W) -> (B, G O, H, W).

        Args:
            x: (B, G I, H, W).
            groups: (G, G) 1 where a group (row) sees a group (column) of its own pixel.
            mask: Of the taps; None: there is one tap.
        """
        weight, k, size = self.masked_weight(groups), self.kernel_size, x.shape[-2:]
        if mask is None:
            return F.conv2d(x, weight[..., None])
        padding = k // 2 * self.dilation
        if mask.kernels is not None:
            weight = (weight * mask.kernels[:, None, None]).flatten(0, 1).unflatten(-1, (k, k))
            y = F.conv2d(x, weight, padding=padding, dilation=self.dilation)
            y = (y.unflatten(1, (len(mask.kernels), -1)).flatten(3) * mask.choice[:, None]).sum(1)
        else:
            # Each pixel's products with all taps are added up at its neighbours: for the gradient
            # only x is kept, where unfolding x would keep a copy for each tap.
            weight = weight.flip(-1).transpose(1, 2).flatten(0, 1)  # (G O taps, G I)
            y = (weight @ x.flatten(2)).unflatten(1, (-1, k * k)) * mask.choice
            y = F.fold(y.flatten(1, 2), size, k, dilation=self.dilation, padding=padding)
            y = y.flatten(2)
        if self.bias is not None:
            y = y + self.biases(mask)
        return y.unflatten(2, size)


@final
class Block(nn.Module):
    """Gated residual block: two masked convolutions, gated, and a shortcut from a mirror block.

    Args:
        num_groups: G.
        num_channels: F features a group.
        kernel_size: Of the square kernels.
        dilation: Distance of two taps.
        shortcut: Read the input of a mirror block.
    """

    def __init__(
        self, num_groups: int, num_channels: int, kernel_size: int, dilation: int, shortcut: bool
    ):
        super().__init__()
        wide, kernel = 2 * num_channels, (kernel_size, dilation)
        self.dilation = dilation
        self.first = LocalConv(num_groups, wide, num_channels, *kernel)
        self.second = LocalConv(num_groups, wide, wide, *kernel)
        self.shortcut = LocalConv(num_groups, wide, num_channels, bias=False) if shortcut else None


@final
class ConvPack(NamedTuple):
    """One convolution, ready for single pixels.

    In a state, its inputs (B, N + 1, G I) stand under its name; the last pixel is the outside. Its
    biases under a context, (B, N, G, O), stand under ``bias_`` and its name.
    """

    name: str
    neighbours: Tensor
    """(N, taps) pixels to read; what is not seen reads the outside."""
    weights: list[Tensor]
    """(taps G I, O) of each group."""
    bias: Tensor
    """(1, N, G, O)."""

    def at(self, state: State, pixel: int, group: int) -> Tensor:
        """(B, O) at one pixel.

        Args:
            state: Of the walk.
            pixel: Its flat index.
            group: Of channels.
        """
        seen = state[self.name].index_select(1, self.neighbours[pixel]).flatten(1)
        bias = state.get(f"bias_{self.name}", self.bias)
        return torch.addmm(bias[:, pixel, group], seen, self.weights[group])


@final
class BlockPack(NamedTuple):
    """Both convolutions of a block."""

    first: ConvPack
    second: ConvPack
    mirror: str
    """Name of the convolution that reads what the shortcut reads."""
    shortcut: list[Tensor] | None
    """(G I, F) weights of each group."""


@final
class LMConvPack(NamedTuple):
    """Weights by group, and where each convolution reads."""

    first: ConvPack
    blocks: list[BlockPack]
    output: list[Tensor]
    """(G 2 F, P) of each group."""
    bias: Tensor
    """(1, S, P)."""
    steps: list[tuple[int, int]]
    """Pixel and group of each step."""


@final
class LMConv(FreeOrderNetwork):
    """LMConv: gated residual convolutions, each pixel's kernel masked by what precedes it.

    A pixel sees those of its neighbours that are written earlier, whatever the order. One stream
    of blocks; the second half of them also reads the inputs of the first half, mirrored.

    Accepts: image. Order: any that writes a pixel's channels one after another; several share
    weights (``with_order``). What lies out of reach of the kernels is not seen: s_curve and
    hilbert have no blind spot once there are enough blocks, raster has one above to the right.
    Context: a bias on every convolution and every parameter.
    State: the inputs of every convolution; a pixel is computed once, in its step.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        num_blocks: Gated residual blocks of two convolutions.
        num_channels: Features of each convolution (for each colour, if they take steps).
        kernel_size: Of the square kernels, odd.
        dilations: Of the blocks, in turn.
        normalize: Positional normalization after the convolutions.
        dropout: Probability of dropping a feature in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Raises:
        ValueError: ``dilations`` is empty, or the order writes the channels of a pixel apart.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Locally Masked Convolution for Autoregressive Models (Jain et al., 2020)
        https://arxiv.org/abs/2006.12486

    Differs from the paper: the number of blocks is free, the second half read the first half's
    inputs (of an odd number the middle one stands alone), and dilation is in the blocks rather
    than between them; no plane of ones; a block's value and gate are normalized together, where
    the authors' code normalizes the value; dropout of single features, not of whole maps; outputs
    read ELU of the features and of their negatives. One output bias for each step, which starts at
    the marginals. Where an order has
    few different masks, as an S-curve has, the kernel is masked and not the unfolded image.
    """

    kinds = frozenset({"image"})

    groups_before: Tensor
    groups_seen: Tensor

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_blocks: DepthOrNone = 4,
        num_channels: Count = 32,
        kernel_size: KernelSize = 3,
        dilations: list[Count],
        normalize: bool = True,
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        if not dilations:
            raise ValueError("dilations is []; give at least one")
        channels, height, width = spec.shape
        self.size = (height, width)
        self.num_groups = groups = 1 if order.joint else channels
        self.encode = layers.Encoding(spec, encoding)
        self.kernel_size = kernel_size
        self.normalize = normalize
        self.dropout = layers.Dropout(dropout)
        features = self.encode.num_features * order.width
        self.first = LocalConv(groups, features, num_channels, kernel_size)
        self.blocks = layers.ModuleListOf(
            Block(
                groups,
                num_channels,
                kernel_size,
                dilations[i % len(dilations)],
                shortcut=2 * i >= num_blocks + num_blocks % 2,
            )
            for i in range(num_blocks)
        )
        self.output = LocalConv(groups, 2 * num_channels, num_params, bias=False)
        nn.init.normal_(self.output.weight, std=0.01)
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        widths = [num_channels]
        for _ in self.blocks:
            widths += [num_channels, 2 * num_channels]
        widths += [num_params]
        widths = [groups * width for width in widths]
        self.conditioning = layers.conditioning(context, widths, self.size)
        self._set_order(order)

    def _set_order(self, order: Order, seed: int | None = None) -> None:
        """Derive masks, too."""
        num_pixels = self.size[0] * self.size[1]
        table = order.table.view(-1, self.spec.shape[0]).cpu()  # (N, C)
        pixels, channels = table % num_pixels, table // num_pixels
        if (pixels != pixels[:, :1]).any() or (channels != channels[:1]).any():
            raise ValueError(
                "model LMConv needs an order that writes a pixel's channels one after another, "
                "always in the same order"
            )
        self._pixels, self._channels = pixels[:, 0].tolist(), channels[0].tolist()
        super()._set_order(order)
        turn = orders.ranks(channels[:1].T)[: self.num_groups]
        for strict in (False, True):
            mask = masks.rank_mask(turn, turn, strict=strict)
            name = "groups_before" if strict else "groups_seen"
            self.register_buffer(name, mask.to(self.bias), persistent=False)
        # In the first layer a pixel sees itself only where its colours take steps.
        self._register_mask("first", 1, centre=self.num_groups > 1)
        for dilation in sorted({block.dilation for block in self.blocks}):
            self._register_mask(f"mask_{dilation}", dilation, centre=True)

    def _register_mask(self, name: str, dilation: int, centre: bool) -> None:
        made = _local_mask(tuple(self._pixels), self.size, self.kernel_size, dilation, centre)
        for part, value in made._asdict().items():
            value = None if value is None else value.to(self.bias)
            self.register_buffer(f"{name}_{part}", value, persistent=False)

    def _mask(self, name: str) -> LocalMask:
        seen, kernels, choice = (self._buffers[f"{name}_{part}"] for part in LocalMask._fields)
        assert seen is not None
        assert choice is not None
        return LocalMask(seen, kernels, choice)

    def _norm(self, x: Tensor) -> Tensor:
        """Of maps (B, G F, H, W) or of one group at one pixel (B, F)."""
        if not self.normalize:
            return x
        if x.ndim == 2:
            return pono(x, 1)
        return pono(x.unflatten(1, (self.num_groups, -1)), 2).flatten(1, 2)

    def _widen(self, x: Tensor) -> Tensor:
        """concat_elu within each group of maps."""
        return concat_elu(x.unflatten(1, (self.num_groups, -1)), 2).flatten(1, 2)

    def _read(self, x: Tensor) -> Tensor:
        """Features of the values: (B, C, ...) -> (B, C, E, ...)."""
        return self.encode(x.flatten(1), self.bias.dtype).unflatten(1, x.shape[1:]).movedim(-1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, S, P)."""
        by_context = iter([layer(context) for layer in self.conditioning])

        def conv(layer: LocalConv, h: Tensor, mask: LocalMask, extra: Tensor | int = 0) -> Tensor:
            groups = self.groups_before if layer is self.first else self.groups_seen
            h = layer(h, groups, mask) + next(by_context, 0)
            return self._norm(h) + extra

        h = conv(self.first, self._read(x).flatten(1, 2), self._mask("first"))
        inputs = []
        for i, block in enumerate(self.blocks):
            mask = self._mask(f"mask_{block.dilation}")
            wide = self._widen(h)
            inputs.append(wide)
            extra = 0
            if block.shortcut is not None:
                extra = block.shortcut(inputs[len(self.blocks) - 1 - i], self.groups_seen)
            y = self.dropout(self._widen(conv(block.first, wide, mask, extra)))
            y = conv(block.second, y, mask).unflatten(1, (self.num_groups, -1))
            value, gate = y.chunk(2, 2)
            h = h + (value * gate.sigmoid()).flatten(1, 2)
        params = self.output(self._widen(h), self.groups_seen) + next(by_context, 0)
        params = params.unflatten(1, (self.num_groups, -1)).flatten(3)  # (B, G, P, N)
        params = params.transpose(2, 3).flatten(1, 2) + self.bias
        return params.index_select(1, self.slots)  # (B, S, P)

    def _by_group(self, layer: LocalConv, groups: Tensor) -> list[Tensor]:
        """Weights of each group, (taps G I, O)."""
        weight = layer.masked_weight(groups).transpose(1, 2).flatten(1)  # (G O, taps G I)
        return [one.T.contiguous() for one in weight.chunk(self.num_groups)]

    def _pack_conv(self, name: str, layer: LocalConv, mask: str, groups: Tensor) -> ConvPack:
        """A convolution, ready for single pixels.

        Args:
            name: Of its inputs in a state.
            layer: The convolution.
            mask: Name of its mask.
            groups: As in ``LocalConv.forward``.
        """
        seen = self._mask(mask).seen.T > 0
        pixels = masks.window(*self.size, self.kernel_size, layer.dilation)
        neighbours = pixels.to(self.bias.device).where(seen, self.size[0] * self.size[1])
        bias = layer.biases(self._mask(mask)).T.unflatten(1, (self.num_groups, -1))[None]
        return ConvPack(name, neighbours, self._by_group(layer, groups), bias)

    def pack(self) -> LMConvPack:
        """Every weight by group, and where each convolution reads."""
        first = self._pack_conv("first", self.first, "first", self.groups_before)
        blocks = []
        for i, block in enumerate(self.blocks):
            mask, seen = f"mask_{block.dilation}", self.groups_seen
            shortcut = None if block.shortcut is None else self._by_group(block.shortcut, seen)
            blocks.append(
                BlockPack(
                    self._pack_conv(f"first_{i}", block.first, mask, seen),
                    self._pack_conv(f"second_{i}", block.second, mask, seen),
                    f"first_{len(self.blocks) - 1 - i}",
                    shortcut,
                )
            )
        channels = [0] if self.num_groups == 1 else self._channels
        steps = [(pixel, channel) for pixel in self._pixels for channel in channels]
        output = self._by_group(self.output, self.groups_seen)
        return LMConvPack(first, blocks, output, self.bias[None, self.slots], steps)

    def start(self, pack: LMConvPack, n: int, context: Tensor | None = None) -> State:
        """Nothing is read yet; with a context, each event has biases of its own."""
        num_pixels, g = self.size[0] * self.size[1], self.num_groups
        zeros = self.bias.new_zeros
        state = State({"last": zeros(n, g * self.output.sizes[1])})
        convs = [pack.first, *(conv for block in pack.blocks for conv in block[:2])]
        for conv in convs:
            taps = conv.neighbours.shape[1]
            state[conv.name] = zeros(n, num_pixels + 1, len(conv.weights[0]) // taps)
        if context is not None:
            # (B, G O, H or 1, W or 1) -> (B, N or 1, G, O)
            *hidden, outputs = (
                layer(context).flatten(2).transpose(1, 2).unflatten(2, (g, -1))
                for layer in self.conditioning
            )
            for conv, bias in zip(convs, hidden, strict=True):
                state[f"bias_{conv.name}"] = conv.bias + bias
            by_slot = outputs.transpose(1, 2).expand(-1, -1, num_pixels, -1).flatten(1, 2)
            state["bias"] = pack.bias + by_slot[:, self.slots]
        return state

    def step(
        self, values: Tensor | None, s: int, state: State, pack: LMConvPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then every layer at one pixel."""
        if values is not None:
            pixel, group = pack.steps[s - 1]
            features = self.encode(values, self.bias.dtype)  # (B, K, E)
            if self.num_groups == 1:  # Columns of a joint order need not be R, G, B.
                by_channel = torch.empty_like(features)
                by_channel[:, self._channels] = features
                features = by_channel
            features = features.flatten(1)
            width = features.shape[1]
            state["first"][:, pixel, group * width : (group + 1) * width] = features
        pixel, group = pack.steps[s]
        h = self._norm(pack.first.at(state, pixel, group))
        width = 2 * h.shape[1]
        own = slice(group * width, (group + 1) * width)
        for first, second, mirror, shortcut in pack.blocks:
            state[first.name][:, pixel, own] = concat_elu(h, 1)
            y = self._norm(first.at(state, pixel, group))
            if shortcut is not None:
                y = torch.addmm(y, state[mirror][:, pixel], shortcut[group])
            state[second.name][:, pixel, own] = concat_elu(y, 1)
            value, gate = self._norm(second.at(state, pixel, group)).chunk(2, 1)
            h = torch.addcmul(h, value, gate.sigmoid())
        state["last"][:, own] = concat_elu(h, 1)
        bias = state.get("bias", pack.bias)[:, s]
        return torch.addmm(bias, state["last"], pack.output[group]), state
