"""DeepNADE: a network that reads what is known, trained for all orders; a mixture is EoNADE."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armodels.checks import Count, checked
from armodels.networks import layers
from armodels.networks.base import AnyOrderNetwork, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

CHUNK = 2**18
"""Numbers in a hidden layer of the chunk that ``forward`` works on: as much as fits caches."""


@final
class DeepNADEPack(NamedTuple):
    """Weights in generation order, taken apart once: indexing takes a tenth of a step."""

    weight: tuple[Tensor, ...]
    """(K E, H) of each step."""
    mask_weight: tuple[Tensor, ...]
    """(H,) of each step."""
    output: tuple[Tensor, ...]
    """(H', P) of each step."""
    bias: tuple[Tensor, ...]
    """(P,) of each step."""
    first: Tensor
    """(H,) biases of the first hidden layer."""
    rest: list[Tensor]
    """(H,) biases of each other hidden layer."""


@final
class DeepNADE(AnyOrderNetwork):
    """DeepNADE: a perceptron that reads the known values and a mask of which they are.

    Trained on random known parts, of random size, it gives the conditionals of every order. The
    first layer's pre-activation grows by one step's part at a time, as NADE's; the layers above
    are computed for each step anew, so an event costs O(S H^2). A mixture over orders
    (``num_orders``) is EoNADE; with real values and a mixture head, EoRNADE.

    Accepts: vector, image, sequence. Order: any, all trained at once (``params_given``).
    Context: a bias on every hidden unit and every parameter.
    State: the first layer's pre-activation.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        hidden_sizes: Units of each hidden layer.
        activation: relu, sigmoid, tanh or elu.
        encoding: How values are read, see ``layers.Encoding``; unknown ones are zeros.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    References:
        A Deep and Tractable Density Estimator (Uria, Murray & Larochelle, 2014)
        https://arxiv.org/abs/1310.1757
        Neural Autoregressive Distribution Estimation (Uria et al., 2016)
        https://arxiv.org/abs/1605.02226

    Differs from the paper: every example of a batch draws its own known part, rather than one
    for all; output biases start at the marginals.
    """

    kinds = frozenset({"vector", "image", "sequence"})

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        hidden_sizes: list[Count],
        activation: layers.Activation = "relu",
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, encoding, context)
        layers.require_layers(hidden_sizes)
        self.activation = layers.activation(activation)
        first, last = hidden_sizes[0], hidden_sizes[-1]
        # All laid out by event index, not by step: orders share all weights.
        self.weight = nn.Parameter(torch.empty(spec.num_dims, self.encode.num_features, first))
        self.mask_weight = nn.Parameter(torch.empty(self.num_steps, first))
        self.hidden_bias = nn.Parameter(torch.zeros(first))
        self.hidden = layers.ModuleListOf(
            nn.Linear(a, b) for a, b in zip(hidden_sizes, hidden_sizes[1:], strict=False)
        )
        self.output = nn.Parameter(torch.empty(self.num_steps, num_params, last))
        widths = [*hidden_sizes, self.num_steps * num_params]
        self.conditioning = layers.conditioning(context, widths)
        nn.init.normal_(self.weight, std=spec.num_dims**-0.5)
        nn.init.normal_(self.mask_weight, std=spec.num_dims**-0.5)
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output, std=0.01)

    def _biases(self, context: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Of the first layer, the others, and the outputs in generation order (S, P).

        With a context each has a row for each event.
        """
        first: Tensor = self.hidden_bias
        rest: list[Tensor] = [layer.bias for layer in self.hidden]
        bias: Tensor = self.bias
        if context is not None:
            by_context = [layer(context) for layer in self.conditioning]
            first = first + by_context[0]
            rest = [a + b for a, b in zip(rest, by_context[1:-1], strict=True)]
            bias = bias + by_context[-1].view(-1, *bias.shape)
        return first, rest, bias[..., self.slots, :]

    def _upper(self, h: Tensor, biases: list[Tensor]) -> Tensor:
        """From the first layer's pre-activations to the last layer's units."""
        h = self.activation(h)
        for layer, bias in zip(self.hidden, biases, strict=True):
            # With a context each event has a bias of its own, which its steps share.
            if bias.dim() < 2:
                h = F.linear(h, layer.weight, bias)
            else:
                h = F.linear(h, layer.weight) + bias.unflatten(0, (-1, *[1] * (h.dim() - 2)))
            h = self.activation(h)
        return h

    def params_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """One pass: (B, *event), (B, S) -> (B, S, P)."""
        first, rest, bias = self._biases(context)
        inputs, by_slot = self._read_known(x, known)
        h = F.linear(inputs.flatten(1), self.weight.flatten(0, 1).T)
        h = h + by_slot.to(h) @ self.mask_weight + first
        h = self._upper(h, rest)
        params = F.linear(h, self.output.flatten(0, 1)).unflatten(1, self.bias.shape)
        return params.index_select(1, self.slots) + bias

    def _chunk(
        self,
        total: Tensor,
        inputs: Tensor,
        weight: Tensor,
        mask_weight: Tensor,
        output: Tensor,
        biases: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Parameters of c steps in a row, and the pre-activation after the last.

        Args:
            total: (B, H) pre-activation before the first.
            inputs: (B, c, K E) what each step reads.
            weight: (c, K E, H).
            mask_weight: (c, H).
            output: (c, P, H').
            biases: Of the layers above.
        """
        num_steps = inputs.shape[1]
        earlier = inputs.new_ones(num_steps, num_steps).tril(-1)  # (c, c): [j, i] where i < j
        seen = (inputs[:, None] * earlier[..., None]).flatten(2)  # (B, c, c K E)
        h = F.linear(seen, weight.flatten(0, 1).T)
        h += earlier @ mask_weight  # Sums in place take no fresh memory.
        h += total[:, None]
        h = self._upper(h, biases)  # (B, c, H')
        params = torch.einsum("bch,cph->bcp", h, output)
        total = total + F.linear(inputs.flatten(1), weight.flatten(0, 1).T) + mask_weight.sum(0)
        return params, total

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P), a chunk of steps at a time."""
        first, rest, bias = self._biases(context)
        inputs = self.encode(x.flatten(1), self.bias.dtype)[:, self.order_table].flatten(2)
        weight = self.weight[self.order_table].flatten(1, 2)  # (S, K E, H)
        mask_weight, output = self.mask_weight[self.slots], self.output[self.slots]
        total = first.expand(len(x), -1)
        widest = max(self.weight.shape[2], *(layer.out_features for layer in self.hidden), 1)
        chunk = min(max(1, CHUNK // (widest * max(1, len(x)))), 32)
        parts = []
        for s in range(0, self.num_steps, chunk):
            now = slice(s, s + chunk)
            args = total, inputs[:, now], weight[now], mask_weight[now], output[now], rest
            if torch.is_grad_enabled():  # Hidden units are computed anew on the way back.
                params, total = checkpoint(self._chunk, *args, use_reentrant=False)
            else:
                params, total = self._chunk(*args)
            parts.append(params)
        return torch.cat(parts, 1) + bias

    def pack(self) -> DeepNADEPack:
        """Weights in generation order."""
        first, rest, bias = self._biases(None)
        return DeepNADEPack(
            self.weight[self.order_table].flatten(1, 2).unbind(),
            self.mask_weight[self.slots].unbind(),
            self.output[self.slots].transpose(1, 2).unbind(),
            bias.unbind(),
            first,
            rest,
        )

    def start(self, pack: DeepNADEPack, n: int, context: Tensor | None = None) -> State:
        """Nothing is read yet; with a context, each event has biases of its own."""
        if context is None:
            return State({"total": pack.first.expand(n, -1).clone()})
        total, rest, bias = self._biases(context)
        return State({"total": total, "bias": bias} | {f"rest_{i}": b for i, b in enumerate(rest)})

    def step(
        self, values: Tensor | None, s: int, state: State, pack: DeepNADEPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then one step's parameters."""
        total = state["total"]
        if values is not None:
            new = self.encode(values, total.dtype).flatten(1)  # (B, K E)
            total.addmm_(new, pack.weight[s - 1]).add_(pack.mask_weight[s - 1])
        rest, bias = pack.rest, pack.bias[s]
        if "bias" in state:
            rest = [state[f"rest_{i}"] for i in range(len(rest))]
            bias = state["bias"][:, s]
        return torch.addmm(bias, self._upper(total, rest), pack.output[s]), state
