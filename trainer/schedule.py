"""The learning rate as a pure function of how many updates were applied."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, *, peak: float, applied_steps: int, total_steps: int) -> float:
    """The rate of the next update, after `applied_steps` of at most `total_steps` updates.

    Update number k = applied_steps + 1 takes peak × k ÷ warmup_steps while k ≤ warmup_steps; then
    the schedule's curve leads from `peak` at k = warmup_steps to its last value at k = total_steps.
    """
    update = min(applied_steps + 1, total_steps)
    if update <= config.warmup_steps:
        return peak * update / config.warmup_steps
    progress = (update - config.warmup_steps) / (total_steps - config.warmup_steps)
    return peak * _CURVES[config.name](config, progress)


def _linear(config: ScheduleConfig, progress: float) -> float:
    return (1.0 - progress) + config.final_ratio * progress


# A curve maps progress after warm-up, in (0, 1], to a fraction of the peak.
_CURVES: dict[str, Callable[[ScheduleConfig, float], float]] = {"linear": _linear}
