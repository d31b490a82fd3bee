"""How far a run has come: the counters that a checkpoint keeps beside weights and cursor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunState:
    """`step` counts global batches consumed, `applied_steps` those that changed the weights.

    phase_applied_steps: those of them since the present phase began. tokens: real tokens consumed by all ranks, and
    source_tokens the same by the name of the mixture's source. best_score: the least so far of what decides the
    best checkpoint (a validation loss in nats; a task's metric, its sign turned where more is better), and its step.
    evaluation_pending: whether the evaluation of this step was begun and not ended.
    """

    step: int = 0
    applied_steps: int = 0
    phase_applied_steps: int = 0
    tokens: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    evaluation_pending: bool = False

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counters of a checkpoint."""
        for key in asdict(self):
            # Checkpoints of earlier versions lack what was added since.
            setattr(self, key, state.get(key, getattr(self, key)))

    def offer_best(self, score: float) -> bool:
        """Record an evaluation's score; True when it is the least so far, which one that is no number never is."""
        least = math.inf if self.best_score is None else self.best_score
        if not score < least:
            return False
        self.best_score, self.best_step = score, self.step
        return True
