"""MADE: masked multi-layer perceptrons; without hidden layers, the FVSBN."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import NUM_SEEDS, Count, Share
from armodels.kernels import made as kernels
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork
from armodels.spec import ContextSpec, DataSpec


class MADECache(NamedTuple):
    """Weights and activations sorted by when they are known; T = S steps, E features a value."""

    weights: list[Tensor]
    """Masked weight of each hidden layer, rows and columns sorted by degree."""
    biases: list[Tensor]
    """(H,) or, with a context, (B, H) of each hidden layer, sorted likewise."""
    output: Tensor | None
    """(S, P, H) masked weight of the output layer, columns sorted by degree."""
    direct: Tensor | None
    """(S, P, D E) masked direct connections, columns in generation order."""
    bias: Tensor
    """(S, P) or, with a context, (B, S, P)."""
    counts: list[list[int]]
    """counts[l][m]: units of layer l of degree below m."""
    inputs: Tensor
    """(B, D E) values read so far, in generation order."""
    units: list[Tensor]
    """(B, H) of each hidden layer: activations known so far."""


class MADE(FreeOrderNetwork):
    """MADE: a fully connected network whose masked weights make it autoregressive.

    Each hidden unit has a degree m and sees units of degree <= m and the values of steps 0..m;
    the parameters of step s see units of degree < s.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    Cache: hidden units sorted by degree, each computed once, when its last input is known.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        hidden_sizes: Units of each hidden layer; empty with direct connections is the FVSBN.
        activation: relu, sigmoid, tanh or elu.
        direct_connections: Masked linear connections from the values to the parameters.
        dropout: Probability of dropping a hidden unit in training.
        connectivity: Degrees spread ``"even"``, or drawn at ``"random"``.
        encoding: How values are read, see ``layers.Encoding``.
        connectivity_seed: Of random connectivity.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        https://arxiv.org/abs/1502.03509
        Does the Wake-sleep Algorithm Produce Good Density Estimators? (Frey et al., 1996; FVSBN)

    With fewer units than S - 1 in a layer, some steps do not see the value just before them;
    ``direct_connections`` let every step see all.

    Differs from the paper: by default degrees are spread evenly rather than drawn, a layer's
    degrees never fall below the smallest of the layer before (such a unit would be dead), and
    output biases start at the marginals.
    """

    kinds = frozenset({"vector", "image", "sequence"})

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        hidden_sizes: list[Count],
        activation: str = "relu",
        direct_connections: bool = False,
        dropout: Share = 0.0,
        connectivity: str = "even",
        encoding: str = "auto",
        connectivity_seed: int = 0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        if not hidden_sizes and not direct_connections:
            raise ValueError("hidden_sizes is empty: that needs direct_connections=true (FVSBN)")
        layers.require_hidden_sizes(hidden_sizes)
        if connectivity not in ("even", "random"):
            raise ValueError(f"connectivity is {connectivity!r}; choose even or random")
        orders.require_seed(connectivity_seed=connectivity_seed)
        self.connectivity = connectivity
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self._activation_name = activation
        self.dropout = nn.Dropout(dropout)
        num_inputs = spec.num_dims * self.encode.num_features
        num_outputs = self.num_steps * num_params
        sizes = [num_inputs, *hidden_sizes]
        self.hidden = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.output = nn.Linear(sizes[-1], num_outputs, bias=False) if hidden_sizes else None
        self.direct = (
            nn.Linear(num_inputs, num_outputs, bias=False) if direct_connections else None
        )
        # Rows of the outputs are laid out by event, not by step: orders share them.
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        self.conditioning = layers.conditioning(context, [*hidden_sizes, num_outputs])
        for layer in (self.output, self.direct):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
        self._set_order(order, connectivity_seed)

    @property
    def random_connectivity(self):
        """Whether another seed gives other masks."""
        return self.connectivity == "random" and len(self.hidden) > 0

    def _set_order(self, order, seed=None):
        """Derive degrees and masks, too."""
        super()._set_order(order)
        self._seed = self._seed if seed is None else seed
        # On the device of the weights: a mixture of orders makes its masks anew for every batch.
        ranks = orders.ranks(self.order)  # (D,)
        steps = ranks.repeat_interleave(self.encode.num_features)  # (D E,)
        outputs = ranks[: self.num_steps].repeat_interleave(self.num_params)  # (S P,)
        seen, lowest, self._degrees = steps, 0, []
        for i, layer in enumerate(self.hidden):
            if self.connectivity == "even":
                degrees = masks.even_degrees(layer.out_features, self.num_steps)
            else:
                layer_seed = (self._seed * len(self.hidden) + i) % NUM_SEEDS
                degrees = masks.random_degrees(
                    layer.out_features, self.num_steps, lowest, layer_seed
                )
            # In the dtype of the weights: a boolean mask would be converted at every step.
            there = degrees.to(ranks.device)
            mask = masks.rank_mask(seen, there, strict=False).to(self.bias)
            self.register_buffer(f"mask_{i}", mask, persistent=False)
            self._degrees.append(degrees)
            seen, lowest = there, int(degrees.min())
        if self.output is not None:
            mask = masks.rank_mask(seen, outputs, strict=True).to(self.bias)
            self.register_buffer("mask_output", mask, persistent=False)
        if self.direct is not None:
            mask = masks.rank_mask(steps, outputs, strict=True).to(self.bias)
            self.register_buffer("mask_direct", mask, persistent=False)

    def forward(self, x, context=None):
        """(B, *event) -> (B, S, P)."""
        inputs = self.encode(x.flatten(1), self.bias.dtype).flatten(1)  # (B, D E)
        given = [read(context) for read in self.conditioning]
        h = inputs
        for i, layer in enumerate(self.hidden):
            h = F.linear(h, layer.weight * self.get_buffer(f"mask_{i}"), layer.bias)
            if given:
                h = h + given[i]
            h = self.dropout(self.activation(h))
        params = self.bias.flatten()
        if self.output is not None:
            params = F.linear(h, self.output.weight * self.mask_output, params)
        if self.direct is not None:
            params = params + F.linear(inputs, self.direct.weight * self.mask_direct)
        if given:
            params = params + given[-1]
        params = params.view(-1, self.num_steps, self.num_params)
        return params.index_select(1, self.rows)  # (B, S, P)

    def start(self, pack, batch_size, context=None):
        """Sort every weight by when its input is known."""
        given = [read(context) for read in self.conditioning]
        columns = self.encode.columns(self.order)
        inputs = torch.zeros(
            batch_size, len(columns), dtype=self.bias.dtype, device=self.bias.device
        )

        def sort_rows(weight: Tensor, columns: Tensor) -> Tensor:  # (S P, I) -> (S, P, I)
            return weight[:, columns].unflatten(0, (-1, self.num_params))[self.rows]

        direct = None
        if self.direct is not None:
            direct = sort_rows(self.direct.weight * self.mask_direct, columns)
        weights, biases, counts, units = [], [], [], []
        for i, (layer, degrees) in enumerate(zip(self.hidden, self._degrees, strict=True)):
            by_degree = degrees.argsort(stable=True)
            weight = layer.weight * self.get_buffer(f"mask_{i}")
            weights.append(weight[by_degree.to(columns.device)][:, columns])
            bias = layer.bias + given[i] if given else layer.bias
            biases.append(bias[..., by_degree.to(columns.device)])
            below = torch.arange(self.num_steps + 1)
            counts.append(torch.searchsorted(degrees[by_degree], below).tolist())
            units.append(inputs.new_zeros(batch_size, len(degrees)))
            columns = by_degree.to(columns.device)
        output = None
        if self.output is not None:
            output = sort_rows(self.output.weight * self.mask_output, columns)
        bias = self.bias
        if given:
            bias = bias + given[-1].view(-1, *bias.shape)
        bias = bias[..., self.rows, :]
        return MADECache(weights, biases, output, direct, bias, counts, inputs, units)

    def step(self, values, s, cache, pack):
        """Compute the units whose last input was just written, then one step's parameters."""
        known = 0
        if s > 0:
            known = s * values.shape[1] * self.encode.num_features
            new = self.encode(values, cache.inputs.dtype).flatten(1)
            cache.inputs[:, known - new.shape[1] : known] = new
        seen = cache.inputs[:, :known]
        for weight, bias, count, units in zip(
            cache.weights, cache.biases, cache.counts, cache.units, strict=True
        ):
            first, last = count[max(s - 1, 0)], count[s]
            if last > first:
                fan_in = weight[first:last, : seen.shape[1]]
                units[:, first:last] = self.activation(
                    torch.addmm(bias[..., first:last], seen, fan_in.T)
                )
            seen = units[:, :last]
        params = cache.bias[..., s, :]
        if cache.output is not None:
            params = torch.addmm(params, seen, cache.output[s, :, : seen.shape[1]].T)
        if cache.direct is not None:
            fan_in = cache.direct[s, :, :known]
            params = params + cache.inputs[:, :known] @ fan_in.T
        return params, cache

    def fused_walk(self, family, noise, temperature, context=None):
        """For heads of logits."""
        if family not in ("bernoulli", "categorical") or context is not None:
            return None
        cache = self.start(None, 0)
        return kernels.walk(
            cache.weights,
            cache.biases,
            cache.counts,
            cache.output,
            cache.direct,
            cache.bias,
            self.encode.num_features,
            self.encode.scale,
            self._activation_name,
            noise,
            temperature,
            self.spec.dtype,
        )
