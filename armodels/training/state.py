"""Where a training stands."""

import math
from dataclasses import dataclass, field
from typing import final


@final
@dataclass
class State:
    """Where a training stands; with the weights, all that a checkpoint must hold.

    Attributes:
        step: Steps of this candidate.
        seconds: Of training and evaluations on valid.
        spent: Seconds of everything, what loads and tests the model included.
        examples: Trained on so far, of all candidates.
        best_nats: The best valid nats of all candidates.
        best_step: The step of its own candidate at which these were found.
        valid_step: The step of the last evaluation; None: there was none.
        evaluations_since_best: Evaluations since this candidate's best.
        window_log_prob: Sum since the last point of the curve.
        window_examples: Examples of that sum.
        since_log_prob: Sum since the last evaluation.
        since_examples: Examples of that sum.
        valid: The last evaluation, as ``Evaluation.report`` has it.
        candidate: Which of ``trainer.select`` is in training.
        earlier_steps: Steps of the candidates before it.
        began: Seconds of the run at which it began.
        own_best_nats: Its best valid nats.
        tried: What each candidate before it had, valid nats; None: it was left out.
        selected: The candidate that had the best.
    """

    step: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    examples: int = 0
    best_nats: float = math.inf
    best_step: int = 0
    valid_step: int | None = None
    evaluations_since_best: int = 0
    window_log_prob: float = 0.0
    window_examples: int = 0
    since_log_prob: float = 0.0
    since_examples: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    candidate: int = 0
    earlier_steps: int = 0
    began: float = 0.0
    own_best_nats: float = math.inf
    tried: list[float | None] = field(default_factory=list)
    selected: int = 0

    @property
    def sums(self) -> dict[str, float]:
        """Of several processes each has its own part of these."""
        parts = ("window_log_prob", "window_examples", "since_log_prob", "since_examples")
        return {name: getattr(self, name) for name in parts}

    @property
    def total_step(self) -> int:
        """Steps of all candidates."""
        return self.earlier_steps + self.step

    def take_evaluation(self, valid: dict[str, float]) -> bool:
        """Take in an evaluation on valid; whether none of any candidate was better."""
        self.evaluations_since_best += 1
        if valid["nats"] < self.own_best_nats:
            self.own_best_nats = valid["nats"]
            self.evaluations_since_best = 0
        best = valid["nats"] < self.best_nats
        if best:
            self.best_nats, self.best_step = valid["nats"], self.step
            self.selected = self.candidate
        return best

    def next_candidate(self, spent: float) -> None:
        """Go on to the next candidate, ``spent`` seconds after the run began."""
        self.candidate += 1
        self.earlier_steps += self.step
        self.began = spent
        self.step = self.evaluations_since_best = self.window_examples = 0
        self.since_log_prob, self.since_examples = 0.0, 0
        self.window_log_prob, self.own_best_nats, self.valid_step = 0.0, math.inf, None
