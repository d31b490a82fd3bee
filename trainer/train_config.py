"""The recipe's train section: how long, in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from trainer.strict_model import PositiveInt, StrictModel


class BatchWarmupStage(StrictModel):
    """Batches of `global_batch_size` rows in the steps below `until_step`, counted since the run or phase began."""

    until_step: PositiveInt
    global_batch_size: PositiveInt


class TrainConfig(StrictModel):
    """How long, in which batches, and how often something is written.

    `batch_warmup` goes through smaller batches first, each stage until its own step, then on with `global_batch_size`.
    `stall_minutes`: after so long without a step, or a batch of an evaluation, each process writes its stacks and ends.
    `log_layer_norms`: write the norms of each layer's weights and of the optimiser's first moments, too.
    """

    steps: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    batch_warmup: list[BatchWarmupStage] = Field(default_factory=list)
    log_every_steps: PositiveInt = 10
    log_layer_norms: bool = False
    stall_minutes: Annotated[float, Field(gt=0.0)] | None = 30.0

    @model_validator(mode="after")
    def _warmup_grows(self) -> TrainConfig:
        check_batch_warmup(self.batch_warmup, steps=self.steps, global_batch_size=self.global_batch_size)
        return self


def check_batch_warmup(stages: Sequence[BatchWarmupStage], *, steps: int, global_batch_size: int) -> None:
    """Raise ValueError unless the stages follow each other, grow, and end before the run and below its batches."""
    untils = [0, *(stage.until_step for stage in stages), steps]
    sizes = [0, *(stage.global_batch_size for stage in stages), global_batch_size]
    if stages and any(later <= earlier for earlier, later in pairwise(untils)):
        raise ValueError(f"batch_warmup: until_step must grow from stage to stage and stay below steps={steps}")
    if stages and any(later <= earlier for earlier, later in pairwise(sizes)):
        raise ValueError(
            f"batch_warmup: global_batch_size must grow from stage to stage and stay below {global_batch_size}"
        )
