"""Fine-tuned models for other programs: the class of Hugging Face's that computes the same, and the padded form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, FineTuneConfig, SegmentationConfig, TaggingConfig
from trainer.model.encoder import BertEncoder
from trainer.model.hf_config import TaskSuffix
from trainer.model.hf_export import HfHead
from trainer.model.padded import PaddedEncoder
from trainer.tasks.classification import ClassificationHead
from trainer.tasks.model import TaskModel
from trainer.tasks.tag_head import TagHead

_PROBLEM_TYPES = {
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}
_PARTS = {"weight": "classifier.weight", "bias": "classifier.bias"}


def hf_head(config: FineTuneConfig, weights: Mapping[str, Tensor], *, labels: Sequence[str]) -> HfHead:
    """The head of a fine-tuned model as Hugging Face's class has it; UserError, with the reason, where none has."""
    task = config.task
    if isinstance(task, ClassificationConfig) and task.pooling != "pooler":
        raise UserError(
            f"task.pooling={task.pooling}: BertForSequenceClassification reads the pooler's vector and nothing else; "
            "export with --format onnx, export the encoder alone by --encoder, or train with task.pooling: pooler"
        )
    suffix = class_suffix(config)
    own = {f"head.project.{part}": name for part, name in _PARTS.items()}
    return HfHead(suffix, {name: weights[of] for of, name in own.items()}, label_settings(config, labels=labels))


def class_suffix(config: FineTuneConfig) -> TaskSuffix:
    """Of the class that has the task's outputs; UserError for heads that other programs do not know."""
    task = config.task
    if isinstance(task, ClassificationConfig):
        return "ForSequenceClassification"
    if isinstance(task, TaggingConfig | SegmentationConfig):
        above = [name for name, there in (("a CRF", task.head.crf), ("a BiLSTM", task.head.bilstm_size)) if there]
        if above:
            raise UserError(
                f"task.head has {' and '.join(above)}, which tag words together; exported is a projection alone: "
                "export the encoder by --encoder, or train without them"
            )
        return "ForTokenClassification"
    raise UserError(f"the task {task.name} has no form outside this program; export the encoder alone by --encoder")


def label_settings(config: FineTuneConfig, *, labels: Sequence[str]) -> dict[str, Any]:
    """What config.json says of the labels; a number has the name of its column."""
    task = config.task
    names = list(labels) or [task.label if isinstance(task, ClassificationConfig) else task.name]
    settings: dict[str, Any] = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if isinstance(task, ClassificationConfig):
        settings["problem_type"] = _PROBLEM_TYPES[task.output]
    return settings


class PaddedTaskModel(nn.Module):
    """A classification or tagging model with a projection for its head, over padded texts.

    `logits` are [batch, labels] of texts, or [batch, sequence, tags] of tokens, a word's being its first token's.
    """

    output_names = ("logits",)

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        assert isinstance(model.encoder, BertEncoder)  # export_task refuses other encoders
        self.encoder = PaddedEncoder(model.encoder)
        self.head = model.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        """Three int64 [batch, sequence] -> logits, as they are before softmax or sigmoid."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids)
        if isinstance(self.head, TagHead):
            return (self.head.project(hidden),)
        assert isinstance(self.head, ClassificationHead)  # class_suffix refuses other heads
        if self.head.mean:
            kept = attention_mask[..., None].to(hidden.dtype)
            return (self.head.score((hidden * kept).sum(1) / kept.sum(1)),)
        return (self.head.score(hidden[:, 0]),)
