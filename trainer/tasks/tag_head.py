"""The head that gives every word a tag: a projection, with a BiLSTM below it or a CRF above it where wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.finetune_config import TagHeadConfig
from trainer.model.bilstm import BiLSTM
from trainer.model.dropout import Dropout
from trainer.tasks.crf import ConditionalRandomField
from trainer.tasks.model import TaskHead, count_of


class TagHead(TaskHead):
    """Scores every tag for every word: linear, BiLSTM, CRF, or BiLSTM and CRF (Huang et al. 2015)."""

    def __init__(self, config: TagHeadConfig, *, hidden_size: int, num_tags: int) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        size = config.bilstm_size
        self.bilstm = BiLSTM(hidden_size, size) if size else None
        self.project = nn.Linear(2 * size if size else hidden_size, num_tags)
        self.crf = ConditionalRandomField(num_tags) if config.crf else None

    def _scores(self, hidden: Tensor, row_counts: Tensor) -> Tensor:
        """[words, hidden] -> fp32 [words, tags]."""
        hidden = self.dropout(hidden)
        if self.bilstm is not None:
            padded = self.bilstm(_by_sentence(hidden, row_counts), row_counts)
            hidden = self.dropout(padded[_mask(row_counts)])
        scores: Tensor = self.project(hidden).float()
        return scores

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each word, or -log p of each sentence's tags; summed, to be divided by words."""
        scores = self._scores(hidden, row_counts)
        if self.crf is None:
            loss = F.cross_entropy(scores, targets, reduction="sum")
        else:
            mask = _mask(row_counts)
            loss = self.crf(_by_sentence(scores, row_counts), mask, _by_sentence(targets, row_counts)).float()
        return loss, count_of(len(targets), like=loss)

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """`tags` int64 [words], and `scores` [words]: the tag's probability by the word's own scores."""
        scores = self._scores(hidden, row_counts)
        if self.crf is None:
            tags = scores.argmax(dim=1)
        else:
            mask = _mask(row_counts)
            tags = self.crf(_by_sentence(scores, row_counts), mask)[mask]
        return {"tags": tags, "scores": scores.softmax(dim=1).gather(1, tags[:, None]).squeeze(1)}


def _by_sentence(flat: Tensor, row_counts: Tensor) -> Tensor:
    """[words, ...] -> [sentences, longest, ...], zero behind each sentence's end."""
    return pad_sequence(list(torch.split(flat, row_counts.tolist())), batch_first=True)


def _mask(row_counts: Tensor) -> Tensor:
    """Bool [sentences, longest]: where there is a word."""
    return torch.arange(int(row_counts.max()), device=row_counts.device) < row_counts[:, None]
