"""Held-out loss and accuracy, and the baselines that a trained encoder has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.batch import IGNORED_LABEL, Batch
from data_pipeline.hashing import Int64Array
from data_pipeline.masking import TokenMasker
from data_pipeline.reader import RowReader, validation_batches
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.step_sums import StepSums


@dataclass(frozen=True)
class EvaluationResult:
    """Mean loss in nats and share of hits over `predicted_tokens` masked tokens of held-out rows."""

    loss: float
    accuracy: float
    predicted_tokens: int


@dataclass(frozen=True)
class UnigramBaseline:
    """What predicting without context reaches on the same tokens.

    entropy: nats a token of the tokens' own empirical distribution, the least loss of any constant prediction.
    most_frequent_rate: accuracy of always predicting the most frequent token.
    """

    entropy: float
    most_frequent_rate: float


class Validation:
    """The fixed held-out rows of a run: the same rows and masks at every call, on any number of ranks."""

    def __init__(
        self,
        reader: RowReader,
        masker: TokenMasker,
        *,
        max_rows: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_world_size: int = 1,
    ) -> None:
        self._reader = reader
        self._masker = masker
        self._rows = validation_batches(
            min(max_rows, reader.order.rows_per_epoch),
            micro_batch_size=micro_batch_size,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
        )

    def run(
        self, eval_step: Callable[[Batch], StepSums], *, poll: Callable[[], None] | None = None
    ) -> EvaluationResult:
        """Evaluate; collective when a process group exists. `poll` is called after each batch."""
        total = torch.zeros(3, dtype=torch.float64)
        for numbers in self._rows:
            sums = eval_step(self._masker.apply(self._reader.read(numbers)))
            total = total.to(sums.loss.device) + torch.stack(list(sums))
            if poll is not None:
                poll()
        if dist.is_initialized():
            dist.all_reduce(total)
        loss, predicted, correct = total.tolist()
        return EvaluationResult(
            loss=loss / max(predicted, 1.0), accuracy=correct / max(predicted, 1.0), predicted_tokens=int(predicted)
        )

    def unigram_baseline(self, *, vocab_size: int) -> UnigramBaseline:
        """Entropy over all maskable tokens of the rows; the most frequent one's rate among the masked."""
        tokens = np.zeros(vocab_size, dtype=np.int64)
        predicted = np.zeros(vocab_size, dtype=np.int64)
        for numbers in self._rows:
            rows = self._reader.read(numbers)
            tokens += np.bincount(rows.input_ids[self._masker.maskable(rows)], minlength=vocab_size)
            labels = self._masker.apply(rows).labels
            predicted += np.bincount(labels[labels != IGNORED_LABEL], minlength=vocab_size)
        return UnigramBaseline(
            entropy=_entropy(tokens), most_frequent_rate=float(predicted[tokens.argmax()] / max(predicted.sum(), 1))
        )


def plain_eval_step(model: BertForMaskedLanguageModel, *, device: torch.device) -> Callable[[Batch], StepSums]:
    """An eval step on the plain module, for one process without an engine."""
    model.eval()

    def step(batch: Batch) -> StepSums:
        with torch.no_grad():
            output = model(
                *(
                    torch.from_numpy(array).to(device)
                    for array in (batch.input_ids, batch.position_ids, batch.document_ids, batch.labels)
                )
            )
        return StepSums(*(value.double() for value in output))

    return step


def _entropy(counts: Int64Array) -> float:
    total = counts.sum()
    if total == 0:
        return 0.0
    rates = counts[counts > 0] / total
    return float(-(rates * np.log(rates)).sum())


def perplexity(loss: float) -> float:
    """exp(loss), infinite rather than an overflow."""
    return math.exp(loss) if loss < 700 else math.inf
