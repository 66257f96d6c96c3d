"""Entropies of conditionals: how many nats a model expects each value to take.

Shapes: B batch, S steps, K values per step, P parameters per step, L levels.
"""

import torch
from torch import Tensor

from armodels.heads import Head

MAX_LISTED = 4_000_000
"""Log-probabilities of levels that are listed at once, 32 MB of float64."""


def entropies(head: Head, params: Tensor, values: Tensor) -> Tensor:
    """Entropy of each value's conditional, nats: (B, S, P), (B, S, K) -> (B, S, K).

    -sum{ p(v | before) log p(v | before) : v of L levels }, where "before" are the values of the
    earlier steps and those of this step before it.

    Args:
        head: Of values with levels.
        params: (B, S, P).
        values: (B, S, K), what was written.

    Raises:
        ValueError: The head is of real values, whose conditionals have a density.
    """
    num_levels = head.level_log_probs(params[:1, :1], values[:1, :1, :0]).shape[-1]
    # A head of mixtures holds a number for each level and each of some ten components.
    size = max(1, MAX_LISTED // (10 * num_levels * max(1, len(params))))
    parts = []
    for some, written in zip(params.split(size, 1), values.split(size, 1), strict=True):
        each = [
            torch.special.entr(head.level_log_probs(some, written[..., :k]).exp()).sum(-1)
            for k in range(values.shape[-1])
        ]
        parts.append(torch.stack(each, -1))
    return torch.cat(parts, 1)
