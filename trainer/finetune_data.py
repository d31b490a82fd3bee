"""The files of a fine-tuning recipe as a task, its examples and the encoder's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import ModelConfig
from trainer.encoder_config import EncoderConfig
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.matching_config import QuestionAnsweringConfig
from trainer.runtime import Runtime, on_main
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.task_evaluate import TaskEvaluation
from trainer.task_start import Start, open_start, prepare_tokenizer, with_dropout
from trainer.tasks.choose import learn_task, reader_for, texts_of, training_rows, with_tokenizer
from trainer.tasks.examples import Example, Record
from trainer.tasks.rows import TrainingRows
from trainer.tasks.task import Task
from trainer.tasks.text_tokenizer import TextTokenizer, load_texts


@dataclass(frozen=True)
class TaskData:
    """What training needs of the recipe's files; `start` is None for new weights, `model` the encoder's shape."""

    task: Task
    start: Start | None
    model: EncoderConfig
    rows: TrainingRows
    validation: TaskEvaluation


def read_task_data(config: FineTuneConfig, *, runtime: Runtime, report: Callable[[str], None]) -> TaskData:
    """Read and check every file of the recipe, the test file too; collective."""
    start = open_start(config)
    check_family(config, start)
    reader, files = reader_for(config), config.data
    records = reader.read(Path(files.train), labelled=True)
    held_out = reader.read(Path(files.validation), labelled=True)
    task = learn_task(config, records)
    task.check(records)
    task.check(held_out)
    if files.test is not None:
        task.check(reader.read(Path(files.test), labelled=True))
    texts = texts_of(config, records)
    tokenizer = load_texts(on_main(runtime, lambda: prepare_tokenizer(start, config=config, texts=texts)))
    task = with_tokenizer(task, tokenizer)
    model = resolve_model(config, start, tokenizer=tokenizer)
    rows = training_rows(config, task, records, tokenizer)
    held_out = spread(held_out, config.evaluation.max_records)
    validation = TaskEvaluation(
        task,
        held_out,
        tokenizer,
        metric=config.evaluation.metric,
        batch_tokens=config.evaluation.batch_tokens,
        dp_rank=runtime.topology.dp_rank,
        dp_world_size=runtime.topology.dp_world_size,
    )
    limit = f"{files.max_length}"
    if isinstance(config.task, QuestionAnsweringConfig):
        limit += f" (questions than {config.task.max_question_length})"
    if isinstance(config.task, Seq2SeqConfig) and config.task.target_length is not None:
        limit += f" (targets than {config.task.target_length})"
    report(describe_examples("training", records, rows.examples, limit=limit))
    report(describe_examples("validation", held_out, validation.examples, limit=limit))
    return TaskData(task, start, model, rows, validation)


def check_family(config: FineTuneConfig, start: Start | None) -> None:
    """UserError where a decoder is asked for that the encoder's family has no form of."""
    model = config.start.model if start is None else start.model
    if isinstance(config.task, Seq2SeqConfig) and model is not None and model.family != "bert":
        raise UserError(
            f"task.name={config.task.name}: the decoder is made of BERT's layers, and the encoder's family is "
            f"{model.family}; start from one of family bert"
        )


def spread(records: Sequence[Record], most: int | None) -> list[Record]:
    """So many of the records at most, as far apart as they can be."""
    if most is None or len(records) <= most:
        return list(records)
    return [records[place * len(records) // most] for place in range(most)]


def resolve_model(config: FineTuneConfig, start: Start | None, *, tokenizer: TextTokenizer) -> EncoderConfig:
    """The encoder's shape with its vocabulary and the recipe's dropout; UserError where tokenizer and model differ."""
    model: EncoderConfig
    if start is None:
        assert config.start.new_shape is not None  # the recipe's check
        model = config.start.new_shape.model_copy(update={"vocab_size": tokenizer.vocab_size})
    else:
        model = start.model
    if (model.vocab_size or 0) < tokenizer.vocab_size:
        raise UserError(
            f"{config.start.path}: its tokenizer has {tokenizer.vocab_size} pieces and its model only "
            f"{model.vocab_size}; they do not belong together"
        )
    if config.train.lora is not None and isinstance(model, ModelConfig) and model.family != "bert":
        raise UserError(f"train.lora is for BERT's layers, and the model is of family {model.family}; remove it")
    frozen = config.train.frozen_layers
    if frozen is not None and frozen > model.num_layers:
        raise UserError(f"train.frozen_layers={frozen}, and the model has {model.num_layers} layers")
    return with_dropout(model, config.start.dropout)


def describe_examples(part: str, records: Sequence[Record], examples: Sequence[Example], *, limit: str) -> str:
    """How many records there are and what became of those longer than a sequence: nothing is dropped unsaid."""
    text = f"{len(records):,} {part} records, {sum(map(len, examples)):,} tokens"
    if len(examples) != len(records):
        text += f" in {len(examples):,} sequences"
    if cut := [example for example in examples if example.cut_tokens]:
        lost = sum(example.cut_tokens for example in cut)
        text += f"; {len(cut):,} longer than {limit} were cut, {lost:,} tokens left out"
    return text
