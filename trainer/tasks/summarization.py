"""Summaries: ROUGE by the package rouge-score, of words or of characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.seq2seq_config import SummarizationConfig
from trainer.tasks.examples import Record
from trainer.tasks.seq2seq import Seq2Seq
from trainer.tasks.task import Prediction

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def require_rouge() -> Any:
    """`rouge_score.rouge_scorer`; UserError naming the extra where it is not installed."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise UserError("scoring summaries needs the package rouge-score; pip install 'bertline[tasks]'") from None
    return rouge_scorer


class Summarization(Seq2Seq):
    """The task; scores are F-measures from 0 to 1, the mean over records, each against the best of its targets."""

    metric = "rouge_l"
    metric_names: tuple[str, ...] = tuple(_KINDS)

    def __init__(self, config: SummarizationConfig, data: TaskDataConfig) -> None:
        super().__init__(config, data, term="summarization")
        self._characters = config.script == "chinese"

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """ROUGE-1, ROUGE-2 and ROUGE-L; English words by their stems."""
        tokenizer = _Characters() if self._characters else None
        scorer = require_rouge().RougeScorer([*_KINDS.values()], use_stemmer=True, tokenizer=tokenizer)
        found = [
            scorer.score_multi(record.target, prediction["text"])
            for record, prediction in zip(records, predictions, strict=True)
        ]
        return {name: sum(one[kind].fmeasure for one in found) / len(found) for name, kind in _KINDS.items()}


class _Characters:
    """The package's own tokenizer knows Latin letters alone."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if not character.isspace()]
