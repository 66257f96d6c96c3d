"""WaveNet: dilated causal convolutions over sequences."""

from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Range, checked
from armodels.kernels import wavenet as kernels
from armodels.networks.base import State
from armodels.networks.layers import ModuleListOf, mark_table
from armodels.networks.stream import FeatureStream
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec

Layers = Annotated[int, Range(1, 16)]
"""Of a stack: one of sixteen looks back 65,536 values, and one more doubles what is kept."""


@final
class Layer(nn.Module):
    """A gated unit that reads features and those of some time before.

    Time comes first here: what lies a dilation back is then a slice, and no copy.

    Args:
        num_channels: C, features that it reads and adds to; as many gated units.
        dilation: Values from now to the other one that is read.
        last: Nothing reads the features after it, so that it has no residual connection.
    """

    def __init__(self, num_channels: int, dilation: int, last: bool):
        super().__init__()
        self.dilation = dilation
        self.now = nn.Linear(num_channels, 2 * num_channels)
        self.before = nn.Linear(num_channels, 2 * num_channels, bias=False)
        self.residual = None if last else nn.Linear(num_channels, num_channels)

    def forward(self, x: Tensor, before: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features after the layer, and its gated units: (t, B, C) each.

        Args:
            x: (t, B, C).
            before: (u, B, C), the last u of t features that lie a dilation before those of x;
                before them were zeros.
            bias: (B, 2 C) of the gated units, by the context.
        """
        units = self.now(x)
        if bias is not None:
            units = units + bias
        if len(before):
            units = units + F.pad(self.before(before), (0, 0, 0, 0, len(x) - len(before), 0))
        values, gates = units.chunk(2, -1)
        gated = values.tanh() * gates.sigmoid()
        return x if self.residual is None else x + self.residual(gated), gated


@final
class WaveNet(FeatureStream):
    """WaveNet: a layer reads features and those of 1, 2, 4, ... values before, in stacks.

    What it says of a value depends on the last ``receptive_field`` values before it, num_stacks *
    (2 ** num_layers - 1) + 1 of them.

    Accepts: sequence, with levels or real values. Order: raster only. Sampling: the last inputs of
    each layer are kept, in a ring, so that a step costs as much as the layers have weights,
    whatever the receptive field (Fast WaveNet). On the CPU the sampling loop is fused
    (``armodels.kernels.wavenet``), also under a context.
    Sources: van den Oord et al., 2016, https://arxiv.org/abs/1609.03499; Paine et al., 2016,
    https://arxiv.org/abs/1611.09482.
    Differs from the paper: values are embedded, and no convolution precedes the first layer; a
    symbol for the beginning; the skip connections end in features of any number; output biases
    start at the mean marginal, output weights at zero.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: From the first value to the last.
        num_layers: Layers of a stack, with dilations of 1, 2, ..., 2 ** (num_layers - 1).
        num_stacks: Such stacks one above another.
        num_channels: Features that the layers read and add to, C; as many gated units each.
        num_skip_channels: Features of the sum over all layers, from which the parameters follow.
        context: What the model is conditioned on: a bias of every gated unit.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_layers: Layers = 10,
        num_stacks: Count = 1,
        num_channels: Count = 32,
        num_skip_channels: Count = 128,
        context: ContextSpec | None = None,
    ):
        dilations = [2**i for i in range(num_layers)] * num_stacks
        num_biases = 2 * num_channels * len(dilations)
        super().__init__(spec, num_params, order, num_channels, context, num_biases)
        last = len(dilations) - 1
        self.layers: ModuleListOf[Layer] = ModuleListOf(
            Layer(num_channels, dilation, i == last) for i, dilation in enumerate(dilations)
        )
        # One product for the skip connections of all layers: a sum of ten takes a tenth of a
        # training step.
        self.skip = nn.Linear(num_channels * len(dilations), num_skip_channels)
        # Each layer adds as much as if the product were its own: no less where there are many.
        nn.init.uniform_(self.skip.weight, -(num_channels**-0.5), num_channels**-0.5)
        self.mixed = nn.Linear(num_skip_channels, num_skip_channels)
        self.params = nn.Linear(num_skip_channels, num_params)
        nn.init.zeros_(self.params.weight)
        mark_table(self.params.weight)

    @property
    def receptive_field(self) -> int:
        """One value, and for each layer those of its dilation."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def empty(self, n: int) -> dict[str, Tensor]:
        """No inputs of any layer."""
        none = self.begins.new_zeros(n, 0, len(self.begins))
        inputs = {f"inputs.{i}": none for i in range(len(self.layers))}
        # All events have read equally many, and each ring begins at its remainder of the place.
        return {**inputs, "place": torch.zeros(n, dtype=torch.int64, device=none.device)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Layer after layer, of features with time first."""
        rings = [state[f"inputs.{i}"] for i in range(len(self.layers))]
        biases = self._biases(state.get("context"))
        place = int(state["place"][:1].sum())
        whole = all(r.shape[1] == one.dilation for r, one in zip(rings, self.layers, strict=True))
        in_place = whole and x.shape[1] == 1 and not torch.is_grad_enabled()
        after: dict[str, Tensor] = {}
        # The copy is a ring's own: one that is written to must share nothing with a weight.
        x = x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        units: list[Tensor] = []
        for i, (layer, ring, bias) in enumerate(zip(self.layers, rings, biases, strict=True)):
            if in_place:
                slot = ring[:, place % layer.dilation]
                before = slot[None].clone()
                slot.copy_(x[0])
            else:
                before, ring = _chunk(x, ring, layer.dilation, place)
            after[f"inputs.{i}"] = ring
            x, gated = layer(x, before, bias)
            units.append(gated)
        moved = state["place"] + 1 if in_place else torch.zeros_like(state["place"])
        total = self.skip(torch.cat(units, -1))
        params = self.params(F.relu(self.mixed(F.relu(total))))
        return params.transpose(0, 1), {**after, "place": moved}

    def _biases(self, heard: Tensor | None) -> list[Tensor] | list[None]:
        """Of the gated units of each layer (B, 2 C), by what the context says."""
        num = len(self.layers)
        return [None] * num if heard is None else list(heard.unflatten(1, (num, -1)).unbind(1))

    def fused_walk(
        self, family: str, noise: Tensor, temperature: float, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """For heads of logits."""
        if family not in ("bernoulli", "categorical"):
            return None
        num = len(self.layers)
        biases = torch.stack([layer.now.bias for layer in self.layers])[None]
        if context is not None:
            assert self.conditioning is not None
            biases = biases + self.conditioning(context).unflatten(1, (num, -1))
        residuals = [layer.residual for layer in self.layers if layer.residual is not None]
        size = len(self.begins)
        none = self.begins.new_empty(0, size)  # one layer has no residual connection
        weights = kernels.Weights(
            embed=self.embed.weight,
            begins=self.begins,
            units=torch.stack(
                [torch.cat([one.before.weight, one.now.weight], 1).T for one in self.layers]
            ),
            residual=torch.cat([none, *(one.weight.T for one in residuals)]).view(-1, size, size),
            residual_bias=torch.cat([none, *(one.bias[None] for one in residuals)]),
            skip=self.skip.weight.T.unflatten(0, (num, size)),
            sum_bias=self.skip.bias,
            mixed=self.mixed.weight.T,
            mixed_bias=self.mixed.bias,
            params=self.params.weight.T,
            params_bias=self.params.bias,
        )
        dilations = torch.tensor([layer.dilation for layer in self.layers])
        return kernels.walk(weights, biases, dilations, noise, temperature, self.spec.dtype)


def _chunk(x: Tensor, ring: Tensor, dilation: int, place: int) -> tuple[Tensor, Tensor]:
    """The features a dilation before those of x, and a ring that begins at 0.

    Args:
        x: (t, B, C).
        ring: (B, k, C) of the last inputs; where k is below the dilation, those before were zeros.
        dilation: In values.
        place: Where the ring begins, by its remainder.

    Returns:
        (u, B, C), the last u of t: those before are zeros; and (B, k, C).
    """
    both, size = x, ring.shape[1]
    if size:
        both = torch.cat([ring.roll(-(place % dilation), 1).transpose(0, 1).to(x), x])
    known = max(len(both) - dilation, 0)
    kept = both[known:].transpose(0, 1)
    if not torch.is_grad_enabled():  # In training nothing reads on: a copy would take its time.
        # Who reads single values needs a ring to write to; whole windows need no zeros.
        zeros = dilation - kept.shape[1] if len(x) == 1 else 0
        kept = F.pad(kept, (0, 0, zeros, 0)).contiguous()
    return both[:known], kept
