"""A transformer whose tokens know their place and the next one, so that it follows any order."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from armodels.checks import Count, Share, checked
from armodels.networks import layers
from armodels.networks.attention import Unplaced
from armodels.networks.base import FreeOrderNetwork, State
from armodels.networks.layers import ModuleListOf
from armodels.networks.transformer import Activation, Block, normed, require_heads
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class Places(nn.Module):
    """Learned features of the places of an event: (N,) flat indices -> (N, E).

    The sum of a vector for each coordinate (of an image channel, row and column) and, where
    there are several coordinates, one of the place itself.

    Args:
        shape: Of an event.
        num_features: E.
    """

    def __init__(self, shape: tuple[int, ...], num_features: int):
        super().__init__()
        self.shape = shape
        several = sum(size > 1 for size in shape) > 1
        sizes = [*shape, torch.Size(shape).numel()] if several else [torch.Size(shape).numel()]
        self.tables = nn.ParameterList(torch.empty(size, num_features) for size in sizes)
        for table in self.tables:
            nn.init.normal_(table, std=0.1)
            layers.mark_table(table)

    def forward(self, places: Tensor) -> Tensor:
        """(N,) -> (N, E)."""
        coordinates = [places]
        if len(self.tables) > 1:
            coordinates = [*torch.unravel_index(places, self.shape), places]
        total = self.tables[0][coordinates[0]]
        for table, each in zip(list(self.tables)[1:], coordinates[1:], strict=True):
            total = total + table[each]
        return total


@final
class SigmaGPTPack(NamedTuple):
    """What no event changes, step by step."""

    places: tuple[Tensor, ...]
    """(E,) features of the place written before, or of the beginning, and of the next."""
    bias: tuple[Tensor, ...]
    """(P,) of each step."""


@final
class SigmaGPT(FreeOrderNetwork):
    """A transformer over fixed events, in any order, by one causal pass: sigma-GPT.

    A token carries the values that were written, their place, and the place that it must say
    something about. So the same weights follow every order, and log p(x) under any of them is
    one pass; with ``resample_orders`` all are trained. In the raster order alone it is ImageGPT.

    Accepts: vector, image, sequence. Order: any. Context: a bias of the features.
    State: keys and values of what is written.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        num_layers: Blocks.
        hidden_size: Features of a token, E.
        num_heads: Heads of each attention; they share the features.
        activation: ``"relu_squared"`` or ``"gelu"``.
        dropout: Probability of dropping a feature in training.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    Raises:
        ValueError: The heads cannot share the features.

    References:
        sigma-GPTs: A New Approach to Autoregressive Models (Pannatier et al., 2024)
        https://arxiv.org/abs/2404.09562
        Generative Pretraining from Pixels (Chen et al., 2020)
        https://proceedings.mlr.press/v119/chen20s.html

    Differs from the papers: the blocks are those of ``transformer``, without rotary places; the
    two places are added, each a sum over its coordinates; output biases of each step, which start
    at the marginals.
    """

    kinds = frozenset({"vector", "image", "sequence"})

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_layers: Count = 4,
        hidden_size: Count = 128,
        num_heads: Count = 4,
        activation: Activation = "relu_squared",
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        require_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.embed: ModuleListOf[layers.Embedding] = ModuleListOf(
            layers.Embedding(spec, hidden_size) for _ in range(order.width)
        )
        self.begins = nn.Parameter(torch.zeros(hidden_size))
        self.written = Places(spec.shape, hidden_size)
        self.next = Places(spec.shape, hidden_size)
        self.conditioning = layers.conditioning(context, [hidden_size])
        self.dropout = layers.Dropout(dropout)
        self.blocks: ModuleListOf[Block] = ModuleListOf(
            Block(hidden_size, num_heads, activation, dropout, Unplaced())
            for _ in range(num_layers)
        )
        self.params = nn.Linear(hidden_size, num_params, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        nn.init.zeros_(self.params.weight)
        layers.mark_table(self.params.weight)
        layers.mark_table(self.bias)
        self._set_order(order)

    def _places(self) -> Tensor:
        """(S, E) features of the place written before, or of the beginning, and of the next."""
        places = self.order_table[:, 0]
        before = torch.cat([self.begins[None], self.written(places[:-1])])
        return before + self.next(places)

    def _read(self, values: Tensor) -> Tensor:
        """Features of what a step writes: (B, t, K) -> (B, t, E)."""
        total = self.embed[0](values[..., 0])
        for i, embed in enumerate(self.embed):
            total = total if i == 0 else total + embed(values[..., i])
        return total

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Block after block: features (B, t, E) -> parameters without biases (B, t, P).

        Args:
            x: (B, t, E) of the next tokens: all that there are, or one.
            state: Of those before; it is used up.
        """
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            before = state[f"keys.{i}"], state[f"values.{i}"]
            x, state[f"keys.{i}"], state[f"values.{i}"] = block(x, *before, None)
        return self.params(normed(x)), state

    def _empty(self, n: int, context: Tensor | None) -> State:
        """No keys and no values, and what a context says."""
        shape = (n, self.num_heads, 0, len(self.begins) // self.num_heads)
        names = (f"{kind}.{i}" for i in range(len(self.blocks)) for kind in ("keys", "values"))
        state = State({name: self.begins.new_zeros(shape) for name in names})
        for layer in self.conditioning:
            state["context"] = layer(context)
        return state

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *event) -> (B, S, P), all steps at once."""
        state = self._empty(len(x), context)
        features = self._places().expand(len(x), -1, -1)
        values = x.flatten(1)[:, self.order_table[:-1]]  # (B, S - 1, K)
        written = self._read(values)
        features = features + torch.cat([torch.zeros_like(features[:, :1]), written], 1)
        if "context" in state:
            features = features + state["context"][:, None]
        return self._run(features, state)[0] + self.bias[self.slots]

    def pack(self) -> SigmaGPTPack:
        """Features of the places, and biases, in generation order."""
        return SigmaGPTPack(self._places().unbind(), self.bias[self.slots].unbind())

    def start(self, pack: SigmaGPTPack, n: int, context: Tensor | None = None) -> State:
        """Nothing is written; with a context, what it says."""
        return self._empty(n, context)

    def step(
        self, values: Tensor | None, s: int, state: State, pack: SigmaGPTPack
    ) -> tuple[Tensor, State]:
        """One token."""
        some = next(iter(state.values()))
        features = pack.places[s].expand(len(some), 1, -1)
        if values is not None:
            features = features + self._read(values[:, None])
        if "context" in state:
            features = features + state["context"][:, None]
        params, state = self._run(features, state)
        return params[:, 0] + pack.bias[s], state
