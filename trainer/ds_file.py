"""What a file of ds_configs/ may hold: ZeRO, the fp16 scaler, precision, communication; nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config import PositiveInt, StrictModel

Count = Annotated[int, Field(ge=0)]
EvenCount = Annotated[int, Field(gt=0, multiple_of=2)]


class ZeroSection(StrictModel):
    """ZeRO (Rajbhandari et al. 2020): the stage, and the sizes and the overlap of its communication.

    Sizes are in elements. Names and meanings are DeepSpeed's own (its page "DeepSpeed Configuration
    JSON"), and so are the values of what is left out, but for the buckets: DeepSpeed's would take 2 GB.
    """

    stage: Literal[0, 1, 2, 3]
    reduce_bucket_size: PositiveInt = 50_000_000
    allgather_bucket_size: EvenCount = 200_000_000
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    use_multi_rank_bucket_allreduce: bool | None = None
    round_robin_gradients: bool | None = None
    sub_group_size: PositiveInt | None = None
    stage3_prefetch_bucket_size: Count | None = None
    stage3_param_persistence_threshold: Count | None = None
    stage3_model_persistence_threshold: Count | None = None
    stage3_max_live_parameters: Count | None = None
    stage3_max_reuse_distance: Count | None = None

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> ZeroSection:
        idle = sorted(key for key in self.model_fields_set if key.startswith("stage3_"))
        if self.stage != 3 and idle:
            raise ValueError(f"{', '.join(idle)} would be ignored at stage {self.stage}; remove it or use stage 3")
        return self


class Fp16Section(StrictModel):
    """The dynamic loss scaler (Micikevicius et al. 2018, section 3.2), and whether fp16 is chosen here."""

    enabled: bool | None = None
    initial_scale_power: Annotated[int, Field(ge=0, le=24)] = 12
    loss_scale_window: PositiveInt = 1000
    hysteresis: PositiveInt = 2
    min_loss_scale: PositiveInt = 1


class Bf16Section(StrictModel):
    """Whether bf16 is chosen here rather than by the recipe."""

    enabled: bool


class DeepSpeedFile(StrictModel):
    """A whole file of ds_configs/."""

    zero_optimization: ZeroSection
    fp16: Fp16Section | None = None
    bf16: Bf16Section | None = None
    communication_data_type: Literal["fp32", "bf16", "fp16"] = "fp32"
