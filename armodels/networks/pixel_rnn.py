"""PixelRNN: recurrent layers over images in raster order, Row LSTM and Diagonal BiLSTM."""

from abc import abstractmethod
from typing import NamedTuple, final

from torch import Tensor

from armodels.checks import Count, Depth, KernelSize, Share, checked
from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.lstm_layers import (
    BoundLayer,
    DiagonalBiLSTMLayer,
    LayerPack,
    RecurrentLayer,
    RowLSTMLayer,
)
from armodels.networks.masked import (
    BoundRow,
    MaskedConvolution,
    MaskedNetwork,
    OwnRow,
    RowsAbove,
)
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


class PixelRNNPack(NamedTuple):
    """Constants of a walk: the first convolution, the recurrent layers, the last two layers."""

    above: RowsAbove
    first: OwnRow
    layers: list[LayerPack]
    last: list[OwnRow]


class PixelRNNViews(NamedTuple):
    """The same on the tensors of one state."""

    first: BoundRow
    layers: list[BoundLayer]
    last: list[BoundRow]


class PixelRNN(MaskedNetwork):
    """What both PixelRNNs share: all but the recurrent layers.

    A masked convolution, recurrent layers whose results are added to what they read, and two
    1x1 layers. Subclasses end their constructor by ``_build``.
    """

    def _build(
        self, num_layers: int, num_channels: int, first_kernel_size: int, num_output_channels: int
    ) -> None:
        """All layers."""
        self._check_channels(num_channels=num_channels)
        self._check_channels(num_output_channels=num_output_channels)
        units, wide = self.groups_of(num_channels), self.groups_of(2 * num_channels)
        out = self.groups_of(num_output_channels)
        rows = first_kernel_size // 2 + 1
        self.first = MaskedConvolution(
            self.input_groups, wide, rows, first_kernel_size, strict=True
        )
        self.layers = layers.ModuleListOf(self.layer(wide, units) for _ in range(num_layers))
        self.last = layers.ModuleListOf([MaskedConvolution(wide, out), self.output(out)])
        self.conditioning = layers.conditioning(self.context, [len(wide)], self.size)

    @abstractmethod
    def layer(self, wide: Tensor, units: Tensor) -> "RecurrentLayer":
        """A recurrent layer.

        Args:
            wide: (2F,) group of each input and output channel.
            units: (F,) group of each unit.
        """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, S, P)."""
        planes = self.planes(x)
        h = self.first(planes)
        for read in self.conditioning:
            h = h + read(context)
        for layer in self.layers:
            h = h + self.dropout(layer(h, planes, context))
        return self.params(h)

    def pack(self) -> PixelRNNPack:
        """Weights, masked; those of the rows above apart from those of the own row."""
        return PixelRNNPack(
            self.first.rows_above("first", self.width),
            self.first.own_row("first", self.width, begins=True),
            [layer.pack(f"layers.{i}") for i, layer in enumerate(self.layers)],
            self._pack_last(),
        )

    def start(self, pack: PixelRNNPack, n: int, context: Tensor | None = None) -> State:
        """Nothing read yet."""
        maps = (read(context) for read in self.conditioning)
        tensors = self._start_values(pack.first, n) | pack.above.start(n, next(maps, None))
        for layer in pack.layers:
            tensors |= layer.start(n, context)
        for own in pack.last:
            tensors |= own.start(n)
        return State(tensors)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: PixelRNNPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then compute each layer at the pixel, for one group."""
        if state.views is None:
            bound = [layer.bind(state) for layer in pack.layers]
            last = [own.bind(state) for own in pack.last]
            state.views = PixelRNNViews(pack.first.bind(state), bound, last)
        views = state.views
        self._read_values(values, s, views.first)
        i, j, group = self._position(s)
        if j == group == 0:
            if i > 0:
                pack.above.push(views.first.row, state)
            pack.above.read(i, state, out=views.first.base)
            for layer in views.layers:
                layer.begin_row(i, views.first.row)
        h = views.first.read(j, group)
        for layer in views.layers:
            h = layer.at(j, group, h)
        return self._step_params(h, s, views.last), state


@final
class RowLSTM(PixelRNN):
    """PixelRNN with Row LSTM layers: each row's LSTM state comes from the row above.

    Blind spot: the state sees the row above kernel_size // 2 columns to each side, so that what
    stands above and further right than this triangle (beyond the first convolution) never
    matters. To the left the input convolutions widen it with every layer.

    Accepts: image. Order: raster.
    Context: a bias on the first convolution and on the gates of every layer.
    State: of every layer, the state of the row above and the current row's inputs.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
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

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_layers: Depth = 4,
        num_channels: Count = 16,
        kernel_size: KernelSize = 3,
        first_kernel_size: KernelSize = 7,
        num_output_channels: Count = 32,
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self.kernel_size = kernel_size
        self._build(num_layers, num_channels, first_kernel_size, num_output_channels)

    def layer(self, wide: Tensor, units: Tensor) -> RowLSTMLayer:
        """A Row LSTM."""
        return RowLSTMLayer(wide, units, self.context, self.size, self.kernel_size)


@final
class DiagonalBiLSTM(PixelRNN):
    """PixelRNN with Diagonal BiLSTM layers: every earlier pixel is seen, by the first layer.

    Accepts: image. Order: raster.
    Context: a bias on the first convolution and on the gates of every layer.
    State: of every layer, the states of the row above in both directions and the current row's
    of the direction from the left; the other direction reads a row once it is complete.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
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

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_layers: Depth = 3,
        num_channels: Count = 16,
        first_kernel_size: KernelSize = 7,
        num_output_channels: Count = 32,
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, activation, dropout, encoding, context)
        self._build(num_layers, num_channels, first_kernel_size, num_output_channels)

    def layer(self, wide: Tensor, units: Tensor) -> DiagonalBiLSTMLayer:
        """A Diagonal BiLSTM."""
        num_planes = len(self.input_groups)
        return DiagonalBiLSTMLayer(wide, units, self.context, self.size, num_planes)
