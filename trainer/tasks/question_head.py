"""The head that says of each token how well an answer starts and ends there (Devlin et al. 2019, sections 4.2, 4.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.matching_config import QuestionAnsweringConfig
from trainer.model.dropout import Dropout
from trainer.tasks.model import TaskHead, count_of


class QuestionHead(TaskHead):
    """A start and an end score for every row of a window, whose first row, [CLS], means that there is no answer."""

    def __init__(self, config: QuestionAnsweringConfig, *, hidden_size: int) -> None:
        super().__init__()
        self.n_best, self.max_length = config.n_best, config.max_answer_length
        self.dropout = Dropout(config.dropout)
        self.project = nn.Linear(hidden_size, 2)

    def _scores(self, hidden: Tensor, row_counts: Tensor) -> tuple[Tensor, Tensor]:
        """[R, hidden] -> two fp32 [windows, longest], -inf behind each window's end."""
        scores = self.project(self.dropout(hidden)).float()
        windows = pad_sequence(list(scores.split(row_counts.tolist())), batch_first=True, padding_value=-math.inf)
        start, end = windows.unbind(dim=2)
        return start, end

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the start's and the end's cross-entropy, summed over windows."""
        both = zip(self._scores(hidden, row_counts), targets.unbind(dim=1), strict=True)
        loss = torch.stack([F.cross_entropy(scores, target, reduction="sum") for scores, target in both]).mean()
        return loss, count_of(len(targets), like=loss)

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """The best pieces of each window: `spans` int64 [windows, n_best, 2], first and last token of the window.

        `scores` [windows, n_best], start + end, -inf where the window has no more pieces; `null` [windows], [CLS]'s.
        """
        start, end = self._scores(hidden, row_counts)
        place = torch.arange(start.shape[1] - 1, device=hidden.device)
        length = place[None] - place[:, None]
        pieces = start[:, 1:, None] + end[:, None, 1:]
        pieces = pieces.masked_fill((length < 0) | (length >= self.max_length), -math.inf).flatten(1)
        scores, found = pieces.topk(min(self.n_best, pieces.shape[1]), dim=1)
        missing = (0, self.n_best - found.shape[1])
        found, scores = F.pad(found, missing), F.pad(scores, missing, value=-math.inf)
        spans = torch.stack([found // len(place), found % len(place)], dim=2)
        return {"spans": spans, "scores": scores, "null": start[:, 0] + end[:, 0]}
