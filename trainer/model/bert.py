"""The whole models: the encoder with the masked-language-model head, and with the pooler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.family import create_encoder
from trainer.model.heads import MaskedLanguageModelHead, Pooler
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, LossTerm, classification_term

IGNORED_LABEL = -100


def predicted_rows(layout: TokenLayout, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the [B, S] `labels` that count, and these labels: [R] int64 each, on the labels' device."""
    flat = layout.flatten(labels)
    rows = (flat != IGNORED_LABEL).nonzero().squeeze(1)
    return rows, flat[rows].long()


class BertForMaskedLanguageModel(nn.Module):
    """The encoder with its MLM head, run on predicted positions only.

    `label_smoothing` and `z_loss` are part of the loss in training and of none in evaluation.
    """

    label_inputs: ClassVar[tuple[str, ...]] = ("labels",)

    def __init__(self, config: ModelConfig, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.encoder = create_encoder(config)
        self.head = MaskedLanguageModelHead(config, word=self.encoder.word)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        document_ids: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        count_correct: bool | None = None,
    ) -> dict[str, LossTerm]:
        """[B, S] integer tensors -> the term `mlm`, summed over the positions that have a label and are no padding.

        `document_ids` and `labels` may stay on the host while the rest is on a device: then nothing waits for
        the device. Correct tokens are counted outside training, or as `count_correct` says.
        """
        layout = TokenLayout.from_document_ids(document_ids)
        rows, targets = self.predictions(layout, labels)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
            rows=rows.to(input_ids.device, non_blocking=True),
        )
        return self.terms(hidden, targets, count_correct=count_correct)

    def predictions(self, layout: TokenLayout, *labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Flat positions [R] int64 that the heads read, and each head's targets, in the order of the positions.

        `labels` are the inputs that `label_inputs` names, [B, S] each. No weight takes part.
        """
        rows, targets = predicted_rows(layout.to(labels[0].device), labels[0])
        return rows, [targets]

    def terms(self, hidden: Tensor, targets: Sequence[Tensor], *, count_correct: bool | None) -> dict[str, LossTerm]:
        """Every head's loss term of the encoder's output [R, hidden] at the positions of `predictions`."""
        return {MASKED_LANGUAGE_MODEL: self.masked_term(hidden, targets[0], count_correct=count_correct)}

    def masked_term(self, hidden: Tensor, targets: Tensor, *, count_correct: bool | None) -> LossTerm:
        """The term `mlm` of hidden states [N, hidden] at positions whose labels are `targets`, [N]."""
        return classification_term(
            self.head(hidden),
            targets.to(hidden.device, non_blocking=True),
            count_correct=not self.training if count_correct is None else count_correct,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            z_loss=self.z_loss if self.training else 0.0,
        )

    def logits(
        self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """[B, S] integer tensors -> logits [B, S, vocab] of every position, zero at padding."""
        layout = TokenLayout.from_document_ids(document_ids).to(input_ids.device)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
        )
        return layout.scatter(self.head(hidden), shape=(input_ids.shape[0], input_ids.shape[1]))


class BertWithPooler(nn.Module):
    """The encoder with the pooler: one vector a document. Masked-language modelling alone trains no pooler."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = create_encoder(config)
        self.pooler = Pooler(config)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """[B, S] integer tensors -> [num_docs, hidden], documents in the order in which the rows hold them."""
        layout = TokenLayout.from_document_ids(document_ids).to(input_ids.device)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
            rows=layout.first_tokens(),
        )
        pooled: Tensor = self.pooler(hidden)
        return pooled
