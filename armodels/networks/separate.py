"""A network of its own for every conditional: what the textbooks begin with."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import Count, Share, checked
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class SeparatePack(NamedTuple):
    """Weights in generation order, taken apart once: indexing takes a tenth of a step."""

    first: tuple[Tensor, ...]
    """(O, D E) weights of each step's first layer, columns in generation order."""
    weights: list[tuple[Tensor, ...]]
    """(O, I) of each later layer and step."""
    biases: list[tuple[Tensor, ...]]
    """(O,) of each layer and step."""


@final
class SeparateMLPs(FreeOrderNetwork):
    """One small multi-layer perceptron for each step; they share nothing.

    params_s = MLP_s(values of the steps before s). The S networks run as one product of
    matrices a layer. With real values and a mixture head this is the mixture-of-Gaussians
    autoregressive model; without hidden layers each conditional is (generalized) linear.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    State: the values read so far; a step runs its own network and no other.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        hidden_sizes: Units of each hidden layer of each network; may be empty.
        activation: relu, sigmoid, tanh or elu.
        dropout: Probability of dropping a hidden unit in training.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    References:
        Modeling high-dimensional discrete data with multi-layer neural networks (Bengio &
        Bengio, 1999; with shared hidden units) https://papers.nips.cc/paper/1679
        Mixture density networks (Bishop, 1994; each conditional)
        https://publications.aston.ac.uk/id/eprint/373/

    Differs from the paper: no hidden unit is shared between conditionals; output biases start at
    the marginals.
    """

    kinds = frozenset({"vector", "image", "sequence"})
    num_components = 3

    mask: Tensor

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        hidden_sizes: list[Count],
        activation: layers.Activation = "relu",
        dropout: Share = 0.0,
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self.dropout = layers.Dropout(dropout)
        num_inputs = spec.num_dims * self.encode.num_features
        sizes = [num_inputs, *hidden_sizes, num_params]
        # Laid out by event, not by step: orders share them.
        self.weights = nn.ParameterList(
            torch.empty(self.num_steps, b, a) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.biases = nn.ParameterList(torch.zeros(self.num_steps, b) for b in sizes[1:])
        self.conditioning = layers.conditioning(context, [self.num_steps * b for b in sizes[1:]])
        self._set_order(order)
        fan_in = self.mask.sum(-1).clamp_min(1)  # (S, 1): the first networks see few values
        with torch.no_grad():
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                last = i == len(hidden_sizes)
                weight.normal_().mul_(0.01 if last else weight.shape[-1] ** -0.5)
                if i == 0 and not last:
                    weight.mul_((num_inputs / fan_in)[..., None] ** 0.5)
                if not last:
                    bias.uniform_(-1, 1)  # Units of equal bias would all bend at one value.

    @property  # The last of the list stands where others have a parameter.
    def bias(self) -> Tensor:  # type: ignore[override]
        """(S, P)."""
        return self.biases[-1]

    def _set_order(self, order: Order, seed: int | None = None) -> None:
        """Derive the mask, too."""
        super()._set_order(order)
        ranks = orders.ranks(self.order_table)  # (D,)
        seen = ranks.repeat_interleave(self.encode.num_features)  # (D E,)
        mask = masks.rank_mask(seen, ranks[: self.num_steps], strict=True)  # (S, D E)
        self.register_buffer("mask", mask[:, None].to(self.bias), persistent=False)

    def _all_biases(self, context: Tensor | None) -> list[Tensor]:
        """Of each layer, by slot: (S, O) or, with a context, (B, S, O)."""
        biases = list(self.biases)
        if context is not None:
            by_context = (layer(context) for layer in self.conditioning)
            biases = [b + c.view(-1, *b.shape) for b, c in zip(biases, by_context, strict=True)]
        return biases

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P)."""
        inputs = self.encode(x.flatten(1), self.weights[0].dtype).flatten(1)  # (B, D E)
        biases = self._all_biases(context)
        h = torch.einsum("bi,soi->bso", inputs, self.weights[0] * self.mask) + biases[0]
        for layer, bias in zip(self.weights[1:], biases[1:], strict=True):
            h = self.dropout(self.activation(h))
            h = torch.einsum("bsi,soi->bso", h, layer) + bias
        return h.index_select(1, self.slots)  # (B, S, P)

    def pack(self) -> SeparatePack:
        """Sort the networks, and what they read, by step."""
        first, *weights = (weight[self.slots] for weight in self.weights)
        first = first[..., self.encode.columns(self.order_table)]
        biases = (bias[self.slots] for bias in self.biases)
        return SeparatePack(
            first.unbind(), [w.unbind() for w in weights], [b.unbind() for b in biases]
        )

    def start(self, pack: SeparatePack, n: int, context: Tensor | None = None) -> State:
        """Nothing is read yet; with a context, each event has biases of its own."""
        state = State({"inputs": self.bias.new_zeros(n, pack.first[0].shape[1])})
        if context is not None:
            for i, bias in enumerate(self._all_biases(context)):
                state[f"bias_{i}"] = bias[:, self.slots]
        return state

    def step(
        self, values: Tensor | None, s: int, state: State, pack: SeparatePack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then run one network."""
        inputs, known = state["inputs"], 0
        if values is not None:
            new = self.encode(values, inputs.dtype).flatten(1)  # (B, K E)
            known = s * new.shape[1]
            inputs[:, known - new.shape[1] : known] = new
        if "bias_0" in state:
            first, *biases = (state[f"bias_{i}"][:, s] for i in range(len(pack.biases)))
        else:
            first, *biases = (bias[s] for bias in pack.biases)
        h = inputs[:, :known] @ pack.first[s][:, :known].T + first
        for weight, bias in zip(pack.weights, biases, strict=True):
            h = torch.addmm(bias, self.activation(h), weight[s].T)
        return h, state
