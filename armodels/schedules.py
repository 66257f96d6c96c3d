"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state.

In a run of limited time, they are functions of the share of that time that is over, too.
"""

import math
from abc import ABC, abstractmethod
from typing import final

from armodels.checks import Factor, NotNegative, Number, checked

EARLY = 0.1
"""Share of the time in which steps alone count, in a run that is limited in both: loading and the
first slow step would pass for a lack of time. A run that ends its steps well within its time thus
never depends on the clock, and is repeated bit for bit."""


class Schedule(ABC):
    """Factor on the learning rate, after a linear warm-up over ``warmup_steps``."""

    @checked
    def __init__(self, warmup_steps: Number = 0) -> None:
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, total: int | None, share: float = 0.0) -> float:
        """Factor on the learning rate.

        Args:
            step: Counted from 0.
            total: How many steps there are; None: as many as the time allows.
            share: Of the time that is over, from 0 to 1; 0: it has no limit.
        """
        if total is not None and share < EARLY:
            share = 0.0
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        rest = None if total is None else max(total - self.warmup_steps, 1)
        return self._decay(step - self.warmup_steps, rest, share)

    @abstractmethod
    def _decay(self, step: int, total: int | None, share: float) -> float:
        """Factor after the warm-up, both counts starting there."""


@final
class Constant(Schedule):
    """The same learning rate throughout."""

    def _decay(self, step: int, total: int | None, share: float) -> float:
        return 1.0


@final
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final`` at the last step, or where the time ends.

    References:
        SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
        https://arxiv.org/abs/1608.03983

    Differs from the paper: no restarts.
    """

    @checked
    def __init__(self, warmup_steps: Number = 0, final: NotNegative = 0.0) -> None:
        super().__init__(warmup_steps)
        self.final = final

    def _decay(self, step: int, total: int | None, share: float) -> float:
        angle = 0.0 if total is None else math.pi * step / total
        angle = max(angle, math.pi * share)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(angle))


@final
class Exponential(Schedule):
    """The learning rate is multiplied by ``gamma`` at every step."""

    @checked
    def __init__(self, warmup_steps: Number = 0, gamma: Factor = 0.9999) -> None:
        super().__init__(warmup_steps)
        self.gamma = gamma

    def _decay(self, step: int, total: int | None, share: float) -> float:
        return self.gamma**step
