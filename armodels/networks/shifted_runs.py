"""What the layers of a shifted network are called on: whole maps, or one step of a walk.

A network is written once, as calls on a *run*. ``MapsRun`` gives every layer whole maps,
``RowRun`` and ``PixelRun`` give it what has just become computable while an image is written.
"""

from abc import ABC, abstractmethod
from typing import Any, final

from torch import Tensor

from armodels.networks import layers
from armodels.networks.base import State
from armodels.networks.shifted_layers import Entrance, NormedWeight


class Run(ABC):
    """How the layers of a network run: where they are applied, and to what."""

    @abstractmethod
    def apply(self, layer: NormedWeight, x: Tensor | None) -> Tensor | None:
        """The layer's outputs; None where a stride skips what this run is about."""

    @final
    def through(self, layer: NormedWeight, x: Tensor) -> Tensor:
        """The outputs of a layer that has no stride."""
        outputs = self.apply(layer, x)
        assert outputs is not None
        return outputs

    @abstractmethod
    def read(self, layer: Entrance) -> Tensor:
        """Outputs of a layer whose inputs are the values."""

    @abstractmethod
    def condition(self, layer: layers.SpatialConditioning) -> Tensor | float:
        """What the context adds."""

    @abstractmethod
    def coarser(self) -> "Run":
        """The run within the coarser maps."""

    @abstractmethod
    def share(self, index: int, x: Tensor) -> None:
        """Let down-right layers read these features of down layers, under a number."""

    @abstractmethod
    def shared(self, index: int) -> Tensor:
        """What down-right layers read of those features."""


class WholeRun(Run):
    """Every layer on whole maps: (B, F, H, W).

    Args:
        x: (B, C + 1, H, W) scaled values and ones.
        context: What the model is conditioned on.
    """

    def __init__(self, x: Tensor, context: Tensor | None):
        self.x = x
        self.context = context
        self.by_number: dict[int, Tensor] = {}

    def coarser(self) -> "WholeRun":
        """Itself."""
        return self

    def share(self, index: int, x: Tensor) -> None:
        """Share maps."""
        self.by_number[index] = x

    def shared(self, index: int) -> Tensor:
        """The maps that are shared under this number."""
        return self.by_number[index]

    def constant(self, maps: Tensor) -> Tensor:
        """Constant maps (1, N, H, W) for each of the batch."""
        return maps.expand(len(self.x), -1, -1, -1)

    def written(self, num_channels: int) -> Tensor:
        """The first channels' values of the pixel itself."""
        return self.x[:, :num_channels]

    def attend(self, layer: Any, query: Tensor, memory: Tensor) -> Tensor:
        """Attention to what is remembered of earlier pixels: (B, V, H, W).

        Args:
            layer: Attends.
            query: (B, K, H, W).
            memory: (B, K + V, H, W), less what is written at each pixel.
        """
        return layer.maps(query, memory + self.read(layer.written))


@final
class MapsRun(WholeRun):
    """The forward pass."""

    def apply(self, layer: NormedWeight, x: Tensor | None) -> Tensor | None:
        """The layer's maps."""
        return layer(x)

    def read(self, layer: Entrance) -> Tensor:
        """The layer's maps."""
        return layer(self.x)

    def condition(self, layer: layers.SpatialConditioning) -> Tensor:
        """What the context adds."""
        return layer(self.context)


@final
class InitializationRun(WholeRun):
    """A forward pass in which every layer sets its gains by what it sees; no context is heard.

    Args:
        x: (B, C + 1, H, W) scaled values and ones.
    """

    def __init__(self, x: Tensor):
        super().__init__(x, None)

    def apply(self, layer: NormedWeight, x: Tensor | None) -> Tensor | None:
        """Set the layer's gains, then run it."""
        assert x is not None
        layer.set_gains(x)
        return layer(x)

    def read(self, layer: Entrance) -> Tensor:
        """Set the layer's gains, then run it."""
        layer.set_gains(self.x)
        return layer(self.x)

    def condition(self, layer: layers.SpatialConditioning) -> float:
        """Conditioning starts at zero."""
        return 0.0


def _context_row(layer: layers.SpatialConditioning, i: int, state: State) -> Tensor:
    """What a context adds to row i of feature maps: (B, F, 1 or W)."""
    maps = state[f"{layer.name}.maps"]
    return maps[:, :, min(i, maps.shape[2] - 1)]


@final
class RowRun(Run):
    """Down layers at row i, once all rows above are known: maps are (B, F, 1, W).

    Args:
        i: The row.
        state: Of the walk.
        pack: What each layer needs of its weights, by name.
    """

    def __init__(self, i: int, state: State, pack: dict[str, Any]):
        self.i = i
        self.state, self.pack = state, pack

    def apply(self, layer: Any, x: Tensor | None) -> Tensor | None:
        """The layer's row."""
        return layer.row(x, self.i, self.state, self.pack[layer.name])

    def read(self, layer: Entrance) -> Tensor:
        """A row of a layer whose inputs are the values."""
        return layer.row(self.i, self.state, self.pack[layer.name])

    def condition(self, layer: layers.SpatialConditioning) -> Tensor:
        """What the context adds to this row."""
        return _context_row(layer, self.i, self.state)[:, :, None]

    def coarser(self) -> "RowRun":
        """The coarser row that this one begins."""
        return RowRun(self.i // 2, self.state, self.pack)

    def share(self, index: int, x: Tensor) -> None:
        """Share a row with the pixels of this row."""
        self.state[f"shared.{index}"] = x

    def shared(self, index: int) -> Tensor:
        """Down layers listen to nothing."""
        raise NotImplementedError


@final
class PixelRun(Run):
    """Down-right layers at (i, j), once all earlier pixels are known: maps are (B, F).

    Args:
        i: The row.
        j: The column.
        state: Of the walk.
        pack: What each layer needs of its weights, by name.
    """

    def __init__(self, i: int, j: int, state: State, pack: dict[str, Any]):
        self.i, self.j = i, j
        self.state, self.pack = state, pack

    def apply(self, layer: Any, x: Tensor | None) -> Tensor | None:
        """The layer at this pixel."""
        return layer.pixel(x, self.i, self.j, self.state, self.pack[layer.name])

    def read(self, layer: Entrance) -> Tensor:
        """Outputs at this pixel of a layer whose inputs are the values."""
        return layer.pixel(self.i, self.j, self.state, self.pack[layer.name])

    def condition(self, layer: layers.SpatialConditioning) -> Tensor:
        """What the context adds to this pixel."""
        row = _context_row(layer, self.i, self.state)
        return row[:, :, min(self.j, row.shape[2] - 1)]

    def coarser(self) -> "PixelRun":
        """The coarser pixel that this one begins."""
        return PixelRun(self.i // 2, self.j // 2, self.state, self.pack)

    def share(self, index: int, x: Tensor) -> None:
        """Down-right layers share nothing."""
        raise NotImplementedError

    def shared(self, index: int) -> Tensor:
        """At this column, the row that is shared under this number."""
        return self.state[f"shared.{index}"][:, :, 0, self.j]

    def constant(self, maps: Tensor) -> Tensor:
        """Constant maps at this pixel."""
        return maps[:, :, self.i, self.j].expand(len(self.state["x"]), -1)

    def written(self, num_channels: int) -> Tensor:
        """The first channels' values of the pixel itself."""
        return self.state["x"][:, :num_channels, 2 + self.i, 1 + self.j]

    def attend(self, layer: Any, query: Tensor, memory: Tensor) -> Tensor:
        """Attention to what is remembered of earlier pixels: (B, V).

        Args:
            layer: Attends.
            query: (B, K).
            memory: (B, K + V), less what will be written at this pixel; what was written at the
                one before is known now.
        """
        n = self.i * layer.size[1] + self.j
        written = None
        if n > 0:
            i, j = divmod(n - 1, layer.size[1])
            written = PixelRun(i, j, self.state, self.pack).read(layer.written)
        return layer.pixel(query, memory, written, n, self.state)
