"""Tasks from text to text by an encoder and a decoder: what translation, summaries and the like have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array
from trainer.config import ModelConfig
from trainer.encoder_config import EncoderConfig
from trainer.finetune_config import TaskDataConfig
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.tasks.examples import Example, Outputs, Record, too_long
from trainer.tasks.model import TaskModel
from trainer.tasks.search import NO_TOKEN
from trainer.tasks.seq2seq_head import Seq2SeqHead, WritingRules
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer

_FRAME = 2


class Seq2Seq(ABC):
    """A task from text to text; `tokenizer` has to be set before it makes examples, models or predictions."""

    labels: tuple[str, ...] = ()
    metric: str
    metric_names: tuple[str, ...]
    lower_is_better: frozenset[str] = frozenset()
    tokenizer: TextTokenizer

    def __init__(self, config: Seq2SeqConfig, data: TaskDataConfig, *, term: str) -> None:
        self.term = term
        self._config = config
        self._data = data
        self._target_length = config.target_length or data.max_length

    def check(self, records: Sequence[Record]) -> None:  # noqa: B027
        """Any text may be a target: there is nothing to refuse."""

    def source_text(self, record: Record) -> str:
        """What the encoder reads of a record."""
        return record.inputs[0]

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """[CLS] source [SEP] for the encoder; [CLS] target for the decoder, which is to say target [SEP]."""
        sources = tokenizer.encode([self.source_text(record) for record in records])
        # An unlabelled record's is not looked at.
        targets = tokenizer.encode([record.target[0] if record.target else "" for record in records])
        return [
            self._example(number, record, source, target, tokenizer)
            for number, (record, source, target) in enumerate(zip(records, sources, targets, strict=True))
        ]

    def _example(
        self, number: int, record: Record, source: Int32Array, target: Int32Array, tokenizer: TextTokenizer
    ) -> Example:
        lost = self._too_many(source, self._data.max_length, record, "data.max_length")
        lost_of_target = self._too_many(target, self._target_length, record, "task.target_length")
        frame = np.array([tokenizer.cls_id, tokenizer.sep_id], dtype=np.int32)
        input_ids = np.concatenate([frame[:1], source[: len(source) - lost], frame[1:]])
        written = target[: len(target) - lost_of_target]
        return Example(
            number,
            input_ids,
            np.zeros_like(input_ids),
            rows=np.arange(len(input_ids), dtype=np.int64),
            predictions=len(written) + 1,
            targets=None if record.target is None else _teacher_forced(written, *frame.tolist()),
            cut_tokens=lost + lost_of_target,
            outputs=1,
        )

    def _too_many(self, tokens: Int32Array, max_length: int, record: Record, limit: str) -> int:
        """How many tokens do not fit between [CLS] and [SEP]; UserError where the recipe refuses such."""
        length = len(tokens) + _FRAME
        if length > max_length and self._data.overlong == "refuse":
            raise too_long(record.where, length=length, max_length=max_length, limit=limit)
        return max(0, length - max_length)

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and decoder over one word embedding, weights still to be set."""
        assert isinstance(config, ModelConfig)  # the recipe's check
        # What is written may be as long as what is trained: a target without [CLS], with [SEP].
        rules = WritingRules(self.tokenizer.cls_id, self.tokenizer.sep_id, self._target_length - 1)
        head = Seq2SeqHead(self._config, config, rules=rules)
        model = TaskModel(config, head, term=self.term)
        head.share_words(model.encoder.word)
        return model

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`text`, and `score`, its log-probability over the length penalty."""
        return {"text": self._text(outputs), "score": float(outputs["score"][0])}

    def _text(self, outputs: Outputs) -> str:
        tokens = outputs["tokens"][0]
        return self.tokenizer.decode(tokens[tokens != NO_TOKEN].tolist())

    @abstractmethod
    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Scores of predictions against the records' targets."""


def _teacher_forced(target: Int32Array, cls_id: int, sep_id: int) -> Int64Array:
    """`Seq2SeqHead`'s targets of one sequence, [tokens, 3]."""
    read, follows = np.append([cls_id], target), np.append(target, [sep_id])
    return np.stack([read, np.arange(len(read)), follows], axis=1).astype(np.int64)
