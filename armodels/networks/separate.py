"""A network of its own for every conditional: what the textbooks begin with."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from armodels import masks, orders
from armodels.checks import Count, Share
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork
from armodels.spec import ContextSpec, DataSpec


class SeparateCache(NamedTuple):
    """Weights in generation order, and what has been read so far."""

    first: Tensor
    """(S, O, D E) weights of the first layer, columns in generation order."""
    weights: list[Tensor]
    """(S, O, I) of each later layer."""
    biases: list[Tensor]
    """(S, O) or, with a context, (B, S, O) of each layer."""
    inputs: Tensor
    """(B, D E) values read so far, in generation order."""


class SeparateMLPs(FreeOrderNetwork):
    """One small multi-layer perceptron for each step; they share nothing.

    params_s = MLP_s(values of the steps before s). The S networks run as one product of
    matrices a layer. With real values and a mixture head this is the mixture-of-Gaussians
    autoregressive model; without hidden layers each conditional is (generalized) linear.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    Cache: the values read so far; a step runs its own network and no other.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
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

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        hidden_sizes: list[Count],
        activation: str = "relu",
        dropout: Share = 0.0,
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        layers.require_hidden_sizes(hidden_sizes)
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self.dropout = nn.Dropout(dropout)
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
                    bias.uniform_(-1, 1)  # or all units of a network would bend at one place

    @property
    def bias(self) -> Tensor:
        """(S, P)."""
        return self.biases[-1]

    def _set_order(self, order, seed=None):
        """Derive the mask, too."""
        super()._set_order(order)
        ranks = orders.ranks(self.order)  # (D,)
        seen = ranks.repeat_interleave(self.encode.num_features)  # (D E,)
        mask = masks.rank_mask(seen, ranks[: self.num_steps], strict=True)  # (S, D E)
        self.register_buffer("mask", mask[:, None].to(self.bias), persistent=False)

    def _all_biases(self, context: Tensor | None) -> list[Tensor]:
        """Of each layer, by event: (S, O) or, with a context, (B, S, O)."""
        biases = list(self.biases)
        if context is not None:
            given = [read(context) for read in self.conditioning]
            biases = [b + g.view(-1, *b.shape) for b, g in zip(biases, given, strict=True)]
        return biases

    def forward(self, x, context=None):
        """(B, *event) -> (B, S, P)."""
        inputs = self.encode(x.flatten(1), self.weights[0].dtype).flatten(1)  # (B, D E)
        biases = self._all_biases(context)
        h = torch.einsum("bi,soi->bso", inputs, self.weights[0] * self.mask) + biases[0]
        for layer, bias in zip(self.weights[1:], biases[1:], strict=True):
            h = self.dropout(self.activation(h))
            h = torch.einsum("bsi,soi->bso", h, layer) + bias
        return h.index_select(1, self.rows)  # (B, S, P)

    def start(self, pack, batch_size, context=None):
        """Sort the networks, and what they read, by step."""
        columns = self.encode.columns(self.order)
        first, *weights = (weight[self.rows] for weight in self.weights)
        first = first[..., columns]
        biases = [bias[..., self.rows, :] for bias in self._all_biases(context)]
        return SeparateCache(first, weights, biases, first.new_zeros(batch_size, len(columns)))

    def step(self, values, s, cache, pack):
        """Read what was just written, then run one network."""
        known = 0
        if s > 0:
            new = self.encode(values, cache.inputs.dtype).flatten(1)  # (B, K E)
            known = s * new.shape[1]
            cache.inputs[:, known - new.shape[1] : known] = new
        h = cache.inputs[:, :known] @ cache.first[s, :, :known].T + cache.biases[0][..., s, :]
        for weight, bias in zip(cache.weights, cache.biases[1:], strict=True):
            h = torch.addmm(bias[..., s, :], self.activation(h), weight[s].T)
        return h, cache
