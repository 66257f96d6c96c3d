"""PixelCNN++: two streams of gated residual blocks, down- and up-sampled with shortcuts."""

import itertools
from typing import final

from torch import Tensor, nn

from armodels.checks import Count, Depth, Share, checked
from armodels.networks.layers import ModuleListOf
from armodels.networks.shifted import CONVOLUTIONS, GatedBlock, ShiftedNetwork
from armodels.networks.shifted_layers import DownGrowth, DownRightGrowth
from armodels.networks.shifted_runs import PixelRun, Run, WholeRun
from armodels.orders import Order
from armodels.spec import ContextSpec, DataSpec


@final
class Stream(nn.Module):
    """One kind's blocks: down the stages and up again, shortcuts from each way down to its way up.

    Args:
        kind: "down", whose blocks share their features, or "down-right", whose blocks listen.
        sizes: (H, W) of each stage.
        num_channels: F.
        num_resnets: Blocks of each stage on the way down.
        dropout: Probability of dropping a hidden feature in training.
        context: What the model is conditioned on, if anything.
    """

    def __init__(
        self,
        kind: str,
        sizes: list[tuple[int, int]],
        num_channels: int,
        num_resnets: int,
        dropout: Share,
        context: ContextSpec | None,
    ):
        super().__init__()
        self.num_stages = len(sizes)
        role = "shares_as" if kind == "down" else "listens_to"
        numbers = itertools.count()

        def blocks(size: tuple[int, int], count: int, num_skip: int) -> "ModuleListOf[GatedBlock]":
            return ModuleListOf(
                GatedBlock(
                    kind,
                    size,
                    num_channels,
                    num_skip=num_skip,
                    dropout=dropout,
                    context=context,
                    **{role: next(numbers)},
                )
                for _ in range(count)
            )

        self.descent = ModuleListOf(blocks(size, num_resnets, 0) for size in sizes)
        # The coarsest stage goes up from its last block, which is no shortcut then.
        self.ascent = ModuleListOf(
            blocks(size, num_resnets + (k + 1 < len(sizes)), num_channels)
            for k, size in enumerate(sizes)
        )
        self.shrink = ModuleListOf(
            CONVOLUTIONS[kind](size, num_channels, num_channels, stride=2) for size in sizes[:-1]
        )
        growth = DownGrowth if kind == "down" else DownRightGrowth
        self.grow = ModuleListOf(growth(size, num_channels) for size in sizes[:-1])

    def forward(self, x: Tensor, run: Run, stage: int = 0) -> Tensor:
        """Features of a stage from its features, through all coarser ones.

        Args:
            x: (B, F, H, W), or one row or pixel of them, as the run has it.
            run: Applies the layers.
            stage: Of the scale of x; 0: the finest.
        """
        shortcuts = [x]
        for block in self.descent[stage]:
            x = block(x, None, run)
            shortcuts.append(x)
        if stage + 1 == self.num_stages:
            shortcuts.pop()
        else:
            coarse = run.apply(self.shrink[stage], x)
            if coarse is not None:
                coarse = self(coarse, run.coarser(), stage + 1)
            grown = run.apply(self.grow[stage], coarse)
            assert grown is not None
            x = grown
        for block in self.ascent[stage]:
            x = block(x, shortcuts.pop(), run)
        return x


@final
class PixelCNNPP(ShiftedNetwork):
    """PixelCNN++: what the rows above say, and what those and the left say, in two streams.

    The down stream sees the rows above; the down-right stream sees also what stands to the left,
    and listens to the down stream's block beside each of its own. Both are halved at each stage,
    and doubled again with shortcuts from the way down. There is no blind spot.

    Accepts: image. Order: raster; whole pixels with head=discretized_logistic_mixture, else the
    channels of a pixel one after another.
    Context: a bias on every block and on the features that the parameters are read from.
    State: of every layer the row above and what stands to the left, at each scale; the down
    stream runs once a row, a coarser stage once in two rows and columns.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P.
        order: The raster order of the data; no other.
        num_channels: Features of each stream, F.
        num_resnets: Gated residual blocks of each stage on the way down, and on the way up.
        num_stages: Scales, each half as fine as the one before; 1: no down-sampling.
        dropout: Probability of dropping a hidden feature in training.
        context: What the model is conditioned on, if anything.

    Shapes:
        x: (B, C, H, W); any height and width.
        returns: (B, S, P).

    References:
        PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood
        (Salimans et al., 2017) https://arxiv.org/abs/1701.05517

    Differs from the paper: output biases of their own for every pixel, which start at the
    marginals, and outputs that start near them; what a block hears from the other stream and
    from its shortcut is normed apart; outputs read ELU of the features and of their negatives
    (the authors' code: of the features alone); a context enters at a block's first convolution,
    not before its gate; odd sizes; heads that take one channel at a time.
    """

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        num_channels: Count = 32,
        num_resnets: Depth = 2,
        num_stages: Depth = 2,
        dropout: Share = 0.0,
        context: ContextSpec | None = None,
    ):
        super().__init__(spec, num_params, order, num_channels, context)
        sizes = [self.size]
        while len(sizes) < num_stages:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        self.above, self.row_above, self.left = map(self.entrance, ("above", "row above", "left"))
        keys = (sizes, num_channels, num_resnets, dropout, context)
        self.down = Stream("down", *keys)
        self.down_right = Stream("down-right", *keys)

    def rows(self, run: Run) -> None:
        """The down stream."""
        run.share(-1, run.read(self.row_above))
        self.down(run.read(self.above), run)

    def pixels(self, run: WholeRun | PixelRun) -> Tensor:
        """The down-right stream."""
        return self.down_right(run.shared(-1) + run.read(self.left), run)
