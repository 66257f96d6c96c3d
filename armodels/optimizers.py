"""Optimizers beside those of torch."""

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import nn

from armodels.checks import NotNegative, Positive, Share, checked


@final
class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers, AdamW for all else.

    Each step of a matrix is its momentum made nearly orthogonal. Vectors, embeddings and what
    gives the parameters of a head (``layers.mark_table``) are moved by AdamW.
    Source: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/.

    Args:
        params: What is moved.
        lr: Learning rate of matrices.
        momentum: Of matrices.
        weight_decay: Of all.
        adam_lr: Learning rate of the others.
        betas: Decay of the moment estimates of the others.

    Raises:
        ValueError: This torch has no Muon.
    """

    @checked
    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Positive = 0.02,
        momentum: Share = 0.95,
        weight_decay: NotNegative = 0.0,
        adam_lr: Positive = 0.003,
        betas: tuple[Share, Share] = (0.9, 0.95),
    ):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"optimizer muon needs torch 2.9 or later, but this is {torch.__version__}; "
                f"upgrade it, or choose optimizer=adamw"
            )
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for one in params:
            hidden = one.ndim == 2 and not getattr(one, "is_table", False)
            (matrices if hidden else others).append(one)
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            self.parts["matrices"] = torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, weight_decay=weight_decay
            )
        if others:
            self.parts["others"] = torch.optim.AdamW(
                others, lr=adam_lr, betas=betas, weight_decay=weight_decay
            )
        # The groups are those of the parts, so that a schedule reaches them.
        super().__init__([group for one in self.parts.values() for group in one.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """Move everything once; no closure is called."""
        for one in self.parts.values():
            one.step()

    def state_dict(self) -> dict[str, Any]:
        """Of each part by its name."""
        return {name: one.state_dict() for name, one in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It is that of other parameters.
        """
        if state.keys() != self.parts.keys():
            raise ValueError(f"saved for {' and '.join(state)}, not {' and '.join(self.parts)}")
        for name, one in self.parts.items():
            one.load_state_dict(dict(state[name]))
        self.param_groups = [group for one in self.parts.values() for group in one.param_groups]
