"""The recipe's schedule section: one model a curve, so that a knob which it would ignore is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.strict_model import PositiveInt, Rate, StrictModel


class _Schedule(StrictModel):
    """Steps are applied steps: optimiser updates, counted from the run's first."""

    name: str
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @property
    def parts(self) -> dict[str, int]:
        """Stretches of the curve whose length is set, in steps, by the setting that says so."""
        return {"schedule.warmup_steps": self.warmup_steps}


class _Decaying(_Schedule):
    """Ends at `final_ratio` of the peak."""

    final_ratio: Rate = 0.0


class LinearConfig(_Decaying):
    """Linear warm-up from 0, then a line from the peak to its `final_ratio` (Devlin et al. 2019, appendix A.2)."""

    name: Literal["linear"] = "linear"


class CosineConfig(_Decaying):
    """Linear warm-up, then half a cosine from the peak to its `final_ratio` (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"


class ConstantConfig(_Schedule):
    """Linear warm-up, then the peak to the end."""

    name: Literal["constant"] = "constant"


class PolynomialConfig(_Decaying):
    """Linear warm-up, then (1 − progress) to the `power`, from the peak to its `final_ratio`."""

    name: Literal["polynomial"] = "polynomial"
    power: Annotated[float, Field(gt=0.0)] = 2.0


class OneCycleConfig(_Decaying):
    """One cycle (Smith and Topin 2018): up from `initial_ratio` of the peak in `warmup_steps`, down in as many again.

    What is left of the run then falls from `initial_ratio` to `final_ratio`. Momentum is not cycled.
    """

    name: Literal["one_cycle"] = "one_cycle"
    warmup_steps: PositiveInt
    initial_ratio: Rate = 0.1

    @property
    def parts(self) -> dict[str, int]:
        """The cycle's two halves."""
        return {"schedule.warmup_steps": self.warmup_steps, "the way down of the same length": self.warmup_steps}


class WSDConfig(_Decaying):
    """Warm-up, a stable stretch, then a fall of `decay_steps` by 1 − √progress (Hägele et al. 2024)."""

    name: Literal["wsd"] = "wsd"
    decay_steps: PositiveInt

    @property
    def parts(self) -> dict[str, int]:
        """Warm-up and decay; the stable stretch takes what is left."""
        return {"schedule.warmup_steps": self.warmup_steps, "schedule.decay_steps": self.decay_steps}


def _linear_unless_named(section: Any) -> Any:
    return {"name": "linear", **section} if isinstance(section, dict) else section


ScheduleConfig = Annotated[
    LinearConfig | CosineConfig | ConstantConfig | PolynomialConfig | OneCycleConfig | WSDConfig,
    Field(discriminator="name"),
    BeforeValidator(_linear_unless_named),
]


def check_length(config: ScheduleConfig, *, total_steps: int, of: str = "train.steps") -> None:
    """Raise ValueError where the schedule's fixed stretches do not fit so many steps, which the setting `of` says."""
    needed = sum(config.parts.values())
    if needed > total_steps:
        parts = " + ".join(f"{name}={steps}" for name, steps in config.parts.items() if steps)
        total = f" (= {needed})" if len(config.parts) > 1 else ""
        raise ValueError(f"{parts}{total} is longer than {of}={total_steps}")
