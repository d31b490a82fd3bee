"""The dict that DeepSpeed receives: a file of ds_configs/ joined with what the recipe decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import RunConfig
from trainer.ds_file import DeepSpeedFile, Fp16Section, find_ds_file, read_ds_file
from trainer.errors import UserError
from trainer.topology import BatchPlan, Topology

Precision = Literal["fp32", "bf16", "fp16"]
_DEVICE_NAMES = {"cpu": "processor", "cuda": "GPU"}


@dataclass(frozen=True)
class DeepSpeedPlan:
    """What DeepSpeed gets, and what was decided on the way; `notes` are sentences for the user."""

    config: dict[str, Any]
    precision: Precision
    zero_stage: int
    notes: tuple[str, ...]


def build_ds_config(
    config: RunConfig, *, topology: Topology, batch_plan: BatchPlan, device_type: str, half_precisions: frozenset[str]
) -> DeepSpeedPlan:
    """Join the recipe with the DeepSpeed file it names; a pure function apart from reading that file.

    `half_precisions` are those that the device computes in (`trainer.half_precision`). Gradients are accumulated in
    fp32 in every precision and stage, so that splitting a batch differently does not change the sum's rounding.
    Raises UserError when the file is wrong or the recipe and the file contradict each other.
    """
    path = find_ds_file(config.engine.ds_config)
    file = read_ds_file(path)
    precision = _choose_precision(
        config, file=file, path=path, device_type=device_type, half_precisions=half_precisions
    )
    zero_stage, notes = _choose_stage(file.zero_optimization.stage, precision)
    _check_agreement(file, path=path, precision=precision, zero_stage=zero_stage, num_stages=topology.num_stages)
    _check_whole_tensors(config, path=path, precision=precision, zero_stage=zero_stage)
    ds_config: dict[str, Any] = {
        "train_batch_size": batch_plan.global_batch_size,
        "train_micro_batch_size_per_gpu": batch_plan.micro_batch_size,
        "gradient_accumulation_steps": batch_plan.grad_accum_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {**file.zero_optimization.model_dump(exclude_none=True), "stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the recipe's optimiser runs on the processor too
        "communication_data_type": file.communication_data_type,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device on every step
        **_precision_section(precision, file.fp16),
    }
    return DeepSpeedPlan(config=ds_config, precision=precision, zero_stage=zero_stage, notes=notes)


def _choose_precision(
    config: RunConfig, *, file: DeepSpeedFile, path: Path, device_type: str, half_precisions: frozenset[str]
) -> Precision:
    wanted = config.engine.precision
    enabled = {"bf16": file.bf16 and file.bf16.enabled, "fp16": file.fp16 and file.fp16.enabled}
    chosen: list[Precision] = [name for name in ("bf16", "fp16") if enabled[name]]
    if len(chosen) == 2:
        raise UserError(f"{path}: bf16.enabled and fp16.enabled are both true; keep one")
    if wanted != "auto" and (enabled.get(wanted) is False or chosen not in ([], [wanted])):
        choice = f"{chosen[0]}.enabled=true" if chosen else f"{wanted}.enabled=false"
        raise UserError(f"engine.precision={wanted!r} contradicts {choice} in {path}; set engine.precision to 'auto'")
    if wanted != "auto":
        precision: Precision = wanted
    elif chosen:
        precision = chosen[0]
    else:
        # Processors compute bf16 too, but no faster than fp32.
        use_bf16 = device_type == "cuda" and "bf16" in half_precisions and enabled["bf16"] is None
        precision = "bf16" if use_bf16 else "fp32"
    if precision != "fp32" and precision not in half_precisions:
        raise UserError(
            f"engine.precision={precision!r}: this {_DEVICE_NAMES[device_type]} has no {precision} arithmetic; use "
            + " or ".join(f"'{name}'" for name in (*sorted(half_precisions), "fp32"))
        )
    return precision


def _choose_stage(stage: int, precision: Precision) -> tuple[int, tuple[str, ...]]:
    if stage > 0 or precision == "fp32":
        return stage, ()
    return 1, (
        f"ZeRO stage 0 in {precision} runs as stage 1: DeepSpeed's stage-0 {precision} optimiser "
        + ("starts Adam's bias correction a step late." if precision == "bf16" else "does not scale the loss."),
    )


def _check_agreement(
    file: DeepSpeedFile, *, path: Path, precision: Precision, zero_stage: int, num_stages: int
) -> None:
    if file.communication_data_type not in {"fp32", precision}:
        raise UserError(
            f"{path}: communication_data_type={file.communication_data_type!r} does not go with precision "
            f"{precision}; use fp32{'' if precision == 'fp32' else f' or {precision}'}"
        )
    if num_stages > 1 and zero_stage > 1:
        raise UserError(
            f"{path}: zero_optimization.stage={zero_stage} cannot be joined with parallel.num_stages={num_stages}: "
            "a pipeline keeps its gradients whole until the step; use stage 0 or 1"
        )
    if num_stages > 1 and file.zero_optimization.overlap_comm:
        raise UserError(
            f"{path}: zero_optimization.overlap_comm=true has no effect with parallel.num_stages={num_stages}: a "
            "pipeline reduces gradients behind its last backward pass; set it to false"
        )


# What each of these computes over a whole parameter: over a ZeRO partition it would be another number in each layout.
_WHOLE_TENSOR_OPTIMIZERS = {
    "lamb": "the norms of each whole parameter and its update",
    "stable_adamw": "the mean square of each whole parameter's update",
    "muon": "whole matrices to orthogonalise",
}


def _check_whole_tensors(config: RunConfig, *, path: Path, precision: Precision, zero_stage: int) -> None:
    name = config.optimizer.name
    if name in _WHOLE_TENSOR_OPTIMIZERS and zero_stage > 0:
        half = "" if precision == "fp32" else f" ({precision} at stage 0 runs as stage 1)"
        raise UserError(
            f"optimizer.name={name!r} needs {_WHOLE_TENSOR_OPTIMIZERS[name]}, which ZeRO stage {zero_stage} of {path} "
            f"cuts into partitions; use engine.ds_config: zero0 with engine.precision: fp32{half}, or another optimizer"
        )


def _precision_section(precision: Precision, fp16: Fp16Section | None) -> dict[str, Any]:
    if precision == "fp32":
        return {}
    scaler = (fp16 or Fp16Section()).model_dump(exclude_none=True) if precision == "fp16" else {}
    return {precision: {**scaler, "enabled": True}}
