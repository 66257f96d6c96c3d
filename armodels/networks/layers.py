"""Layers that several families share."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, final, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import draws
from armodels.checks import checked
from armodels.spec import ContextSpec, DataSpec

Kind = TypeVar("Kind", bound=nn.Module)

if TYPE_CHECKING:

    @final
    class ModuleListOf(nn.ModuleList, Generic[Kind]):
        """A ModuleList of modules of one kind: the type checker alone sees more than that."""

        def __init__(self, modules: Iterable[Kind] = ()) -> None: ...

        def __iter__(self) -> Iterator[Kind]: ...

        @overload
        def __getitem__(self, idx: slice) -> "ModuleListOf[Kind]": ...

        @overload
        def __getitem__(self, idx: int) -> Kind: ...

        def __getitem__(self, idx: slice | int) -> "ModuleListOf[Kind] | Kind": ...

else:
    ModuleListOf = nn.ModuleList

Activation = Literal["relu", "sigmoid", "tanh", "elu"]
EncodingName = Literal["auto", "one_hot", "scaled"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


@checked
def activation(name: Activation) -> nn.Module:
    """The elementwise non-linearity called ``name``.

    Raises:
        ValueError: There is none of that name.
    """
    return ACTIVATIONS[name]()


def require_layers(hidden_sizes: list[int]) -> None:
    """Raise ValueError unless there is a hidden layer."""
    if not hidden_sizes:
        raise ValueError("hidden_sizes is []; it must hold one layer of 1 unit or more")


def mark_table(weight: Tensor) -> None:
    """Tell ``optimizers.Muon`` that a weight is a table of vectors, and no matrix of a layer."""
    vars(weight)["is_table"] = True


def bias_of(conv: nn.Conv2d) -> Tensor:
    """The biases (O,) of a convolution that has some."""
    assert conv.bias is not None
    return conv.bias


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """ELU of x and of -x: twice as many features."""
    return F.elu(torch.cat([x, -x], dim))


@final
class Encoding(nn.Module):
    """How a network reads values: (B, N) -> (B, N, E) floats.

    Real values pass (E = 1). Two levels stay 0 and 1 (E = 1). More levels become one-hot
    (E = L) or are scaled to [-1, 1] (E = 1).

    Args:
        spec: What a datum is.
        name: ``"one_hot"``, ``"scaled"``, or ``"auto"``: one-hot up to 32 levels.

    Raises:
        ValueError: There is none of that name.
    """

    @checked
    def __init__(self, spec: DataSpec, name: EncodingName = "auto"):
        super().__init__()
        levels = spec.levels
        self.levels = levels
        self.one_hot = (
            levels is not None
            and levels > 2
            and (name == "one_hot" or (name == "auto" and levels <= 32))
        )
        self.num_features = spec.num_levels if self.one_hot else 1
        # Without one-hot, value v is read as v * scale[0] + scale[1].
        spread = levels is not None and levels > 2
        self.scale = (2 / (spec.num_levels - 1), -1.0) if spread else (1.0, 0.0)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, N) -> (B, N, E) of ``dtype``."""
        if self.one_hot:
            return F.one_hot(x.long(), self.num_features).to(dtype)
        x = x.to(dtype)
        if self.scale != (1.0, 0.0):
            x = x * self.scale[0] + self.scale[1]
        return x[..., None]

    def columns(self, order: Tensor) -> Tensor:
        """Of all D E features by event, which come one after another: (S, K) -> (D E,)."""
        first = order.flatten()[:, None] * self.num_features
        return (first + torch.arange(self.num_features, device=order.device)).flatten()


def to_unit(values: Tensor, levels: int | None, dtype: torch.dtype) -> Tensor:
    """Levels, two of them too, scaled to [-1, 1]; real values as they are.

    Args:
        values: Any shape.
        levels: L; None: the values are real.
        dtype: Of the result.
    """
    values = values.to(dtype)
    return values if levels is None else values * (2 / (levels - 1)) - 1


@final
class Dropout(nn.Module):
    """Dropout that does not depend on how many processes share a batch.

    Args:
        probability: Of dropping a value in training; the others are scaled by 1 / (1 - it).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        return draws.dropped(x, self.probability) if self.training and self.probability else x


def padded(values: Tensor, length: int) -> Tensor:
    """Values (B, t), with zeros after them up to a length: (B, length)."""
    return F.pad(values, (0, length - values.shape[1]))


def context_features(spec: ContextSpec, context: Tensor, dtype: torch.dtype) -> Tensor:
    """How a network reads a context: (B, *shape) -> (B, *shape) floats; a label: (B, L) one-hot.

    Levels that are no label are scaled to [-1, 1].

    Args:
        spec: What the context is.
        context: (B, *shape).
        dtype: Of the result.
    """
    if not spec.shape:
        return F.one_hot(context.long(), spec.num_classes).to(dtype)
    return to_unit(context, spec.levels, dtype)


@final
class Conditioning(nn.Module):
    """A bias that depends on the context: (B, *context) -> (B, F).

    Starts at zero: before training the model ignores its context.

    Args:
        context: What the model is conditioned on.
        num_outputs: F.
    """

    def __init__(self, context: ContextSpec, num_outputs: int):
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(torch.zeros(num_outputs, context.num_features))

    def forward(self, context: Tensor) -> Tensor:
        """(B, *context) -> (B, F)."""
        features = context_features(self.context, context, self.weight.dtype)
        return F.linear(features.flatten(1), self.weight)


@final
class Embedding(nn.Module):
    """Features of each value: (B, t) -> (B, t, E). Levels have a vector each.

    Args:
        spec: What a datum is.
        num_features: E.
    """

    def __init__(self, spec: DataSpec, num_features: int):
        super().__init__()
        self.levels = spec.levels
        self.weight = nn.Parameter(torch.empty(spec.levels or 1, num_features))
        mark_table(self.weight)
        nn.init.normal_(self.weight, std=0.1 if spec.levels else 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """(B, t) -> (B, t, E)."""
        if self.levels is None:
            return values[..., None].to(self.weight) * self.weight[0]
        return F.embedding(values.long(), self.weight)


@final
class FrameEmbedding(nn.Module):
    """Features of each frame of K values: (B, t, K) -> (B, t, E), a vector for each value's level.

    Args:
        spec: What a datum is.
        size: K.
        num_features: E.
    """

    def __init__(self, spec: DataSpec, size: int, num_features: int):
        super().__init__()
        self.encode = Encoding(spec)
        self.weight = nn.Parameter(torch.empty(num_features, size * self.encode.num_features))
        nn.init.normal_(self.weight, std=size**-0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, t, K) -> (B, t, E)."""
        read = self.encode(frames.flatten(0, 1), self.weight.dtype).flatten(1)
        return F.linear(read, self.weight).unflatten(0, frames.shape[:2])


@final
class SpatialConditioning(nn.Module):
    """A bias on feature maps that depends on the context: (B, *context) -> (B, F, H or 1, W or 1).

    A label or vector gives each map one bias. An image is brought to H x W (each of its pixels
    covers as many as it must) and read by two unmasked convolutions, so that each pixel sees
    what the context says about its surroundings. Starts at zero, as ``Conditioning``.

    Args:
        context: What the model is conditioned on.
        num_channels: F.
        size: (H, W).

    Attributes:
        name: By which a network calls it in walks, if it does; the network sets it.
    """

    name = ""

    def __init__(self, context: ContextSpec, num_channels: int, size: tuple[int, int]):
        super().__init__()
        self.context = context
        self.size = tuple(size)
        if len(context.shape) == 3:
            self.read = nn.Conv2d(context.shape[0], num_channels, 5, padding=2)
            self.write = nn.Conv2d(num_channels, num_channels, 5, padding=2, bias=False)
            nn.init.zeros_(self.write.weight)
        else:
            self.bias = Conditioning(context, num_channels)

    def forward(self, context: Tensor) -> Tensor:
        """(B, *context) -> (B, F, H, W) or (B, F, 1, 1)."""
        if len(self.context.shape) != 3:
            return self.bias(context)[:, :, None, None]
        maps = context_features(self.context, context, self.write.weight.dtype)
        maps = F.interpolate(maps, self.size, mode="nearest")
        return self.write(F.elu(self.read(maps)))


def conditioning(
    context: ContextSpec | None, widths: Iterable[int], size: tuple[int, int] | None = None
) -> nn.ModuleList:
    """A bias by the context for each layer that hears it; none without a context.

    Args:
        context: What the model is conditioned on, if anything.
        widths: Outputs or channels of each of the layers, F.
        size: (H, W) of feature maps; None: the layers have none.
    """
    if context is None:
        return nn.ModuleList()
    if size is None:
        return nn.ModuleList(Conditioning(context, width) for width in widths)
    return nn.ModuleList(SpatialConditioning(context, width, size) for width in widths)
