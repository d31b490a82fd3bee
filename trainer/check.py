"""`trainer check`: whether a recipe can run on so many processes, and what it will take; starts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.corpus import Corpus, Source, check_sizes, open_corpus
from data_pipeline.from_recipe import loader_for, reader_for
from data_pipeline.hashing import Int64Array
from data_pipeline.manifest import load_manifest
from data_pipeline.objective import masker_for
from data_pipeline.packing import FRAME_TOKENS, cut_documents
from data_pipeline.shards import BlockStore
from trainer.activation_memory import sample_lengths
from trainer.config import Config, TokenizerConfig
from trainer.ds_config import DeepSpeedPlan
from trainer.memory_plan import MemoryPlan, MicroBatch, StageShare, Weights, checkpoint_bytes, plan_memory, plan_stages
from trainer.phases import phases_of
from trainer.prepare import local_shards
from trainer.setup import resolve, shortened, stage_bounds, validation_for
from trainer.show_config import layout_for
from trainer.topology import BatchPlan


@dataclass(frozen=True)
class RowFacts:
    """What a phase reads from the shards, known once they are built.

    rows_an_epoch: until a source begins again. documents: lengths of the documents of one micro-batch, in tokens,
    spread as they are in the sources.
    """

    rows_an_epoch: int
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """Everything that was found; a recipe that cannot run has raised UserError instead.

    rows: of each phase, empty while shards are still to be made. stages: of the pipeline, one where there
    is none. memory: of the phase and stage that take most.
    """

    config: Config
    batch_plan: BatchPlan
    ds_plan: DeepSpeedPlan
    notes: tuple[str, ...]
    rows: tuple[RowFacts, ...]
    weights: Weights
    stages: tuple[StageShare, ...]
    memory: MemoryPlan
    checkpoint_bytes: int
    checkpoints_kept: int


def check_recipe(config: Config, *, world_size: int, device_type: str, program_bytes: int) -> Check:
    """Check a recipe for a job of `world_size` processes on devices of that type ("cpu", "cuda").

    Raises UserError for whatever would stop it at its start: a batch that cannot be split, a pair that cannot work, a
    precision that the device lacks, shards that are not there, cut short or without validation text, data that ends
    too soon.
    """
    batch_plan, ds_plan = layout_for(config, world_size=world_size, device_type=device_type)
    notes = [*ds_plan.notes]
    corpus = _corpus(config)
    if corpus is None:
        config = _with_vocabulary(config)
    else:
        if config.data.on_damage == "stop":
            check_sizes(corpus)
        config = resolve(config, corpus.manifest)
        loader = loader_for(config, corpus, dp_rank=0, dp_world_size=batch_plan.dp_world_size)
        config = shortened(config, steps=loader.num_steps, report=notes.append)
        validation_for(config, corpus)
    phases = phases_of(config)
    rows = tuple(_row_facts(phase.config, corpus) for phase in phases) if corpus else ()
    cut = partial(
        plan_stages, config.model, micro_batches=batch_plan.grad_accum_steps, candidates=config.objective.candidates
    )
    stages = cut(bounds=stage_bounds(config))
    plans = [
        plan_memory(
            config.model,
            optimizer=config.optimizer,
            stages=stages,
            micro_batch=_micro_batch(phase.config, rows[phase.number] if rows else None),
            precision=ds_plan.precision,
            zero_stage=ds_plan.zero_stage,
            dp_world_size=batch_plan.dp_world_size,
            bucket_elements=int(ds_plan.config["zero_optimization"]["reduce_bucket_size"]),
            program_bytes=program_bytes,
            resident=device_type == "cpu",
            recompute=config.parallel.activation_checkpointing,
        )
        for phase in phases
    ]
    (whole,) = cut(bounds=[0, config.model.num_layers + 2])
    kept = config.checkpoint
    return Check(
        config=config,
        batch_plan=batch_plan,
        ds_plan=ds_plan,
        notes=tuple(notes),
        rows=rows,
        weights=whole.weights,
        stages=tuple(stages),
        memory=max(plans, key=lambda plan: plan.peak_bytes),
        checkpoint_bytes=checkpoint_bytes(config.optimizer, weights=whole.weights, weights_only=kept.weights_only),
        # The last ones, the best, and the one that is being written before the oldest goes.
        checkpoints_kept=kept.keep_last + (config.evaluation is not None) + 1,
    )


def expected_micro_batch(config: Config) -> tuple[Config, MicroBatch]:
    """The resolved recipe, and what a micro-batch of its rows holds: as its shards say, where there are such already.

    UserError for shards that are not there.
    """
    corpus = _corpus(config)
    config = _with_vocabulary(config) if corpus is None else resolve(config, corpus.manifest)
    return config, _micro_batch(config, None if corpus is None else _row_facts(config, corpus))


def _with_vocabulary(config: Config) -> Config:
    """The recipe with the vocabulary's size that its shards will have."""
    model = config.model.model_copy(update={"vocab_size": config.model.vocab_size or _vocab_size(config)})
    return config.model_copy(update={"model": model})


def _micro_batch(config: Config, rows: RowFacts | None) -> MicroBatch:
    """A micro-batch of the phase; while lengths are unknown, of documents that fill a row each."""
    length, size = config.data.max_seq_len, config.train.micro_batch_size
    documents = rows.documents if rows else (length,) * size
    return MicroBatch(documents, predicted=round(sum(documents) * config.objective.mask_rate.highest))


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
    reader = reader_for(config, corpus, split="train", seed=config.seed)
    whole = sum(source.weight for source in corpus.sources)
    documents: list[int] = []
    for source in corpus.sources:
        lengths = np.concatenate([*_piece_lengths(source, max_seq_len=config.data.max_seq_len)])
        a_row = float(lengths.mean()) if config.data.packing == "padded" else config.data.max_seq_len
        tokens = config.train.micro_batch_size * a_row * source.weight / whole
        documents += sample_lengths(lengths.tolist(), tokens=round(tokens))
    return RowFacts(rows_an_epoch=reader.rows_before_repeat, documents=tuple(documents))


def _piece_lengths(source: Source, *, max_seq_len: int) -> Iterator[Int64Array]:
    store = BlockStore(source.folder, manifest=source.manifest, split="train")
    for lengths in store.iter_lengths():
        yield cut_documents(lengths, max_seq_len=max_seq_len).length.astype(np.int64) + FRAME_TOKENS
