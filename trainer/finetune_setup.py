"""From a fine-tuning recipe to a run that stands ready: examples, model, engine, and what a checkpoint restores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.hashing import Int64Array
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.ds_config import DeepSpeedPlan, build_ds_config
from trainer.encoder_config import BiLSTMConfig, EncoderConfig
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.finetune_data import TaskData, read_task_data
from trainer.finetune_plan import plan_steps, plan_task_batches
from trainer.flops import bilstm_flops, encoder_flops
from trainer.half_precision import half_precisions
from trainer.model.create import initialize_weights
from trainer.model.weights import load_weights
from trainer.optim import create_optimizer
from trainer.resume import Resume, changes, check_optimizer, describe_changes, find_checkpoint, model_changes
from trainer.runtime import Runtime, on_main
from trainer.schedule import learning_rate
from trainer.state import RunState
from trainer.step import DataParallelStep
from trainer.step_engine import EngineSettings
from trainer.task_evaluate import TaskEvaluation, TaskResult
from trainer.tasks.examples import TaskBatch
from trainer.tasks.loader import ExampleLoader
from trainer.tasks.lora import add_lora, is_adapter, start_at_zero
from trainer.tasks.model import TaskModel
from trainer.tasks.rates import task_parameter_groups
from trainer.tasks.task import Task


@dataclass
class FineTuneRun:
    """Everything the loop needs, and the task; `model` is the encoder's shape."""

    config: FineTuneConfig
    runtime: Runtime
    ds_plan: DeepSpeedPlan
    engine: DataParallelStep
    loader: ExampleLoader
    validation: TaskEvaluation
    checkpoints: CheckpointStore
    state: RunState
    task: Task
    model: EncoderConfig
    term_weights: Mapping[str, float]
    total_steps: int
    evaluate_every_steps: int
    source_names: Sequence[str] = ("train",)
    spikes: None = None
    skipped: None = None
    phase_first_step: int = 0
    log_layer_norms: bool = False

    def examples(self, checkpoint: CheckpointReader) -> None:
        """There are none: `trainer predict` shows what a fine-tuned model says."""

    @property
    def log_every_steps(self) -> int:
        """As the recipe says."""
        return self.config.train.log_every_steps

    @property
    def patience(self) -> int | None:
        """As the recipe says."""
        return self.config.evaluation.patience

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return learning_rate(
            self.config.schedule,
            peak=self.config.optimizer.learning_rate,
            applied_steps=self.state.applied_steps,
            total_steps=self.total_steps,
        )

    def evaluate(self, *, poll: Callable[[], None] | None) -> TaskResult:
        """Score the validation file; collective. `poll` is called after each batch."""
        return self.validation.run(self.engine.predict_step, poll=poll)

    def flops(self, batches: Sequence[TaskBatch]) -> int:
        """Model FLOPs of training on some micro-batches; the head's are left out."""
        tokens = sum(batch.tokens for batch in batches)
        if isinstance(self.model, BiLSTMConfig):
            return bilstm_flops(self.model, tokens=tokens)
        return encoder_flops(
            self.model,
            tokens=tokens,
            sum_squared_document_lengths=sum(batch.sum_squared_lengths for batch in batches),
            last_layer_tokens=sum(batch.predicted_tokens for batch in batches),
        )

    def tokens_by_source(self, batches: Sequence[TaskBatch]) -> Int64Array:
        """Tokens of some micro-batches, int64 [1]: there is one training file."""
        return np.array([sum(batch.tokens for batch in batches)], dtype=np.int64)

    def origin(self) -> dict[str, Any]:
        """The encoder's shape and the labels: with the recipe and the tokenizer all that predicting needs."""
        return {"model": self.model.model_dump(), "labels": list(self.task.labels)}


def set_up_finetuning(
    config: FineTuneConfig, *, runtime: Runtime, resume: Resume, report: Callable[[str], None]
) -> FineTuneRun:
    """Build a run and restore its newest whole checkpoint; collective. `report` prints on the main rank."""
    data = read_task_data(config, runtime=runtime, report=report)
    batch_plan = plan_task_batches(config, dp_world_size=runtime.topology.dp_world_size)
    ds_plan = build_ds_config(
        config,
        topology=runtime.topology,
        batch_plan=batch_plan,
        device_type=runtime.device.type,
        half_precisions=half_precisions(runtime.device.type),
    )
    for note in ds_plan.notes:
        report(note)
    total_steps, epoch_steps = plan_steps(config, num_examples=len(data.rows))
    loader = ExampleLoader(
        data.rows,
        term=data.task.term,
        seed=config.seed,
        global_batch_size=batch_plan.global_batch_size,
        micro_batch_size=batch_plan.micro_batch_size,
        dp_rank=runtime.topology.dp_rank,
        dp_world_size=batch_plan.dp_world_size,
    )
    checkpoints = CheckpointStore(config.run_dir / "checkpoints")
    found = on_main(runtime, lambda: find_checkpoint(checkpoints, resume=resume, report=report))
    source = CheckpointReader(found) if found else None
    state = RunState()
    if source is not None:
        check_task_fits(source, config, data=data, total_steps=total_steps)
        state.load_state_dict(source.state)
        loader.load_state_dict(source.state["cursor"])
        report(f"resuming from {source.folder} at step {state.step}")
        if changed := describe_changes(config, source, world_size=runtime.topology.world_size):
            report(changed)
    return FineTuneRun(
        config=config,
        runtime=runtime,
        ds_plan=ds_plan,
        engine=make_task_engine(config, data, ds_plan=ds_plan, runtime=runtime, source=source, report=report),
        loader=loader,
        validation=data.validation,
        checkpoints=checkpoints,
        state=state,
        task=data.task,
        model=data.model,
        term_weights={data.task.term: 1.0},
        total_steps=total_steps,
        evaluate_every_steps=config.evaluation.every_steps or epoch_steps,
    )


def check_task_fits(source: CheckpointReader, config: FineTuneConfig, *, data: TaskData, total_steps: int) -> None:
    """UserError where a checkpoint is of another model, vocabulary or labels, or past the run's last step."""
    check_optimizer(config, source)
    saved, now = (
        {
            "labels": labels,
            "start": {"tokenizer": recipe["start"]["tokenizer"]},
            "train": {"lora": recipe["train"].get("lora")},
        }
        for labels, recipe in (
            (source.state["labels"], source.state["config"]),
            (list(data.task.labels), config.model_dump()),
        )
    )
    model = [f"model.{change}" for change in model_changes(source.state["model"], data.model)]
    differing = model + [change for change in changes(saved, now) if "dropout" not in change]
    if differing:
        raise UserError(
            f"{source.folder} was made for another model or task ({'; '.join(differing)}); restore the recipe, or "
            "start a new run under another name"
        )
    if source.state["step"] > total_steps:
        raise UserError(
            f"{source.folder} is past the {total_steps} steps of this recipe; raise train.epochs or train.steps, or "
            "start a new run under another name"
        )


def initial_model(config: FineTuneConfig, data: TaskData, *, report: Callable[[str], None]) -> TaskModel:
    """The task's model with the start's weights, what these lack drawn from the seed; the same on every rank."""
    made = data.task.create_model(data.model)
    if config.train.lora is not None:
        add_lora(made, config=config.train.lora)
    initialize_weights(made, std=data.model.initializer_range, seed=config.seed)
    start_at_zero(made)
    if data.start is not None:
        parameters = dict(made.named_parameters())
        encoder = {name: weight for name, weight in data.start.weights.items() if name.startswith("encoder.")}
        head = made.head.start_weights(data.start.weights)
        own = encoder | {f"head.{name}": weight for name, weight in head.items()}
        taken = {name: weight for name, weight in own.items() if name in parameters}
        load_weights(made, {**parameters, **taken}, source=str(config.start.path))
        new = ", ".join(name for name in parameters if name not in taken and not is_adapter(name))
        report(f"{len(taken)} weights from {config.start.path}; new: {new}")
    if config.train.lora is not None:
        trained, all_of_them = (
            sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad or frozen_too)
            for frozen_too in (False, True)
        )
        report(f"adapters of rank {config.train.lora.rank}: {trained:,} of {all_of_them:,} weights are trained")
    return made


def make_task_engine(
    config: FineTuneConfig,
    data: TaskData,
    *,
    ds_plan: DeepSpeedPlan,
    runtime: Runtime,
    source: CheckpointReader | None,
    report: Callable[[str], None],
) -> DataParallelStep:
    """A new engine with the start's weights, or with a checkpoint's state; collective."""
    model = initial_model(config, data, report=report)
    if source is not None:
        load_weights(model, source.weights(), source=str(source.folder))
    model.head.collective = ds_plan.zero_stage == 3
    if config.train.frozen_layers is not None:
        model.freeze_below(config.train.frozen_layers)
    groups = task_parameter_groups(
        model,
        weight_decay=config.optimizer.weight_decay,
        layer_decay=config.train.layer_decay,
        frozen_layers=config.train.frozen_layers,
        muon=config.optimizer.name == "muon",
    )
    optimizer = create_optimizer(config.optimizer, parameter_groups=groups, device_type=runtime.device.type)
    settings = EngineSettings(
        plan=ds_plan,
        runtime=runtime,
        seed=config.seed,
        term_weights={data.task.term: 1.0},
        ema_decay=config.optimizer.ema_decay,
    )
    engine = DataParallelStep(model, optimizer, settings=settings)
    if source is not None:
        engine.load_state(source)
    return engine
