"""Tagging of words: entities by BIO or BIOES, parts of speech (Devlin et al. 2019, section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.encoder_config import EncoderConfig
from trainer.errors import UserError
from trainer.finetune_config import TaggingConfig, TagHeadConfig, TaskDataConfig
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.model import TaskModel
from trainer.tasks.tag_examples import tag_examples
from trainer.tasks.tag_head import TagHead
from trainer.tasks.tag_schemes import spans
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer

_OVERALL = {"precision": "precision", "recall": "recall", "f1": "f1-score"}


class TagTask:
    """What tagging and segmentation share: a tag for every word."""

    lower_is_better: frozenset[str] = frozenset()
    _going_on: tuple[str, ...] = ("I-", "E-")

    def __init__(self, head: TagHeadConfig, data: TaskDataConfig, *, term: str, labels: Sequence[str]) -> None:
        self.term = term
        self.labels = tuple(labels)
        self._head = head
        self._data = data
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def check(self, records: Sequence[Record]) -> None:
        """UserError for the first tag that is unknown."""
        for record in records:
            for word, tag in enumerate(record.target, start=1):
                if tag not in self._numbers:
                    raise UserError(
                        f"{record.where}: the tag {tag!r} of word {word} is unknown; the training file has "
                        f"{', '.join(self.labels[:12])}: mend it, or name all tags in task.labels"
                    )

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """Token sequences in the order of the records, several for a sentence longer than one."""
        return tag_examples(records, tokenizer, numbers=self._numbers, data=self._data)

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        head = TagHead(self._head, hidden_size=config.hidden_size, num_tags=len(self.labels))
        return TaskModel(config, head, term=self.term)

    @property
    def starts_unit(self) -> npt.NDArray[np.bool_]:
        """Bool [labels]: whether a word of this tag begins a unit; entities and words of a segmentation are whole."""
        return np.array([not label.startswith(self._going_on) for label in self.labels])

    def _tags(self, outputs: Outputs) -> list[str]:
        return [self.labels[number] for number in outputs["tags"]]


class Tagging(TagTask):
    """The task over known tags."""

    def __init__(self, config: TaggingConfig, data: TaskDataConfig, *, labels: Sequence[str]) -> None:
        super().__init__(config.head, data, term="tagging", labels=labels)
        self._is_plain = config.scheme == "plain"
        if self._is_plain:
            self._going_on = ()
        types = sorted({label[2:] for label in labels if label != "O"})
        self._type_metrics = tuple(f"f1_{name}" for name in types)
        self.metric_names = ("accuracy",) if self._is_plain else (*_OVERALL, *self._type_metrics, "accuracy")
        self.metric = "accuracy" if self._is_plain else "f1"
        self._blank = "" if config.unit == "character" else " "

    @staticmethod
    def find_labels(config: TaggingConfig, records: Sequence[Record]) -> tuple[str, ...]:
        """The recipe's tags, else those of the training records, sorted."""
        found = sorted({tag for record in records for tag in record.target})
        return tuple(config.labels or found)

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`words`, `tags` and their `scores`; `entities` with text, type, words [start, end) and their least score."""
        tags, scores = self._tags(outputs), [float(score) for score in outputs["scores"]]
        found: Prediction = {"words": list(record.inputs), "tags": tags, "scores": scores}
        if not self._is_plain:
            found["entities"] = [
                {
                    "text": self._blank.join(record.inputs[span.start : span.end]),
                    "type": span.type,
                    "start": span.start,
                    "end": span.end,
                    "score": min(scores[span.start : span.end]),
                }
                for span in spans(tags)
            ]
        return found

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Accuracy of tags; of entities precision, recall and F1, over all and by type (`f1_PER`)."""
        targets = [list(record.target) for record in records]
        found = [prediction["tags"] for prediction in predictions]
        seqeval = require_seqeval()
        scores = {"accuracy": float(seqeval.accuracy_score(targets, found))}
        if self._is_plain:
            return scores
        if all(tag == "O" for tags in (*targets, *found) for tag in tags):
            return {**dict.fromkeys((*_OVERALL, *self._type_metrics), 0.0), **scores}
        report = seqeval.classification_report(targets, found, output_dict=True, zero_division=0)
        overall = {name: float(report["micro avg"][key]) for name, key in _OVERALL.items()}
        # A type that neither side has is in no report.
        by_type = {name: float(report.get(name[3:], {"f1-score": 0.0})["f1-score"]) for name in self._type_metrics}
        return {**overall, **by_type, **scores}


def require_seqeval() -> Any:
    """`seqeval.metrics`; UserError naming the extra where it is not installed."""
    try:
        import seqeval.metrics
    except ImportError:
        raise UserError("scoring tags needs the package seqeval; pip install 'bertline[tasks]'") from None
    return seqeval.metrics
