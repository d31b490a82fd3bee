"""The recipe's data.augmentation section: how training text is disturbed, in pretraining before anything is masked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.strict_model import StrictModel

DisturbedShare = Annotated[float, Field(ge=0.0, lt=1.0)]


class TaskAugmentationConfig(StrictModel):
    """Random insertion, swap and deletion in fine-tuning, each with its rate; held-out rows are never disturbed.

    The units are tokens; of tagged sentences words and whole entities.
    """

    insert: DisturbedShare = 0.0
    swap: DisturbedShare = 0.0
    delete: DisturbedShare = 0.0

    @model_validator(mode="after")
    def _something_happens(self) -> TaskAugmentationConfig:
        if not (self.insert or self.swap or self.delete):
            raise ValueError("insert, swap and delete are all 0: set one of them, or remove the section")
        return self


class AugmentationConfig(TaskAugmentationConfig):
    """Random insertion, swap and deletion of tokens or of sentences (Wei and Zou 2019), each with its rate.

    Held-out rows are never disturbed.
    """

    level: Literal["token", "sentence"] = "token"
