"""From a recipe to a run that stands ready: data, model, engine, and whatever a checkpoint restores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.loader import Cursor, TrainLoader
from data_pipeline.masking import TokenMasker
from data_pipeline.reader import RowReader
from data_pipeline.shards import BlockStore, Manifest, load_manifest
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config, data_config_hash
from trainer.ds_config import DeepSpeedPlan, build_ds_config
from trainer.errors import UserError
from trainer.evaluate import Validation
from trainer.half_precision import half_precisions
from trainer.model.create import create_model, parameter_groups
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL
from trainer.model.weights import load_weights
from trainer.optim import create_optimizer
from trainer.resume import Resume, check_fits, describe_changes, find_checkpoint
from trainer.runtime import Runtime, on_main
from trainer.spikes import SpikeGuard
from trainer.state import RunState
from trainer.step import DataParallelStep
from trainer.topology import BatchPlan, plan_batches


@dataclass
class Run:
    """Everything the loop needs; `shards` is the folder the rows come from."""

    config: Config
    runtime: Runtime
    shards: Path
    batch_plan: BatchPlan
    ds_plan: DeepSpeedPlan
    engine: DataParallelStep
    loader: TrainLoader
    validation: Validation | None
    checkpoints: CheckpointStore
    state: RunState
    term_weights: Mapping[str, float]
    spikes: SpikeGuard | None


def resolve(config: Config, manifest: Manifest) -> Config:
    """The recipe with the vocabulary size of the shards' tokenizer filled in; UserError when they contradict."""
    vocab_size = config.model.vocab_size or manifest.vocab_size
    if vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is smaller than the shards' tokenizer, which has {manifest.vocab_size} "
            "pieces; leave model.vocab_size out, or build shards with a tokenizer of that size"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})


def term_weights_for(config: Config) -> dict[str, float]:
    """What the recipe trains, and how much each loss term weighs."""
    return {MASKED_LANGUAGE_MODEL: 1.0}


def masker_for(config: Config, manifest: Manifest, *, seed: int) -> TokenMasker:
    """The recipe's masking over the shards' tokenizer."""
    objective = config.objective
    return TokenMasker(
        vocab_size=manifest.vocab_size,
        special_ids=sorted(manifest.special_token_ids.values()),
        mask_id=manifest.special_token_ids["mask"],
        mask_rate=objective.mask_rate,
        mask_token_rate=objective.mask_token_rate,
        random_token_rate=objective.random_token_rate,
        seed=seed,
    )


def validation_for(
    config: Config, shards: Path, manifest: Manifest, *, dp_rank: int = 0, dp_world_size: int = 1
) -> Validation | None:
    """The recipe's held-out rows, None when it asks for none; UserError when the shards hold none."""
    evaluation = config.evaluation
    if evaluation is None:
        return None
    if "validation" not in manifest.splits or manifest.splits["validation"].documents == 0:
        raise UserError(
            f"{shards} holds no validation documents; build with --validation-fraction 0.01 "
            "(data.validation_fraction in a recipe with raw text), or set evaluation: null"
        )
    reader = RowReader(
        BlockStore(shards, manifest=manifest, split="validation"),
        max_seq_len=config.data.max_seq_len,
        packing=config.data.packing,
        lanes=config.data.lanes,
        seed=evaluation.seed,
    )
    return Validation(
        reader,
        masker_for(config, manifest, seed=evaluation.seed),
        max_rows=evaluation.max_rows,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        term_weights=term_weights_for(config),
    )


def loader_for(config: Config, shards: Path, manifest: Manifest, *, dp_rank: int, batch_plan: BatchPlan) -> TrainLoader:
    """The training rows of one data-parallel rank from row 0."""
    reader = RowReader(
        BlockStore(shards, manifest=manifest, split="train"),
        max_seq_len=config.data.max_seq_len,
        packing=config.data.packing,
        lanes=config.data.lanes,
        seed=config.seed,
        dp_world_size=batch_plan.dp_world_size,
    )
    cursor = Cursor(
        fingerprint=manifest.fingerprint,
        data_config_hash=data_config_hash(config),
        seed=config.seed,
        phase=0,
        next_row=0,
    )
    return TrainLoader(
        reader,
        masker_for(config, manifest, seed=config.seed),
        cursor=cursor,
        global_batch_size=batch_plan.global_batch_size,
        micro_batch_size=batch_plan.micro_batch_size,
        dp_rank=dp_rank,
        dp_world_size=batch_plan.dp_world_size,
        prefetch_batches=config.data.prefetch_batches,
    )


def plan_layout(config: Config, *, runtime: Runtime) -> tuple[BatchPlan, DeepSpeedPlan]:
    """How the recipe's batch is dealt over this job's ranks, and what DeepSpeed gets; UserError where it cannot be."""
    topology = runtime.topology
    batch_plan = plan_batches(
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        dp_world_size=topology.dp_world_size,
        lanes=config.data.lanes,
    )
    ds_plan = build_ds_config(
        config,
        topology=topology,
        batch_plan=batch_plan,
        device_type=runtime.device.type,
        half_precisions=half_precisions(runtime.device.type),
    )
    return batch_plan, ds_plan


def set_up(config: Config, *, shards: Path, runtime: Runtime, resume: Resume, report: Callable[[str], None]) -> Run:
    """Build a run and restore its newest whole checkpoint; collective. `report` prints on the main rank."""
    manifest = load_manifest(shards)
    config = resolve(config, manifest)
    topology = runtime.topology
    batch_plan, ds_plan = plan_layout(config, runtime=runtime)
    for note in ds_plan.notes:
        report(note)
    if config.checkpoint.weights_only:
        report("checkpoint.weights_only=true: checkpoints can be evaluated and exported, this run cannot be resumed")
    dp = {"dp_rank": topology.dp_rank, "dp_world_size": topology.dp_world_size}
    loader = loader_for(config, shards, manifest, dp_rank=topology.dp_rank, batch_plan=batch_plan)
    validation = validation_for(config, shards, manifest, **dp)
    checkpoints = CheckpointStore(config.run_dir / "checkpoints")
    found = on_main(runtime, lambda: find_checkpoint(checkpoints, resume=resume, report=report))
    source = CheckpointReader(found) if found else None
    state = RunState()
    spikes = (
        SpikeGuard(config.stability, term_weights=term_weights_for(config)) if config.stability is not None else None
    )
    if source is not None:
        check_fits(config, source)
        state.load_state_dict(source.state)
        loader.load_state_dict(source.state["cursor"])
        if spikes is not None and source.state.get("spikes") is not None:
            spikes.load_state_dict(source.state["spikes"])
        report(f"resuming from {source.folder} at step {state.step}")
        if changed := describe_changes(config, source, world_size=topology.world_size):
            report(changed)
    engine = make_engine(config, ds_plan=ds_plan, runtime=runtime, source=source)
    return Run(
        config=config,
        runtime=runtime,
        shards=shards,
        batch_plan=batch_plan,
        ds_plan=ds_plan,
        engine=engine,
        loader=loader,
        validation=validation,
        checkpoints=checkpoints,
        state=state,
        term_weights=term_weights_for(config),
        spikes=spikes,
    )


def make_engine(
    config: Config, *, ds_plan: DeepSpeedPlan, runtime: Runtime, source: CheckpointReader | None
) -> DataParallelStep:
    """A new engine with the recipe's initial weights, or with a checkpoint's state; collective."""
    objective = config.objective
    model = create_model(
        config.model, seed=config.seed, label_smoothing=objective.label_smoothing, z_loss=objective.z_loss
    )
    if source is not None:
        load_weights(model, source.weights(), source=str(source.folder))
    optimizer = create_optimizer(
        config.optimizer,
        parameter_groups=parameter_groups(
            model, weight_decay=config.optimizer.weight_decay, muon=config.optimizer.name == "muon"
        ),
        device_type=runtime.device.type,
    )
    engine = DataParallelStep(
        model,
        optimizer,
        plan=ds_plan,
        runtime=runtime,
        seed=config.seed,
        term_weights=term_weights_for(config),
        ema_decay=config.optimizer.ema_decay,
    )
    if source is not None:
        engine.load_state(source)
    return engine
