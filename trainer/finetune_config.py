"""The fine-tuning recipe as frozen, typed models: start, task, data and how long; the rest is as in pretraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.augmentation_config import TaskAugmentationConfig
from trainer.config import ModelConfig, RunConfig, TokenizerConfig
from trainer.encoder_config import BiLSTMConfig, EncoderConfig
from trainer.matching_config import (
    MultipleChoiceConfig,
    QuestionAnsweringConfig,
    RankingConfig,
    SentenceEmbeddingConfig,
)
from trainer.seq2seq_config import DecompositionConfig, Seq2SeqConfig, SummarizationConfig, TranslationConfig
from trainer.strict_model import Dropout, PositiveInt, StrictModel


class StartConfig(StrictModel):
    """Where encoder and vocabulary come from: `path`, or new weights of the shape `model`, or those of a baseline.

    encoder: `bilstm` is the recurrent baseline, of new weights, whose shape is `bilstm` or its defaults.

    path: a run folder, an imported folder, a Hugging Face folder, each also inside a package as `package:NAME/...`.
    tokenizer: how new weights get theirs, which is trained on the training texts.
    dropout: replaces the rates of the encoder.
    """

    path: str | None = None
    checkpoint: str = "auto"
    model: ModelConfig | None = None
    encoder: Literal["bert", "bilstm"] = "bert"
    bilstm: BiLSTMConfig | None = None
    tokenizer: TokenizerConfig | None = None
    dropout: Dropout | None = None

    @model_validator(mode="after")
    def _one_start(self) -> StartConfig:
        if self.encoder == "bilstm" and (self.path is not None or self.model is not None):
            raise ValueError("start.encoder=bilstm has new weights of the shape start.bilstm; remove path and model")
        if self.encoder == "bert" and self.bilstm is not None:
            raise ValueError(
                "start.bilstm is the shape of start.encoder: bilstm, and encoder is bert; set that, or remove it"
            )
        if self.encoder == "bert" and (self.path is None) == (self.model is None):
            raise ValueError("set exactly one of start.path (trained weights) and start.model (the shape of new ones)")
        if self.path is not None and self.tokenizer is not None:
            raise ValueError("start.tokenizer goes with start.model: a model that has weights has its tokenizer")
        for name, shape in (("model", self.model), ("bilstm", self.bilstm)):
            if shape is not None and shape.vocab_size is not None:
                raise ValueError(f"start.{name}.vocab_size is decided by start.tokenizer; leave it out")
        return self

    @property
    def new_shape(self) -> EncoderConfig | None:
        """The shape of new weights, None where there are trained ones."""
        return (self.bilstm or BiLSTMConfig()) if self.encoder == "bilstm" else self.model


class ClassificationConfig(StrictModel):
    """A text, or a pair of texts, to a label, several labels, or a number.

    output: `label` one of several; `labels` any number of them (a list, or a string split at `separator`); `number`.
    labels: the names in order; those of the training file, sorted, where it is left out.
    class_weights: of each label's loss; `balanced` is inverse to the label's frequency. Scaled to a mean of 1.
    """

    name: Literal["classification"] = "classification"
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    output: Literal["label", "labels", "number"] = "label"
    separator: Annotated[str, Field(min_length=1)] = ","
    labels: Annotated[list[str], Field(min_length=2)] | None = None
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0.0)]] | None = None
    pooling: Literal["first", "mean", "pooler"] = "first"
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _weights_need_one_label(self) -> ClassificationConfig:
        if self.class_weights is not None and self.output != "label":
            raise ValueError(f"task.class_weights goes with output: label, and output is {self.output}; remove it")
        if self.labels is not None and self.output == "number":
            raise ValueError("task.labels goes with output: label or labels, and output is number; remove it")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("task.labels names a label twice")
        return self


class TagHeadConfig(StrictModel):
    """What stands on the words' states: a projection, below it a BiLSTM if wanted, above it a CRF if wanted."""

    bilstm_size: PositiveInt | None = None
    crf: bool = False
    dropout: Dropout = 0.1


class TaggingConfig(StrictModel):
    """A tag for every word: entities in BIO or BIOES, scored by entity F1, or plain tags, scored by accuracy.

    words, tags: columns of a .conll file by number, -1 being the last; elsewhere the names of columns that hold lists.
    unit: how a plain line is cut for `predict`: at blanks, or into characters.
    """

    name: Literal["tagging"] = "tagging"
    words: int | str = 0
    tags: int | str = -1
    scheme: Literal["bio", "bioes", "plain"] = "bio"
    unit: Literal["word", "character"] = "word"
    labels: Annotated[list[str], Field(min_length=2)] | None = None
    head: TagHeadConfig = TagHeadConfig()


class SegmentationConfig(StrictModel):
    """Word segmentation as a tag of B, M, E, S for every character (Xue 2003).

    A line of a .txt file is a sentence, its words between blanks; `text` is the column that holds such in a table.
    """

    name: Literal["segmentation"] = "segmentation"
    text: str = "text"
    head: TagHeadConfig = TagHeadConfig()


TaskConfig = Annotated[
    ClassificationConfig
    | TaggingConfig
    | SegmentationConfig
    | QuestionAnsweringConfig
    | MultipleChoiceConfig
    | RankingConfig
    | SentenceEmbeddingConfig
    | TranslationConfig
    | SummarizationConfig
    | DecompositionConfig,
    Field(discriminator="name"),
]


class TaskDataConfig(StrictModel):
    """The labelled files, by suffix .tsv, .csv, .jsonl, .parquet, .conll, .txt or (SQuAD) .json, each also .gz.

    columns: the columns' names where a tsv or csv file has no header line.
    max_length: tokens of a sequence, [CLS] and [SEP] included.
    overlong: what happens to longer ones. `cut` keeps the beginning (of a pair, of the longer text first); a tagged
    sentence is split between words instead, so that no tag is lost, and a context becomes several windows. `refuse`
    ends with the line's number.
    augmentation: training rows are disturbed anew in every epoch; of questions with a context the question alone.
    """

    train: str
    validation: str
    test: str | None = None
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 128
    overlong: Literal["cut", "refuse"] = "cut"
    augmentation: TaskAugmentationConfig | None = None


LoraTarget = Literal["query", "key", "value", "output", "up", "down"]
_QUERY_AND_VALUE: list[LoraTarget] = ["query", "value"]


class LoraConfig(StrictModel):
    """Adapters on projections of every layer; the encoder's own weights are frozen (Hu et al. 2022).

    rank, alpha: a projection W becomes W + alpha / rank × B A, of `rank` rows and columns. dropout: of what A reads.
    targets: attention's query, key, value and output, the feed-forward's up and down.
    """

    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Dropout = 0.0
    targets: list[LoraTarget] = Field(default_factory=lambda: _QUERY_AND_VALUE.copy(), min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> LoraConfig:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("train.lora.targets names a projection twice")
        return self


class TaskTrainConfig(StrictModel):
    """How long (exactly one of `epochs` and `steps`), in which batches, and which weights move how fast.

    layer_decay: a layer's rate is that of the layer above times this (Howard and Ruder 2018, section 3.2).
    frozen_layers: the embeddings and so many lowest layers keep their weights; 0 freezes the embeddings alone.
    lora: of the encoder only adapters are trained.
    stall_minutes: as in pretraining.
    """

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    steps: PositiveInt | None = None
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    log_every_steps: PositiveInt = 10
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    frozen_layers: Annotated[int, Field(ge=0)] | None = None
    lora: LoraConfig | None = None
    stall_minutes: Annotated[float, Field(gt=0.0)] | None = 30.0

    @model_validator(mode="after")
    def _one_length(self) -> TaskTrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of train.epochs and train.steps")
        if self.lora is not None and self.frozen_layers is not None:
            raise ValueError("train.lora freezes all of the encoder; remove train.frozen_layers")
        return self


class TaskEvaluationConfig(StrictModel):
    """When the validation file is scored: every so many steps, else at the end of each epoch.

    metric: what decides the best checkpoint; the task's own where it is left out.
    patience: training ends early after so many evaluations in a row without a better one.
    batch_tokens: at most so many tokens in one forward pass.
    max_records: score so many records during training, spread evenly over the file; all of them where it is left out.
    """

    every_steps: PositiveInt | None = None
    metric: str | None = None
    patience: PositiveInt | None = None
    batch_tokens: PositiveInt = 8192
    max_records: PositiveInt | None = None


class FineTuneConfig(RunConfig):
    """A fine-tuning recipe; with `seeds`, one run for each, and their mean and deviation."""

    start: StartConfig
    task: TaskConfig
    data: TaskDataConfig
    train: TaskTrainConfig
    evaluation: TaskEvaluationConfig = TaskEvaluationConfig()
    seeds: Annotated[list[int], Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> FineTuneConfig:
        if self.start.model is not None and self.data.max_length > self.start.model.max_positions:
            raise ValueError(
                f"data.max_length={self.data.max_length} is longer than start.model.max_positions="
                f"{self.start.model.max_positions}; raise the latter or shorten the sequences"
            )
        if isinstance(self.task, Seq2SeqConfig) and (self.task.target_length or 0) > self.data.max_length:
            raise ValueError(
                f"task.target_length={self.task.target_length} is longer than data.max_length={self.data.max_length}; "
                "raise the latter or shorten the targets"
            )
        if isinstance(self.task, QuestionAnsweringConfig):
            self.task.check_length(self.data.max_length)
        if isinstance(self.task, SentenceEmbeddingConfig):
            sizes = self.train.model_dump(include={"global_batch_size", "micro_batch_size"})
            self.task.check_batches(**sizes)
        if isinstance(self.task, Seq2SeqConfig) and self.start.encoder == "bilstm":
            raise ValueError(f"task.name={self.task.name} has a decoder of BERT's layers, and start.encoder is bilstm")
        if self.train.lora is not None and self.start.encoder == "bilstm":
            raise ValueError("train.lora is for BERT's layers, and start.encoder is bilstm; remove one of them")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names a seed twice")
        return self
