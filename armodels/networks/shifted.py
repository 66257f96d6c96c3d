"""Causal image networks of shifted, unmasked convolutions.

Two kinds of features: "down" ones see the rows above and are computed row by row, "down-right"
ones see also what stands to the left and are computed pixel by pixel.

Shapes: B batch, C channels, F features, H W of a map (coarser maps are smaller), K values per
step, P parameters per step.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Share
from armodels.networks import layers
from armodels.networks.base import RasterNetwork, State
from armodels.networks.layers import concat_elu
from armodels.networks.shifted_layers import (
    Convolution,
    DownConvolution,
    DownRightConvolution,
    Entrance,
    Pack,
    PointConvolution,
    WalkLayer,
)
from armodels.networks.shifted_runs import (
    InitializationRun,
    MapsRun,
    PixelRun,
    RowRun,
    Run,
    WholeRun,
)
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

CONVOLUTIONS: dict[str, Callable[..., Convolution]] = {
    "point": PointConvolution,
    "down": DownConvolution,
    "down-right": DownRightConvolution,
}


@final
class GatedBlock(nn.Module):
    """A gated residual block: x + a * sigmoid(b), (a, b) = conv(act(conv(act(x)) + skip + ...)).

    Args:
        kind: "down", "down-right" or "point".
        size: (H, W) of its maps.
        num_features: F.
        num_skip: Features of the shortcut that it listens to; 0: none.
        shares_as: Number under which it shares its features with the other stream; None: it does
            not.
        listens_to: Number under which the other stream's features are shared; None: to none.
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
        shares_as: int | None = None,
        listens_to: int | None = None,
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__()
        wide = 2 * num_features
        convolution = CONVOLUTIONS[kind]
        self.first = convolution(size, wide, num_features)
        self.skip = PointConvolution(size, 2 * num_skip, num_features) if num_skip else None
        self.second = convolution(size, wide, wide, scale=0.1)
        self.dropout = layers.Dropout(dropout)
        self.shares_as, self.listens_to = shares_as, listens_to
        self.shared = None if shares_as is None else PointConvolution(size, wide, num_features)
        self.conditioning = (
            layers.SpatialConditioning(context, num_features, size) if context else None
        )

    def forward(self, x: Tensor, skip: Tensor | None, run: Run) -> Tensor:
        """Features from features.

        Args:
            x: (B, F, H, W), or one row or pixel of them, as the run has it.
            skip: Of the shortcut, the same; None: there is none.
            run: Applies the layers.
        """
        h = run.through(self.first, concat_elu(x))
        if self.skip is not None:
            assert skip is not None
            h = h + run.through(self.skip, concat_elu(skip))
        if self.listens_to is not None:
            h = h + run.shared(self.listens_to)
        if self.conditioning is not None:
            h = h + run.condition(self.conditioning)
        h = self.dropout(concat_elu(h))
        value, gate = run.through(self.second, h).chunk(2, 1)
        x = x + value * gate.sigmoid()
        if self.shared is not None and self.shares_as is not None:
            run.share(self.shares_as, run.through(self.shared, concat_elu(x)))
        return x


class ShiftedNetwork(RasterNetwork):
    """A causal image network whose layers are called on a run.

    A subclass says in ``rows`` what is computed when a row begins and in ``pixels`` what leads
    to the features (B, F) of a pixel; from there the parameters are read here. A head that takes
    the channels of a pixel one by one (K = 1) gets each channel's parameters from features that
    heard the earlier channels.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
        num_channels: F.
        context: What the model is conditioned on, if anything.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        num_channels: int,
        context: ContextSpec | None,
    ) -> None:
        super().__init__(spec, num_params, order, context)
        self.num_channels = num_channels
        self.num_inputs = spec.shape[0] + 1
        self.outputs = layers.ModuleListOf(
            PointConvolution(self.size, 2 * num_channels, num_params, scale=0.1)
            for _ in range(self.num_groups)
        )
        self.earlier = layers.ModuleListOf(
            PointConvolution(self.size, c, num_channels) for c in range(1, self.num_groups)
        )
        self.conditioning = (
            layers.SpatialConditioning(context, num_channels, self.size) if context else None
        )

    def entrance(self, kind: str) -> Entrance:
        """A layer that reads the values."""
        return Entrance(kind, self.size, self.num_inputs, self.num_channels)

    def rows(self, run: Run) -> None:
        """Compute what depends on the rows above alone."""
        return

    @abstractmethod
    def pixels(self, run: WholeRun | PixelRun) -> Tensor:
        """Features that depend on earlier pixels: (B, F, H, W) or (B, F)."""

    def _features(self, run: WholeRun | PixelRun) -> Tensor:
        h = self.pixels(run)
        return h if self.conditioning is None else h + run.condition(self.conditioning)

    def _outputs(self, h: Tensor, c: int, run: WholeRun | PixelRun) -> Tensor:
        """Parameters of a pixel's step c, less their bias."""
        if c > 0:
            h = h + run.through(self.earlier[c - 1], run.written(c))
        return run.through(self.outputs[c], concat_elu(h))

    def _scaled(self, values: Tensor) -> Tensor:
        return layers.to_unit(values, self.spec.levels, self.bias.dtype)

    def _whole_outputs(self, run: WholeRun) -> Tensor:
        """(B, H W, G, P)."""
        self.rows(run)
        h = self._features(run)
        each = [self._outputs(h, c, run).flatten(2) for c in range(self.num_groups)]
        return torch.stack(each, 1).permute(0, 3, 1, 2)

    def _planes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 1, H, W): scaled values, and ones to tell the border."""
        return F.pad(self._scaled(x), (0, 0, 0, 0, 0, 1), value=1.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P)."""
        params = self._whole_outputs(MapsRun(self._planes(x), context))
        return params.reshape(len(x), self.num_steps, self.num_params) + self.bias

    def initialize(self, x: Tensor) -> None:
        """Set every layer's gains and biases by what it makes of the first events."""
        training = self.training
        self.eval()  # Dropout is noise by which no layer should be set.
        with torch.no_grad():
            self._whole_outputs(InitializationRun(self._planes(x[:64])))
        self.train(training)

    def _named(self, *kinds: type) -> dict[str, Any]:
        """Its layers of these kinds, by the names that walks have for them."""
        found: dict[str, Any]
        found = {name: layer for name, layer in self.named_modules() if isinstance(layer, kinds)}
        for name, layer in found.items():
            layer.name = name
        return found

    def pack(self) -> dict[str, Pack]:
        """What each layer needs of its weights, by name."""
        return {name: layer.pack() for name, layer in self._named(WalkLayer).items()}

    def start(self, pack: dict[str, Pack], n: int, context: Tensor | None = None) -> State:
        """Nothing written yet: scaled values and ones, two empty rows above, columns around."""
        height, width = self.size
        x = self.bias.new_zeros(n, self.num_inputs, height + 2, width + 2)
        x[:, -1, 2:, 1:-1] = 1
        tensors = {"x": x}
        for layer in self._named(WalkLayer).values():
            tensors |= layer.start(n)
        for name, layer in self._named(layers.SpatialConditioning).items():
            tensors[f"{name}.maps"] = layer(context)
        return State(tensors)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: dict[str, Pack]
    ) -> tuple[Tensor, State]:
        """What has become computable: at a row's start its down layers, then one pixel."""
        i, j, c = self._position(s)
        if values is not None:
            row, column, channel = self._position(s - 1)
            channels = slice(channel, channel + values.shape[1])
            state["x"][:, channels, 2 + row, 1 + column] = self._scaled(values)
        run = PixelRun(i, j, state, pack)
        if c == 0:
            if j == 0:
                self.rows(RowRun(i, state, pack))
            state["features"] = self._features(run)
        return self._outputs(state["features"], c, run) + self.bias[s], state
