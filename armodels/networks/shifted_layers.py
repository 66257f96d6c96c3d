"""Layers of causal image networks whose convolutions are shifted, not masked.

Each has a forward pass over whole maps and, for a walk, either ``row`` (layers that see the rows
above, once a row) or ``pixel`` (layers that see also what stands to the left, once a pixel), or
both. ``pack`` returns what these need of the weights; ``start`` what they keep in the state,
under names that begin with the layer's own.

Shapes: B batch, I inputs, O outputs, F features, H W of a map (coarser maps are smaller).
"""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.networks.base import State

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

Pack = tuple[Tensor, ...]
"""What a layer needs of its weights in every walk."""


class WalkLayer(nn.Module, ABC):
    """A layer that walks know by name."""

    name = ""
    """By which a network's walks call the layer; the network sets it."""

    @abstractmethod
    def pack(self) -> Pack:
        """What the steps of every walk need of the weights."""

    def start(self, n: int) -> dict[str, Tensor]:
        """What the state of n events holds before the first step."""
        return {}


class RowLayer(WalkLayer):
    """A layer that runs row by row."""

    @abstractmethod
    def row(self, x: Tensor, i: int, state: State, pack: Pack) -> Tensor | None:
        """Row i of the outputs, (B, O, 1, W); None where a stride skips it.

        Args:
            x: Row i of the inputs, (B, I, 1, W).
            i: The row; they come in turn.
            state: Of the walk, written to.
            pack: The layer's own.
        """


class PixelLayer(WalkLayer):
    """A layer that runs pixel by pixel."""

    @abstractmethod
    def pixel(self, x: Tensor, i: int, j: int, state: State, pack: Pack) -> Tensor | None:
        """The outputs at (i, j), (B, O); None where a stride skips them.

        Args:
            x: The inputs at (i, j), (B, I).
            i: The row.
            j: The column; pixels come in turn.
            state: Of the walk, written to.
            pack: The layer's own.
        """


class NormedWeight(WalkLayer):
    """A layer whose weight is gain * direction / |direction| for each output.

    Args:
        shape: Of the weight.
        output_dim: The dimension that counts outputs.
        scale: Standard deviation of the outputs after ``set_gains``.
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
        # The norm is clamped, so that a direction of zero has a weight and a gradient.
        norm = self.direction.square().sum(self._others, keepdim=True).clamp_min(TINY).sqrt()
        return self.direction * (self.gain.view(self._column) / norm)

    def set_gains(self, x: Tensor) -> None:
        """Let the outputs over a batch have mean zero and deviation ``scale``."""
        outputs = self(x)
        var, mean = torch.var_mean(outputs, (0, 2, 3), correction=0)
        # An output that never moves keeps its gain.
        factor = torch.where(var > TINY, self.scale * var.clamp_min(TINY).rsqrt(), 1.0)
        self.gain.mul_(factor)
        self.bias.sub_(mean).mul_(factor)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Whole maps: (B, I, H, W) -> (B, O, H, W)."""


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


@final
class PointConvolution(Convolution, RowLayer, PixelLayer):
    """A 1x1 convolution: it looks around nowhere, and keeps nothing.

    Args:
        size: (H, W) of the inputs.
        num_inputs: I.
        num_outputs: O.
        scale: Standard deviation of the outputs where training starts.
    """

    def __init__(
        self, size: tuple[int, int], num_inputs: int, num_outputs: int, *, scale: float = 1.0
    ):
        super().__init__("point", size, num_inputs, num_outputs, scale=scale)

    def pack(self) -> Pack:
        """(O, I, 1, 1), (I, O) and the bias."""
        weight = self.weight()
        return weight, weight.flatten(1).T, self.bias

    def row(self, x: Tensor, i: int, state: State, pack: Pack) -> Tensor:
        """Row i: (B, I, 1, W) -> (B, O, 1, W)."""
        return F.conv2d(x, pack[0], pack[2])

    def pixel(self, x: Tensor, i: int, j: int, state: State, pack: Pack) -> Tensor:
        """At (i, j): (B, I) -> (B, O)."""
        return torch.addmm(pack[2], x, pack[1])


@final
class Entrance(Convolution):
    """A convolution that reads the values: those of a whole image, or what is written of one.

    The state's ``x`` has two empty rows above and one empty column at either side.

    Args:
        kind: "above", "row above", "left", or "point" for the pixel itself.
        size: (H, W).
        num_inputs: Planes of values, I.
        num_outputs: O.
    """

    def __init__(self, kind: str, size: tuple[int, int], num_inputs: int, num_outputs: int):
        super().__init__(kind, size, num_inputs, num_outputs)

    def pack(self) -> Pack:
        """(O, I, height, width), (I height width, O) and the bias."""
        weight = self.weight()
        return weight, weight.flatten(1).T, self.bias

    def row(self, i: int, state: State, pack: Pack) -> Tensor:
        """Row i of the outputs: (B, O, 1, W).

        Args:
            i: The row.
            state: Of the walk.
            pack: The layer's own.
        """
        top = i + 2 - self.pad[2]
        return F.conv2d(state["x"][:, :, top : top + self.kernel[0]], pack[0], pack[2])

    def pixel(self, i: int, j: int, state: State, pack: Pack) -> Tensor:
        """The outputs at (i, j): (B, O).

        Args:
            i: The row.
            j: The column.
            state: Of the walk.
            pack: The layer's own.
        """
        top, left = i + 2 - self.pad[2], j + 1 - self.pad[0]
        window = state["x"][:, :, top : top + self.kernel[0], left : left + self.kernel[1]]
        return torch.addmm(pack[2], window.flatten(1), pack[1])


@final
class DownConvolution(Convolution, RowLayer):
    """A convolution that sees its row and the one above.

    The state holds the two last rows of inputs: ``NAME.rows`` (B, I, 2, padded W).

    Args:
        size: (H, W) of the inputs.
        num_inputs: I.
        num_outputs: O.
        options: ``stride`` and ``scale``, as in ``Convolution``.
    """

    def __init__(self, size: tuple[int, int], num_inputs: int, num_outputs: int, **options: Any):
        super().__init__("down", size, num_inputs, num_outputs, **options)

    def pack(self) -> Pack:
        """(O, I, 2, 3), and the bias."""
        return self.weight(), self.bias

    def start(self, n: int) -> dict[str, Tensor]:
        """Zeros."""
        width = self.size[1] + self.pad[0] + self.pad[1]
        return {f"{self.name}.rows": self.bias.new_zeros(n, self.direction.shape[1], 2, width)}

    def row(self, x: Tensor, i: int, state: State, pack: Pack) -> Tensor | None:
        """Row i of the outputs, if a stride keeps it."""
        rows = state[f"{self.name}.rows"]
        rows[:, :, :-1] = rows[:, :, 1:].clone()
        left = self.pad[0]
        rows[:, :, -1:, left : left + x.shape[3]] = x
        if i % self.stride:
            return None
        weight, bias = pack
        return F.conv2d(rows, weight, bias, self.stride)


@final
class DownRightConvolution(Convolution, PixelLayer):
    """A convolution that sees the pixel, the one to the left, and those above both.

    The state holds ``NAME.row`` (B, 1 + W, I), the inputs of the row, of which those at columns
    not yet reached are the row above's, and ``NAME.part`` (B, outputs of a row, O), what the row
    above says.

    Args:
        size: (H, W) of the inputs.
        num_inputs: I.
        num_outputs: O.
        options: ``stride`` and ``scale``, as in ``Convolution``.
    """

    def __init__(self, size: tuple[int, int], num_inputs: int, num_outputs: int, **options: Any):
        super().__init__("down-right", size, num_inputs, num_outputs, **options)

    def pack(self) -> Pack:
        """Of the row above and of the pixel's own, (2 I, O) each; the bias."""
        # Inputs are kept as (B, 1 + W, I), so that the kernel at a pixel is one slice.
        above, own = self.weight().permute(2, 3, 1, 0).flatten(1, 2)
        return above, own, self.bias

    def start(self, n: int) -> dict[str, Tensor]:
        """Zeros."""
        width, num_inputs = self.size[1] + self.pad[0], self.direction.shape[1]
        return {f"{self.name}.row": self.bias.new_zeros(n, width, num_inputs)}

    def pixel(self, x: Tensor, i: int, j: int, state: State, pack: Pack) -> Tensor | None:
        """The outputs at (i, j), if a stride keeps them."""
        row, (above, own, bias) = state[f"{self.name}.row"], pack
        if j == 0 and i % self.stride == 0:
            # The inputs are still those of the row above. One product for all columns is cheaper
            # than one for each.
            windows = row.unfold(1, self.kernel[1], self.stride).transpose(2, 3).flatten(2)
            state[f"{self.name}.part"] = (windows @ above).add_(bias)
        row[:, j + self.pad[0]] = x
        if i % self.stride or j % self.stride:
            return None
        window = row[:, j : j + self.kernel[1]].flatten(1)
        return torch.addmm(state[f"{self.name}.part"][:, j // self.stride], window, own)


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
        return self._crop(F.conv_transpose2d(x, self.weight(), self.bias, stride=2))

    def _crop(self, grown: Tensor) -> Tensor:
        """Without what a kernel that is centred reaches beyond the edge."""
        left = self.pad[1]
        return grown[:, :, : self.size[0], left : left + self.size[1]]


@final
class DownGrowth(Growth, RowLayer):
    """A growth by rows.

    The state holds the rows that came of the last coarse one: ``NAME.rows`` (B, F, 1 or 2, W).

    Args:
        size: (H, W) of the outputs.
        num_features: F of inputs and outputs.
    """

    def __init__(self, size: tuple[int, int], num_features: int):
        super().__init__("down", size, num_features)

    def pack(self) -> Pack:
        """(F, F, 2, 3), and the bias."""
        return self.weight(), self.bias

    def row(self, x: Tensor | None, i: int, state: State, pack: Pack) -> Tensor:
        """Row i of the outputs, (B, F, 1, W); x is a coarse row where there is a new one."""
        if x is not None:
            weight, bias = pack
            grown = F.conv_transpose2d(x, weight, bias, stride=2)
            state[f"{self.name}.rows"] = self._crop(grown)
        return state[f"{self.name}.rows"][:, :, i % 2, None]


@final
class DownRightGrowth(Growth, PixelLayer):
    """A growth by pixels.

    The state holds the two rows that come of one coarse row: ``NAME.rows`` (B, 2, W + 1, F).

    Args:
        size: (H, W) of the outputs.
        num_features: F of inputs and outputs.
    """

    def __init__(self, size: tuple[int, int], num_features: int):
        super().__init__("down-right", size, num_features)

    def pack(self) -> Pack:
        """(F, 2 2 F), and the bias."""
        return self.weight().permute(0, 2, 3, 1).flatten(1), self.bias

    def start(self, n: int) -> dict[str, Tensor]:
        """Zeros."""
        rows = self.bias.new_zeros(n, 2, self.size[1] + 1, len(self.bias))
        return {f"{self.name}.rows": rows}

    def pixel(self, x: Tensor | None, i: int, j: int, state: State, pack: Pack) -> Tensor:
        """The outputs at (i, j), (B, F); x are coarse features where there are new ones."""
        rows = state[f"{self.name}.rows"]
        if x is not None:
            grown = (x @ pack[0]).view(len(x), 2, 2, len(self.bias))
            rows[:, :, j : j + 2] = grown + pack[1]
        return rows[:, i % 2, j]
