"""MADE: masked multi-layer perceptrons; without hidden layers, the FVSBN."""

from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import NUM_SEEDS, Count, Seed, Share, checked
from armodels.kernels import made as kernels
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class HiddenPack(NamedTuple):
    """A hidden layer whose units are sorted by degree, as its inputs are."""

    weight: Tensor
    """(H, I), masked."""
    bias: Tensor
    """(H,)."""
    by_degree: Tensor
    """(H,) index of each unit in the layer."""
    counts: list[int]
    """counts[m]: units of degree below m."""


@final
class MADEPack(NamedTuple):
    """Weights sorted by when their inputs are known; E features a value."""

    hidden: list[HiddenPack]
    """Of each hidden layer."""
    output: Tensor | None
    """(S, P, H) masked weight of the output layer, columns sorted by degree."""
    direct: Tensor | None
    """(S, P, D E) masked direct connections, columns in generation order."""
    bias: Tensor
    """(S, P) in generation order."""


@final
class MADE(FreeOrderNetwork):
    """MADE: a fully connected network whose masked weights make it autoregressive.

    Each hidden unit has a degree m and sees units of degree <= m and the values of steps 0..m;
    the parameters of step s see units of degree < s.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    State: the values and the hidden units, sorted by when they are known. A unit is computed once,
    when its last input is known.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        hidden_sizes: Units of each hidden layer; empty with direct connections is the FVSBN.
        activation: relu, sigmoid, tanh or elu.
        direct_connections: Masked linear connections from the values to the parameters.
        dropout: Probability of dropping a hidden unit in training.
        connectivity: Degrees spread ``"even"``, or drawn at ``"random"``.
        encoding: How values are read, see ``layers.Encoding``.
        connectivity_seed: Of random connectivity.
        context: What the model is conditioned on, if anything.

    Raises:
        ValueError: Nothing connects values and parameters: no hidden layer, and no direct
            connections.

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

    mask_output: Tensor
    mask_direct: Tensor
    _seed: int

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        hidden_sizes: list[Count],
        activation: layers.Activation = "relu",
        direct_connections: bool = False,
        dropout: Share = 0.0,
        connectivity: Literal["even", "random"] = "even",
        encoding: layers.EncodingName = "auto",
        connectivity_seed: Seed = 0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        if not hidden_sizes and not direct_connections:
            raise ValueError("hidden_sizes is empty: that needs direct_connections=true (FVSBN)")
        self.connectivity = connectivity
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self._activation_name = activation
        self.dropout = layers.Dropout(dropout)
        num_inputs = spec.num_dims * self.encode.num_features
        num_outputs = self.num_steps * num_params
        sizes = [num_inputs, *hidden_sizes]
        self.hidden = layers.ModuleListOf(
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
    def random_connectivity(self) -> bool:
        """Whether another seed gives other masks."""
        return self.connectivity == "random" and len(self.hidden) > 0

    def _set_order(self, order: Order, seed: int | None = None) -> None:
        """Derive degrees and masks, too."""
        super()._set_order(order)
        self._seed = self._seed if seed is None else seed
        # On the device of the weights: a mixture of orders makes its masks anew for every batch.
        ranks = orders.ranks(self.order_table)  # (D,)
        steps = ranks.repeat_interleave(self.encode.num_features)  # (D E,)
        outputs = ranks[: self.num_steps].repeat_interleave(self.num_params)  # (S P,)
        seen, lowest = steps, 0
        self._degrees: list[Tensor] = []
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

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P)."""
        inputs = self.encode(x.flatten(1), self.bias.dtype).flatten(1)  # (B, D E)
        by_context = [layer(context) for layer in self.conditioning]
        h = inputs
        for i, layer in enumerate(self.hidden):
            h = F.linear(h, layer.weight * self.get_buffer(f"mask_{i}"), layer.bias)
            if by_context:
                h = h + by_context[i]
            h = self.dropout(self.activation(h))
        params = self.bias.flatten()
        if self.output is not None:
            params = F.linear(h, self.output.weight * self.mask_output, params)
        if self.direct is not None:
            params = params + F.linear(inputs, self.direct.weight * self.mask_direct)
        if by_context:
            params = params + by_context[-1]
        params = params.view(-1, self.num_steps, self.num_params)
        return params.index_select(1, self.slots)  # (B, S, P)

    def slopes(self, x: Tensor, weights: Tensor) -> Tensor:
        """How a weighted sum of the parameters of each step moves with each real value.

        Without dropout, context and gradients. Automatic differentiation, which goes back from
        each step by itself, takes some times as long.

        Args:
            x: (B, *event), real values.
            weights: (B, S, P), of the parameters.

        Returns:
            (B, S, D), steps in generation order, values as in events.
        """
        h, moves = x.detach().flatten(1).to(self.bias), None
        found = weights.new_zeros(len(x), self.num_steps, h.shape[1])
        with torch.no_grad():
            if self.direct is not None:
                found += self._weighted(self.direct.weight * self.mask_direct, weights)
            for i, layer in enumerate(self.hidden):
                weight = layer.weight * self.get_buffer(f"mask_{i}")
                h, slope = self._activated(F.linear(h, weight, layer.bias))
                moves = slope[..., None] * (weight if moves is None else weight @ moves)
            if self.output is not None and moves is not None:
                found += self._weighted(self.output.weight * self.mask_output, weights) @ moves
        return found

    def _weighted(self, weight: Tensor, weights: Tensor) -> Tensor:
        """Rows (S P, I) of a layer, summed by weights (B, S, P): (B, S, I)."""
        return torch.einsum(
            "bsp,spi->bsi", weights, weight.unflatten(0, (-1, self.num_params))[self.slots]
        )

    def _activated(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units (B, H) and their slopes."""
        with torch.enable_grad():
            total = total.detach().requires_grad_()
            units = self.activation(total)
            (slope,) = torch.autograd.grad(units.sum(), total)
        return units.detach(), slope

    def pack(self) -> MADEPack:
        """Sort every weight by when its input is known."""
        inputs = self.encode.columns(self.order_table)

        def by_step(weight: Tensor, columns: Tensor) -> Tensor:  # (S P, I) -> (S, P, I)
            return weight[:, columns].unflatten(0, (-1, self.num_params))[self.slots]

        hidden, columns = [], inputs
        below = torch.arange(self.num_steps + 1)
        for i, (layer, degrees) in enumerate(zip(self.hidden, self._degrees, strict=True)):
            by_degree = degrees.argsort(stable=True)
            counts = torch.searchsorted(degrees[by_degree], below).tolist()
            by_degree = by_degree.to(columns.device)
            weight = layer.weight * self.get_buffer(f"mask_{i}")
            weight = weight[by_degree][:, columns]
            hidden.append(HiddenPack(weight, layer.bias[by_degree], by_degree, counts))
            columns = by_degree
        output = direct = None
        if self.output is not None:
            output = by_step(self.output.weight * self.mask_output, columns)
        if self.direct is not None:
            direct = by_step(self.direct.weight * self.mask_direct, inputs)
        return MADEPack(hidden, output, direct, self.bias[self.slots])

    def start(self, pack: MADEPack, n: int, context: Tensor | None = None) -> State:
        """No value and no unit is known yet; with a context, each event has biases of its own."""
        num_inputs = self.spec.num_dims * self.encode.num_features
        state = State({"inputs": self.bias.new_zeros(n, num_inputs)})
        for i, layer in enumerate(pack.hidden):
            state[f"units_{i}"] = self.bias.new_zeros(n, len(layer.bias))
        if context is not None:
            *hidden, outputs = (layer(context) for layer in self.conditioning)
            for i, (layer, bias) in enumerate(zip(pack.hidden, hidden, strict=True)):
                state[f"bias_{i}"] = layer.bias + bias[:, layer.by_degree]
            state["bias"] = pack.bias + outputs.unflatten(1, pack.bias.shape)[:, self.slots]
        return state

    def step(
        self, values: Tensor | None, s: int, state: State, pack: MADEPack
    ) -> tuple[Tensor, State]:
        """Compute the units whose last input was just written, then one step's parameters."""
        inputs, known = state["inputs"], 0
        if values is not None:
            known = s * values.shape[1] * self.encode.num_features
            new = self.encode(values, inputs.dtype).flatten(1)
            inputs[:, known - new.shape[1] : known] = new
        seen = inputs[:, :known]
        for i, layer in enumerate(pack.hidden):
            units = state[f"units_{i}"]
            first, last = layer.counts[max(s - 1, 0)], layer.counts[s]
            if last > first:
                fan_in = layer.weight[first:last, : seen.shape[1]]
                bias = state.get(f"bias_{i}", layer.bias)[..., first:last]
                units[:, first:last] = self.activation(torch.addmm(bias, seen, fan_in.T))
            seen = units[:, :last]
        params = state.get("bias", pack.bias)[..., s, :]
        if pack.output is not None:
            params = torch.addmm(params, seen, pack.output[s, :, : seen.shape[1]].T)
        if pack.direct is not None:
            params = params + inputs[:, :known] @ pack.direct[s, :, :known].T
        return params, state

    def fused_walk(
        self, family: str, noise: Tensor, temperature: float, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """For heads of logits."""
        if family not in ("bernoulli", "categorical") or context is not None:
            return None
        pack = self.pack()
        return kernels.walk(
            [layer.weight for layer in pack.hidden],
            [layer.bias for layer in pack.hidden],
            [layer.counts for layer in pack.hidden],
            pack.output,
            pack.direct,
            pack.bias,
            self.encode.num_features,
            self.encode.scale,
            self._activation_name,
            noise,
            temperature,
            self.spec.dtype,
        )
