"""ConvNADE: convolutions that read the known pixels and a mask of which they are."""

from typing import Annotated, final

import torch
from torch import Tensor, nn

from armodels.checks import LARGEST, Count, Depth, Odd, Range, checked
from armodels.networks import layers
from armodels.networks.base import AnyOrderNetwork
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class ConvNADE(AnyOrderNetwork):
    """ConvNADE: a convolutional network trained on random known parts, for all orders.

    Accepts: image. Order: any, all trained at once (``params_given``).
    Context: a bias on the maps of every layer and on every parameter.
    State: the values; a step is one pass for itself alone. Reusing maps would save little: the
    network sees most of the image from each pixel, so that a new value changes nearly all of them.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: Which values are written at each step.
        num_channels: Maps of each hidden layer.
        num_layers: Hidden layers.
        kernel_size: Height and width of each convolution, odd.
        activation: relu, sigmoid, tanh or elu.
        encoding: How values are read, see ``layers.Encoding``; unknown ones are zeros.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W).
        returns: (B, S, P).

    References:
        Neural Autoregressive Distribution Estimation (Uria et al., 2016), section 5
        https://arxiv.org/abs/1605.02226

    Differs from the paper: padded convolutions that keep the size, with residual connections,
    rather than valid ones followed by full ones, so that one config fits images of every size; an
    output bias for each step, which starts at the marginals.
    """

    kinds = frozenset({"image"})

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_channels: Count = 32,
        num_layers: Depth = 6,
        kernel_size: Annotated[int, Odd(1), Range(1, LARGEST)] = 7,
        activation: layers.Activation = "relu",
        encoding: layers.EncodingName = "auto",
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, encoding, context)
        self.activation = layers.activation(activation)
        channels, height, width = spec.shape
        # Planes of values, of their mask, and of parameters: one for each value of a pixel that
        # is written at a step of its own.
        self.num_planes = self.num_steps // (height * width)
        sizes = [channels * self.encode.num_features + self.num_planes]
        sizes += [num_channels] * num_layers
        self.hidden = layers.ModuleListOf(
            nn.Conv2d(a, b, kernel_size, padding=kernel_size // 2)
            for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.output = nn.Conv2d(num_channels, self.num_planes * num_params, 1, bias=False)
        widths = [*sizes[1:], self.num_planes * num_params]
        self.conditioning = layers.conditioning(context, widths, (height, width))
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layers.bias_of(layer))
        nn.init.normal_(self.output.weight, std=0.01)

    def params_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """One pass: (B, C, H, W), (B, S) -> (B, S, P)."""
        _, height, width = self.spec.shape
        inputs, by_slot = self._read_known(x, known)
        inputs = inputs.unflatten(1, (-1, height * width)).transpose(2, 3).flatten(1)
        h = torch.cat([inputs, by_slot.to(inputs)], 1).unflatten(1, (-1, height, width))
        by_context = [layer(context) for layer in self.conditioning]
        for i, layer in enumerate(self.hidden):
            new = layer(h)
            if by_context:
                new = new + by_context[i]
            new = self.activation(new)
            h = new if i == 0 else h + new
        params = self.output(h)
        if by_context:
            params = params + by_context[-1]
        params = params.flatten(2).unflatten(1, (self.num_planes, self.num_params))
        params = params.transpose(2, 3).flatten(1, 2) + self.bias  # (B, S, P), by slot
        return params.index_select(1, self.slots)
