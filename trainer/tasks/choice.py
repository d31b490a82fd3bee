"""What multiple choice and ranking share: a text, others that may go with it, and a score for each of these."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array
from trainer.encoder_config import EncoderConfig
from trainer.finetune_config import TaskDataConfig
from trainer.model.dropout import Dropout
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.framing import Framed, frame
from trainer.tasks.model import TaskHead, TaskModel, count_of
from trainer.tasks.text_tokenizer import TextTokenizer


class ChoiceHead(TaskHead):
    """A number for each sequence, from its first token; in training a softmax over those that compete."""

    def __init__(self, dropout: float, *, hidden_size: int) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.project = nn.Linear(hidden_size, 1)

    def _scores(self, hidden: Tensor) -> Tensor:
        """[sequences, hidden] -> fp32 [sequences]."""
        scores: Tensor = self.project(self.dropout(hidden)).float().squeeze(1)
        return scores

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the right sequence among as many as `row_counts` says, summed over such groups."""
        groups = list(torch.split(self._scores(hidden), row_counts.tolist()))
        scores = pad_sequence(groups, batch_first=True, padding_value=-math.inf)
        return F.cross_entropy(scores, targets, reduction="sum"), count_of(len(targets), like=scores)

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """`scores` [sequences], in logits."""
        return {"scores": self._scores(hidden)}


class ChoiceTask:
    """A record's first text beside each of its others; the target is the number of the right one of these.

    To be predicted, every pair is an example by itself, so that long lists need no more memory than short ones.
    """

    labels: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = frozenset()

    def __init__(self, data: TaskDataConfig, *, term: str, dropout: float) -> None:
        self.term = term
        self._data = data
        self._dropout = dropout

    def check(self, records: Sequence[Record]) -> None:
        """Nothing is left to check: the reader knows how many texts each record has."""

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        return TaskModel(config, ChoiceHead(self._dropout, hidden_size=config.hidden_size), term=self.term)

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """[CLS] text [SEP] other [SEP] for each of the others, in the order of the records."""
        ids = encode_texts(records, tokenizer)
        first_row = np.zeros(1, dtype=np.int64)
        return [
            Example(number, *pair[:2], first_row, predictions=1, targets=None, cut_tokens=pair.cut_tokens)
            for number, record in enumerate(records)
            for pair in self._pairs(record, record.inputs[1:], ids=ids, tokenizer=tokenizer)
        ]

    def group(
        self,
        number: int,
        record: Record,
        others: Sequence[str],
        *,
        right: int,
        ids: Mapping[str, Int32Array],
        tokenizer: TextTokenizer,
    ) -> Example:
        """One training row: the record's text beside each of `others`, which compete; `ids` of all texts."""
        pairs = self._pairs(record, others, ids=ids, tokenizer=tokenizer)
        lengths: Int64Array = np.array([len(pair.input_ids) for pair in pairs], dtype=np.int64)
        return Example(
            number,
            np.concatenate([pair.input_ids for pair in pairs]),
            np.concatenate([pair.token_type_ids for pair in pairs]),
            rows=np.cumsum(lengths) - lengths,
            predictions=1,
            targets=np.array([right], dtype=np.int64),
            cut_tokens=sum(pair.cut_tokens for pair in pairs),
            sequences=tuple(lengths.tolist()),
        )

    def _pairs(
        self, record: Record, others: Sequence[str], *, ids: Mapping[str, Int32Array], tokenizer: TextTokenizer
    ) -> list[Framed]:
        text = ids[record.inputs[0]]
        return [frame([text, ids[other]], tokenizer=tokenizer, data=self._data, where=record.where) for other in others]


def encode_texts(records: Sequence[Record], tokenizer: TextTokenizer) -> dict[str, Int32Array]:
    """The ids of every text of the records, each encoded once."""
    texts = list(dict.fromkeys(text for record in records for text in record.inputs))
    return dict(zip(texts, tokenizer.encode(texts), strict=True))


def probabilities(outputs: Outputs) -> list[float]:
    """Each of the others' share of the softmax over all of them."""
    scores = np.asarray(outputs["scores"], dtype=np.float64)
    weights = np.exp(scores - scores.max())
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def mean_loss(shares: Sequence[float]) -> float:
    """The mean of -log p over the right ones' probabilities."""
    return sum(-math.log(max(share, sys.float_info.min)) for share in shares) / len(shares)
