"""`trainer plan`: what each layout of a recipe would take on so many devices, the fastest first; nothing is started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

from trainer.activation_memory import Activations, measure_activations
from trainer.check import expected_micro_batch
from trainer.communication_volume import step_bytes
from trainer.config import Config
from trainer.flops import model_flops, recomputed_flops
from trainer.layout_candidates import AllowedLayout, allowed_layouts
from trainer.memory_plan import MemoryPlan, MicroBatch, StageShare, plan_stages, plan_with_activations
from trainer.model.encoder import vocab_size
from trainer.model.pipeline_balance import unit_costs
from trainer.phases import phases_of
from trainer.setup import stage_bounds
from trainer.time_model import Hardware, StepTime, predict_step
from trainer.topology import BatchPlan

# CUDA's context, NCCL's buffers and what the allocator cannot use.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class PlannedLayout:
    """One layout and what is foretold of it."""

    zero_stage: int
    num_stages: int
    batch_plan: BatchPlan
    memory: MemoryPlan
    time: StepTime
    tokens_per_s: float
    mfu: float


@dataclass(frozen=True)
class LayoutPlan:
    """All layouts of a resolved recipe, the fastest first, and what became of the others.

    refused: how many layouts each rule refuses. too_large: how many do not fit, and `least_bytes` the memory that the
    smallest layout of all would take of a device. tokens: real ones of a step.
    """

    config: Config
    hardware: Hardware
    precision: str
    tokens: float
    layouts: list[PlannedLayout]
    refused: Counter[str]
    too_large: int
    least_bytes: int

    @property
    def usable_bytes(self) -> float:
        """Of a device's memory."""
        return self.hardware.device.memory_bytes * USABLE_SHARE


def longest_phase(config: Config) -> Config:
    """The recipe of the phase with most token positions; the recipe itself where there are no phases."""
    return max(
        (phase.config for phase in phases_of(config)),
        key=lambda own: own.train.steps * own.train.global_batch_size * own.data.max_seq_len,
    )


def plan_layouts(config: Config, *, hardware: Hardware, precision: str, program_bytes: int = 0) -> LayoutPlan:
    """Foretell memory and time of every ZeRO stage, number of stages and micro-batch that the recipe's batch can have.

    The recipe is one without phases, in `precision`, which the device has. `program_bytes` as for `plan_memory`.
    Runs a few layers of the model in this process. UserError where the recipe names shards that are not there.
    """
    config, micro_batch = expected_micro_batch(config)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"precision": precision})})
    on_cpu = hardware.device.name == "cpu"
    recompute = config.parallel.activation_checkpointing
    activations = measure_activations(
        config.model, documents=micro_batch.documents, precision=precision, resident=on_cpu, recompute=recompute
    )
    rows = config.train.micro_batch_size
    refused: Counter[str] = Counter()
    fitting: list[PlannedLayout] = []
    too_large: list[PlannedLayout] = []
    stages_of: dict[int, list[StageShare]] = {}
    for candidate in allowed_layouts(config, hardware=hardware, refused=refused):
        num_stages = candidate.topology.num_stages
        if num_stages not in stages_of:
            stages_of[num_stages] = plan_stages(
                config.model,
                bounds=stage_bounds(candidate.config),
                micro_batches=num_stages,
                candidates=config.objective.candidates,
            )
        accumulation = candidate.batch_plan.grad_accum_steps
        layout = _foretell(
            candidate,
            hardware=hardware,
            stages=[replace(one, in_flight=min(one.in_flight, accumulation)) for one in stages_of[num_stages]],
            micro_batch=micro_batch,
            activations=activations,
            factor=candidate.batch_plan.micro_batch_size / rows,
            program_bytes=program_bytes,
        )
        fits = layout.memory.peak_bytes <= hardware.device.memory_bytes * USABLE_SHARE
        (fitting if fits else too_large).append(layout)
    return LayoutPlan(
        config=config,
        hardware=hardware,
        precision=precision,
        tokens=sum(micro_batch.documents) / rows * config.train.global_batch_size,
        layouts=sorted(fitting, key=_rank),
        refused=refused,
        too_large=len(too_large),
        least_bytes=min((layout.memory.peak_bytes for layout in [*fitting, *too_large]), default=0),
    )


def _rank(layout: PlannedLayout) -> tuple[float, int]:
    """Faster first; of those equal to four digits fewer micro-batches, which have overheads that are not foretold."""
    return float(f"{layout.time.step_s:.4g}"), layout.batch_plan.grad_accum_steps


def _foretell(
    candidate: AllowedLayout,
    *,
    hardware: Hardware,
    stages: list[StageShare],
    micro_batch: MicroBatch,
    activations: Activations,
    factor: float,
    program_bytes: int,
) -> PlannedLayout:
    """`factor` is how many of the measured micro-batch, whose `activations` are these, one of the layout holds."""
    config, ds_plan, batch_plan = candidate.config, candidate.ds_plan, candidate.batch_plan
    zero, precision = ds_plan.config["zero_optimization"], ds_plan.precision
    memory = plan_with_activations(
        activations.scaled(factor),
        logits=round(micro_batch.predicted * factor) * vocab_size(config.model),
        optimizer=config.optimizer,
        stages=stages,
        half=precision != "fp32",
        zero_stage=ds_plan.zero_stage,
        dp_world_size=batch_plan.dp_world_size,
        bucket_elements=int(zero["reduce_bucket_size"]),
        program_bytes=program_bytes,
    )
    flops, hardware_flops = (count * factor for count in _flops(config, micro_batch))
    time = predict_step(
        hardware,
        precision=precision,
        flops=hardware_flops,
        busiest_share=_busiest_share(config),
        micro_batches=batch_plan.grad_accum_steps,
        num_stages=len(stages),
        zero_stage=ds_plan.zero_stage,
        sent=step_bytes(
            config,
            stages=stages,
            zero_stage=ds_plan.zero_stage,
            dp_world_size=batch_plan.dp_world_size,
            micro_batches=batch_plan.grad_accum_steps,
            precision=precision,
            communication_type=str(ds_plan.config["communication_data_type"]),
            # So DeepSpeed 0.19.8 does if not told otherwise, as `trainer profile` shows.
            all_reduces=zero.get("use_multi_rank_bucket_allreduce", True),
        ),
        overlaps=bool(zero.get("overlap_comm")) and hardware.device.name != "cpu",
        stage_parameters=max(stage.weights.parameters for stage in stages),
    )
    micro_batches = batch_plan.grad_accum_steps * batch_plan.dp_world_size
    peak = hardware.device.peak_flops[precision] * hardware.count
    return PlannedLayout(
        zero_stage=ds_plan.zero_stage,
        num_stages=len(stages),
        batch_plan=batch_plan,
        memory=memory,
        time=time,
        tokens_per_s=sum(micro_batch.documents) * factor * micro_batches / time.step_s,
        mfu=flops * micro_batches / time.step_s / peak,
    )


def _flops(config: Config, micro_batch: MicroBatch) -> tuple[int, int]:
    """Of one micro-batch: those of the model, and with layers that are computed again."""
    sizes = {
        "tokens": sum(micro_batch.documents),
        "sum_squared_document_lengths": sum(length**2 for length in micro_batch.documents),
        "predicted_tokens": micro_batch.predicted,
    }
    flops = model_flops(config.model, **sizes)
    again = config.parallel.activation_checkpointing
    return flops, flops + (recomputed_flops(config.model, **sizes, paired_sequences=0) if again else 0)


def _busiest_share(config: Config) -> float:
    """The share of a model's cost that lies in the dearest of its stages."""
    tokens = config.train.micro_batch_size * config.data.max_seq_len
    costs = unit_costs(config.model, tokens=tokens, predicted_tokens=round(config.objective.mask_rate.highest * tokens))
    bounds = stage_bounds(config)
    return max(sum(costs[first:last]) for first, last in pairwise(bounds)) / sum(costs)
