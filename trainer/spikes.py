"""Loss spikes: telling them from noise by nothing but the losses of the steps before, the same on all ranks."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config import StabilityConfig
from trainer.errors import UserError
from trainer.step_sums import StepSums, stacked, weighted_mean


class SpikeDetector:
    """A loss more than `threshold` standard deviations above the mean of the last `window` losses is a spike.

    A pure function of the losses it was given. Nothing is a spike before the window is full; spikes, and what is no
    number, do not enter it.
    """

    def __init__(self, *, window: int, threshold: float) -> None:
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=window)

    def is_spike(self, loss: float) -> bool:
        """Take in a step's loss."""
        if not math.isfinite(loss):
            return False
        if len(self._losses) == self._losses.maxlen:
            limit = statistics.fmean(self._losses) + self._threshold * statistics.pstdev(self._losses)
            if loss > limit:
                return True
        self._losses.append(loss)
        return False

    @property
    def losses(self) -> list[float]:
        """The window, oldest first."""
        return list(self._losses)

    def restart(self, losses: Sequence[float]) -> None:
        """Go on from the window of a checkpoint."""
        self._losses.clear()
        self._losses.extend(losses)


class SpikeGuard:
    """Looks for spikes in a run's losses over all ranks, before the update (`accept`) or on logging steps (`find`)."""

    def __init__(self, config: StabilityConfig, *, term_weights: Mapping[str, float]) -> None:
        self.on_spike = config.on_spike
        self.spikes = 0
        self._max_spikes = config.max_spikes
        self._weights = term_weights
        self._detector = SpikeDetector(window=config.window, threshold=config.threshold)
        self._unread: list[tuple[int, StepSums]] = []

    def accept(self, sums: StepSums) -> bool:
        """Whether a step's update may be applied, from its sums; collective, waits for the device."""
        (loss,) = self._losses([sums])
        return not self._is_spike(loss)

    def note(self, sums: StepSums, *, step: int) -> None:
        """Keep a step's sums, on the device, until `find` looks at them."""
        self._unread.append((step, sums))

    def find(self) -> int | None:
        """The first step since the last call whose loss was a spike; collective, waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return None
        for (step, _), loss in zip(unread, self._losses([sums for _, sums in unread]), strict=True):
            if self._is_spike(loss):
                return step
        return None

    def _is_spike(self, loss: float) -> bool:
        if not self._detector.is_spike(loss):
            return False
        self.spikes += 1
        if self.spikes > self._max_spikes:
            raise UserError(
                f"the loss spiked {self.spikes} times (to {loss:.4g} now), more than stability.max_spikes="
                f"{self._max_spikes}; lower optimizer.learning_rate or raise stability.threshold, and start again"
            )
        return True

    def _losses(self, steps: Sequence[StepSums]) -> list[float]:
        totals: Tensor = torch.stack([stacked(sums) for sums in steps])
        dist.all_reduce(totals)
        weights = [self._weights[term] for term in steps[0]]
        means = []
        for of_step in totals:
            losses, counts, _ = of_step.T.tolist()
            means.append(weighted_mean(losses, counts, weights))
        return means

    def state_dict(self) -> dict[str, Any]:
        """The window and the count of spikes as plain values."""
        return {"losses": self._detector.losses, "spikes": self.spikes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the window and the count of a checkpoint."""
        self.spikes = state["spikes"]
        self._detector.restart(state["losses"])

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Return to a checkpoint's window; what was counted stays counted."""
        self._detector.restart(state["losses"])
