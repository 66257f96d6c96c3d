"""Transformers over sequences: each value asks those before it, within a window."""

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Share, checked
from armodels.networks.base import State
from armodels.networks.layers import ModuleListOf, mark_table
from armodels.networks.stream import FeatureStream
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

Activation = Literal["relu_squared", "gelu"]


def rotated(x: Tensor, places: Tensor) -> Tensor:
    """Features (..., t, D) turned by angles that grow with their places (t,), D even.

    The product of two depends on the distance of their places alone.
    Source: Su et al., 2021, https://arxiv.org/abs/2104.09864.

    Args:
        x: (..., t, D).
        places: (t,).
    """
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.double) / half)
    angles = places[:, None] * rates
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def window_mask(num_queries: int, num_keys: int, past: int, device: torch.device) -> Tensor:
    """Which keys a query may ask: (queries, keys) bool; the last query stands at the last key.

    Args:
        num_queries: The last of the keys' places.
        num_keys: All of them.
        past: So many keys, its own among them.
        device: Where the mask is needed.
    """
    keys = torch.arange(num_keys, device=device)
    queries = keys[num_keys - num_queries :, None]
    return (keys <= queries) & (keys > queries - past)


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
        rotary: Whether it depends on the distance of two values; else on no places at all.
        causal: Whether each value asks itself and those before alone; else all, at once.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        activation: Activation,
        dropout: float,
        *,
        rotary: bool = True,
        causal: bool = True,
    ):
        super().__init__()
        self.causal = causal
        self.rotary = rotary
        self.num_heads = num_heads
        self.activation = activation
        self.heads = nn.Linear(size, 3 * size, bias=False)
        self.mixed = nn.Linear(size, size, bias=False)
        self.wide = nn.Linear(size, 4 * size, bias=False)
        self.narrow = nn.Linear(4 * size, size, bias=False)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.mixed, self.narrow):  # a block begins as the identity
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, past: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features, and the keys and values that the next ones may ask.

        Args:
            x: (B, t, E).
            keys: (B, heads, m, D) of the m values before, not rotated.
            values: (B, heads, m, D).
            past: Keys that are asked, a value's own among them.
        """
        split = self.heads(normed(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = normed(query), normed(key)
        keys, values = torch.cat([keys.to(key), key], 2), torch.cat([values.to(value), value], 2)
        num, all_of_them = x.shape[1], keys.shape[2]
        asked, answers = query, keys
        if self.rotary:
            # Places count from the oldest key: only distances matter, and small numbers are exact.
            places = torch.arange(all_of_them, device=x.device, dtype=torch.double)
            asked, answers = rotated(query, places[all_of_them - num :]), rotated(keys, places)
        whole = num == all_of_them <= past
        free = not self.causal or (num == 1 and all_of_them <= past)  # asks every key
        mask = None if whole or free else window_mask(num, all_of_them, past, x.device)
        read = F.scaled_dot_product_attention(
            asked, answers, values, attn_mask=mask, is_causal=whole and self.causal
        )
        x = x + self.dropout(self.mixed(read.transpose(1, 2).flatten(2)))
        wide = self.wide(normed(x))
        wide = F.relu(wide).square() if self.activation == "relu_squared" else F.gelu(wide)
        x = x + self.dropout(self.narrow(wide))
        kept = max(all_of_them - past + 1, 0)
        return x, keys[:, :, kept:], values[:, :, kept:]


@final
class Transformer(FeatureStream):
    """A transformer: in each layer a value asks the last ``past`` values.

    Accepts: sequence, with levels or real values. Order: raster only. Sampling: keys and values of
    the last values are kept.
    Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; over characters Al-Rfou et al.,
    2018, https://arxiv.org/abs/1808.04444.
    Differs from the paper: normalization before each part, without weights; rotary places (Su et
    al., 2021); normalized queries and keys (Henry et al., 2020, https://arxiv.org/abs/2010.04245);
    squared ReLU (So et al., 2021, https://arxiv.org/abs/2109.08668); blocks that begin as the
    identity; no biases.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        num_layers: Blocks.
        hidden_size: Features of a value, E.
        num_heads: Heads of each attention; they share the features.
        past: Values that a layer asks, a value's own among them; layers one above another see
            further.
        activation: ``"relu_squared"`` or ``"gelu"``.
        dropout: Probability of dropping a feature in training.
        context: What the model is conditioned on: a bias of the features.

    Raises:
        ValueError: The heads cannot share the features.
    """

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
        past: Count = 128,
        activation: Activation = "relu_squared",
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, hidden_size, context)
        require_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.past = past
        self.dropout = nn.Dropout(dropout)
        self.blocks: ModuleListOf[Block] = ModuleListOf(
            Block(hidden_size, num_heads, activation, dropout) for _ in range(num_layers)
        )
        self.params = nn.Linear(hidden_size, num_params)
        nn.init.zeros_(self.params.weight)
        mark_table(self.params.weight)

    def empty(self, n: int) -> dict[str, Tensor]:
        """No keys and no values."""
        shape = (n, self.num_heads, 0, self.begins.shape[0] // self.num_heads)
        names = (f"{kind}.{i}" for i in range(len(self.blocks)) for kind in ("keys", "values"))
        return {name: self.begins.new_zeros(shape) for name in names}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Block after block."""
        after = {}
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            before = state[f"keys.{i}"], state[f"values.{i}"]
            x, after[f"keys.{i}"], after[f"values.{i}"] = block(x, *before, self.past)
        return self.params(normed(x)), after
