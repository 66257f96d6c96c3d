"""A transformer that reads the known values and which they are, for all orders."""

from typing import final

import torch
from torch import Tensor, nn

from armodels.checks import Count, Share, checked
from armodels.networks import layers
from armodels.networks.attention import Unplaced
from armodels.networks.base import AnyOrderNetwork
from armodels.networks.layers import ModuleListOf
from armodels.networks.sigma_gpt import Places
from armodels.networks.transformer import Activation, Block, normed, require_heads
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class MaskedTransformer(AnyOrderNetwork):
    """A transformer in which every value asks every other, trained on random known parts.

    A token for each step's values, in no order but with their place: what is unknown is masked.

    Accepts: vector, image, sequence. Order: any, all trained at once (``params_given``).
    Context: a bias of the features. State: the values; a step is one pass, as a new value changes
    what every other token says.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        num_layers: Blocks.
        hidden_size: Features of a token, E.
        num_heads: Heads of each attention; they share the features.
        activation: ``"relu_squared"`` or ``"gelu"``.
        dropout: Probability of dropping a feature in training.
        encoding: How values are read, see ``layers.Encoding``; unknown ones are zeros.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    Raises:
        ValueError: The heads cannot share the features.

    References:
        Autoregressive Diffusion Models (Hoogeboom et al., 2021) https://arxiv.org/abs/2110.02037
        BERT (Devlin et al., 2018) https://arxiv.org/abs/1810.04805

    Differs from the papers: the blocks are those of ``transformer``, without rotary places; output
    biases of each step, which start at the marginals; real values, too.
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
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, encoding, context)
        require_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.read = nn.Linear(order.width * self.encode.num_features + 1, hidden_size)
        self.places = Places(spec.shape, hidden_size)
        self.conditioning = layers.conditioning(context, [hidden_size])
        self.dropout = layers.Dropout(dropout)
        self.blocks: ModuleListOf[Block] = ModuleListOf(
            Block(hidden_size, num_heads, activation, dropout, Unplaced(), causal=False)
            for _ in range(num_layers)
        )
        self.output = nn.Linear(hidden_size, num_params, bias=False)
        nn.init.zeros_(self.output.weight)
        for weight in (self.read.weight, self.output.weight, self.bias):
            layers.mark_table(weight)

    def params_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """One pass: (B, *event), (B, S) -> (B, S, P)."""
        inputs, by_slot = self._read_known(x, known)
        # Values of a step are S apart, see ``FreeOrderNetwork``: (B, S, K E).
        inputs = inputs.unflatten(1, (-1, self.num_steps)).transpose(1, 2).flatten(2)
        h = self.read(torch.cat([inputs, by_slot[..., None].to(inputs)], -1))
        h = h + self.places(torch.arange(self.num_steps, device=x.device))
        for layer in self.conditioning:
            h = h + layer(context)[:, None]
        h = self.dropout(h)
        nothing = h.new_zeros(len(h), self.num_heads, 0, h.shape[-1] // self.num_heads)
        for block in self.blocks:
            h, _, _ = block(h, nothing, nothing, None)
        return (self.output(normed(h)) + self.bias).index_select(1, self.slots)
