"""Causal image networks of shifted, unmasked convolutions, and how they run.

A network is written once, as calls on a *run*: ``Whole`` gives every layer whole maps, ``Row``
and ``Pixel`` give it what has just become computable while an image is written. Two kinds of
features: "down" ones see the rows above and are computed row by row, "down-right" ones see also
what stands to the left and are computed pixel by pixel.

Shapes: B batch, C channels, F features, H W of a map (coarser maps are smaller), K values per
step, P parameters per step.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Share
from armodels.networks import layers
from armodels.networks.base import RasterNetwork
from armodels.networks.layers import concat_elu
from armodels.spec import ContextSpec

KINDS = {
    "point": ((1, 1), (0, 0, 0, 0)),
    "down": ((2, 3), (1, 1, 1, 0)),
    "down-right": ((2, 2), (1, 0, 1, 0)),
    # The three ways into a network see strictly earlier pixels only.
    "above": ((2, 3), (1, 1, 2, -1)),
    "row above": ((1, 3), (1, 1, 1, -1)),
    "left": ((2, 1), (1, -1, 1, 0)),
}
"""Kernel (height, width) and padding (left, right, top, bottom) of each kind of convolution."""

TINY = 1e-12


@dataclass
class ShiftedCache:
    """What a walk has computed so far.

    Attributes:
        x: (B, C + 1, H + 2, W + 2) scaled values and ones, two empty rows above and one empty
            column at either side.
        context: What the model is conditioned on.
        states: What each layer keeps: its weights, ready for use, and its latest inputs.
        given: Rows that the down blocks have handed to the down-right blocks, by block.
        features: (B, F) of the pixel that is being written.
    """

    x: Tensor
    context: Tensor | None
    states: dict[nn.Module, Any] = field(default_factory=dict)
    given: dict[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def state(self, layer: nn.Module, make: Callable[[], Any]) -> Any:
        """What a layer keeps, made when it is first asked for."""
        if layer not in self.states:
            self.states[layer] = make()
        return self.states[layer]


class NormedWeight(nn.Module):
    """A weight as gain * direction / |direction| for each output, and data-dependent gains.

    Args:
        shape: Of the weight.
        output_dim: The dimension that counts outputs.
        scale: Standard deviation of the outputs after ``start``.
    """

    def __init__(self, shape: tuple[int, ...], output_dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self._others = [d for d in range(4) if d != output_dim]
        self._column = [-1 if d == output_dim else 1 for d in range(4)]
        self.direction = nn.Parameter(0.05 * torch.randn(shape))
        self.gain = nn.Parameter(torch.full((shape[output_dim],), scale))
        self.bias = nn.Parameter(torch.zeros(shape[output_dim]))

    def weight(self) -> Tensor:
        """The weight; zero where the direction is."""
        # Clamped, so that a direction of zero has a weight and a gradient.
        norm = self.direction.square().sum(self._others, keepdim=True).clamp_min(TINY).sqrt()
        return self.direction * (self.gain.view(self._column) / norm)

    def start(self, x: Tensor) -> None:
        """Let the outputs over a batch have mean zero and deviation ``scale``."""
        outputs = self(x)
        var, mean = torch.var_mean(outputs, (0, 2, 3), correction=0)
        # An output that never moves keeps its gain.
        factor = torch.where(var > TINY, self.scale * var.clamp_min(TINY).rsqrt(), 1.0)
        self.gain.mul_(factor)
        self.bias.sub_(mean).mul_(factor)


class Convolution(NormedWeight):
    """A convolution of one of ``KINDS``: (B, I, H, W) -> (B, O, H, W), halved by a stride of 2.

    Args:
        kind: A key of ``KINDS``.
        size: (H, W) of the inputs.
        num_inputs: I.
        num_outputs: O.
        stride: 1, or 2 to keep every other row and column.
        scale: Standard deviation of the outputs where training starts.
    """

    def __init__(
        self,
        kind: str,
        size: tuple[int, int],
        num_inputs: int,
        num_outputs: int,
        *,
        stride: int = 1,
        scale: float = 1.0,
    ):
        kernel, pad = KINDS[kind]
        super().__init__((num_outputs, num_inputs, *kernel), 0, scale)
        self.kernel, self.pad = kernel, pad
        self.size = size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Whole maps."""
        return F.conv2d(F.pad(x, self.pad), self.weight(), self.bias, self.stride)

    def row_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Weight, and the last rows of inputs (B, I, kernel height, padded W)."""
        weight = self.weight()
        width = self.size[1] + self.pad[0] + self.pad[1]
        return weight, weight.new_zeros(batch_size, weight.shape[1], self.kernel[0], width)

    def row(self, x: Tensor, i: int, state) -> Tensor | None:
        """Row i of the inputs, (B, I, 1, W); a row of outputs, if a stride keeps it."""
        weight, seen = state
        seen[:, :, :-1] = seen[:, :, 1:].clone()
        left = self.pad[0]
        seen[:, :, -1:, left : left + x.shape[3]] = x
        if i % self.stride:
            return None
        return F.conv2d(seen, weight, self.bias, self.stride)

    def pixel_state(self, batch_size: int) -> list[Tensor | None]:
        """Weights of the row above and of this row; this row's inputs; the row above's part.

        Inputs are kept as (B, padded W, I), so that a kernel's place is one slice.
        """
        weight = self.weight().permute(2, 3, 1, 0).flatten(1, 2)  # (height, width I, O)
        if self.kernel == (1, 1):
            return [None, weight[0], None, None]
        width = self.size[1] + self.pad[0]
        seen = weight.new_zeros(batch_size, width, self.direction.shape[1])
        return [weight[0], weight[-1], seen, None]

    def pixel(self, x: Tensor, i: int, j: int, state) -> Tensor | None:
        """Inputs at (i, j), (B, I); the outputs (B, O) there, if a stride keeps them."""
        above, here, seen, part = state
        if self.kernel == (1, 1):
            return torch.addmm(self.bias, x, here)
        if j == 0 and i % self.stride == 0:
            # Still the row above. All of its part at once is cheaper than pixel by pixel.
            windows = seen.unfold(1, self.kernel[1], self.stride).transpose(2, 3).flatten(2)
            state[3] = part = (windows @ above).add_(self.bias)
        seen[:, j + self.pad[0]] = x
        if i % self.stride or j % self.stride:
            return None
        window = seen[:, j : j + self.kernel[1]].flatten(1)
        return torch.addmm(part[:, j // self.stride], window, here)

    def read_row(self, x: Tensor, i: int) -> Tensor:
        """Row i of the outputs from the values of a cache: (B, O, 1, W)."""
        top = i + 2 - self.pad[2]
        return F.conv2d(x[:, :, top : top + self.kernel[0]], self.weight(), self.bias)

    def read_pixel(self, x: Tensor, i: int, j: int, state) -> Tensor:
        """Outputs at (i, j) from the values of a cache: (B, O)."""
        top, left = i + 2 - self.pad[2], j + 1 - self.pad[0]
        window = x[:, :, top : top + self.kernel[0], left : left + self.kernel[1]]
        return torch.addmm(self.bias, window.flatten(1), state)

    def read_state(self) -> Tensor:
        """Weight as ``read_pixel`` takes it: (I height width, O)."""
        return self.weight().flatten(1).T


class Growth(NormedWeight):
    """The transposed convolution that undoes a stride of 2, cropped to (H, W).

    Args:
        kind: "down" or "down-right".
        size: (H, W) of the outputs.
        num_features: F of inputs and outputs.
    """

    def __init__(self, kind: str, size: tuple[int, int], num_features: int):
        kernel, pad = KINDS[kind]
        super().__init__((num_features, num_features, *kernel), 1, 1.0)
        self.pad = pad
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, ceil(H / 2), ceil(W / 2)) -> (B, F, H, W)."""
        grown = F.conv_transpose2d(x, self.weight(), self.bias, stride=2)
        left = self.pad[1]  # a kernel that is centred reaches beyond the edge
        return grown[:, :, : self.size[0], left : left + self.size[1]]

    def row_state(self, batch_size: int) -> list[Tensor | None]:
        """Weight, and the two rows that came of the last coarse one."""
        return [self.weight(), None]

    def row(self, x: Tensor | None, i: int, state) -> Tensor:
        """A coarse row where there is a new one; row i of the outputs, (B, F, 1, W)."""
        if x is not None:
            grown = F.conv_transpose2d(x, state[0], self.bias, stride=2)
            left = self.pad[1]
            state[1] = grown[:, :, :, left : left + self.size[1]]
        return state[1][:, :, i % 2, None]

    def pixel_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Weight (F, 2 2 F), and the two rows that come of one coarse row, (B, 2, W + 1, F)."""
        weight = self.weight().permute(0, 2, 3, 1)
        width = self.size[1] + 1
        return weight.flatten(1), weight.new_zeros(batch_size, 2, width, weight.shape[0])

    def pixel(self, x: Tensor | None, i: int, j: int, state) -> Tensor:
        """Coarse features where there are new ones; the outputs at (i, j), (B, F)."""
        weight, rows = state
        if x is not None:
            grown = (x @ weight).view(len(x), 2, 2, -1)
            rows[:, :, j : j + 2] = grown + self.bias
        return rows[:, i % 2, j]


class Whole:
    """Every layer on whole maps: the forward pass.

    Args:
        x: (B, C + 1, H, W) scaled values and ones.
        context: What the model is conditioned on.
    """

    def __init__(self, x: Tensor, context: Tensor | None):
        self.x = x
        self.context = context
        self.given: dict[int, Tensor] = {}

    def apply(self, layer: Convolution | Growth, x: Tensor | None) -> Tensor | None:
        """The layer's outputs; None where a stride skips what this run is about."""
        return layer(x)

    def read(self, layer: Convolution) -> Tensor:
        """Outputs of a layer whose inputs are the values."""
        return layer(self.x)

    def coarser(self) -> "Whole":
        """The run within the coarser maps."""
        return self

    def told(self, layer: layers.SpatialConditioning) -> Tensor:
        """What the context says."""
        return layer(self.context)

    def give(self, index: int, x: Tensor) -> None:
        """Leave features for the down-right block of that number."""
        self.given[index] = x

    def take(self, index: int) -> Tensor:
        """What the down block of that number left."""
        return self.given[index]

    def here(self, maps: Tensor) -> Tensor:
        """Constant maps (1, N, H, W) for each of the batch."""
        return maps.expand(len(self.x), -1, -1, -1)

    def written(self, num_channels: int) -> Tensor:
        """The first channels' values of the pixel itself."""
        return self.x[:, :num_channels]

    def attend(self, layer: nn.Module, query: Tensor, memory: Tensor) -> Tensor:
        """Attention to what is remembered of earlier pixels: (B, ..., H, W) each."""
        return layer.whole(query, memory + self.read(layer.written))


class Starting(Whole):
    """A forward pass in which every layer sets its gains by what it sees; no context is heard."""

    def apply(self, layer, x):
        """Start the layer, then run it."""
        layer.start(x)
        return layer(x)

    def read(self, layer):
        """Start the layer, then run it."""
        return self.apply(layer, self.x)

    def told(self, layer):
        """Conditioning starts at zero."""
        return 0.0


class Row:
    """Down layers at row i, once all rows above are known: maps are (B, F, 1, W)."""

    def __init__(self, cache: ShiftedCache, i: int):
        self.cache = cache
        self.i = i

    def _state(self, layer):
        return self.cache.state(layer, lambda: layer.row_state(len(self.cache.x)))

    def apply(self, layer, x):
        """The layer's row."""
        return layer.row(x, self.i, self._state(layer))

    def read(self, layer):
        """A row of a layer whose inputs are the values."""
        return layer.read_row(self.cache.x, self.i)

    def coarser(self):
        """The coarser row that this one begins."""
        return Row(self.cache, self.i // 2)

    def told(self, layer):
        """What the context says of this row."""
        return self._context_maps(layer)[:, :, self.i, None]

    def _context_maps(self, layer):
        """(B, F, H, W), computed once a walk."""
        context = self.cache.context
        return self.cache.state(layer, lambda: layer(context).expand(-1, -1, *layer.size))

    def give(self, index, x):
        """Leave a row for the pixels of this row."""
        self.cache.given[index] = x


class Pixel(Row):
    """Down-right layers at (i, j), once all earlier pixels are known: maps are (B, F)."""

    def __init__(self, cache: ShiftedCache, i: int, j: int):
        super().__init__(cache, i)
        self.j = j

    def _state(self, layer):
        return self.cache.state(layer, lambda: layer.pixel_state(len(self.cache.x)))

    def apply(self, layer, x):
        """The layer at this pixel."""
        return layer.pixel(x, self.i, self.j, self._state(layer))

    def read(self, layer):
        """Outputs here of a layer whose inputs are the values."""
        state = self.cache.state(layer, layer.read_state)
        return layer.read_pixel(self.cache.x, self.i, self.j, state)

    def coarser(self):
        """The coarser pixel that this one begins."""
        return Pixel(self.cache, self.i // 2, self.j // 2)

    def told(self, layer):
        """What the context says of this pixel."""
        return self._context_maps(layer)[:, :, self.i, self.j]

    def take(self, index):
        """What the down block left of this row, here."""
        return self.cache.given[index][:, :, 0, self.j]

    def here(self, maps):
        """Constant maps, here."""
        return maps[:, :, self.i, self.j].expand(len(self.cache.x), -1)

    def written(self, num_channels):
        """The first channels' values of the pixel itself."""
        return self.cache.x[:, :num_channels, 2 + self.i, 1 + self.j]

    def attend(self, layer, query, memory):
        """Attention to the pixels before; what is remembered of the last one is complete now."""
        n = self.i * layer.size[1] + self.j
        written = None
        if n > 0:
            before = Pixel(self.cache, *divmod(n - 1, layer.size[1]))
            written = before.read(layer.written)
        return layer.pixel(query, memory, written, n, self._state(layer))


class GatedBlock(nn.Module):
    """A gated residual block: x + a * sigmoid(b), (a, b) = conv(act(conv(act(x)) + skip + ...)).

    Args:
        kind: "down", "down-right" or "point".
        size: (H, W) of its maps.
        num_features: F.
        num_skip: Features of the shortcut that it listens to; 0: none.
        gives: Number of the down-right block that listens to this block; None: none does.
        takes: This block's number, where it listens to a down block.
        dropout: Probability of dropping a hidden feature in training.
        context: What the model is conditioned on, if anything.
    """

    def __init__(
        self,
        kind: str,
        size: tuple[int, int],
        num_features: int,
        *,
        num_skip: int = 0,
        gives: int | None = None,
        takes: int | None = None,
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__()
        wide = 2 * num_features
        self.first = Convolution(kind, size, wide, num_features)
        self.skip = Convolution("point", size, 2 * num_skip, num_features) if num_skip else None
        self.second = Convolution(kind, size, wide, wide, scale=0.1)
        self.dropout = nn.Dropout(dropout)
        self.gives, self.takes = gives, takes
        self.gift = None if gives is None else Convolution("point", size, wide, num_features)
        self.conditioning = (
            layers.SpatialConditioning(context, num_features, size) if context else None
        )

    def forward(self, x: Tensor, skip: Tensor | None, run: Whole | Row) -> Tensor:
        """Features, and those of the shortcut."""
        h = run.apply(self.first, concat_elu(x))
        if self.skip is not None:
            h = h + run.apply(self.skip, concat_elu(skip))
        if self.takes is not None:
            h = h + run.take(self.takes)
        if self.conditioning is not None:
            h = h + run.told(self.conditioning)
        h = self.dropout(concat_elu(h))
        value, gate = run.apply(self.second, h).chunk(2, 1)
        x = x + value * gate.sigmoid()
        if self.gift is not None:
            run.give(self.gives, run.apply(self.gift, concat_elu(x)))
        return x


class ShiftedNetwork(RasterNetwork):
    """A causal image network whose layers are called on a run.

    A subclass says in ``rows`` what is computed when a row begins and in ``pixels`` what leads
    to the features (B, F) of a pixel; from there the parameters are read here. A head that takes
    the channels of a pixel one by one (K = 1) is given each channel's parameters from features
    that heard the earlier channels.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K); raster order only.
        num_channels: F.
        context: What the model is conditioned on, if anything.
    """

    def __init__(self, spec, num_params, order, num_channels, context):
        super().__init__(spec, num_params, order, context)
        layers.require_positive(num_channels=num_channels)
        self.num_channels = num_channels
        self.num_inputs = spec.shape[0] + 1
        self.outputs = nn.ModuleList(
            Convolution("point", self.size, 2 * num_channels, num_params, scale=0.1)
            for _ in range(self.num_groups)
        )
        self.earlier = nn.ModuleList(
            Convolution("point", self.size, c, num_channels) for c in range(1, self.num_groups)
        )
        self.told = (
            layers.SpatialConditioning(context, num_channels, self.size) if context else None
        )

    def entrance(self, kind: str) -> Convolution:
        """A layer that reads the values."""
        return Convolution(kind, self.size, self.num_inputs, self.num_channels)

    def rows(self, run: Whole | Row) -> None:
        """Compute what depends on the rows above alone."""
        return

    @abstractmethod
    def pixels(self, run: Whole | Pixel) -> Tensor:
        """Features that depend on earlier pixels: (B, F, H, W) or (B, F)."""

    def _features(self, run: Whole | Pixel) -> Tensor:
        h = self.pixels(run)
        return h if self.told is None else h + run.told(self.told)

    def _outputs(self, h: Tensor, c: int, run: Whole | Pixel) -> Tensor:
        """Parameters of a pixel's step c, less their bias."""
        if c > 0:
            h = h + run.apply(self.earlier[c - 1], run.written(c))
        return run.apply(self.outputs[c], concat_elu(h))

    def _scaled(self, values: Tensor) -> Tensor:
        return layers.to_unit(values, self.spec.levels, self.bias.dtype)

    def _whole_outputs(self, run: Whole) -> Tensor:
        """(B, H W, G, P)."""
        self.rows(run)
        h = self._features(run)
        each = [self._outputs(h, c, run).flatten(2) for c in range(self.num_groups)]
        return torch.stack(each, 1).permute(0, 3, 1, 2)

    def _planes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 1, H, W): scaled values, and ones to tell the border."""
        return F.pad(self._scaled(x), (0, 0, 0, 0, 0, 1), value=1.0)

    def forward(self, x, context=None):
        """(B, *event) -> (B, S, P)."""
        params = self._whole_outputs(Whole(self._planes(x), context))
        return params.reshape(len(x), self.num_steps, self.num_params) + self.bias

    def initialize(self, x):
        """Set every layer's gains and biases by what it makes of the first events."""
        training = self.training
        self.eval()  # dropout is noise that no layer should be set by
        with torch.no_grad():
            self._whole_outputs(Starting(self._planes(x[:64]), None))
        self.train(training)

    def start(self, pack, batch_size, context=None):
        """Nothing written yet."""
        height, width = self.size
        x = self.bias.new_zeros(batch_size, self.num_inputs, height + 2, width + 2)
        x[:, -1, 2:, 1:-1] = 1
        return ShiftedCache(x, context)

    def step(self, values, s, cache, pack):
        """What has become computable: at a row's start its down layers, then one pixel."""
        i, j, c = self._place(s)
        if s > 0:
            row, column, channel = self._place(s - 1)
            channels = slice(channel, channel + values.shape[1])
            cache.x[:, channels, 2 + row, 1 + column] = self._scaled(values)
        run = Pixel(cache, i, j)
        if c == 0:
            if j == 0:
                self.rows(Row(cache, i))
            cache.features = self._features(run)
        return self._outputs(cache.features, c, run) + self.bias[s], cache
