"""The recipe as frozen, typed models: every knob of a run, its type, its range and its default."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.data_config import DEFAULT_LANES, MIN_SEQ_LEN, DataConfig
from trainer.model_config import ModelConfig
from trainer.objective_config import MaskRateConfig, ObjectiveConfig
from trainer.optimizer_config import AdamWConfig, OptimizerConfig
from trainer.schedule_config import LinearConfig, ScheduleConfig, check_length
from trainer.strict_model import PositiveInt, StrictModel
from trainer.train_config import BatchWarmupStage, TrainConfig, check_batch_warmup

__all__ = [
    "DEFAULT_LANES",
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PositiveInt",
    "StrictModel",
    "TrainConfig",
]


class TokenizerConfig(StrictModel):
    """How the tokenizer is trained when `data.text` names raw text."""

    vocab_size: PositiveInt = 30000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9995
    seed: int = 0


class PhaseConfig(StrictModel):
    """A stretch of the run with rows, batches and rates of its own; what is left out is the recipe's.

    `schedule` counts this phase's steps; without it the recipe's schedule spans all phases, with this phase's
    `learning_rate` as its peak.
    """

    steps: PositiveInt
    max_seq_len: Annotated[int, Field(ge=MIN_SEQ_LEN)] | None = None
    global_batch_size: PositiveInt | None = None
    micro_batch_size: PositiveInt | None = None
    batch_warmup: list[BatchWarmupStage] = Field(default_factory=list)
    mask_rate: MaskRateConfig | None = None
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    schedule: ScheduleConfig | None = None


class EngineConfig(StrictModel):
    """The DeepSpeed JSON (a file of ds_configs/ by name, or a path) and the arithmetic's precision."""

    ds_config: str = "zero1"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class ParallelConfig(StrictModel):
    """How the model is spread: over pipeline stages (Huang et al. 2019), and with what kept for the backward pass.

    `activation_checkpointing` keeps each layer's input only and computes the layer again (Chen et al. 2016).
    """

    num_stages: PositiveInt = 1
    activation_checkpointing: bool = False


class EvaluationConfig(StrictModel):
    """Validation loss over the first `max_rows` rows of the validation part, masks fixed by `seed`."""

    every_steps: PositiveInt = 500
    max_rows: PositiveInt = 2048
    seed: int = 0


class CheckpointConfig(StrictModel):
    """When the run is saved; the best by validation loss is kept apart from the last `keep_last`.

    The clock behind `every_minutes` is looked at on logging steps, because asking it makes all ranks wait.
    With `weights_only` the optimiser's state is left out: such a checkpoint can be evaluated and exported, but no
    run can go on from it.
    """

    every_steps: PositiveInt = 500
    every_minutes: Annotated[float, Field(gt=0.0)] = 30.0
    keep_last: PositiveInt = 2
    weights_only: bool = False


class StabilityConfig(StrictModel):
    """What to do when a step's loss is more than `threshold` deviations above the mean of the last `window` steps.

    skip: the step's update is not applied; the loss is waited for on every step. rollback: weights and optimiser
    return to the last checkpoint, and all rows consumed since stay consumed. stop: end the run. The last two look
    at the losses on logging steps. A run with more than `max_spikes` ends.
    """

    on_spike: Literal["skip", "rollback", "stop"]
    window: Annotated[int, Field(ge=2)] = 100
    threshold: Annotated[float, Field(gt=0.0)] = 6.0
    max_spikes: PositiveInt = 10


class RunConfig(StrictModel):
    """What recipes of every kind have in common: the run's name and seed, and how it is optimised, run and saved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    deterministic: bool = False
    runs_dir: str = "runs"
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = LinearConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def run_dir(self) -> Path:
        """The run folder, below `runs_dir`."""
        return Path(self.runs_dir) / self.name


class Config(RunConfig):
    """A pretraining recipe; `evaluation: null` trains without held-out text, `export: false` ends with training."""

    data: DataConfig
    tokenizer: TokenizerConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig
    phases: list[PhaseConfig] = Field(default_factory=list)
    parallel: ParallelConfig = ParallelConfig()
    evaluation: EvaluationConfig | None = EvaluationConfig()
    stability: StabilityConfig | None = None
    export: bool = True

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.data.has_shards and self.tokenizer is not None:
            raise ValueError("the tokenizer section belongs to data.text: shards bring their own tokenizer; remove it")
        row_lengths = {"data": self.data.max_seq_len} | {
            f"phases[{number}]": phase.max_seq_len or 0 for number, phase in enumerate(self.phases)
        }
        for where, length in row_lengths.items():
            if length > self.model.max_positions:
                raise ValueError(
                    f"{where}.max_seq_len={length} is longer than model.max_positions="
                    f"{self.model.max_positions}; raise the latter or shorten the rows"
                )
        if self.checkpoint.weights_only and self.stability is not None and self.stability.on_spike == "rollback":
            raise ValueError(
                "stability.on_spike=rollback needs the optimiser's state, which checkpoint.weights_only=true leaves out"
            )
        units = self.model.num_layers + 2
        if self.parallel.num_stages > units:
            raise ValueError(
                f"parallel.num_stages={self.parallel.num_stages} leaves a stage empty: model.num_layers="
                f"{self.model.num_layers}, the embeddings and the head fill {units} at most"
            )
        check_length(self.schedule, total_steps=self.train.steps)
        return self

    @model_validator(mode="after")
    def _phases_agree(self) -> Config:
        if not self.phases:
            return self
        steps = [phase.steps for phase in self.phases]
        if sum(steps) != self.train.steps:
            raise ValueError(
                f"train.steps={self.train.steps} is not the sum of the phases' steps, {' + '.join(map(str, steps))}; "
                f"set train.steps={sum(steps)}"
            )
        if self.train.batch_warmup:
            raise ValueError("train.batch_warmup counts steps of a run without phases; put it into a phase")
        if self.data.on_exhausted == "stop":
            raise ValueError("data.on_exhausted: stop goes with a run without phases, whose length the data decides")
        scheduled = [phase.schedule is not None for phase in self.phases]
        if any(scheduled) and (not all(scheduled) or self.schedule != LinearConfig()):
            raise ValueError(
                "the learning rate follows either the recipe's schedule over all phases or a schedule in every phase; "
                "set schedule in all phases and not beside them, or in none"
            )
        for number, phase in enumerate(self.phases):
            final = phase.global_batch_size or self.train.global_batch_size
            try:
                if phase.schedule is not None:
                    check_length(phase.schedule, total_steps=phase.steps, of="steps")
                check_batch_warmup(phase.batch_warmup, steps=phase.steps, global_batch_size=final)
            except ValueError as error:
                raise ValueError(f"phases[{number}].{error}") from None
        return self

    @model_validator(mode="after")
    def _objective_agrees(self) -> Config:
        objective = self.objective
        if objective.pairs != "none" and self.model.family == "modernbert":
            raise ValueError(
                f"objective.pairs={objective.pairs} needs token types, which model.family: modernbert has none of; use "
                "family: bert, or pairs: none"
            )
        if objective.pairs != "none" and self.model.type_vocab_size < 2:
            raise ValueError(
                f"objective.pairs={objective.pairs} needs two token types, but model.type_vocab_size is "
                f"{self.model.type_vocab_size}; set it to 2"
            )
        objective.check_row_length(self.data.max_seq_len, where="data")
        if not self.phases:
            rows = self.train.steps * self.train.global_batch_size
            objective.check_mask_rate(objective.mask_rate, where="objective", rows=rows)
        for number, phase in enumerate(self.phases):
            where = f"phases[{number}]"
            objective.check_row_length(phase.max_seq_len or self.data.max_seq_len, where=where)
            rows = phase.steps * (phase.global_batch_size or self.train.global_batch_size)
            objective.check_mask_rate(phase.mask_rate or objective.mask_rate, where=where, rows=rows)
        return self


def fingerprint(value: Any) -> str:
    """SHA-256, in hex, of a plain value's canonical JSON: equal values, equal fingerprints."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def data_config_hash(config: Config) -> str:
    """Fingerprint of everything in the recipe that decides what a row holds, and nothing else."""
    data = config.data
    return fingerprint(
        {
            "max_seq_len": data.max_seq_len,
            "packing": data.packing,
            "lanes": data.lanes,
            "weights": [source.weight for source in data.all_sources],
            "objective": config.objective.model_dump(exclude={"label_smoothing", "z_loss", "pair_weight"}),
            "augmentation": data.augmentation and data.augmentation.model_dump(),
        }
    )
