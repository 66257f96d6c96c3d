"""Do counts agree with probabilities?"""

import torch
from scipy import stats
from torch import Tensor


def p_value(index: Tensor, log_probs: Tensor) -> float:
    """Pearson's chi-squared test of draws against a distribution.

    Args:
        index: (N,) outcome of each draw.
        log_probs: (O,) nats; outcomes that expect fewer than 5 draws are pooled.
    """
    counts = torch.bincount(index, minlength=len(log_probs)).double()
    expected = log_probs.exp() * len(index)
    assert counts[expected == 0].sum() == 0, "an impossible outcome was drawn"
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(float(statistic), len(counts) - 1))
