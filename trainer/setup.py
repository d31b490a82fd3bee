"""From a recipe to a run that stands ready: data, model, engine, and whatever a checkpoint restores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.corpus import Corpus, check_sizes, open_corpus
from data_pipeline.damage import SkippedBlocks
from data_pipeline.from_recipe import loader_for, reader_for
from data_pipeline.manifest import Manifest
from data_pipeline.objective import masker_for
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.ds_config import DeepSpeedPlan, build_ds_config
from trainer.errors import UserError
from trainer.evaluate import Validation
from trainer.half_precision import half_precisions
from trainer.model.create import create_model, parameter_groups
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, SENTENCE_PAIRS
from trainer.model.pipeline_balance import balanced_bounds, unit_costs
from trainer.model.weights import load_weights
from trainer.optim import create_optimizer
from trainer.phases import most_micro_steps
from trainer.pretraining_run import PretrainingRun
from trainer.resume import Resume, check_fits, describe_changes, find_checkpoint
from trainer.runtime import Runtime, on_main
from trainer.spikes import SpikeGuard
from trainer.state import RunState
from trainer.step import DataParallelStep
from trainer.step_engine import EngineSettings
from trainer.step_protocol import Step


def resolve(config: Config, manifest: Manifest) -> Config:
    """The recipe with the vocabulary size of the shards' tokenizer filled in; UserError when they contradict."""
    vocab_size = config.model.vocab_size or manifest.vocab_size
    if vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is smaller than the shards' tokenizer, which has {manifest.vocab_size} "
            "pieces; leave model.vocab_size out, or build shards with a tokenizer of that size"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})


def shortened(config: Config, *, steps: int, report: Callable[[str], None]) -> Config:
    """The recipe with as many steps as there is data for, where the data ends the run; UserError when that is none."""
    if steps == config.train.steps:
        return config
    why = f"data.on_exhausted is stop and the data lasts for {steps} of train.steps={config.train.steps}"
    warmup = max([config.schedule.warmup_steps, *(stage.until_step for stage in config.train.batch_warmup)])
    if steps <= warmup:
        raise UserError(f"{why}, the warm-up for {warmup}; shorten the warm-up or the batches, or let the data repeat")
    report(f"{why}: the run ends there")
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def term_weights_for(config: Config) -> dict[str, float]:
    """What the recipe trains, and how much each loss term weighs."""
    weights = {MASKED_LANGUAGE_MODEL: 1.0}
    return weights if config.objective.pairs == "none" else {**weights, SENTENCE_PAIRS: config.objective.pair_weight}


def validation_for(config: Config, corpus: Corpus, *, dp_rank: int = 0, dp_world_size: int = 1) -> Validation | None:
    """The recipe's held-out rows, None when it asks for none; UserError when a source holds none.

    Their length and masking are the recipe's in all phases, so that their losses compare.
    """
    evaluation = config.evaluation
    if evaluation is None:
        return None
    return Validation(
        reader_for(config, corpus, split="validation", seed=evaluation.seed),
        masker_for(config, corpus, seed=evaluation.seed, training=False),
        max_rows=evaluation.max_rows,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        term_weights=term_weights_for(config),
    )


def plan_layout(config: Config, *, runtime: Runtime) -> DeepSpeedPlan:
    """What DeepSpeed gets for the recipe on this job's ranks; UserError where a batch cannot be dealt over them."""
    topology = runtime.topology
    return build_ds_config(
        config,
        topology=topology,
        batch_plan=most_micro_steps(config, dp_world_size=topology.dp_world_size),
        device_type=runtime.device.type,
        half_precisions=half_precisions(runtime.device.type),
    )


def set_up(
    config: Config, *, shards: Sequence[Path], runtime: Runtime, resume: Resume, report: Callable[[str], None]
) -> PretrainingRun:
    """Build a run and restore its newest whole checkpoint; collective. `report` prints on the main rank.

    `shards` are the folders of the recipe's sources.
    """
    corpus = replace(
        open_corpus(config.data.all_sources, shards),
        skipped=SkippedBlocks() if config.data.on_damage == "skip" else None,
    )
    if corpus.skipped is None:
        check_sizes(corpus)
    config = resolve(config, corpus.manifest)
    topology = runtime.topology
    ds_plan = plan_layout(config, runtime=runtime)
    for note in ds_plan.notes:
        report(note)
    if config.checkpoint.weights_only:
        report("checkpoint.weights_only=true: checkpoints can be evaluated and exported, this run cannot be resumed")
    dp = {"dp_rank": topology.dp_rank, "dp_world_size": topology.dp_world_size}
    loader = loader_for(config, corpus, **dp)
    config = shortened(config, steps=loader.num_steps, report=report)
    validation = validation_for(config, corpus, **dp)
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
        loader.load_state_dict(source.state["cursor"], step=state.step)
        if spikes is not None and source.state.get("spikes") is not None:
            spikes.load_state_dict(source.state["spikes"])
        report(f"resuming from {source.folder} at step {state.step}")
        if changed := describe_changes(config, source, world_size=topology.world_size):
            report(changed)
    engine = make_engine(config, ds_plan=ds_plan, runtime=runtime, source=source)
    return PretrainingRun(
        config=config,
        runtime=runtime,
        corpus=corpus,
        ds_plan=ds_plan,
        engine=engine,
        loader=loader,
        validation=validation,
        checkpoints=checkpoints,
        state=state,
        term_weights=term_weights_for(config),
        spikes=spikes,
    )


def stage_bounds(config: Config) -> list[int]:
    """Where a resolved recipe's model is cut into its pipeline stages."""
    tokens = config.train.micro_batch_size * config.data.max_seq_len
    costs = unit_costs(config.model, tokens=tokens, predicted_tokens=round(config.objective.mask_rate.highest * tokens))
    return balanced_bounds(costs, num_stages=config.parallel.num_stages)


def make_engine(config: Config, *, ds_plan: DeepSpeedPlan, runtime: Runtime, source: CheckpointReader | None) -> Step:
    """A new engine with the recipe's initial weights, or with a checkpoint's state; collective."""
    objective = config.objective
    model = create_model(
        config.model,
        seed=config.seed,
        label_smoothing=objective.label_smoothing,
        z_loss=objective.z_loss,
        candidates=objective.candidates,
    )
    model.encoder.recompute = config.parallel.activation_checkpointing
    if source is not None:
        load_weights(model, source.weights(), source=str(source.folder))
    optimizer = create_optimizer(
        config.optimizer,
        parameter_groups=parameter_groups(
            model, weight_decay=config.optimizer.weight_decay, muon=config.optimizer.name == "muon"
        ),
        device_type=runtime.device.type,
    )
    settings = EngineSettings(
        plan=ds_plan,
        runtime=runtime,
        seed=config.seed,
        term_weights=term_weights_for(config),
        ema_decay=config.optimizer.ema_decay,
    )
    if runtime.topology.num_stages == 1:
        engine: Step = DataParallelStep(model, optimizer, settings=settings)
    else:
        # Imported here because it brings DeepSpeed, which must come after the start-up.
        from trainer.step_pipeline import PipelineStep

        engine = PipelineStep(model, optimizer, bounds=stage_bounds(config), settings=settings)
    if source is not None:
        engine.load_state(source)
    return engine
