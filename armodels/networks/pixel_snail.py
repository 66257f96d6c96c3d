"""PixelSNAIL: gated causal convolutions, and attention to all earlier pixels."""

import functools
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels.checks import Count, Depth, DepthOrNone, Share, checked
from armodels.networks.base import State
from armodels.networks.layers import concat_elu
from armodels.networks.shifted import GatedBlock, ShiftedNetwork
from armodels.networks.shifted_layers import Entrance, PointConvolution, WalkLayer
from armodels.networks.shifted_runs import PixelRun, Run, WholeRun
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class CausalAttention(WalkLayer):
    """Each pixel asks the earlier ones for what they remember of themselves.

    A pixel's key and value are made of its features, its position and what was written there; a
    query is made of features and position. An empty memory stands before the first pixel.

    Args:
        size: (H, W).
        num_features: Of each pixel, F.
        num_inputs: Planes of values.
        num_keys: Size of a query and of a key.
        num_values: V.
    """

    position: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        num_features: int,
        num_inputs: int,
        num_keys: int,
        num_values: int,
    ):
        super().__init__()
        self.size = size
        self.num_keys, self.num_values = num_keys, num_values
        both, wide = num_keys + num_values, 2 * (num_features + 2)
        self.query = PointConvolution(size, wide, num_keys)
        self.memory = PointConvolution(size, wide, both)
        self.written = Entrance("point", size, num_inputs, both)
        position = torch.meshgrid(
            *[(torch.arange(n) + 0.5) / n - 0.5 for n in size], indexing="ij"
        )
        self.register_buffer("position", torch.stack(position)[None], persistent=False)

    def forward(self, x: Tensor, run: WholeRun | PixelRun) -> Tensor:
        """(B, F, H, W) -> (B, V, H, W)."""
        x = concat_elu(torch.cat([x, run.constant(self.position)], 1))
        return run.attend(self, run.through(self.query, x), run.through(self.memory, x))

    def maps(self, query: Tensor, memory: Tensor) -> Tensor:
        """All pixels at once: (B, K, H, W), (B, K + V, H, W) -> (B, V, H, W)."""
        # The memory of a pixel moves to the next, so that none sees its own.
        memory = F.pad(memory.flatten(2)[..., :-1], (1, 0)).mT[:, None]  # (B, 1, N, K + V)
        keys, values = memory.split([self.num_keys, self.num_values], -1)
        query = query.flatten(2).mT[:, None]
        # Fused kernels want keys as wide as values; zeros change no product.
        missing = max(self.num_values - self.num_keys, 0)
        query, keys = (F.pad(t, (0, missing)) for t in (query, keys))
        scale = self.num_keys**-0.5
        found = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)
        return found[:, 0].mT.unflatten(2, self.size)

    def pack(self) -> tuple[()]:
        """Nothing: its layers have packs of their own."""
        return ()

    def start(self, n: int) -> dict[str, Tensor]:
        """What the state holds: the memories in order, (B, H W, K + V)."""
        num_pixels, width = self.size[0] * self.size[1], self.num_keys + self.num_values
        return {f"{self.name}.memories": self.written.bias.new_zeros(n, num_pixels, width)}

    def pixel(
        self, query: Tensor, memory: Tensor, written: Tensor | None, n: int, state: State
    ) -> Tensor:
        """At the n-th pixel: (B, K) -> (B, V).

        Args:
            query: (B, K).
            memory: (B, K + V) what will be remembered of this pixel, less what is written there.
            written: (B, K + V) what the value says that was written at the pixel before.
            n: The pixel.
            state: Of the walk. ``NAME.pending`` is the last pixel's memory before its value is
                known.
        """
        memories = state[f"{self.name}.memories"]
        if written is not None:
            memories[:, n] = state[f"{self.name}.pending"] + written
        state[f"{self.name}.pending"] = memory
        seen = memories[:, : n + 1]
        scores = torch.bmm(seen[..., : self.num_keys], query[..., None]) * self.num_keys**-0.5
        return torch.bmm(scores.softmax(1).mT, seen[..., self.num_keys :])[:, 0]


@final
class SNAILBlock(nn.Module):
    """Gated residual blocks, then attention, mixed in by one more.

    Args:
        size: (H, W).
        num_features: F.
        num_inputs: Planes of values.
        num_resnets: Gated residual blocks before the attention.
        num_keys: Size of a query and of a key.
        num_values: Of the attention.
        dropout: Probability of dropping a hidden feature in training.
        context: What the model is conditioned on, if anything.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_features: int,
        num_inputs: int,
        num_resnets: int,
        num_keys: int,
        num_values: int,
        dropout: Share,
        context: ContextSpec | None,
    ):
        super().__init__()
        block = functools.partial(GatedBlock, dropout=dropout, context=context)
        self.resnets = nn.ModuleList(
            block("down-right", size, num_features) for _ in range(num_resnets)
        )
        self.attention = CausalAttention(size, num_features, num_inputs, num_keys, num_values)
        self.mix = block("point", size, num_features, num_skip=num_values)

    def forward(self, x: Tensor, run: WholeRun | PixelRun) -> Tensor:
        """(B, F, H, W) -> (B, F, H, W)."""
        for block in self.resnets:
            x = block(x, None, run)
        return self.mix(x, self.attention(x, run), run)


@final
class PixelSNAIL(ShiftedNetwork):
    """PixelSNAIL: causal convolutions for what is near, causal attention for all that is earlier.

    Each block has gated residual blocks of 2 x 2 convolutions that see what stands above and to
    the left, then one head of attention to all earlier pixels. There is no blind spot.

    Accepts: image. Order: raster; whole pixels with head=discretized_logistic_mixture, else the
    channels of a pixel one after another.
    Context: a bias on every gated residual block and on the features that the parameters are
    read from.
    State: of every convolution the row above and what stands to the left; keys and values.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
        num_channels: Features, F.
        num_blocks: Blocks, each with one attention.
        num_resnets: Gated residual blocks before each attention.
        num_key_channels: Size of a query and of a key.
        num_value_channels: Size of a value.
        dropout: Probability of dropping a hidden feature in training.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W); any height and width.
        returns: (B, S, P).

    References:
        PixelSNAIL: An Improved Autoregressive Generative Model (Chen et al., 2018)
        https://arxiv.org/abs/1712.09763

    Differs from the paper: keys, values and queries are linear in their activations, without a
    gated block of their own; a pixel may attend to nothing; outputs read ELU of the features and
    of their negatives (the authors' code: of the features alone); output biases of their own for
    every pixel, which start at the marginals; heads that take one channel at a time.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_channels: Count = 32,
        num_blocks: Depth = 4,
        num_resnets: DepthOrNone = 2,
        num_key_channels: Count = 4,
        num_value_channels: Count = 32,
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, num_channels, context)
        self.row_above, self.left = map(self.entrance, ("row above", "left"))
        self.blocks = nn.ModuleList(
            SNAILBlock(
                self.size,
                num_channels,
                self.num_inputs,
                num_resnets,
                num_key_channels,
                num_value_channels,
                dropout,
                context,
            )
            for _ in range(num_blocks)
        )

    def rows(self, run: Run) -> None:
        """What the first layer sees in the row above."""
        run.share(-1, run.read(self.row_above))

    def pixels(self, run: WholeRun | PixelRun) -> Tensor:
        """The blocks."""
        x = run.shared(-1) + run.read(self.left)
        for block in self.blocks:
            x = block(x, run)
        return x
