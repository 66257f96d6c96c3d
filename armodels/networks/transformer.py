"""Transformers over sequences: each value asks those before it, within a window."""

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Number, Share, checked
from armodels.networks.attention import (
    Attention,
    Distances,
    Pattern,
    PlaceKind,
    appended,
    full_mask,
    make_distances,
    places_of,
    turned,
    turns,
)
from armodels.networks.base import State
from armodels.networks.layers import Dropout, ModuleListOf, mark_table
from armodels.networks.stream import FeatureStream
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

Activation = Literal["relu_squared", "gelu"]


def normed(x: Tensor) -> Tensor:
    """Features with a mean square of one."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def require_heads(hidden_size: int, num_heads: int) -> None:
    """Raise ValueError unless the heads of an attention can share the features."""
    if hidden_size % (2 * num_heads):
        raise ValueError(
            f"hidden_size is {hidden_size}; it must be a multiple of {2 * num_heads}, twice "
            f"num_heads"
        )


@final
class Block(nn.Module):
    """Attention to the values before, and a perceptron for each value: (B, t, E) -> (B, t, E).

    Args:
        size: E.
        num_heads: Of the attention.
        activation: Of the perceptron.
        dropout: Probability of dropping a feature in training.
        distances: How the distance of a key enters.
        causal: Whether each value asks itself and those before alone; else all, at once.
    """

    stands_alone = True
    """Its weights are read in its own forward pass alone, as FSDP must know."""

    def __init__(
        self,
        size: int,
        num_heads: int,
        activation: Activation,
        dropout: float,
        distances: Distances,
        *,
        causal: bool = True,
    ):
        super().__init__()
        self.causal = causal
        self.distances = distances
        self.num_heads = num_heads
        self.activation = activation
        self.heads = nn.Linear(size, 3 * size, bias=False)
        self.mixed = nn.Linear(size, size, bias=False)
        self.wide = nn.Linear(size, 4 * size, bias=False)
        self.narrow = nn.Linear(4 * size, size, bias=False)
        self.dropout = Dropout(dropout)
        for layer in (self.mixed, self.narrow):  # a block begins as the identity
            nn.init.zeros_(layer.weight)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        by: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features, and all keys and values.

        Args:
            x: (B, t, E).
            keys: (B, heads, m, D) of the m values before, whatever their places.
            values: (B, heads, m, D).
            mask: (t, m + t) bool, which keys each value asks; None: all up to its own, where
                m is 0 or t is 1.
            by: (2, t, D / 2), how queries and keys are turned (``attention.turns``), if they are.
        """
        split = self.heads(normed(x)).unflatten(-1, (3, self.num_heads, -1))
        both, value = split[:, :, :2], split[:, :, 2].transpose(1, 2)
        both = normed(both).permute(2, 0, 3, 1, 4)
        query, key = both if by is None else turned(both, by.to(both))
        keys, values = appended(keys, key), appended(values, value)
        query, bias = self.distances(query, keys)
        if bias is not None:
            allowed = full_mask(*places_of(query, keys)) if mask is None else mask
            mask = bias.masked_fill(~allowed, -torch.inf)
        in_turn = self.causal and mask is None and x.shape[1] > 1
        read = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=in_turn
        )
        x = x + self.dropout(self.mixed(read.transpose(1, 2).flatten(2)))
        wide = self.wide(normed(x))
        wide = F.relu(wide).square() if self.activation == "relu_squared" else F.gelu(wide)
        x = x + self.dropout(self.narrow(wide))
        return x, keys, values


PAST = 128
"""Values that a layer reaches back where nothing is said of it."""


@final
class Transformer(FeatureStream):
    """A transformer: in each layer a value asks values before it.

    Accepts: sequence, with levels or real values. Order: raster only. Sampling: keys and values of
    the last values are kept.
    Sources: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; over characters Al-Rfou et
    al., 2018, https://arxiv.org/abs/1808.04444; ``"strided"`` and ``"fixed"``: Child et al., 2019,
    https://arxiv.org/abs/1904.10509 (Sparse Transformer); ``memory``: Dai et al., 2019,
    https://arxiv.org/abs/1901.02860 (Transformer-XL).
    Differs from the papers: normalization before each part, without weights; rotary places (Su et
    al., 2021) where no others are chosen, and learned and sinusoidal ones by distances, so that a
    stream has no end; normalized queries and keys (Henry et al., 2020,
    https://arxiv.org/abs/2010.04245); squared ReLU (So et al., 2021,
    https://arxiv.org/abs/2109.08668); blocks that begin as the identity; no biases. A sparse
    attention takes both of its patterns in each head; a memory is read anew for each window, by
    the weights of that step, and its keys and values have no gradient either.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        num_layers: Blocks.
        hidden_size: Features of a value, E.
        num_heads: Heads of each attention; they share the features.
        attention: Which values are asked: ``"window"``, the last ``past``; ``"strided"`` and
            ``"fixed"``, some of these; ``"full"``, all that were read, so that a step takes
            longer and longer.
        past: Values that a layer reaches back, a value's own among them; layers one above another
            see further. None: 128 (``PAST``), and of ``"full"`` all.
        stride: Of ``"strided"`` and ``"fixed"``: values that are near, and of a block.
        summary: Of ``"fixed"``: values at the end of a block that are asked from later ones.
        places: How the distance of a value enters: ``"rotary"``; ``"learned"``, a number for each
            (Raffel et al., 2020); or ``"sinusoidal"`` (Dai et al., 2019).
        memory: Values at the beginning of each window that training reads without gradient and
            does not score, M: each of the others has as many before it at least. What follows
            the beginning of a stream is then never scored, and the beginning has no weight.
            ``log_prob`` is what it is without: log p of a whole event, each value given those
            before it in the event alone, of which the first ones have fewer than M.
        activation: ``"relu_squared"`` or ``"gelu"``.
        dropout: Probability of dropping a feature in training.
        context: What the model is conditioned on: a bias of the features.

    Raises:
        ValueError: The heads cannot share the features, or an attention lacks what it needs, or a
            memory leaves nothing to score or is longer than the model looks back.
    """

    otherwise = "sigma_gpt"

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
        attention: Attention = "window",
        past: Count | None = None,
        stride: Count | None = None,
        summary: Count | None = None,
        places: PlaceKind = "rotary",
        memory: Number = 0,
        activation: Activation = "relu_squared",
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, hidden_size, context)
        require_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        if past is None and attention != "full":
            past = PAST
        self.pattern = Pattern(attention, past, stride, summary)
        self.turns = places == "rotary"
        self.dropout = Dropout(dropout)
        self.blocks: ModuleListOf[Block] = ModuleListOf(
            Block(
                hidden_size,
                num_heads,
                activation,
                dropout,
                make_distances(places, num_heads, hidden_size, past),
            )
            for _ in range(num_layers)
        )
        self.params = nn.Linear(hidden_size, num_params)
        nn.init.zeros_(self.params.weight)
        mark_table(self.params.weight)
        if memory:
            self._remember(memory)

    def _remember(self, memory: int) -> None:
        """Raise ValueError unless so many values may come before what is scored."""
        field = self.receptive_field
        if memory >= self.num_steps:
            raise ValueError(
                f"memory is {memory}, but a window has {self.num_steps} values, of which none is "
                f"left to score; set a smaller memory, or a larger data.length"
            )
        if field is not None and memory > field:
            raise ValueError(
                f"memory is {memory}, but the model looks back {field} values; set a smaller "
                f"memory, or a larger past"
            )
        self.memory = memory
        self.begins.requires_grad_(False)  # No window is scored by what follows it.

    @property
    def receptive_field(self) -> int | None:
        """The values that a layer asks, and for each other layer those before its first."""
        past = self.pattern.past
        if past is None:
            return None
        return len(self.blocks) * (past - 1) + 1

    def empty(self, n: int) -> dict[str, Tensor]:
        """No keys and no values, and that none was read."""
        shape = (n, self.num_heads, 0, self.begins.shape[0] // self.num_heads)
        names = (f"{kind}.{i}" for i in range(len(self.blocks)) for kind in ("keys", "values"))
        state = {name: self.begins.new_zeros(shape) for name in names}
        return {**state, "read": torch.zeros(n, dtype=torch.int64, device=self.begins.device)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Block after block."""
        kept, num = state["keys.0"].shape[2], x.shape[1]
        # All streams of a batch have read as many values; of no streams the sum is 0.
        read = state["read"][:1].sum()
        mask, by = self.pattern.mask(num, kept, read), None
        if self.turns:
            places = read + torch.arange(num, device=x.device)
            by = turns(places, state["keys.0"].shape[3]).to(x)
        first = self.pattern.first_kept(kept + num)
        after = {"read": state["read"] + num}
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x, keys, values = block(x, state[f"keys.{i}"], state[f"values.{i}"], mask, by)
            after[f"keys.{i}"], after[f"values.{i}"] = keys[:, :, first:], values[:, :, first:]
        return self.params(normed(x)), after
