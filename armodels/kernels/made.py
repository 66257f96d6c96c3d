"""MADE's sampling loop in compiled code; its PyTorch reference is MADE.step."""

import numpy as np
import torch
from torch import Tensor

from armodels.kernels.arrays import fits, to_numpy


def walk(
    weights: list[Tensor],
    biases: list[Tensor],
    counts: list[list[int]],
    output: Tensor | None,
    direct: Tensor | None,
    bias: Tensor,
    num_features: int,
    scaling: tuple[float, float],
    activation: str,
    noise: Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """The whole sampling loop for heads of logits: Bernoulli (P = 1) and Categorical; K = 1.

    Args:
        weights: Masked weight of each hidden layer, rows and columns sorted by degree.
        biases: Of each hidden layer, sorted likewise.
        counts: counts[l][m]: units of layer l of degree below m.
        output: (S, P, H) masked output weights, columns sorted by degree; None without layers.
        direct: (S, P, S E) masked direct connections in generation order, or None.
        bias: (S, P) output bias, in generation order.
        num_features: E.
        scaling: With E = 1, value v is read as v * scaling[0] + scaling[1].
        activation: Of the hidden units.
        noise: (B, S, 1) uniforms, float64.
        temperature: As in ``Head.sample``.
        dtype: Of the values.

    Returns:
        (B, S, 1) values and (B, S, P) parameters; None where compiled code cannot do it.
    """
    if not fits(bias):
        return None
    from armodels.kernels import compiled

    num_steps, num_params = bias.shape
    missing = bias.new_empty(num_steps, num_params, 0)
    sizes = [0, num_steps * num_features, *map(len, biases)]
    arrays = to_numpy(
        torch.cat([bias.new_empty(0), *(w.flatten() for w in weights)]),
        torch.cat([bias.new_empty(0), *biases]),
        torch.tensor(sizes).cumsum(0),
        torch.tensor(counts, dtype=torch.long).view(-1, num_steps + 1),
        missing if output is None else output,
        missing if direct is None else direct,
        bias,
    )
    uniforms = noise[..., 0].contiguous().numpy()
    values = np.empty(uniforms.shape, np.int64)
    params = bias.new_empty(len(noise), num_steps, num_params)
    code, out = compiled.ACTIVATIONS.index(activation), params.numpy()
    scale, shift = (out.dtype.type(v) for v in scaling)

    def part(chunk: int, first: int, last: int) -> None:
        compiled.made_walk(
            *arrays,
            num_features,
            scale,
            shift,
            code,
            uniforms,
            float(temperature),
            first,
            last,
            values,
            out,
        )

    compiled.run_chunks(part, len(noise), torch.get_num_threads())
    return torch.from_numpy(values)[..., None].to(dtype), params
