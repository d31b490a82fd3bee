"""`trainer check`: whether a recipe can run on so many processes, and what it will take; starts nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.manifest import MANIFEST_FILE, load_manifest
from data_pipeline.row_counts import block_row_counts
from data_pipeline.shards import BlockStore
from trainer.config import Config, TokenizerConfig
from trainer.ds_config import DeepSpeedPlan
from trainer.memory_plan import MemoryPlan, MicroBatch, count_parameters, plan_memory
from trainer.show_config import layout_for
from trainer.topology import BatchPlan

# fp32 weights and AdamW's two moments.
_CHECKPOINT_BYTES_A_WEIGHT = 12
_GIB = 1 << 30


@dataclass(frozen=True)
class RowFacts:
    """What the shards hold, known once they are built: rows and tokens an epoch, document lengths."""

    rows_an_epoch: int
    tokens: int
    document_tokens: int


@dataclass(frozen=True)
class Check:
    """Everything that was found; a recipe that cannot run has raised UserError instead."""

    config: Config
    batch_plan: BatchPlan
    ds_plan: DeepSpeedPlan
    rows: RowFacts | None
    parameters: int
    memory: MemoryPlan
    checkpoint_bytes: int
    checkpoints_kept: int


def check_recipe(config: Config, *, world_size: int, device_type: str, program_bytes: int) -> Check:
    """Check a recipe for a job of `world_size` processes on devices of that type ("cpu", "cuda").

    Raises UserError for whatever would stop it at its start: a batch that cannot be split, a pair that cannot work, a
    precision that the device lacks, shards that are not there.
    """
    batch_plan, ds_plan = layout_for(config, world_size=world_size, device_type=device_type)
    rows = _row_facts(config)
    model = config.model
    if model.vocab_size is None:
        model = model.model_copy(update={"vocab_size": _vocab_size(config)})
    tokens = config.train.micro_batch_size * config.data.max_seq_len
    document_tokens = min(rows.document_tokens if rows else config.data.max_seq_len, config.data.max_seq_len)
    memory = plan_memory(
        model,
        micro_batch=MicroBatch(tokens, document_tokens, round(tokens * config.objective.mask_rate)),
        precision=ds_plan.precision,
        zero_stage=ds_plan.zero_stage,
        dp_world_size=batch_plan.dp_world_size,
        bucket_elements=int(ds_plan.config["zero_optimization"]["reduce_bucket_size"]),
        program_bytes=program_bytes,
    )
    parameters = count_parameters(model)
    return Check(
        config=config,
        batch_plan=batch_plan,
        ds_plan=ds_plan,
        rows=rows,
        parameters=parameters,
        memory=memory,
        checkpoint_bytes=parameters * _CHECKPOINT_BYTES_A_WEIGHT,
        # The last ones, the best, and the one that is being written before the oldest goes.
        checkpoints_kept=config.checkpoint.keep_last + (config.evaluation is not None) + 1,
    )


def _vocab_size(config: Config) -> int:
    if config.data.shards is not None:
        return load_manifest(config.data.shards).vocab_size
    return (config.tokenizer or TokenizerConfig()).vocab_size


def _row_facts(config: Config) -> RowFacts | None:
    """From the shards that the recipe names; None where they are still to be made from raw text."""
    if config.data.shards is None or not (Path(config.data.shards) / MANIFEST_FILE).exists():
        if config.data.shards is not None:
            load_manifest(config.data.shards)  # says what is missing
        return None
    store = BlockStore(config.data.shards, manifest=load_manifest(config.data.shards), split="train")
    counts = block_row_counts(store, max_seq_len=config.data.max_seq_len, packing=config.data.packing)
    squares = tokens = 0
    longest = config.data.max_seq_len
    for lengths in store.iter_lengths():
        cut = lengths.clip(max=longest).astype(float)
        squares += int((cut * cut).sum())
        tokens += int(cut.sum())
    return RowFacts(rows_an_epoch=int(counts.sum()), tokens=tokens, document_tokens=max(1, squares // max(tokens, 1)))


def describe(check: Check, *, world_size: int) -> list[str]:
    """The findings as lines for a person."""
    train, plan = check.config.train, check.batch_plan
    positions = plan.global_batch_size * check.config.data.max_seq_len
    lines = [
        f"batch          {plan.global_batch_size} rows = {plan.micro_batch_size} a micro-batch x "
        f"{plan.grad_accum_steps} micro-batches x {plan.dp_world_size} replicas",
        f"step           {positions:,} token positions; {train.steps:,} steps",
        f"lanes          {check.config.data.lanes}: {check.config.data.lanes // plan.dp_world_size} a replica",
        f"engine         ZeRO stage {check.ds_plan.zero_stage}, {check.ds_plan.precision}",
        *(f"note           {note}" for note in check.ds_plan.notes),
    ]
    if check.rows is not None:
        epochs = train.steps * plan.global_batch_size / check.rows.rows_an_epoch
        lines.append(f"rows           {check.rows.rows_an_epoch:,} an epoch; the run is {epochs:.2f} epochs")
    else:
        lines.append("rows           known once the shards are built from the recipe's text")
    lines += [
        f"weights        {check.parameters:,}",
        f"checkpoint     {_gib(check.checkpoint_bytes)}; up to {check.checkpoints_kept} at once: "
        f"{_gib(check.checkpoint_bytes * check.checkpoints_kept)} of disk",
        f"memory         {_gib(check.memory.peak_bytes)} a process, "
        f"{_gib(check.memory.peak_bytes * world_size)} in all",
    ]
    for name, size in vars(check.memory).items():
        lines.append(f"  {name.removesuffix('_bytes'):<13}{_gib(size)}")
    return lines


def _gib(size: int) -> str:
    digits = 2 if size >= _GIB or not size else max(2, 1 - math.floor(math.log10(size / _GIB)))
    return f"{size / _GIB:.{min(digits, 4)}f} GiB"
