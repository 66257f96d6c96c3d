"""Layers that several families share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.spec import DataSpec

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "elu": nn.ELU}


def activation(name: str) -> nn.Module:
    """The elementwise non-linearity called ``name``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Encoding(nn.Module):
    """How a network reads values: (B, N) -> (B, N, E) floats.

    Real values pass (E = 1). Two levels stay 0 and 1 (E = 1). More levels become one-hot
    (E = L) or are scaled to [-1, 1] (E = 1).

    Args:
        spec: What a datum is.
        name: ``"one_hot"``, ``"scaled"``, or ``"auto"``: one-hot up to 32 levels.
    """

    def __init__(self, spec: DataSpec, name: str = "auto"):
        super().__init__()
        if name not in ("auto", "one_hot", "scaled"):
            raise ValueError(f"encoding is {name!r}; choose auto, one_hot or scaled")
        levels = spec.levels
        self.levels = levels
        self.one_hot = (
            levels is not None
            and levels > 2
            and (name == "one_hot" or (name == "auto" and levels <= 32))
        )
        self.num_features = levels if self.one_hot else 1
        # Without one-hot, value v is read as v * scale[0] + scale[1].
        spread = levels is not None and levels > 2
        self.scale = (2 / (levels - 1), -1.0) if spread else (1.0, 0.0)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, N) -> (B, N, E) of ``dtype``."""
        if self.one_hot:
            return F.one_hot(x.long(), self.levels).to(dtype)
        x = x.to(dtype)
        if self.scale != (1.0, 0.0):
            x = x * self.scale[0] + self.scale[1]
        return x[..., None]
