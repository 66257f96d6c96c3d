"""NADE's conditionals: a PyTorch reference for every device, and fused kernels for the CPU.

a_0 = c; params_s = V_s act(a_s); a_{s+1} = a_s + what step s wrote, read by W.

Shapes: B batch, D dimensions, E features per value, S steps, K values per step, P parameters per
step, H hidden units.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from armodels.kernels.arrays import fits, to_numpy

_FUNCTIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": torch.nn.functional.elu,
}


def reference(
    weight: Tensor,
    hidden_bias: Tensor,
    output: Tensor,
    order: Tensor,
    values: Tensor,
    activation: str,
) -> Tensor:
    """Parameters of every step, without the output bias, by a loop over the steps.

    Args:
        weight: W, (D, E, H).
        hidden_bias: c, (H,), or (B, H).
        output: V, (S, P, H); a step's row stands at the first event index that it writes.
        order: (S, K).
        values: (B, S, K) of the weight's dtype: with E = 1 the numbers that scale W's rows,
            otherwise levels, each of which has its own row.
        activation: relu, sigmoid, tanh or elu.

    Returns:
        (B, S, P).
    """
    function = _FUNCTIONS[activation]
    num_features = weight.shape[1]
    if num_features > 1:
        one_hot = torch.nn.functional.one_hot(values.long(), num_features)
        values = one_hot.to(weight.dtype).flatten(2)  # (B, S, K E)
    # Tensors are taken apart once: indexing in the loop would make each step's gradient as large
    # as that of all steps.
    rows = weight[order].flatten(1, 2).unbind(0)  # S of (K E, H)
    outputs = output[order[:, 0]].unbind(0)  # S of (P, H)
    written = values.unbind(1)  # S of (B, K E)
    total = hidden_bias.expand(len(values), -1)
    params = []
    for s, (row, out) in enumerate(zip(rows, outputs, strict=True)):
        params.append(function(total) @ out.T)
        if s < len(order) - 1:  # Nothing reads the last value.
            total = torch.addmm(total, written[s], row)
    return torch.stack(params, 1)


@final
class _Conditionals(torch.autograd.Function):
    """``reference`` in compiled code; the values get no gradient."""

    @staticmethod
    def forward(  # ``ctx`` holds whatever is put there.
        ctx: Any,
        weight: Tensor,
        hidden_bias: Tensor,
        output: Tensor,
        order: Tensor,
        values: Tensor,
        activation: str,
    ) -> Tensor:
        from armodels.kernels import compiled

        ctx.save_for_backward(weight, hidden_bias, output, order, values)
        ctx.activation = activation
        ctx.arrays = to_numpy(*_aligned(weight, hidden_bias, output), order, values)
        params = values.new_empty(len(values), *output.shape[:2])
        code, out = compiled.ACTIVATIONS.index(activation), params.numpy()

        def part(chunk: int, first: int, last: int) -> None:
            compiled.nade_forward(*ctx.arrays, code, first, last, out)

        compiled.run_chunks(part, len(values), torch.get_num_threads())
        return params

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from armodels.kernels import compiled

        weight, hidden_bias, output, order, values = ctx.saved_tensors
        inputs = weight, hidden_bias, output
        if torch.is_grad_enabled():  # The gradient itself will be differentiated.
            params = reference(weight, hidden_bias, output, order, values, ctx.activation)
            wanted = [t for t in inputs if t.requires_grad]
            gradients = iter(
                torch.autograd.grad(
                    params, wanted, gradient, create_graph=True, materialize_grads=True
                )
            )
            return *(next(gradients) if t.requires_grad else None for t in inputs), *[None] * 3
        (grads,) = to_numpy(gradient)
        code = compiled.ACTIVATIONS.index(ctx.activation)
        num_threads = torch.get_num_threads()
        num_chunks, _ = compiled.chunks(len(values), num_threads)
        # Each thread has a buffer, and they are summed in a fixed order, so that every run gives
        # the same bits.
        sums = [[np.empty_like(a) for a in ctx.arrays[:3]] for _ in range(num_chunks)]

        def part(chunk: int, first: int, last: int) -> None:
            for buffer in sums[chunk]:
                buffer.fill(0)
            compiled.nade_backward(*ctx.arrays, code, grads, first, last, *sums[chunk])

        compiled.run_chunks(part, len(values), num_threads)
        for chunk in sums[1:]:
            for total, part_sum in zip(sums[0], chunk, strict=True):
                total += part_sum
        num_hidden = inputs[0].shape[-1]
        return *(torch.from_numpy(s)[..., :num_hidden] for s in sums[0]), None, None, None


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """With zeros after the last hidden unit, so that every row begins a cache line.

    Loops over 500 units take a fifth longer than over 512: their loads straddle cache lines, and
    the last ones are done singly.
    """
    return [torch.nn.functional.pad(t.detach(), (0, -t.shape[-1] % 64)) for t in tensors]


@torch.compiler.disable
def conditionals(
    weight: Tensor,
    hidden_bias: Tensor,
    output: Tensor,
    order: Tensor,
    values: Tensor,
    activation: str,
) -> Tensor:
    """As ``reference``, fused where that can be: float32 or float64 on the CPU.

    Values that need a gradient themselves take the reference, too.

    Args:
        weight: As all arguments, as in ``reference``.
        hidden_bias: (H,) or (B, H).
        output: (S, P, H).
        order: (S, K).
        values: (B, S, K).
        activation: relu, sigmoid, tanh or elu.
    """
    arguments = (weight, hidden_bias, output, order, values, activation)
    if not values.requires_grad and fits(weight, hidden_bias, output, values):
        of_rows = hidden_bias if hidden_bias.ndim > 1 else hidden_bias[None]
        return _Conditionals.apply(weight, of_rows, *arguments[2:])
    return reference(*arguments)


def walk(
    weight: Tensor,
    hidden_bias: Tensor,
    output: Tensor,
    bias: Tensor,
    order: Tensor,
    scaling: tuple[float, float],
    activation: str,
    noise: Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """The whole sampling loop for heads of logits: Bernoulli (P = 1) and Categorical.

    Args:
        weight: As in ``reference``, and so hidden_bias, output, order and activation; K = 1.
        hidden_bias: c.
        output: V.
        bias: Output bias in generation order, (S, P).
        order: (S, 1).
        scaling: With E = 1, value v is read as v * scaling[0] + scaling[1].
        activation: Of the hidden units.
        noise: (B, S, 1) uniforms, float64.
        temperature: As in ``Head.sample``.
        dtype: Of the values.

    Returns:
        (B, S, 1) values and (B, S, P) parameters; None where compiled code cannot do it.
    """
    if not fits(weight, bias):
        return None
    from armodels.kernels import compiled

    arrays = to_numpy(weight, hidden_bias, output, bias, order)
    uniforms = noise[..., 0].contiguous().numpy()
    values = np.empty(uniforms.shape, np.int64)
    params = bias.new_empty(len(noise), *bias.shape)
    code, out = compiled.ACTIVATIONS.index(activation), params.numpy()
    scale, shift = (arrays[0].dtype.type(v) for v in scaling)

    def part(chunk: int, first: int, last: int) -> None:
        compiled.nade_walk(
            *arrays, scale, shift, code, uniforms, float(temperature), first, last, values, out
        )

    compiled.run_chunks(part, len(noise), torch.get_num_threads())
    return torch.from_numpy(values)[..., None].to(dtype), params
