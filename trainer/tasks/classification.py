"""Classification of a text or a pair: one label, several labels, or a number (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.tokenizer import Int32Array
from trainer.encoder_config import EncoderConfig
from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, TaskDataConfig
from trainer.model.dropout import Dropout
from trainer.model.heads import Pooler
from trainer.tasks.classification_scores import label_metrics, multi_label_metrics, number_metrics
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.framing import frame
from trainer.tasks.model import TaskHead, TaskModel, count_of, mean_rows
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer

# The first decides the best checkpoint.
_METRICS = {
    "label": ("accuracy", "f1_macro"),
    "labels": ("f1_micro", "f1_macro", "exact_match"),
    "number": ("spearman", "pearson", "mean_squared_error"),
}


class ClassificationHead(TaskHead):
    """Dropout and a projection over a document's first token, its mean, or the pooler's vector."""

    class_weights: Tensor

    def __init__(self, config: ClassificationConfig, model: EncoderConfig, *, class_weights: Sequence[float]) -> None:
        super().__init__()
        self.output = config.output
        self.mean = config.pooling == "mean"
        self.pooler = Pooler(model) if config.pooling == "pooler" else None
        self.dropout = Dropout(config.dropout)
        self.project = nn.Linear(model.hidden_size, max(1, len(class_weights)))
        self.register_buffer("class_weights", torch.tensor([*class_weights]), persistent=False)

    def _scores(self, hidden: Tensor, row_counts: Tensor) -> Tensor:
        """[R, hidden] -> fp32 [documents, classes]."""
        if self.mean:
            hidden = mean_rows(hidden, row_counts)
        return self.score(hidden)

    def score(self, vectors: Tensor) -> Tensor:
        """A vector for each document, [documents, hidden], first token or mean -> fp32 [documents, classes]."""
        if self.pooler is not None:
            vectors = self.pooler(vectors)
        scores: Tensor = self.project(self.dropout(vectors)).float()
        return scores

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy; binary cross-entropy, the mean over labels; squared error. Summed over documents."""
        scores = self._scores(hidden, row_counts)
        if self.output == "label":
            loss = F.cross_entropy(scores, targets, weight=self.class_weights.float(), reduction="sum")
        elif self.output == "labels":
            loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(dim=1).sum()
        else:
            loss = F.mse_loss(scores[:, 0], targets, reduction="sum")
        return loss, count_of(len(targets), like=loss)

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """`scores` [documents, classes]: probabilities, or the number itself."""
        scores = self._scores(hidden, row_counts)
        if self.output == "label":
            scores = scores.softmax(dim=1)
        elif self.output == "labels":
            scores = scores.sigmoid()
        return {"scores": scores}


class Classification:
    """The task over known labels; `class_weights` by label, in their order."""

    def __init__(
        self,
        config: ClassificationConfig,
        data: TaskDataConfig,
        *,
        labels: Sequence[str],
        class_weights: Sequence[float] = (),
    ) -> None:
        self.term = "classification"
        self.labels = tuple(labels)
        is_binary = config.output == "label" and len(self.labels) == 2
        self.metric_names = (*_METRICS[config.output], *(("matthews",) if is_binary else ()))
        self.metric = self.metric_names[0]
        self.lower_is_better = frozenset({"mean_squared_error"})
        self._config = config
        self._data = data
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._class_weights = tuple(class_weights) or (1.0,) * len(self.labels)

    @staticmethod
    def find_labels(config: ClassificationConfig, records: Sequence[Record]) -> tuple[str, ...]:
        """The recipe's labels, else those of the training records, sorted; empty for numbers."""
        if config.output == "number":
            return ()
        if config.labels is not None:
            return tuple(config.labels)
        names = (r.target if config.output == "labels" else (r.target,) for r in records)
        found = tuple(sorted({name for of_record in names for name in of_record}))
        if len(found) < 2:
            raise UserError(f"{records[0].where} and the lines after it know {len(found)} label; at least 2 are needed")
        return found

    def check(self, records: Sequence[Record]) -> None:
        """UserError for the first label that is unknown."""
        if self._config.output == "number":
            return
        for record in records:
            for name in record.target if self._config.output == "labels" else (record.target,):
                if name not in self._numbers:
                    raise UserError(
                        f"{record.where}: the label {name!r} is unknown; the training file has "
                        f"{', '.join(self.labels[:12])}: mend the line, or name all labels in task.labels"
                    )

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """[CLS] text [SEP], or [CLS] text [SEP] second [SEP] with type 1 from the second text on."""
        parts = [tokenizer.encode(texts) for texts in zip(*(record.inputs for record in records), strict=True)]
        return [
            self._example(number, record, [part[number] for part in parts], tokenizer)
            for number, record in enumerate(records)
        ]

    def _example(self, number: int, record: Record, parts: list[Int32Array], tokenizer: TextTokenizer) -> Example:
        framed = frame(parts, tokenizer=tokenizer, data=self._data, where=record.where)
        rows = np.arange(len(framed.input_ids) if self._config.pooling == "mean" else 1, dtype=np.int64)
        return Example(
            number,
            framed.input_ids,
            framed.token_type_ids,
            rows,
            predictions=1,
            targets=self._targets(record),
            cut_tokens=framed.cut_tokens,
        )

    def _targets(self, record: Record) -> npt.NDArray[Any] | None:
        if record.target is None:
            return None
        if self._config.output == "number":
            return np.array([record.target], dtype=np.float32)
        if self._config.output == "label":
            return np.array([self._numbers[record.target]], dtype=np.int64)
        hot = np.zeros((1, len(self.labels)), dtype=np.float32)
        hot[0, [self._numbers[name] for name in record.target]] = 1.0
        return hot

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        head = ClassificationHead(self._config, config, class_weights=self._class_weights)
        return TaskModel(config, head, term=self.term)

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`label` and `score`; `labels` over 0.5; or `value`. All labels' probabilities stand in `scores`."""
        values = [float(value) for value in outputs["scores"][0]]
        if self._config.output == "number":
            return {"value": values[0]}
        scores = dict(zip(self.labels, values, strict=True))
        if self._config.output == "labels":
            return {"labels": [name for name, value in scores.items() if value > 0.5], "scores": scores}
        best = max(scores, key=scores.__getitem__)
        return {"label": best, "score": scores[best], "scores": scores}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Accuracy and macro F1; micro and macro F1 and exact matches; correlations and squared error."""
        targets = [record.target for record in records]
        if self._config.output == "number":
            return number_metrics(targets, [prediction["value"] for prediction in predictions])
        if self._config.output == "labels":
            return multi_label_metrics(targets, [p["labels"] for p in predictions], labels=self.labels)
        return label_metrics(targets, [prediction["label"] for prediction in predictions], labels=self.labels)


def weights_of(config: ClassificationConfig, *, labels: Sequence[str], records: Sequence[Record]) -> tuple[float, ...]:
    """Each label's weight, their mean over the training records being 1; UserError where a name is no label."""
    if config.class_weights is None:
        return (1.0,) * len(labels)
    counts = Counter(record.target for record in records)
    if config.class_weights == "balanced":
        given = {label: 1.0 / max(counts[label], 1) for label in labels}
    else:
        given = dict(config.class_weights)
        if wrong := sorted(given.keys() ^ set(labels)):
            raise UserError(f"task.class_weights must name every label once, and {wrong[0]!r} is missing or no label")
    mean = sum(given[label] * counts[label] for label in labels) / len(records)
    return tuple(given[label] / mean for label in labels)
