"""The recipe as frozen, typed models: every knob of a run, its type, its range and its default."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]

# Highly composite on purpose: the number of data-parallel ranks must divide the number of lanes.
DEFAULT_LANES = 960


class StrictModel(BaseModel):
    """A frozen section of the recipe: unknown keys are refused, and so is a type that would need guessing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TokenizerConfig(StrictModel):
    """How the tokenizer is trained when `data.text` names raw text."""

    vocab_size: PositiveInt = 30000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9995
    seed: int = 0


class DataConfig(StrictModel):
    """Where rows come from and what shape they have; exactly one of `shards` and `text` is set."""

    shards: str | None = None
    text: list[str] | None = None
    text_field: str = "text"
    document: Literal["line", "blank-line"] = "line"
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    word_starts: Literal["vocabulary", "jieba"] = "vocabulary"
    deduplicate: bool = False
    prepared: str | None = None
    max_seq_len: PositiveInt = 512
    packing: Literal["packed", "padded"] = "packed"
    lanes: PositiveInt = DEFAULT_LANES
    prefetch_batches: PositiveInt = 4

    @field_validator("text", mode="before")
    @classmethod
    def _one_path_is_a_list_of_one(cls, text: object) -> object:
        return [text] if isinstance(text, str) else text

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.shards is None) == (self.text is None):
            raise ValueError(
                "set exactly one of data.shards (a folder made by `data_pipeline build`) and data.text (raw text)"
            )
        if self.shards is not None and self.prepared is not None:
            raise ValueError("data.prepared belongs to data.text; with data.shards remove it")
        if self.shards is not None and (self.word_starts != "vocabulary" or self.deduplicate):
            raise ValueError(
                "data.word_starts and data.deduplicate belong to data.text, and shards were built with or without; "
                "with data.shards remove them"
            )
        if self.max_seq_len < 4:
            raise ValueError("data.max_seq_len must be at least 4: [CLS], [SEP] and two tokens")
        return self


class ObjectiveConfig(StrictModel):
    """Masked-language modelling (Devlin et al. 2019, section 3.1)."""

    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    mask_token_rate: Rate = 0.8
    random_token_rate: Rate = 0.1

    @model_validator(mode="after")
    def _rates_sum(self) -> ObjectiveConfig:
        if self.mask_token_rate + self.random_token_rate > 1.0 + 1e-9:
            raise ValueError(
                f"mask_token_rate={self.mask_token_rate} + random_token_rate={self.random_token_rate} exceeds 1; "
                "the rest of the chosen tokens stays as it is"
            )
        return self


class ModelConfig(StrictModel):
    """The encoder's shape; `vocab_size` is taken from the tokenizer when it is left out."""

    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    max_positions: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    vocab_size: PositiveInt | None = None
    norm: Literal["post", "pre"] = "post"
    positions: Literal["learned", "sinusoidal"] = "learned"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    hidden_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_heads={self.num_heads}; "
                f"use hidden_size={-(-self.hidden_size // self.num_heads) * self.num_heads}"
            )
        return self


class OptimizerConfig(StrictModel):
    """AdamW (Loshchilov and Hutter 2019); decay is not applied to biases and norms."""

    name: Literal["adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    eps: Annotated[float, Field(gt=0.0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0


class ScheduleConfig(StrictModel):
    """Linear warm-up over `warmup_steps` applied steps, then linear decay to `final_ratio` of the peak."""

    name: Literal["linear"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_ratio: Rate = 0.0


class TrainConfig(StrictModel):
    """How long, in which batches, and how often something is written.

    stall_minutes: after so long without a step, or a batch of an evaluation, each process writes its stacks and ends.
    """

    steps: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    log_every_steps: PositiveInt = 10
    stall_minutes: Annotated[float, Field(gt=0.0)] | None = 30.0


class EngineConfig(StrictModel):
    """The DeepSpeed JSON (a file of ds_configs/ by name, or a path) and the arithmetic's precision."""

    ds_config: str = "zero1"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class EvaluationConfig(StrictModel):
    """Validation loss over the first `max_rows` rows of the validation part, masks fixed by `seed`."""

    every_steps: PositiveInt = 500
    max_rows: PositiveInt = 2048
    seed: int = 0


class CheckpointConfig(StrictModel):
    """When the run is saved; the best by validation loss is kept apart from the last `keep_last`.

    The clock behind `every_minutes` is looked at on logging steps, because asking it makes all ranks wait.
    """

    every_steps: PositiveInt = 500
    every_minutes: Annotated[float, Field(gt=0.0)] = 30.0
    keep_last: PositiveInt = 2


class Config(StrictModel):
    """A whole recipe; `evaluation: null` trains without held-out text, `export: false` ends with the checkpoint."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    deterministic: bool = False
    runs_dir: str = "runs"
    data: DataConfig
    tokenizer: TokenizerConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig | None = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: bool = True

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.data.shards is not None and self.tokenizer is not None:
            raise ValueError("the tokenizer section belongs to data.text: shards bring their own tokenizer; remove it")
        if self.data.max_seq_len > self.model.max_positions:
            raise ValueError(
                f"data.max_seq_len={self.data.max_seq_len} is longer than model.max_positions="
                f"{self.model.max_positions}; raise the latter or shorten the rows"
            )
        if self.schedule.warmup_steps > self.train.steps:
            raise ValueError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is longer than train.steps={self.train.steps}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The run folder, below `runs_dir`."""
        return Path(self.runs_dir) / self.name


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
            "objective": config.objective.model_dump(),
        }
    )
