"""What every section of a recipe is: a frozen model that refuses unknown keys, and the ranges many of them share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class StrictModel(BaseModel):
    """A frozen section of the recipe: unknown keys are refused, and so is a type that would need guessing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
