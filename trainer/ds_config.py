"""The dict that DeepSpeed receives: a file of ds_configs/ joined with what the recipe decides."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trainer.config import Config
from trainer.ds_file import DeepSpeedFile, Fp16Section
from trainer.errors import UserError
from trainer.setting_errors import describe_errors
from trainer.topology import BatchPlan, Topology

DS_CONFIGS_DIR = Path(__file__).resolve().parent.parent / "ds_configs"

Precision = Literal["fp32", "bf16", "fp16"]

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


@dataclass(frozen=True)
class DeepSpeedPlan:
    """What DeepSpeed gets, and what was decided on the way; `notes` are sentences for the user."""

    config: dict[str, Any]
    precision: Precision
    zero_stage: int
    notes: tuple[str, ...]


def build_ds_config(
    config: Config, *, topology: Topology, batch_plan: BatchPlan, device_type: str, bf16_supported: bool
) -> DeepSpeedPlan:
    """Join the recipe with the DeepSpeed file it names; a pure function apart from reading that file.

    `bf16_supported` is asked of CUDA devices only. Gradients are accumulated in fp32 in every
    precision and stage, so that splitting a batch differently does not change the sum's rounding.
    Raises UserError when the file is wrong or the recipe and the file contradict each other.
    """
    path = find_ds_file(config.engine.ds_config)
    file = _read_ds_file(path)
    precision = _choose_precision(config, file=file, path=path, device_type=device_type, bf16_supported=bf16_supported)
    if file.communication_data_type not in {"fp32", precision}:
        raise UserError(
            f"{path}: communication_data_type={file.communication_data_type!r} does not go with precision "
            f"{precision}; use fp32 or {precision}"
        )
    zero_stage, notes = _choose_stage(file.zero_optimization.stage, precision)
    if topology.num_stages > 1 and zero_stage > 1:
        raise UserError(
            f"{path}: zero_optimization.stage={zero_stage} cannot be joined with num_stages={topology.num_stages}; "
            "a pipeline keeps its gradients whole until the step: use stage 0 or 1"
        )
    ds_config: dict[str, Any] = {
        "train_batch_size": batch_plan.global_batch_size,
        "train_micro_batch_size_per_gpu": batch_plan.micro_batch_size,
        "gradient_accumulation_steps": batch_plan.grad_accum_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {**file.zero_optimization.model_dump(exclude_none=True), "stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "communication_data_type": file.communication_data_type,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device on every step
        **_precision_section(precision, file.fp16),
    }
    return DeepSpeedPlan(config=ds_config, precision=precision, zero_stage=zero_stage, notes=notes)


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


def _read_ds_file(path: Path) -> DeepSpeedFile:
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


def _choose_precision(
    config: Config, *, file: DeepSpeedFile, path: Path, device_type: str, bf16_supported: bool
) -> Precision:
    wanted = config.engine.precision
    enabled = {"bf16": file.bf16 and file.bf16.enabled, "fp16": file.fp16 and file.fp16.enabled}
    chosen: list[Precision] = [name for name in ("bf16", "fp16") if enabled[name]]
    if len(chosen) == 2:
        raise UserError(f"{path}: bf16.enabled and fp16.enabled are both true; keep one")
    if wanted != "auto" and (enabled.get(wanted) is False or (chosen and chosen != [wanted])):
        key = f"{chosen[0]}.enabled=true" if chosen else f"{wanted}.enabled=false"
        raise UserError(f"engine.precision={wanted!r} contradicts {key} in {path}; set engine.precision to 'auto'")
    bf16_runs = device_type != "cuda" or bf16_supported
    if wanted == "auto":
        automatic: Precision = "bf16" if device_type == "cuda" and bf16_runs and enabled["bf16"] is None else "fp32"
        precision = chosen[0] if chosen else automatic
    else:
        precision = wanted
    if precision == "bf16" and not bf16_runs:
        raise UserError("engine.precision='bf16' is not supported by this CUDA device; use fp16 or fp32")
    return precision


def _choose_stage(stage: int, precision: Precision) -> tuple[int, tuple[str, ...]]:
    if stage > 0 or precision == "fp32":
        return stage, ()
    return 1, (
        f"ZeRO stage 0 in {precision} runs as stage 1: DeepSpeed's stage-0 {precision} optimiser "
        + ("starts Adam's bias correction a step late." if precision == "bf16" else "does not scale the loss."),
    )


def _precision_section(precision: Precision, fp16: Fp16Section | None) -> dict[str, Any]:
    if precision == "fp32":
        return {}
    settings = fp16.model_dump(exclude_none=True) if precision == "fp16" and fp16 else {}
    return {precision: {**settings, "enabled": True}}
