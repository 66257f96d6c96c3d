"""The parameters that a walk comes by, and what a model that reads says of one sequence."""

from collections.abc import Iterator

import torch
from torch import Tensor

from armodels.density.base import DensityModel
from armodels.density.stream import pieces_log_probs
from armodels.density.walk import walk
from armodels.networks.base import NaiveSteps, Network
from armodels.networks.stream import CHUNK


def walked(
    net: Network, values: Tensor, context: Tensor | None = None, *, naive: bool = False
) -> Tensor:
    """Parameters of each step of a walk that writes these values: (B, S, K) -> (B, S, P)."""
    params = []

    def choose(s: int, now: Tensor) -> Tensor:
        params.append(now.clone())
        return values[:, s]

    walk(NaiveSteps(net) if naive else net, len(values), choose, context)
    return torch.stack(params, 1)


def stream_log_probs(model: DensityModel, piece: Tensor, chunk: int = CHUNK) -> Iterator[Tensor]:
    """Of each value (T,), chunk after chunk."""
    return (found for _, found in pieces_log_probs(model, [piece], chunk=chunk))
