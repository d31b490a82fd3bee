"""The findings of `trainer check` as lines for a person."""

from __future__ import annotations

import math

from trainer.check import Check
from trainer.memory_plan import StageShare
from trainer.phases import Phase, phases_of

_GIB = 1 << 30


def describe(check: Check, *, world_size: int) -> list[str]:
    """One finding a line, with its name in front."""
    replicas, lanes = check.batch_plan.dp_world_size, check.config.data.lanes
    lines = []
    for phase in phases_of(check.config):
        lines += _describe_phase(phase, check=check)
    if len(check.stages) > 1:
        lines.append("stages         " + " | ".join(_stage(stage) for stage in check.stages))
    lines += [
        f"lanes          {lanes}: {lanes // replicas} a replica",
        f"engine         ZeRO stage {check.ds_plan.zero_stage}, {check.ds_plan.precision}",
        *(f"note           {note}" for note in check.notes),
    ]
    if not check.rows:
        lines.append("rows           known once the shards are built from the recipe's text")
    lines += [
        f"weights        {check.weights.parameters:,}",
        f"checkpoint     {_gib(check.checkpoint_bytes)}; up to {check.checkpoints_kept} at once: "
        f"{_gib(check.checkpoint_bytes * check.checkpoints_kept)} of disk",
        f"memory         {_gib(check.memory.peak_bytes)} a process, "
        f"{_gib(check.memory.peak_bytes * world_size)} in all",
    ]
    parts = {name.removesuffix("_bytes"): size for name, size in vars(check.memory).items()}
    return [*lines, *(f"  {name:<14}{_gib(size)}" for name, size in parts.items() if size)]


def _stage(stage: StageShare) -> str:
    head = " and the head" if stage.has_head else ""
    layers = f"{stage.layers} layer{'' if stage.layers == 1 else 's'}{head}"
    return f"{layers}: {stage.weights.parameters:,} weights, micro-batches at a time {stage.in_flight}"


def _describe_phase(phase: Phase, *, check: Check) -> list[str]:
    """Batches, steps and rows of a phase, under a heading of its own where there are several."""
    train, replicas = phase.config.train, check.batch_plan.dp_world_size
    lines = [f"phase {phase.number}        steps {phase.first_step:,} to {phase.first_step + train.steps:,}"]
    for first, rows in phase.batch_sizes.stages():
        micro_batches = rows // (train.micro_batch_size * replicas)
        since = f", from step {first:,}" if train.batch_warmup else ""
        lines.append(
            f"batch          {rows} rows = {train.micro_batch_size} a micro-batch x {micro_batches} micro-batches x "
            f"{replicas} replicas{since}"
        )
    positions = train.global_batch_size * phase.config.data.max_seq_len
    lines.append(f"step           {positions:,} token positions; {train.steps:,} steps")
    if check.rows:
        an_epoch = check.rows[phase.number].rows_an_epoch
        epochs = phase.batch_sizes.rows_before(train.steps) / an_epoch
        what = "phase" if check.config.phases else "run"
        lines.append(f"rows           {an_epoch:,} an epoch; the {what} is {epochs:.2f} epochs")
    return lines if check.config.phases else lines[1:]


def _gib(size: int) -> str:
    digits = 2 if size >= _GIB or not size else max(2, 1 - math.floor(math.log10(size / _GIB)))
    return f"{size / _GIB:.{min(digits, 4)}f} GiB"
