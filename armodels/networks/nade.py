"""NADE: one hidden layer that reads the values one after another."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from armodels.checks import Count
from armodels.kernels import nade as kernels
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork
from armodels.spec import ContextSpec, DataSpec


class NADECache(NamedTuple):
    """Weights in generation order, and what has been read so far."""

    weight: Tensor
    """(S, K E, H)."""
    output: Tensor
    """(S, H, P)."""
    bias: Tensor
    """(S, P) or, with a context, (B, S, P)."""
    total: Tensor
    """(B, H) pre-activations."""


class NADE(FreeOrderNetwork):
    """NADE: a hidden layer for every step, each the one before plus what was written there.

    h_s = act(c + sum{ W[x_t] : t < s }); params_s = b_s + V_s h_s. W is shared by all steps, so
    an event costs O(D H). With real values and a mixture head this is RNADE.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    Cache: the pre-activation. On the CPU the forward pass, its gradient and the sampling loop
    are fused (``armodels.kernels.nade``), without a context.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Flat indices written at each step, (S, K).
        hidden_size: Units of the hidden layer, H.
        activation: relu, sigmoid, tanh or elu.
        encoding: How values are read, see ``layers.Encoding``.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, *event).
        returns: (B, S, P).

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        http://proceedings.mlr.press/v15/larochelle11a.html
        RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013)
        https://arxiv.org/abs/1306.0186

    Differs from the paper: ReLU by default, for the sigmoid; output biases start at the
    marginals; RNADE's rescaling of the pre-activation by 1 / s is left out.
    """

    kinds = frozenset({"vector", "image", "sequence"})

    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Tensor,
        *,
        hidden_size: Count = 500,
        activation: str = "relu",
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        layers.require_positive(hidden_size=hidden_size)
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self._activation_name = activation
        # Laid out by event index, not by step: orders share all weights.
        self.weight = nn.Parameter(
            torch.empty(spec.num_dims, self.encode.num_features, hidden_size)
        )
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Parameter(torch.empty(self.num_steps, num_params, hidden_size))
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        widths = [hidden_size, self.num_steps * num_params]
        self.conditioning = layers.conditioning(context, widths)
        nn.init.normal_(self.weight, std=spec.num_dims**-0.5)
        nn.init.normal_(self.output, std=0.01)
        self._set_order(order)

    def _biases(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the hidden units, (H,), and in generation order (S, P); with a context (B, ...)."""
        hidden, bias = self.hidden_bias, self.bias
        if context is not None:
            hidden = hidden + self.conditioning[0](context)
            bias = bias + self.conditioning[1](context).view(-1, *bias.shape)
        return hidden, bias[..., self.rows, :]

    def forward(self, x, context=None):
        """(B, *event) -> (B, S, P)."""
        x = x.flatten(1)
        hidden_bias, bias = self._biases(context)
        if self.encode.one_hot:
            values = x.to(self.weight.dtype)  # levels: each picks its row of the weights
        else:
            values = self.encode(x, self.weight.dtype)[..., 0]
        params = kernels.conditionals(
            self.weight,
            hidden_bias,
            self.output,
            self.order,
            values.index_select(1, self.order.flatten()).unflatten(1, self.order.shape),
            self._activation_name,
        )
        return params + bias

    def start(self, pack, batch_size, context=None):
        """Nothing read yet."""
        hidden_bias, bias = self._biases(context)
        return NADECache(
            self.weight[self.order].flatten(1, 2),
            self.output[self.rows].transpose(1, 2),
            bias,
            hidden_bias.expand(batch_size, -1).clone(),
        )

    def step(self, values, s, cache, pack):
        """Read what was just written, then one step's parameters."""
        if s > 0:
            new = self.encode(values, cache.total.dtype).flatten(1)  # (B, K E)
            cache.total.addmm_(new, cache.weight[s - 1])
        hidden = self.activation(cache.total)
        return torch.addmm(cache.bias[..., s, :], hidden, cache.output[s]), cache

    def fused_walk(self, family, noise, temperature, context=None):
        """For heads of logits."""
        if family not in ("bernoulli", "categorical") or context is not None:
            return None
        return kernels.walk(
            self.weight,
            self.hidden_bias,
            self.output,
            self.bias[self.rows],
            self.order,
            self.encode.scale,
            self._activation_name,
            noise,
            temperature,
            self.spec.dtype,
        )
