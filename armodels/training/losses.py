"""Losses that are still on the device: brought over some steps at a time."""

import math
from typing import final

import torch
from torch import Tensor

from armodels.training.state import State


@final
class Losses:
    """Losses of the steps since they were last brought over from the device.

    Reading one would wait for its step to end.
    """

    def __init__(self) -> None:
        self.norm = math.nan
        """The gradient's norm at the last step that was brought over."""
        self._pending: list[tuple[int, Tensor, Tensor]] = []

    def add(self, num_examples: int, log_prob: Tensor, norm: Tensor) -> None:
        """Take in a step.

        Args:
            num_examples: This process's.
            log_prob: Their sum.
            norm: Of the gradient.
        """
        self._pending.append((num_examples, log_prob, norm))

    def clear(self) -> None:
        """Forget what was not brought over."""
        self._pending = []
        self.norm = math.nan

    def flush(self, state: State, advice: str) -> None:
        """Bring the losses over into the sums of ``state``; stop at the first that is not finite.

        Done before anything is logged or saved, so that no checkpoint holds broken weights.

        Args:
            state: Where the training stands.
            advice: What is left, for the sentence of the error.

        Raises:
            FloatingPointError: A loss or a gradient's norm is not finite.
        """
        if not self._pending:
            return
        counts, sums, gradients = zip(*self._pending, strict=True)
        log_probs, norms = torch.stack(sums).tolist(), torch.stack(gradients).tolist()
        first = state.step - len(counts)
        for i, (log_prob, norm) in enumerate(zip(log_probs, norms, strict=True)):
            if not (math.isfinite(log_prob) and math.isfinite(norm)):
                raise FloatingPointError(
                    f"the loss became {-log_prob / max(counts[i], 1):g} at step {first + i + 1} "
                    f"(gradient norm {norm:g}); {advice}; "
                    f"try a lower optimizer.lr or a trainer.max_grad_norm"
                )
        for log_prob in log_probs:  # one by one: the sum must not depend on when it is taken
            state.window_log_prob += log_prob
            state.since_log_prob += log_prob
        state.window_examples += sum(counts)
        state.since_examples += sum(counts)
        self.norm = norms[-1]
        self._pending = []
