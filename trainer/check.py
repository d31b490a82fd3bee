"""`trainer check`: whether a recipe can run on so many processes, and what it will take; starts nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.corpus import Corpus, open_corpus
from data_pipeline.from_recipe import reader_for
from data_pipeline.manifest import load_manifest
from data_pipeline.objective import masker_for
from data_pipeline.shards import BlockStore
from trainer.config import Config, TokenizerConfig
from trainer.ds_config import DeepSpeedPlan
from trainer.memory_plan import MemoryPlan, MicroBatch, count_parameters, plan_memory
from trainer.phases import Phase, phases_of
from trainer.prepare import local_shards
from trainer.show_config import layout_for
from trainer.topology import BatchPlan

# fp32 weights and AdamW's two moments.
_CHECKPOINT_BYTES_A_WEIGHT = 12
_GIB = 1 << 30


@dataclass(frozen=True)
class RowFacts:
    """What a phase reads from the shards, known once they are built.

    rows_an_epoch: until a source begins again. document_tokens: mean length of the document that a token is in.
    """

    rows_an_epoch: int
    document_tokens: int


@dataclass(frozen=True)
class Check:
    """Everything that was found; a recipe that cannot run has raised UserError instead."""

    config: Config
    batch_plan: BatchPlan
    ds_plan: DeepSpeedPlan
    rows: list[RowFacts]
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
    phases = phases_of(config)
    corpus = _corpus(config)
    rows = [_row_facts(phase.config, corpus) for phase in phases] if corpus else []
    model = config.model
    if model.vocab_size is None:
        model = model.model_copy(update={"vocab_size": _vocab_size(config)})
    memory = max(
        (
            plan_memory(
                model,
                micro_batch=_micro_batch(phase.config, rows[phase.number] if rows else None),
                precision=ds_plan.precision,
                zero_stage=ds_plan.zero_stage,
                dp_world_size=batch_plan.dp_world_size,
                bucket_elements=int(ds_plan.config["zero_optimization"]["reduce_bucket_size"]),
                program_bytes=program_bytes,
                candidates=config.objective.candidates,
            )
            for phase in phases
        ),
        key=lambda plan: plan.peak_bytes,
    )
    parameters = count_parameters(model, candidates=config.objective.candidates)
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


def _micro_batch(config: Config, rows: RowFacts | None) -> MicroBatch:
    length = config.data.max_seq_len
    tokens = config.train.micro_batch_size * length
    document_tokens = min(rows.document_tokens, length) if rows else length
    return MicroBatch(tokens, document_tokens, round(tokens * config.objective.mask_rate.highest))


def _vocab_size(config: Config) -> int:
    built = _folders(config)
    return load_manifest(built[0]).vocab_size if built else (config.tokenizer or TokenizerConfig()).vocab_size


def _folders(config: Config) -> list[Path]:
    """Where the sources that are shards already can be read on this machine."""
    return [local_shards(source.shards, config) for source in config.data.all_sources if source.shards is not None]


def _corpus(config: Config) -> Corpus | None:
    """The shards that the recipe names; None where some are still to be made from raw text."""
    sources, folders = config.data.all_sources, _folders(config)
    return open_corpus(sources, folders) if len(folders) == len(sources) else None


def _row_facts(config: Config, corpus: Corpus) -> RowFacts:
    masker_for(config, corpus, seed=config.seed)
    squares = tokens = 0
    for source in corpus.sources:
        for lengths in BlockStore(source.folder, manifest=source.manifest, split="train").iter_lengths():
            cut = lengths.clip(max=config.data.max_seq_len).astype(float)
            squares += int((cut * cut).sum())
            tokens += int(cut.sum())
    rows = reader_for(config, corpus, split="train", seed=config.seed).rows_before_repeat
    return RowFacts(rows_an_epoch=rows, document_tokens=max(1, squares // max(tokens, 1)))


def describe(check: Check, *, world_size: int) -> list[str]:
    """The findings as lines for a person."""
    plan = check.batch_plan
    lines = []
    for phase in phases_of(check.config):
        lines += _describe_phase(phase, check=check)
    lines += [
        f"lanes          {check.config.data.lanes}: {check.config.data.lanes // plan.dp_world_size} a replica",
        f"engine         ZeRO stage {check.ds_plan.zero_stage}, {check.ds_plan.precision}",
        *(f"note           {note}" for note in check.ds_plan.notes),
    ]
    if not check.rows:
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


def _describe_phase(phase: Phase, *, check: Check) -> list[str]:
    """Batches, steps and rows of a phase, under a heading of its own where there are several."""
    train, replicas = phase.config.train, check.batch_plan.dp_world_size
    steps = train.steps
    lines = [f"phase {phase.number}        steps {phase.first_step:,} to {phase.first_step + steps:,}"]
    for first, rows in phase.batch_sizes.stages():
        micro_batches = rows // (train.micro_batch_size * replicas)
        since = f", from step {first:,}" if train.batch_warmup else ""
        lines.append(
            f"batch          {rows} rows = {train.micro_batch_size} a micro-batch x {micro_batches} micro-batches x "
            f"{replicas} replicas{since}"
        )
    positions = train.global_batch_size * phase.config.data.max_seq_len
    lines.append(f"step           {positions:,} token positions; {steps:,} steps")
    if check.rows:
        an_epoch = check.rows[phase.number].rows_an_epoch
        epochs = phase.batch_sizes.rows_before(steps) / an_epoch
        what = "phase" if check.config.phases else "run"
        lines.append(f"rows           {an_epoch:,} an epoch; the {what} is {epochs:.2f} epochs")
    return lines if check.config.phases else lines[1:]


def _gib(size: int) -> str:
    digits = 2 if size >= _GIB or not size else max(2, 1 - math.floor(math.log10(size / _GIB)))
    return f"{size / _GIB:.{min(digits, 4)}f} GiB"
