"""NADE: one hidden layer that reads the values one after another."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from armodels.kernels import nade as kernels
from armodels.networks import layers
from armodels.networks.base import Network
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


class NADE(Network):
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
        hidden_size: int = 500,
        activation: str = "relu",
        encoding: str = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
        if hidden_size < 1:
            raise ValueError(f"hidden_size is {hidden_size}; it must be at least 1")
        self.encode = layers.Encoding(spec, encoding)
        self.activation = layers.activation(activation)
        self._activation = activation
        # Laid out by event index, not by step: orders share all weights.
        self.weight = nn.Parameter(
            torch.empty(spec.num_dims, self.encode.num_features, hidden_size)
        )
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Parameter(torch.empty(self.num_steps, num_params, hidden_size))
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))
        widths = [hidden_size, self.num_steps * num_params] if context else []
        self.conditioning = nn.ModuleList(layers.Conditioning(context, n) for n in widths)
        nn.init.normal_(self.weight, std=spec.num_dims**-0.5)
        nn.init.normal_(self.output, std=0.01)
        self._set_order(order)

    def _set_order(self, order: Tensor) -> None:
        device = self.bias.device
        self.register_buffer("order", order.to(device), persistent=False)
        # A step's parameters are stored with the first value that it writes.
        self.register_buffer("rows", order[:, 0].to(device), persistent=False)

    def with_order(self, order, *, seed=None):
        """The same weights under another order."""
        view = copy.copy(self)
        view._buffers = dict(self._buffers)
        view._set_order(order)
        return view

    def set_marginals(self, params):
        """Output biases at the marginals."""
        with torch.no_grad():
            self.bias[self.rows] = params.to(self.bias)

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
            self._activation,
        )
        return params + bias

    def init_cache(self, batch_size, context=None):
        """Nothing read yet."""
        hidden_bias, bias = self._biases(context)
        return NADECache(
            self.weight[self.order].flatten(1, 2),
            self.output[self.rows].transpose(1, 2),
            bias,
            hidden_bias.expand(batch_size, -1).clone(),
        )

    def step(self, values, s, cache):
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
            self._activation,
            noise,
            temperature,
            self.spec.dtype,
        )
