"""PixelCNN: masked convolutions over images in raster order."""

from typing import NamedTuple, final

from torch import Tensor

from armodels.checks import Count, Depth, KernelSize, Share, checked
from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.masked import (
    BoundRow,
    MaskedConvolution,
    MaskedNetwork,
    OwnRow,
    RowsAbove,
)
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


class PixelCNNPack(NamedTuple):
    """Constants of a walk, by convolution in the order of the forward pass."""

    own: list[OwnRow]
    """Of every convolution, what it reads of the current row."""
    above: list[tuple[int, RowsAbove]]
    """Of those of several rows, their number among all and what they read of the rows above."""
    last: list[OwnRow]
    """The last two layers."""


class PixelCNNViews(NamedTuple):
    """Slices of a state, as in the pack."""

    own: list[BoundRow]
    last: list[BoundRow]


@final
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
    State: each convolution's input, of which only the new pixel is computed; what the rows above
    say about a row is computed once, as that row begins.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
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
        residual: bool = True,
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._check_channels(num_channels=num_channels)
        self.residual = residual
        narrow = self.groups_of(num_channels)
        wide = self.groups_of(2 * num_channels) if residual else narrow

        def spatial(
            in_groups: Tensor, out_groups: Tensor, size: int, strict: bool = False
        ) -> MaskedConvolution:
            return MaskedConvolution(in_groups, out_groups, size // 2 + 1, size, strict=strict)

        self.first = spatial(self.input_groups, wide, size=first_kernel_size, strict=True)
        self.layers: layers.ModuleListOf[layers.ModuleListOf[MaskedConvolution]]
        self.layers = layers.ModuleListOf()
        for _ in range(num_layers - 1):
            layer = [spatial(narrow, narrow, size=kernel_size)]
            if residual:
                out = MaskedConvolution(narrow, wide, bias=False)
                layer = [MaskedConvolution(wide, narrow), *layer, out]
            self.layers.append(layers.ModuleListOf(layer))
        self.last = layers.ModuleListOf([MaskedConvolution(wide, wide), self.output(wide)])
        widths = [len(wide), *[num_channels] * (num_layers - 1)]
        self.conditioning = layers.conditioning(context, widths, self.size)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, S, P)."""
        maps = [read(context) for read in self.conditioning]
        h = self.first(self.planes(x))
        if maps:
            h = h + maps[0]
        for i, layer in enumerate(self.layers, 1):
            u = h
            for conv in layer:
                u = conv(self.activation(u))
                if maps and conv.is_spatial:
                    u = u + maps[i]
            u = self.dropout(u)
            h = h + u if self.residual else u
        return self.params(h)

    def pack(self) -> PixelCNNPack:
        """Weights, masked; those of the rows above apart from those of the own row."""
        named = {"first": self.first}
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{k}": conv for k, conv in enumerate(layer)}
        own, above = [], []
        for number, (name, conv) in enumerate(named.items()):
            own.append(conv.own_row(name, self.width, begins=conv.is_spatial))
            if conv.is_spatial:
                above.append((number, conv.rows_above(name, self.width)))
        return PixelCNNPack(own, above, self._pack_last())

    def start(self, pack: PixelCNNPack, n: int, context: Tensor | None = None) -> State:
        """Nothing read yet."""
        tensors = self._start_values(pack.own[0], n)
        for own in (*pack.own[1:], *pack.last):
            tensors |= own.start(n)
        maps = (read(context) for read in self.conditioning)
        for _, above in pack.above:
            tensors |= above.start(n, next(maps, None))
        return State(tensors)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: PixelCNNPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then compute each layer at the pixel, for one group."""
        if state.views is None:
            bound = ([one.bind(state) for one in part] for part in (pack.own, pack.last))
            state.views = PixelCNNViews(*bound)
        first, *hidden = state.views.own
        self._read_values(values, s, first)
        i, j, group = self._position(s)
        if j == group == 0:
            for number, above in pack.above:
                own = state.views.own[number]
                if i > 0:
                    above.push(own.row, state)
                above.read(i, state, out=own.base)
        convs = iter(hidden)
        h = first.read(j, group)
        for _ in self.layers:
            if self.residual:
                u = next(convs).pass_on(j, group, self.activation(h))
                u = next(convs).pass_on(j, group, self.activation(u))
                h = next(convs).pass_on(j, group, self.activation(u), h)
            else:
                h = next(convs).pass_on(j, group, self.activation(h))
        return self._step_params(h, s, state.views.last), state
