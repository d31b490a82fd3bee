"""The learning rate as a pure function of how many updates were applied."""

from __future__ import annotations

import math

from trainer.schedule_config import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    OneCycleConfig,
    PolynomialConfig,
    ScheduleConfig,
    WSDConfig,
)


def learning_rate(config: ScheduleConfig, *, peak: float, applied_steps: int, total_steps: int) -> float:
    """The rate of the next update, after `applied_steps` of at most `total_steps` updates.

    Update number k = applied_steps + 1 takes peak × k ÷ warmup_steps while k ≤ warmup_steps (one cycle begins at
    its initial ratio instead of 0); then the schedule's curve leads from `peak` at k = warmup_steps to its last
    value at k = total_steps. `check_length` says which lengths fit.
    """
    update = min(applied_steps + 1, total_steps)
    if update <= config.warmup_steps:
        start = peak * config.initial_ratio if isinstance(config, OneCycleConfig) else 0.0
        return start + (peak - start) * update / config.warmup_steps
    return peak * _fall(config, done=update - config.warmup_steps, length=total_steps - config.warmup_steps)


def _fall(config: ScheduleConfig, *, done: int, length: int) -> float:
    """Fraction of the peak after `done` of the `length` updates behind the warm-up."""
    left = 1.0 - done / length
    match config:
        case LinearConfig():
            return _between(config.final_ratio, 1.0, share=left)
        case CosineConfig():
            return _between(config.final_ratio, 1.0, share=(1.0 + math.cos(math.pi * (1.0 - left))) / 2.0)
        case ConstantConfig():
            return 1.0
        case PolynomialConfig():
            return _between(config.final_ratio, 1.0, share=left**config.power)
        case OneCycleConfig():
            down = config.warmup_steps
            if done <= down:
                return _between(config.initial_ratio, 1.0, share=1.0 - done / down)
            return _between(config.final_ratio, config.initial_ratio, share=1.0 - (done - down) / (length - down))
        case WSDConfig():
            decayed = max(done - (length - config.decay_steps), 0)
            return _between(config.final_ratio, 1.0, share=1.0 - math.sqrt(decayed / config.decay_steps))


def _between(low: float, high: float, *, share: float) -> float:
    return share * high + low * (1.0 - share)
