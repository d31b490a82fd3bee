"""From a recipe's task section to the task itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainer.finetune_config import (
    ClassificationConfig,
    FineTuneConfig,
    SegmentationConfig,
    TaggingConfig,
    TaskDataConfig,
)
from trainer.matching_config import (
    MultipleChoiceConfig,
    QuestionAnsweringConfig,
    RankingConfig,
    SentenceEmbeddingConfig,
)
from trainer.seq2seq_config import DecompositionConfig, Seq2SeqConfig, SummarizationConfig, TranslationConfig
from trainer.tasks.augment import augmented
from trainer.tasks.classification import Classification, weights_of
from trainer.tasks.classification_records import ClassificationReader
from trainer.tasks.classification_scores import require_sklearn
from trainer.tasks.decomposition import Decomposition, DecompositionReader
from trainer.tasks.embedding_records import EmbeddingReader
from trainer.tasks.examples import Record
from trainer.tasks.multiple_choice import MultipleChoice, MultipleChoiceReader
from trainer.tasks.question_answering import QuestionAnswering
from trainer.tasks.question_records import QuestionReader
from trainer.tasks.ranking import Ranking, RankingReader
from trainer.tasks.rows import TrainingRows
from trainer.tasks.segmentation import Segmentation, SegmentationReader
from trainer.tasks.sentence_embedding import SentenceEmbedding
from trainer.tasks.seq2seq import Seq2Seq
from trainer.tasks.seq2seq_records import Seq2SeqReader
from trainer.tasks.summarization import Summarization, require_rouge
from trainer.tasks.tagging import Tagging, TagTask, require_seqeval
from trainer.tasks.tagging_records import TaggingReader
from trainer.tasks.task import RecordReader, Task
from trainer.tasks.text_tokenizer import TextTokenizer
from trainer.tasks.translation import Translation, require_sacrebleu

_READERS: Mapping[type, Callable[[Any, TaskDataConfig], RecordReader]] = {
    ClassificationConfig: ClassificationReader,
    TaggingConfig: TaggingReader,
    SegmentationConfig: SegmentationReader,
    TranslationConfig: Seq2SeqReader,
    SummarizationConfig: Seq2SeqReader,
    DecompositionConfig: DecompositionReader,
    QuestionAnsweringConfig: QuestionReader,
    MultipleChoiceConfig: MultipleChoiceReader,
    RankingConfig: RankingReader,
    SentenceEmbeddingConfig: EmbeddingReader,
}
_SEQ2SEQ: Mapping[type, Callable[[Any, TaskDataConfig], Seq2Seq]] = {
    TranslationConfig: Translation,
    SummarizationConfig: Summarization,
    DecompositionConfig: Decomposition,
}
# Those that learn no labels from the training records.
_TASKS: Mapping[type, Callable[[Any, TaskDataConfig], Task]] = {
    **_SEQ2SEQ,
    SegmentationConfig: Segmentation,
    QuestionAnsweringConfig: QuestionAnswering,
    MultipleChoiceConfig: MultipleChoice,
    RankingConfig: Ranking,
    SentenceEmbeddingConfig: SentenceEmbedding,
}


def reader_for(config: FineTuneConfig) -> RecordReader:
    """How the recipe's files are read."""
    return _READERS[type(config.task)](config.task, config.data)


def texts_of(config: FineTuneConfig, records: Sequence[Record]) -> Iterator[str]:
    """The records' texts as a tokenizer learns from them: texts of pairs, sentences whole, what is shared once."""
    task = config.task
    if isinstance(task, ClassificationConfig):
        return (text for record in records for text in record.inputs)
    if isinstance(task, Seq2SeqConfig):
        read = _SEQ2SEQ[type(task)](task, config.data).source_text
        return (text for record in records for text in (read(record), *record.target))
    if isinstance(task, QuestionAnsweringConfig | MultipleChoiceConfig | RankingConfig | SentenceEmbeddingConfig):
        return iter(dict.fromkeys(text for record in records for text in record.inputs))
    blank = " " if isinstance(task, TaggingConfig) and task.unit == "word" else ""
    return (blank.join(record.inputs) for record in records)


def learn_task(config: FineTuneConfig, records: Sequence[Record]) -> Task:
    """The task with the labels, and their weights, of the training records; UserError where it could not be scored."""
    task = config.task
    if isinstance(task, ClassificationConfig):
        require_sklearn()
        labels = Classification.find_labels(task, records)
        weights = weights_of(task, labels=labels, records=records)
        return Classification(task, config.data, labels=labels, class_weights=weights)
    if isinstance(task, TaggingConfig):
        require_seqeval()
        return Tagging(task, config.data, labels=Tagging.find_labels(task, records))
    if isinstance(task, TranslationConfig):
        require_sacrebleu()
    elif isinstance(task, SummarizationConfig):
        require_rouge()
    return known_task(config, ())


def known_task(config: FineTuneConfig, labels: Sequence[str]) -> Task:
    """The task of a trained run, whose labels are known, to score and predict; its loss is without class weights."""
    task = config.task
    if isinstance(task, ClassificationConfig):
        return Classification(task, config.data, labels=labels)
    if isinstance(task, TaggingConfig):
        return Tagging(task, config.data, labels=labels)
    return _TASKS[type(task)](task, config.data)


def with_tokenizer(task: Task, tokenizer: TextTokenizer) -> Task:
    """The task, knowing the vocabulary that its predictions are written in, where these are texts."""
    if isinstance(task, Seq2Seq):
        task.tokenizer = tokenizer
    return task


def training_rows(
    config: FineTuneConfig, task: Task, records: Sequence[Record], tokenizer: TextTokenizer
) -> TrainingRows:
    """What the training records are to the loader; UserError where one is refused."""
    if isinstance(task, MultipleChoice | Ranking | SentenceEmbedding):
        rows = task.training_rows(records, tokenizer, seed=config.seed)
    else:
        rows = TrainingRows(task.examples(records, tokenizer))
    if config.data.augmentation is None:
        return rows
    return augmented(
        rows,
        rates=config.data.augmentation,
        seed=config.seed,
        tokenizer=tokenizer,
        first_text_only=isinstance(task, QuestionAnswering),
        starts_unit=task.starts_unit if isinstance(task, TagTask) else None,
    )
