"""A file of ds_configs/: ZeRO stage, communication, precision, the fp16 scaler, and nothing else."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from trainer.errors import UserError
from trainer.setting_errors import describe_errors
from trainer.strict_model import PositiveInt, StrictModel

DS_CONFIGS_DIR = Path(__file__).resolve().parent.parent / "ds_configs"

_DECIDED_ELSEWHERE = {
    "train_batch_size": "the recipe's train.global_batch_size decides it",
    "train_micro_batch_size_per_gpu": "the recipe's train.micro_batch_size decides it",
    "gradient_accumulation_steps": "it follows from train.global_batch_size, train.micro_batch_size and the ranks",
    "gradient_clipping": "the recipe's optimizer.max_grad_norm decides it",
    "optimizer": "the recipe's optimizer section decides it",
    "scheduler": "the recipe's schedule section decides it",
    "steps_per_print": "the recipe's train.log_every_steps decides it",
    "checkpoint": "the recipe's checkpoint section decides it",
    "data_types": "gradients are always accumulated in fp32",
    "zero_allow_untested_optimizer": "it is always true",
    "tensorboard": "metrics go to the run folder",
}

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


def find_ds_file(path_or_name: str) -> Path:
    """The file of ds_configs/ with that name, or the user's own file; UserError when there is neither."""
    path = Path(path_or_name)
    if path.suffix == ".json" or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(f"engine.ds_config={path_or_name!r}: no such file; give a DeepSpeed JSON file or a name")
    named = DS_CONFIGS_DIR / f"{path_or_name}.json"
    if path_or_name and named.is_file():
        return named
    known = sorted(file.stem for file in DS_CONFIGS_DIR.glob("*.json"))
    nearest = difflib.get_close_matches(path_or_name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    raise UserError(f"engine.ds_config={path_or_name!r} is neither a .json file nor a name in ds_configs/; {hint}")


def read_ds_file(path: Path) -> DeepSpeedFile:
    """Read and check a DeepSpeed file; UserError in one line for whatever is wrong with it."""
    try:
        values = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a DeepSpeed file is a mapping of keys to values, found a {type(values).__name__}")
    for key, reason in _DECIDED_ELSEWHERE.items():
        if key in values:
            raise UserError(f"{path}: {key} does not belong in a DeepSpeed file: {reason}; remove it")
    try:
        return DeepSpeedFile.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_errors(error, root=DeepSpeedFile, locate=lambda _: str(path))) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} stands twice; remove one")
    return values


def _number(text: str) -> int | float:
    """JSON has one kind of number: 5e8 is the whole number 500000000."""
    value = float(text)
    return int(value) if value.is_integer() else value
