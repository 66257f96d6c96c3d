"""NADE: one hidden layer that reads the values one after another."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from armodels.checks import Count, checked
from armodels.kernels import nade as kernels
from armodels.networks import layers
from armodels.networks.base import FreeOrderNetwork, State
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class NADEPack(NamedTuple):
    """Weights in generation order, taken apart once: indexing takes a tenth of a step."""

    weight: tuple[Tensor, ...]
    """(K E, H) of each step."""
    output: tuple[Tensor, ...]
    """(H, P) of each step."""
    bias: tuple[Tensor, ...]
    """(P,) of each step."""
    hidden_bias: Tensor
    """(H,)."""


@final
class NADE(FreeOrderNetwork):
    """NADE: a hidden layer for every step, each the one before plus what was written there.

    h_s = act(c + sum{ W[x_t] : t < s }); params_s = b_s + V_s h_s. W is shared by all steps, so
    an event costs O(D H). With real values and a mixture head this is RNADE.

    Accepts: vector, image, sequence. Order: any; several share weights (``with_order``).
    Context: a bias on every hidden unit and every parameter.
    State: the pre-activation. On the CPU the forward pass and its gradient are fused
    (``armodels.kernels.nade``), and so is the sampling loop without a context.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
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

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        hidden_size: Count = 500,
        activation: layers.Activation = "relu",
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, context)
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
        return hidden, bias[..., self.slots, :]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
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
            self.order_table,
            values.index_select(1, self.order_table.flatten()).unflatten(
                1, self.order_table.shape
            ),
            self._activation_name,
        )
        return params + bias

    def hidden_units(self, x: Tensor) -> dict[str, Tensor]:
        """The hidden units once the last value is read, (B, H): no module puts them out."""
        values = self.encode(x.flatten(1), self.weight.dtype)  # (B, D, E)
        total = self.hidden_bias + torch.einsum("bde,deh->bh", values, self.weight)
        return {"hidden": self.activation(total)}

    def pack(self) -> NADEPack:
        """Weights in generation order."""
        hidden_bias, bias = self._biases(None)
        weight = self.weight[self.order_table].flatten(1, 2)
        output = self.output[self.slots].transpose(1, 2)
        return NADEPack(weight.unbind(), output.unbind(), bias.unbind(), hidden_bias)

    def start(self, pack: NADEPack, n: int, context: Tensor | None = None) -> State:
        """Nothing is read yet; with a context, each event has biases of its own."""
        if context is None:
            return State({"total": pack.hidden_bias.expand(n, -1).clone()})
        total, bias = self._biases(context)
        return State({"total": total, "bias": bias})

    def step(
        self, values: Tensor | None, s: int, state: State, pack: NADEPack
    ) -> tuple[Tensor, State]:
        """Read what was just written, then one step's parameters."""
        total = state["total"]
        if values is not None:
            new = self.encode(values, total.dtype).flatten(1)  # (B, K E)
            total.addmm_(new, pack.weight[s - 1])
        bias = state["bias"][:, s] if "bias" in state else pack.bias[s]
        return torch.addmm(bias, self.activation(total), pack.output[s]), state

    def fused_walk(
        self, family: str, noise: Tensor, temperature: float, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """For heads of logits."""
        if family not in ("bernoulli", "categorical") or context is not None:
            return None
        return kernels.walk(
            self.weight,
            self.hidden_bias,
            self.output,
            self.bias[self.slots],
            self.order_table,
            self.encode.scale,
            self._activation_name,
            noise,
            temperature,
            self.spec.dtype,
        )
