"""Held-out loss and accuracy, and the baselines that a trained encoder has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.batch import IGNORED_LABEL, Batch
from data_pipeline.hashing import Int64Array
from data_pipeline.masking import TokenMasker
from data_pipeline.reader import Reader, validation_batches
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, SENTENCE_PAIRS, LossTerm
from trainer.step_sums import StepSums, stacked, weighted_mean


@dataclass(frozen=True)
class TermResult:
    """One loss term over all evaluated batches: mean loss in nats and share of hits over the predictions."""

    loss: float
    accuracy: float
    predictions: int


@dataclass(frozen=True)
class EvaluationResult:
    """Every loss term by its name, and `loss`, their weighted sum as it is trained."""

    loss: float
    terms: dict[str, TermResult]

    @property
    def masked(self) -> TermResult:
        """Masked-language modelling over the masked tokens of held-out rows."""
        return self.terms[MASKED_LANGUAGE_MODEL]

    @property
    def pairs(self) -> TermResult | None:
        """Sentence pairs of held-out rows, where they are trained."""
        return self.terms.get(SENTENCE_PAIRS)

    @property
    def score(self) -> float:
        """What decides the best checkpoint; less is better."""
        return self.loss

    def summary(self) -> str:
        """The result for a person, on one line."""
        pairs = f", pair accuracy {self.pairs.accuracy:.1%}" if self.pairs else ""
        return f"validation loss {self.loss:.4f}, masked accuracy {self.masked.accuracy:.1%}{pairs}"

    def metrics(self) -> dict[str, float]:
        """By metric key; terms have keys of their own where there are several."""
        values = {"validation/loss": self.loss, "validation/accuracy": next(iter(self.terms.values())).accuracy}
        if len(self.terms) > 1:
            for name, term in self.terms.items():
                values |= {f"validation/loss_{name}": term.loss, f"validation/accuracy_{name}": term.accuracy}
        return values


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
        reader: Reader,
        masker: TokenMasker,
        *,
        max_rows: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_world_size: int = 1,
        term_weights: Mapping[str, float] = MappingProxyType({MASKED_LANGUAGE_MODEL: 1.0}),
    ) -> None:
        self._reader = reader
        self._term_weights = term_weights
        self._masker = masker
        self._rows = validation_batches(
            min(max_rows, reader.rows_before_repeat),
            micro_batch_size=micro_batch_size,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
        )

    def run(
        self, eval_step: Callable[[Batch], StepSums], *, poll: Callable[[], None] | None = None
    ) -> EvaluationResult:
        """Evaluate; collective when a process group exists. `poll` is called after each batch."""
        total: Tensor | None = None
        names: tuple[str, ...] = ()
        for numbers in self._rows:
            sums = eval_step(self._masker.apply(self._reader.read(numbers)))
            total, names = stacked(sums) + (0.0 if total is None else total), tuple(sums)
            if poll is not None:
                poll()
        if total is None:
            raise ValueError("there are no rows to evaluate")
        if dist.is_initialized():
            dist.all_reduce(total)
        losses, counts, hits = total.T.tolist()
        terms = {
            name: TermResult(loss=loss / max(count, 1.0), accuracy=hit / max(count, 1.0), predictions=int(count))
            for name, loss, count, hit in zip(names, losses, counts, hits, strict=True)
        }
        weights = [self._term_weights[name] for name in names]
        return EvaluationResult(loss=weighted_mean(losses, counts, weights), terms=terms)

    def first_rows(self, count: int) -> Batch:
        """The first of the rows, masked as they are evaluated; the same on every rank."""
        return self._masker.apply(self._reader.read(np.arange(min(count, self._reader.rows_before_repeat))))

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
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.model_inputs().items()}
        with torch.no_grad():
            output = model(**inputs)
        return {name: LossTerm(*(value.double() for value in term)) for name, term in output.items()}

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
