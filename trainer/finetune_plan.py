"""How long a fine-tuning run is, and how its batches are dealt."""

from __future__ import annotations

import math

from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.schedule_config import check_length
from trainer.topology import BatchPlan, plan_batches


def plan_task_batches(config: FineTuneConfig, *, dp_world_size: int) -> BatchPlan:
    """How the recipe's batch is dealt over so many ranks; UserError where it cannot be."""
    return plan_batches(
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        dp_world_size=dp_world_size,
        lanes=config.train.global_batch_size,
    )


def plan_steps(config: FineTuneConfig, *, num_examples: int) -> tuple[int, int]:
    """Steps in all, and steps of one epoch, the last one's rows reaching into the next epoch."""
    size, epochs = config.train.global_batch_size, config.train.epochs
    total = config.train.steps if epochs is None else math.ceil(epochs * num_examples / size)
    assert total is not None  # the recipe's check
    try:
        check_length(config.schedule, total_steps=total, of="the run's steps")
    except ValueError as error:
        raise UserError(str(error)) from None
    return total, math.ceil(num_examples / size)
