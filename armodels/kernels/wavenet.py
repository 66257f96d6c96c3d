"""WaveNet's sampling loop in compiled code; its PyTorch reference is WaveNet.run.

Shapes: B batch, S steps, P parameters per step, L levels, N layers, C channels, K features of the
sum over all layers. Weights have inputs first, as rows.
"""

from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from armodels.kernels.arrays import fits, to_numpy


@final
class Weights(NamedTuple):
    """All that an event does not change."""

    embed: Tensor
    """(L, C)."""
    begins: Tensor
    """(C,), read before the first value."""
    units: Tensor
    """(N, 2 C, 2 C), from the inputs a dilation before and from those of now."""
    residual: Tensor
    """(N - 1, C, C)."""
    residual_bias: Tensor
    """(N - 1, C)."""
    skip: Tensor
    """(N, C, K)."""
    sum_bias: Tensor
    """(K,)."""
    mixed: Tensor
    """(K, K)."""
    mixed_bias: Tensor
    """(K,)."""
    params: Tensor
    """(K, P)."""
    params_bias: Tensor
    """(P,)."""


def walk(
    weights: Weights,
    biases: Tensor,
    dilations: Tensor,
    noise: Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """The whole sampling loop for heads of logits: Bernoulli (P = 1) and Categorical.

    Args:
        weights: Of the network.
        biases: (B, N, 2 C) of the gated units, or (1, N, 2 C): those of all events.
        dilations: (N,) int64.
        noise: (B, S, 1) uniforms, float64.
        temperature: As in ``Head.sample``.
        dtype: Of the values.

    Returns:
        (B, S, 1) values and (B, S, P) parameters; None where compiled code cannot do it.
    """
    if not fits(*weights, biases):
        return None
    from armodels.kernels import compiled

    arrays = to_numpy(*weights, biases, dilations)
    uniforms = noise[..., 0].contiguous().numpy()
    values = np.empty(uniforms.shape, np.int64)
    params = biases.new_empty(*uniforms.shape, len(weights.params_bias))
    out = params.numpy()

    def part(chunk: int, first: int, last: int) -> None:
        compiled.wavenet_walk(*arrays, uniforms, float(temperature), first, last, values, out)

    compiled.run_chunks(part, len(noise), torch.get_num_threads())
    return torch.from_numpy(values)[..., None].to(dtype), params
