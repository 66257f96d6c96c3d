"""LMConv: convolutions that are masked place by place, so that they follow any order."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import Count, DepthOrNone, Share
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork
from armodels.networks.layers import concat_elu
from armodels.spec import ContextSpec, DataSpec

MOST_PATTERNS = 4
"""Masking costs as much as six convolutions; with fewer masks than that, convolve with each."""


class LocalMask(NamedTuple):
    """What the taps of one kernel see at each place, N = H W, and how to convolve with it."""

    seen: Tensor
    """(taps, N) 1 where the tap is seen, else 0."""
    kernels: Tensor | None
    """(Q, taps) masks of the kernel, or None where there are too many."""
    choice: Tensor
    """(Q, N) 1 at the places of each; without them (taps, N): seen *from* the tap's place."""


@functools.lru_cache(maxsize=64)  # a mixture asks for the same few orders at every batch
def _local_mask(
    places: tuple[int, ...], size: tuple[int, int], kernel_size: int, dilation: int, centre: bool
) -> LocalMask:
    """Boolean masks under one order of the places; ``centre``: does a place see itself?"""
    ranks = orders.ranks(torch.tensor(places)[:, None])
    neighbours = masks.window(*size, kernel_size, dilation)  # (N, taps)
    seen = masks.local_mask(ranks, neighbours, strict=not centre)
    found = masks.patterns(seen, neighbours < len(neighbours), MOST_PATTERNS)
    if found is not None:
        kernels, which = found
        return LocalMask(seen.T, kernels, F.one_hot(which, len(kernels)).T)
    # A place hands its value on to those that see it: the tap's mirror image.
    none = seen.new_zeros(1, seen.shape[1])
    at_target = torch.cat([seen, none]).flip(1)
    return LocalMask(seen.T, None, at_target.gather(0, neighbours).T)


def pono(x: Tensor, dim: int) -> Tensor:
    """Positional normalization: each place's features get mean 0 and variance 1."""
    x = x - x.mean(dim, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)


class LocalConv(nn.Module):
    """A convolution under a mask for each place; also a linear layer, with one tap.

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
            # Not zeros: the place written first sees nothing else; normalizing zeros multiplies
            # its gradient by hundreds at every layer.
            self.bias = nn.Parameter(torch.empty(len(self.weight)).uniform_(-bound, bound))
            self.tap_bias = nn.Parameter(torch.zeros(len(self.weight), taps))

    def masked_weight(self, groups: Tensor) -> Tensor:
        """The weight without what a group may not see of its own place: (G O, G I, taps)."""
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
        return self.tap_bias @ mask.seen + self.bias[:, None]

    def forward(self, x: Tensor, groups: Tensor, mask: LocalMask | None = None) -> Tensor:
        """(B, G I, H, W) -> (B, G O, H, W); ``groups`` (G, G): what each sees at its place."""
        weight, k, size = self.masked_weight(groups), self.kernel_size, x.shape[-2:]
        if mask is None:
            return F.conv2d(x, weight[..., None])
        padding = k // 2 * self.dilation
        if mask.kernels is not None:
            weight = (weight * mask.kernels[:, None, None]).flatten(0, 1).unflatten(-1, (k, k))
            y = F.conv2d(x, weight, padding=padding, dilation=self.dilation)
            y = (y.unflatten(1, (len(mask.kernels), -1)).flatten(3) * mask.choice[:, None]).sum(1)
        else:
            # What each place has to say to its neighbours, added up at the neighbours: for the
            # gradient only x is kept, where unfolding x would keep a copy for each tap.
            weight = weight.flip(-1).transpose(1, 2).flatten(0, 1)  # (G O taps, G I)
            y = (weight @ x.flatten(2)).unflatten(1, (-1, k * k)) * mask.choice
            y = F.fold(y.flatten(1, 2), size, k, dilation=self.dilation, padding=padding)
            y = y.flatten(2)
        if self.bias is not None:
            y = y + self.biases(mask)
        return y.unflatten(2, size)


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


class Tap(NamedTuple):
    """One convolution, ready for single places."""

    inputs: Tensor
    """(B, N + 1, G I); the last place is the outside."""
    places: Tensor
    """(N, taps) places to read; what is not seen reads the outside."""
    weights: list[Tensor]
    """(taps G I, O) of each group."""
    bias: Tensor
    """(B or 1, N, G, O)."""

    def at(self, n: int, group: int) -> Tensor:
        """(B, O) at one place."""
        seen = self.inputs.index_select(1, self.places[n]).flatten(1)
        return torch.addmm(self.bias[:, n, group], seen, self.weights[group])


class LMConvCache(NamedTuple):
    """Inputs of every convolution at every place that is known, and packed weights."""

    first: Tap
    blocks: list[tuple[Tap, Tap, list[Tensor] | None]]
    """Both convolutions of a block and its shortcut's (G I, F) weights."""
    last: Tensor
    """(B, G 2 F) features of the current place."""
    output: list[Tensor]
    """(G 2 F, P) of each group."""
    bias: Tensor
    """(B or 1, S, P)."""
    steps: list[tuple[int, int]]
    """Place and group of each step."""


class LMConv(FreeOrderNetwork):
    """LMConv: gated residual convolutions, each place's kernel masked by what precedes it.

    A place sees those of its neighbours that are written earlier, whatever the order. One stream
    of blocks; the second half of them also reads the inputs of the first half, mirrored.

    Accepts: image. Order: any that writes a pixel's channels one after another; several share
    weights (``with_order``). What lies out of reach of the kernels is not seen: s_curve and
    hilbert have no blind spot once there are enough blocks, raster has one above to the right.
    Context: a bias on every convolution and every parameter.
    Cache: the inputs of every convolution; a place is computed once, in its step.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        num_blocks: Gated residual blocks of two convolutions.
        num_channels: Features of each convolution (for each colour, if they take steps).
        kernel_size: Of the square kernels, odd.
        dilations: Of the blocks, in turn.
        normalize: Positional normalization after the convolutions.
        dropout: Probability of dropping a feature in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

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

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        num_blocks: DepthOrNone = 4,
        num_channels: Count = 32,
        kernel_size: Count = 3,
        dilations: list[Count],
        normalize: bool = True,
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        layers.require_positive(num_channels=num_channels)
        layers.require_not_negative(num_blocks=num_blocks)
        layers.require_odd(kernel_size=kernel_size)
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations is {dilations}; give at least one, each 1 or more")
        channels, *size = spec.shape
        self.size = tuple(size)
        joint = order.shape[1] > 1
        self.num_groups = groups = 1 if joint else channels
        self.encode = layers.Encoding(spec, encoding)
        self.kernel_size = kernel_size
        self.normalize = normalize
        self.dropout = nn.Dropout(dropout)
        features = self.encode.num_features * (channels if joint else 1)
        self.first = LocalConv(groups, features, num_channels, kernel_size)
        self.blocks = nn.ModuleList(
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

    def _set_order(self, order, seed=None):
        """Derive masks, too."""
        num_places = self.size[0] * self.size[1]
        table = order.view(-1, self.spec.shape[0]).cpu()  # (N, C)
        places, channels = table % num_places, table // num_places
        if (places != places[:, :1]).any() or (channels != channels[:1]).any():
            raise ValueError(
                "model LMConv needs an order that writes a pixel's channels one after another, "
                "always in the same order"
            )
        self._places, self._channels = places[:, 0].tolist(), channels[0].tolist()
        super()._set_order(order)
        turn = orders.ranks(channels[:1].T)[: self.num_groups]
        for strict in (False, True):
            mask = masks.rank_mask(turn, turn, strict=strict)
            name = "groups_before" if strict else "groups_seen"
            self.register_buffer(name, mask.to(self.bias), persistent=False)
        # In the first layer a place sees itself only where its colours take steps.
        self._register_mask("first", 1, centre=self.num_groups > 1)
        for dilation in sorted({block.dilation for block in self.blocks}):
            self._register_mask(f"mask_{dilation}", dilation, centre=True)

    def _register_mask(self, name: str, dilation: int, centre: bool) -> None:
        order = tuple(self._places)
        made = _local_mask(order, self.size, self.kernel_size, dilation, centre)
        for part, value in made._asdict().items():
            value = None if value is None else value.to(self.bias)
            self.register_buffer(f"{name}_{part}", value, persistent=False)

    def _mask(self, name: str) -> LocalMask:
        return LocalMask(*(self._buffers[f"{name}_{part}"] for part in LocalMask._fields))

    def _norm(self, x: Tensor) -> Tensor:
        """Of maps (B, G F, H, W) or of one group at one place (B, F)."""
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

    def forward(self, x, context=None):
        """(B, C, H, W) -> (B, S, P)."""
        given = iter([read(context) for read in self.conditioning])

        def conv(layer: LocalConv, h: Tensor, mask: LocalMask, extra: Tensor | int = 0):
            groups = self.groups_before if layer is self.first else self.groups_seen
            h = layer(h, groups, mask) + next(given, 0)
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
        params = self.output(self._widen(h), self.groups_seen) + next(given, 0)
        params = params.unflatten(1, (self.num_groups, -1)).flatten(3)  # (B, G, P, N)
        params = params.transpose(2, 3).flatten(1, 2) + self.bias
        return params.index_select(1, self.rows)  # (B, S, P)

    def start(self, pack, batch_size, context=None):
        """Pack every weight by group; nothing read yet."""
        given = iter([read(context) for read in self.conditioning])
        num_places, g = self.size[0] * self.size[1], self.num_groups

        def extra(width: int) -> Tensor:  # (B or 1, N or 1, width)
            bias = next(given, self.bias.new_zeros(1, width, 1, 1))
            return bias.flatten(2).transpose(1, 2)

        def pack(layer: LocalConv, groups: Tensor) -> list[Tensor]:
            weight = layer.masked_weight(groups).transpose(1, 2).flatten(1)  # (G O, taps G I)
            return [one.T.contiguous() for one in weight.chunk(g)]

        def tap(layer: LocalConv, name: str, groups: Tensor) -> Tap:
            mask = self._mask(name)
            places = masks.window(*self.size, self.kernel_size, layer.dilation)
            places = places.to(self.bias.device).where(mask.seen.T > 0, num_places)
            weights = pack(layer, groups)
            inputs = self.bias.new_zeros(batch_size, num_places + 1, layer.weight.shape[1])
            bias = layer.biases(mask).T + extra(len(layer.weight))  # (B or 1, N, G O)
            return Tap(inputs, places, weights, bias.unflatten(2, (g, -1)))

        first = tap(self.first, "first", self.groups_before)
        blocks = []
        for block in self.blocks:
            name = f"mask_{block.dilation}"
            shortcut = None if block.shortcut is None else pack(block.shortcut, self.groups_seen)
            convs = (block.first, block.second)
            one, two = (tap(conv, name, self.groups_seen) for conv in convs)
            blocks.append((one, two, shortcut))
        # (B or 1, N or 1, G P) -> by event -> by step
        bias = extra(g * self.num_params).unflatten(2, (g, -1)).transpose(1, 2)
        bias = bias.expand(-1, -1, num_places, -1)
        bias = (bias.flatten(1, 2) + self.bias)[:, self.rows]
        last = self.bias.new_zeros(batch_size, g * self.output.sizes[1])
        channels = [0] if g == 1 else self._channels
        steps = [(n, c) for n in self._places for c in channels]
        return LMConvCache(first, blocks, last, pack(self.output, self.groups_seen), bias, steps)

    def step(self, values, s, cache, pack):
        """Read what was just written, then every layer at one place."""
        if s > 0:
            n, c = cache.steps[s - 1]
            known = self.encode(values, self.bias.dtype)  # (B, K, E)
            if self.num_groups == 1:  # columns of a joint order need not be R, G, B
                by_channel = torch.empty_like(known)
                by_channel[:, self._channels] = known
                known = by_channel
            known = known.flatten(1)
            width = known.shape[1]
            cache.first.inputs[:, n, c * width : (c + 1) * width] = known
        n, c = cache.steps[s]
        h = self._norm(cache.first.at(n, c))
        width = 2 * h.shape[1]
        own = slice(c * width, (c + 1) * width)
        for i, (first, second, shortcut) in enumerate(cache.blocks):
            first.inputs[:, n, own] = concat_elu(h, 1)
            y = self._norm(first.at(n, c))
            if shortcut is not None:
                mirror = cache.blocks[len(cache.blocks) - 1 - i][0]
                y = torch.addmm(y, mirror.inputs[:, n], shortcut[c])
            second.inputs[:, n, own] = concat_elu(y, 1)
            value, gate = self._norm(second.at(n, c)).chunk(2, 1)
            h = torch.addcmul(h, value, gate.sigmoid())
        cache.last[:, own] = concat_elu(h, 1)
        return torch.addmm(cache.bias[:, s], cache.last, cache.output[c]), cache
