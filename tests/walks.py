"""The parameters that a walk comes by."""

import torch
from torch import Tensor

from armodels.density.walk import walk
from armodels.networks.base import Network


def walked(
    net: Network, values: Tensor, context: Tensor | None = None, *, naive: bool = False
) -> Tensor:
    """Parameters of each step of a walk that writes these values: (B, S, K) -> (B, S, P)."""
    params = []

    def choose(s: int, now: Tensor) -> Tensor:
        params.append(now.clone())
        return values[:, s]

    walk(net, len(values), choose, context, naive=naive)
    return torch.stack(params, 1)
