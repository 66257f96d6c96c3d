"""Every kernel that numba compiles, for the CPU: pure functions of NumPy arrays.

All of them stand in this one file because numba renews its on-disk cache of compiled code when
the file of a function changes, but not when a file that the function calls into does.

They hold no lock and start no threads: each works on the examples ``first .. last - 1``, so that
``run_chunks`` can share a batch among threads. Numba's own thread pools are avoided on purpose:
they abort the process when it was forked, or when two Python threads enter them at once.

Shapes: B batch, D dimensions, E features per value, S steps, K values per step, P parameters per
step, H hidden units.
"""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

ACTIVATIONS = ("relu", "sigmoid", "tanh", "elu")
TILE = 8
"""Examples that share one reading of a weight row; a multiple of 4, see ``_dots``."""
# Sums may be reordered, but a NaN stays a NaN: training must see a model that diverged.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def _compile(function: Callable) -> Callable:
    options = {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy"}
    homeless = os.path.expanduser("~") == "~" and "NUMBA_CACHE_DIR" not in os.environ
    try:
        return numba.njit(cache=not homeless, **options)(function)
    except RuntimeError:  # Where no folder keeps compiled code, each process compiles anew.
        return numba.njit(**options)(function)


@functools.cache
def _pool(process: int, num_threads: int) -> ThreadPoolExecutor:
    # Pools are kept by process, since threads do not survive a fork.
    return ThreadPoolExecutor(num_threads, thread_name_prefix="armodels-kernel")


def run_chunks(function: Callable[[int, int, int], None], batch_size: int, num_threads: int):
    """Call ``function(chunk, first, last)`` for parts of a batch, each in its own thread.

    The parts depend on the arguments alone, so sums over parts are the same in every run.

    Args:
        function: Of the number of a part, its first example and the one after its last.
        batch_size: Examples in all.
        num_threads: Parts at most.
    """
    num_chunks, size = chunks(batch_size, num_threads)
    parts = [(i, i * size, min((i + 1) * size, batch_size)) for i in range(num_chunks)]
    if num_chunks == 1:
        function(*parts[0])
        return
    pool = _pool(os.getpid(), num_threads)
    waiting = [pool.submit(function, *part) for part in parts[1:]]
    function(*parts[0])
    for future in waiting:
        future.result()


def chunks(batch_size: int, num_threads: int) -> tuple[int, int]:
    """How many parts ``run_chunks`` makes, and examples in each but the last.

    An empty batch is one empty part: a small last batch may leave nothing for a process.
    """
    size = max(-(-batch_size // (num_threads * TILE)) * TILE, TILE)
    return max(-(-batch_size // size), 1), size


@_compile
def _activate(activation, before, after):
    """Hidden units from pre-activations, both (H,)."""
    if activation == 0:
        for i in range(len(before)):
            # A NaN passes this comparison as it is.
            after[i] = before.dtype.type(0) if before[i] <= 0 else before[i]
    elif activation == 1:
        one = before.dtype.type(1)
        for i in range(len(before)):
            after[i] = one / (one + np.exp(-before[i]))
    elif activation == 2:
        for i in range(len(before)):
            after[i] = np.tanh(before[i])
    else:
        for i in range(len(before)):
            after[i] = np.expm1(before[i]) if before[i] <= 0 else before[i]


@_compile
def _backpropagate(activation, after, gradient, total):
    """Add to ``total`` a gradient sent back through the activation: (H,).

    Every derivative follows from the unit itself; at a pre-activation of 0 it is PyTorch's.
    """
    one = total.dtype.type(1)
    zero = total.dtype.type(0)
    if activation == 0:
        for i in range(len(total)):
            total[i] += gradient[i] if after[i] > 0 else zero
    elif activation == 1:
        for i in range(len(total)):
            total[i] += gradient[i] * after[i] * (one - after[i])
    elif activation == 2:
        for i in range(len(total)):
            total[i] += gradient[i] * (one - after[i] * after[i])
    else:
        for i in range(len(total)):
            total[i] += gradient[i] * (one if after[i] > 0 else after[i] + one)


@_compile
def _dots(units, start, weight, out):
    """Products of one weight row (N,) with the units start .. start + N - 1 of each example.

    units: (TILE, anything); out: (TILE,). Four examples at a time share a reading of the row.
    """
    for t in range(0, TILE, 4):
        row_0 = units[t, start : start + len(weight)]
        row_1 = units[t + 1, start : start + len(weight)]
        row_2 = units[t + 2, start : start + len(weight)]
        row_3 = units[t + 3, start : start + len(weight)]
        sum_0 = sum_1 = sum_2 = sum_3 = weight.dtype.type(0)
        for i in range(len(weight)):
            sum_0 += weight[i] * row_0[i]
            sum_1 += weight[i] * row_1[i]
            sum_2 += weight[i] * row_2[i]
            sum_3 += weight[i] * row_3[i]
        out[t], out[t + 1], out[t + 2], out[t + 3] = sum_0, sum_1, sum_2, sum_3


@_compile
def _draw(params, uniform, temperature, cdf):
    """One value from logits, as heads.Bernoulli (P = 1) and heads.Categorical draw it.

    params: (P,); cdf: (P,) float64 scratch.
    """
    if len(params) == 1:
        if temperature == 0:
            return int(params[0] > 0)
        return int(uniform < 1 / (1 + math.exp(-(params[0] / temperature))))
    best = 0
    for p in range(1, len(params)):
        if params[p] > params[best]:
            best = p
    if temperature == 0:
        return best
    total = 0.0
    for p in range(len(params)):
        total += math.exp((params[p] - params[best]) / temperature)
        cdf[p] = total
    value = 0
    while value < len(params) - 1 and cdf[value] <= uniform * total:
        value += 1
    return value


@_compile
def _read(weight, order, values, s, total):
    """Add the weights of the K values of step s of an example to its pre-activations (H,).

    weight: (D, E, H); values: (S, K). With E = 1 a value scales its row; with more it is the
    row's index.
    """
    for k in range(order.shape[1]):
        value = values[s, k]
        if weight.shape[1] > 1:
            row = weight[order[s, k], int(value)]
            for i in range(len(total)):
                total[i] += row[i]
        else:
            row = weight[order[s, k], 0]
            for i in range(len(total)):
                total[i] += value * row[i]


@_compile
def _sum_rows(rows, indices, factors, first, last, total):
    """Write to ``total`` (H,) the rows at ``indices[first:last]``, each times its factor.

    Four rows at a time read and write the total once; the last four may repeat one, times 0.
    """
    none = total.dtype.type(0)
    for j in range(first, last, 4):
        j_1, j_2, j_3 = min(j + 1, last - 1), min(j + 2, last - 1), min(j + 3, last - 1)
        row_0, row_1, row_2, row_3 = (
            rows[indices[j]],
            rows[indices[j_1]],
            rows[indices[j_2]],
            rows[indices[j_3]],
        )
        f_0 = factors[j]
        f_1 = factors[j_1] if j + 1 < last else none
        f_2 = factors[j_2] if j + 2 < last else none
        f_3 = factors[j_3] if j + 3 < last else none
        if j == first:
            for i in range(len(total)):
                total[i] = f_0 * row_0[i] + f_1 * row_1[i] + f_2 * row_2[i] + f_3 * row_3[i]
        else:
            for i in range(len(total)):
                total[i] += f_0 * row_0[i] + f_1 * row_1[i] + f_2 * row_2[i] + f_3 * row_3[i]


@_compile
def nade_forward(weight, hidden_bias, output, order, values, activation, first, last, params):
    """Parameters of every step, without the output bias.

    Args:
        weight: (D, E, H).
        hidden_bias: (1, H), or (B, H).
        output: (S, P, H), a step's row standing at its first event index.
        order: (S, K) int64.
        values: (B, S, K), numbers if E = 1, levels otherwise.
        activation: Index in ACTIVATIONS.
        first: First example of this call.
        last: One past its last example.
        params: (B, S, P), written here.
    """
    num_steps, num_params, num_hidden = output.shape
    skips = weight.shape[1] == 1 and order.shape[1] == 1  # Most values may be 0.
    before = np.empty((TILE, num_hidden), weight.dtype)
    after = np.zeros((TILE, num_hidden), weight.dtype)
    out = np.empty(TILE, weight.dtype)
    for b in range(first, last, TILE):
        n = min(TILE, last - b)
        for t in range(n):
            before[t] = hidden_bias[b + t if len(hidden_bias) > 1 else 0]
            _activate(activation, before[t], after[t])
        for s in range(num_steps):
            for p in range(num_params):
                _dots(after, 0, output[order[s, 0], p], out)
                for t in range(n):
                    params[b + t, s, p] = out[t]
            if s == num_steps - 1:
                break
            for t in range(n):
                if not (skips and values[b + t, s, 0] == 0):
                    _read(weight, order, values[b + t], s, before[t])
                    _activate(activation, before[t], after[t])


@_compile
def nade_backward(
    weight,
    hidden_bias,
    output,
    order,
    values,
    activation,
    gradient,
    first,
    last,
    d_weight,
    d_hidden_bias,
    d_output,
):
    """Add the gradients of weight, hidden bias and output, given that of the parameters.

    Walks the steps backwards. Pre-activations come from checkpoints about every sqrt(S) steps and
    are summed forward again from there, in the order of the forward pass: subtracting instead
    would not find a pre-activation of exactly 0 again. Hidden units are stored only where they
    changed, and gradients go through the activation only there: most binary values are 0.

    Args:
        weight: (D, E, H).
        hidden_bias: (1, H), or (B, H).
        output: (S, P, H), a step's row standing at its first event index.
        order: (S, K) int64.
        values: (B, S, K), numbers if E = 1, levels otherwise.
        activation: Index in ACTIVATIONS.
        gradient: (B, S, P).
        first: First example of this call.
        last: One past its last example.
        d_weight: (D, E, H), added to.
        d_hidden_bias: Of the hidden bias, added to.
        d_output: (S, P, H), added to.
    """
    num_steps, num_params, num_hidden = output.shape
    num_features = weight.shape[1]
    skips = num_features == 1 and order.shape[1] == 1
    span = int(math.ceil(math.sqrt(num_steps)))
    num_spans = (num_steps + span - 1) // span
    dtype = weight.dtype
    before = np.empty((TILE, num_hidden), dtype)
    checkpoints = np.empty((TILE, num_spans, num_hidden), dtype)
    states = np.zeros((TILE, span + 1, num_hidden), dtype)
    current = np.zeros(TILE, np.int64)
    changed = np.zeros((TILE, span), np.bool_)
    d_after = np.empty(num_hidden, dtype)
    d_before = np.zeros((TILE, num_hidden), dtype)
    # The output's rows in generation order, and how many have not reached the units yet.
    rows = output.reshape(num_steps * num_params, num_hidden)
    indices = np.empty(num_steps * num_params, np.int64)
    for s in range(num_steps):
        for p in range(num_params):
            indices[s * num_params + p] = order[s, 0] * num_params + p
    factors = gradient.reshape(len(gradient), num_steps * num_params)
    waiting = np.zeros(TILE, np.int64)
    g = np.zeros(TILE, dtype)
    for b in range(first, last, TILE):
        n = min(TILE, last - b)
        g[:] = 0
        d_before[:] = 0
        waiting[:] = num_steps * num_params
        for t in range(n):
            before[t] = hidden_bias[b + t if len(hidden_bias) > 1 else 0]
        for s in range(num_steps):
            for t in range(n):
                if s % span == 0:
                    checkpoints[t, s // span] = before[t]
                if not (skips and values[b + t, s, 0] == 0):
                    _read(weight, order, values[b + t], s, before[t])
        for c in range(num_spans - 1, -1, -1):
            start = c * span
            stop = min(start + span, num_steps)
            for t in range(n):
                before[t] = checkpoints[t, c]
                _activate(activation, before[t], states[t, 0])
                current[t] = 0
                for s in range(start, stop):
                    changed[t, s - start] = s < num_steps - 1 and not (
                        skips and values[b + t, s, 0] == 0
                    )
                    if changed[t, s - start]:
                        current[t] += 1
                        _read(weight, order, values[b + t], s, before[t])
                        _activate(activation, before[t], states[t, current[t]])
            for s in range(stop - 1, start - 1, -1):
                for t in range(n):
                    if not changed[t, s - start]:
                        continue
                    end = (s + 1) * num_params
                    _sum_rows(rows, indices, factors[b + t], end, waiting[t], d_after)
                    waiting[t] = end
                    _backpropagate(activation, states[t, current[t]], d_after, d_before[t])
                    current[t] -= 1
                    d_total = d_before[t]
                    for k in range(order.shape[1]):
                        value = values[b + t, s, k]
                        if num_features > 1:
                            d_row = d_weight[order[s, k], int(value)]
                            for i in range(num_hidden):
                                d_row[i] += d_total[i]
                        else:
                            d_row = d_weight[order[s, k], 0]
                            for i in range(num_hidden):
                                d_row[i] += value * d_total[i]
                for p in range(num_params):
                    d_row = d_output[order[s, 0], p]
                    for t in range(n):
                        g[t] = gradient[b + t, s, p]
                    for t in range(0, TILE, 4):
                        g_0, g_1, g_2, g_3 = g[t], g[t + 1], g[t + 2], g[t + 3]
                        unit_0 = states[t, current[t]]
                        unit_1 = states[t + 1, current[t + 1]]
                        unit_2 = states[t + 2, current[t + 2]]
                        unit_3 = states[t + 3, current[t + 3]]
                        for i in range(num_hidden):
                            d_row[i] += (
                                g_0 * unit_0[i]
                                + g_1 * unit_1[i]
                                + g_2 * unit_2[i]
                                + g_3 * unit_3[i]
                            )
        for t in range(n):
            _sum_rows(rows, indices, factors[b + t], 0, waiting[t], d_after)
            _backpropagate(activation, states[t, 0], d_after, d_before[t])
            d_row = d_hidden_bias[b + t if len(hidden_bias) > 1 else 0]
            for i in range(num_hidden):
                d_row[i] += d_before[t, i]


@_compile
def nade_walk(
    weight,
    hidden_bias,
    output,
    bias,
    order,
    scale,
    shift,
    activation,
    noise,
    temperature,
    first,
    last,
    values,
    params,
):
    """The sampling loop: draws (B, S) and parameters (B, S, P), written here.

    Args:
        weight: (D, E, H).
        hidden_bias: (H,).
        output: (S, P, H), a step's row standing at its first event index.
        bias: (S, P) output bias, in generation order.
        order: (S, 1) int64.
        scale: With E = 1, a value is read as value * scale + shift.
        shift: As scale.
        activation: Index in ACTIVATIONS.
        noise: (B, S) float64.
        temperature: As in ``Head.sample``.
        first: First example of this call.
        last: One past its last example.
        values: (B, S) int64, written here.
        params: (B, S, P), written here.
    """
    num_steps, num_params, num_hidden = output.shape
    num_features = weight.shape[1]
    before = np.empty((TILE, num_hidden), weight.dtype)
    after = np.zeros((TILE, num_hidden), weight.dtype)
    out = np.empty(TILE, weight.dtype)
    read = np.empty((TILE, num_steps, 1), weight.dtype)
    cdf = np.empty(num_params)
    for b in range(first, last, TILE):
        n = min(TILE, last - b)
        for t in range(n):
            before[t] = hidden_bias
            _activate(activation, before[t], after[t])
        for s in range(num_steps):
            for p in range(num_params):
                _dots(after, 0, output[order[s, 0], p], out)
                for t in range(n):
                    params[b + t, s, p] = out[t] + bias[s, p]
            for t in range(n):
                value = _draw(params[b + t, s], noise[b + t, s], temperature, cdf)
                values[b + t, s] = value
                read[t, s, 0] = value if num_features > 1 else value * scale + shift
                if num_features > 1 or read[t, s, 0] != 0:
                    _read(weight, order, read[t], s, before[t])
                    _activate(activation, before[t], after[t])


@_compile
def made_walk(
    weights,
    biases,
    starts,
    counts,
    output,
    direct,
    bias,
    num_features,
    scale,
    shift,
    activation,
    noise,
    temperature,
    first,
    last,
    values,
    params,
):
    """The sampling loop: draws (B, S) and parameters (B, S, P), written here.

    Units are sorted by degree; each is computed once, when its last input is known. The inputs
    (S E of them) and the units of all N layers stand side by side, layer l at starts[l].

    Args:
        weights: The masked weights of the hidden layers, rows and columns sorted by degree, one
            after another in one array.
        biases: Of all hidden units, sorted likewise.
        starts: (N + 2,) int64: 0, S E, then the end of each hidden layer.
        counts: (N, S + 1) int64: units of each layer of degree below s.
        output: (S, P, H of the last layer) in generation order, or (S, P, 0).
        direct: (S, P, S E) in generation order, or (S, P, 0).
        bias: (S, P).
        num_features: E.
        scale: With E = 1, a value is read as value * scale + shift.
        shift: As scale.
        activation: Index in ACTIVATIONS.
        noise: (B, S) float64.
        temperature: As in ``Head.sample``.
        first: First example of this call.
        last: One past its last example.
        values: (B, S) int64, written here.
        params: (B, S, P), written here.
    """
    num_steps, num_params, num_outputs = output.shape
    num_layers = len(counts)
    num_inputs = starts[1]
    units = np.zeros((TILE, starts[-1]), weights.dtype)
    out = np.empty(TILE, weights.dtype)
    more = np.empty(TILE, weights.dtype)
    scalar = np.empty((2, 1), weights.dtype)
    cdf = np.empty(num_params)
    for b in range(first, last, TILE):
        n = min(TILE, last - b)
        units[:, :num_inputs] = 0
        for s in range(num_steps):
            seen = s * num_features
            offset = 0
            for layer in range(num_layers):
                width = starts[layer + 1] - starts[layer]
                for u in range(counts[layer, max(s - 1, 0)], counts[layer, s]):
                    begin = offset + u * width
                    _dots(units, starts[layer], weights[begin : begin + seen], out)
                    position = starts[layer + 1] + u
                    for t in range(n):
                        scalar[0, 0] = out[t] + biases[position - num_inputs]
                        _activate(activation, scalar[0], scalar[1])
                        units[t, position] = scalar[1, 0]
                offset += width * (starts[layer + 2] - starts[layer + 1])
                seen = counts[layer, s]
            for p in range(num_params):
                _dots(units, starts[num_layers], output[s, p, : min(seen, num_outputs)], out)
                known = min(s * num_features, direct.shape[2])
                _dots(units, 0, direct[s, p, :known], more)
                for t in range(n):
                    params[b + t, s, p] = out[t] + more[t] + bias[s, p]
            for t in range(n):
                value = _draw(params[b + t, s], noise[b + t, s], temperature, cdf)
                values[b + t, s] = value
                if num_features > 1:
                    units[t, s * num_features + value] = 1
                else:
                    units[t, s] = value * scale + shift


@_compile
def _add_product(units, rows, total):
    """Add rows (I, O), each times its unit (I,), to ``total`` (O,), eight rows at a time."""
    whole = len(units) // 8 * 8
    for j in range(0, whole, 8):
        u_0, u_1, u_2, u_3 = units[j], units[j + 1], units[j + 2], units[j + 3]
        u_4, u_5, u_6, u_7 = units[j + 4], units[j + 5], units[j + 6], units[j + 7]
        r_0, r_1, r_2, r_3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        r_4, r_5, r_6, r_7 = rows[j + 4], rows[j + 5], rows[j + 6], rows[j + 7]
        for i in range(len(total)):
            total[i] += (
                (u_0 * r_0[i] + u_1 * r_1[i])
                + (u_2 * r_2[i] + u_3 * r_3[i])
                + (u_4 * r_4[i] + u_5 * r_5[i])
                + (u_6 * r_6[i] + u_7 * r_7[i])
            )
    for j in range(whole, len(units)):
        unit, row = units[j], rows[j]
        for i in range(len(total)):
            total[i] += unit * row[i]


@_compile
def wavenet_walk(
    embed,
    begins,
    units,
    residual,
    residual_bias,
    skip,
    sum_bias,
    mixed,
    mixed_bias,
    params_weight,
    params_bias,
    biases,
    dilations,
    noise,
    temperature,
    first,
    last,
    values,
    params,
):
    """The sampling loop: draws (B, S) and parameters (B, S, P), written here.

    Each layer's last inputs stand in a ring, that of layer l at rings[starts[l]:].

    Args:
        embed: (L, C).
        begins: (C,).
        units: (N, 2 C, 2 C), inputs of a dilation before, then those of now.
        residual: (N - 1, C, C).
        residual_bias: (N - 1, C).
        skip: (N, C, K).
        sum_bias: (K,).
        mixed: (K, K).
        mixed_bias: (K,).
        params_weight: (K, P).
        params_bias: (P,).
        biases: (B or 1, N, 2 C).
        dilations: (N,) int64.
        noise: (B, S) float64.
        temperature: As in ``Head.sample``.
        first: First example of this call.
        last: One past its last example.
        values: (B, S) int64, written here.
        params: (B, S, P), written here.
    """
    num_layers, num_channels = len(dilations), len(begins)
    dtype = embed.dtype
    one, two = dtype.type(1), dtype.type(2)
    starts = np.zeros(num_layers + 1, np.int64)
    for layer in range(num_layers):
        starts[layer + 1] = starts[layer] + dilations[layer]
    rings = np.empty((starts[num_layers], num_channels), dtype)
    x = np.empty(num_channels, dtype)
    gated = np.empty(num_channels, dtype)
    total = np.empty(2 * num_channels, dtype)
    sums = np.empty(len(sum_bias), dtype)
    hidden = np.empty(len(sum_bias), dtype)
    cdf = np.empty(len(params_bias))
    for b in range(first, last):
        own = b if len(biases) > 1 else 0
        rings[:] = 0
        x[:] = begins
        for s in range(noise.shape[1]):
            sums[:] = sum_bias
            for layer in range(num_layers):
                slot = rings[starts[layer] + s % dilations[layer]]
                total[:] = biases[own, layer]
                _add_product(slot, units[layer, :num_channels], total)
                _add_product(x, units[layer, num_channels:], total)
                slot[:] = x
                for c in range(num_channels):
                    # By one exponential each: the library's tanh takes three times as long.
                    gate = one + np.exp(-total[num_channels + c])
                    gated[c] = (one - two / (one + np.exp(two * total[c]))) / gate
                _add_product(gated, skip[layer], sums)
                if layer < num_layers - 1:
                    x += residual_bias[layer]
                    _add_product(gated, residual[layer], x)
            _activate(0, sums, sums)
            hidden[:] = mixed_bias
            _add_product(sums, mixed, hidden)
            _activate(0, hidden, hidden)
            out = params[b, s]
            out[:] = params_bias
            _add_product(hidden, params_weight, out)
            value = _draw(out, noise[b, s], temperature, cdf)
            values[b, s] = value
            x[:] = embed[value]


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_AGAIN = np.uint64(0xD1342543DE82EF95)
_WORDS = 128
"""Words of random bits that are drawn at a time: so many stay in the cache."""


@_compile
def _mix(state):
    """SplitMix64's output function (Steele, Lea & Flood, 2014): uint64 -> uint64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@_compile
def _holds_255(word):
    """Not 0 where one of a word's eight bytes is 255: a zero of its complement."""
    return (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080)


@_compile
def binarize(grey, seed, out):
    """See ``kernels.binarize.reference``.

    Args:
        grey: (N,) uint8.
        seed: uint64.
        out: (N,) bool, written here.
    """
    words = np.empty(_WORDS, np.uint64)
    noise = words.view(np.uint8)
    for start in range(0, len(grey), len(noise)):
        n = min(len(noise), len(grey) - start)
        # Each word follows from its index alone, so that several are made at once.
        first = seed + np.uint64(start // 8) * _GAMMA
        found = np.uint64(0)
        for i in range(_WORDS):
            words[i] = _mix(first + np.uint64(i) * _GAMMA)
            found |= _holds_255(words[i])
        if found:
            for i in range(_WORDS):
                while _holds_255(words[i]):
                    words[i] = _mix(words[i] + _AGAIN)
        part, bits = grey[start : start + n], out[start : start + n]
        for i in range(n):
            bits[i] = noise[i] < part[i]


# Counts of n-grams that grow while a text is read, see ``counting.GrowingCounts``

EMPTY = -1
"""In the place of a key: a slot of a hash table that is free."""


@_compile
def _slot_of(keys, key):
    """Where a key stands, or would stand, in an open hash table whose size is a power of two."""
    mask = len(keys) - 1
    at = ((key * 0x1E3779B97F4A7C15) >> 20) & mask
    while keys[at] != key and keys[at] != EMPTY:
        at = (at + 1) & mask
    return at


@_compile
def insert_all(keys, values, old_keys, old_values):
    """Put what stands in arrays, or in a smaller table, into a table.

    Args:
        keys: (H,) of the table, with room for all.
        values: (H, V) beside them.
        old_keys: (M,), of which those that are ``EMPTY`` are passed over.
        old_values: (M, V).
    """
    for i in range(len(old_keys)):
        if old_keys[i] != EMPTY:
            at = _slot_of(keys, old_keys[i])
            keys[at] = old_keys[i]
            values[at] = old_values[i]


@_compile
def _discounts_of(number, found):
    """D of counts 1, 2, and 3 or more, from how many n-grams have the counts 1 to 4."""
    for k in range(1, 4):
        value = -1.0
        if number[0] > 0 and number[1] > 0 and number[k - 1] > 0 and number[k] > 0:
            mix = number[0] / (number[0] + 2 * number[1])
            value = k - (k + 1) * mix * number[k] / number[k - 1]
        found[k - 1] = value if value > 0 else k / 2


@_compile
def _count_ngram(context, order, key, keys, counts, tallies, numbers):
    """One more of an n-gram."""
    at = _slot_of(keys, key)
    keys[at] = key
    old = counts[at, 0]
    counts[at, 0] = old + 1
    tallies[context, 0] += 1
    if old > 0:
        tallies[context, min(old, 3)] -= 1
    tallies[context, min(old + 1, 3)] += 1
    if 1 <= old <= 4:
        numbers[order - 1, old - 1] -= 1
    if old + 1 <= 4:
        numbers[order - 1, old] += 1


@_compile
def _count_symbol(
    symbol, past, known, levels, contexts, ids, keys, counts, tallies, numbers, size, path
):
    """Count a symbol after its past; the number of contexts then.

    The longest n-gram gets one more; where it is new, the one without its oldest symbol has one
    more predecessor, and so on down while they are new.
    """
    longest = len(past)
    path[0] = 0
    for m in range(1, known + 1):
        path[m] = EMPTY
        if path[m - 1] != EMPTY:
            at = _slot_of(contexts, path[m - 1] * levels + past[longest - m])
            if contexts[at] != EMPTY:
                path[m] = ids[at]
    top = known + 1
    low = top
    while low > 1:
        context = path[low - 1]
        if context != EMPTY and keys[_slot_of(keys, context * levels + symbol)] != EMPTY:
            break
        low -= 1
    for n in range(low, top + 1):
        if path[n - 1] == EMPTY:
            key = path[n - 2] * levels + past[longest - (n - 1)]
            at = _slot_of(contexts, key)
            contexts[at] = key
            ids[at] = size
            path[n - 1] = size
            size += 1
        key = path[n - 1] * levels + symbol
        if n == top and n <= longest:  # At the beginning of a piece, which counts once.
            at = _slot_of(keys, key)
            if keys[at] != EMPTY and counts[at, 1]:
                continue
            counts[at, 1] = 1
        _count_ngram(path[n - 1], n, key, keys, counts, tallies, numbers)
    return size


@_compile
def _kneser_ney(past, known, levels, contexts, ids, keys, counts, tallies, numbers, found):
    """log p of every level after a past, nats."""
    discounts = np.empty(3)
    for x in range(levels):
        found[x] = 1.0 / levels
    context = 0
    for n in range(1, known + 2):
        if n > 1:
            at = _slot_of(contexts, context * levels + past[len(past) - (n - 1)])
            if contexts[at] == EMPTY:
                break
            context = ids[at]
        _discounts_of(numbers[n - 1], discounts)
        total = tallies[context, 0]
        left = 0.0
        for k in range(3):
            left += tallies[context, k + 1] * discounts[k]
        left /= total
        for x in range(levels):
            found[x] *= left
            at = _slot_of(keys, context * levels + x)
            if keys[at] != EMPTY:
                count = counts[at, 0]
                found[x] += (count - discounts[min(count, 3) - 1]) / total
    for x in range(levels):
        found[x] = math.log(found[x])


@_compile
def count_and_say(
    values, past, known, levels, contexts, ids, keys, counts, tallies, numbers, size, found
):
    """Count symbols one after another, and say what follows each.

    Args:
        values: (t,) symbols.
        past: (N - 1,) what stands before them, the newest last; holds what does at the end.
        known: How many of the past are there.
        levels: L.
        contexts: Keys of contexts, a hash table; ``ids`` their ids beside them.
        ids: Of contexts.
        keys: Keys of n-grams, a hash table.
        counts: Beside them, each count and whether the n-gram began a piece.
        tallies: (C, 4) of each context: the sum of its counts, and how many are 1, 2, 3 or more.
        numbers: (N, 4) how many n-grams of each length have the counts 1 to 4.
        size: Contexts so far.
        found: (t, L) gets log p of every level after each symbol, nats.

    Returns:
        How many of the past are there at the end, and the number of contexts.
    """
    longest = len(past)
    path = np.empty(longest + 1, np.int64)
    for i in range(len(values)):
        size = _count_symbol(
            values[i], past, known, levels, contexts, ids, keys, counts, tallies, numbers, size,
            path,
        )  # fmt: skip
        for m in range(longest - 1):
            past[m] = past[m + 1]
        if longest:
            past[longest - 1] = values[i]
        known = min(known + 1, longest)
        _kneser_ney(past, known, levels, contexts, ids, keys, counts, tallies, numbers, found[i])
    return known, size
