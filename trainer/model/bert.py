"""The whole models: the encoder with the masked-language-model head, and with the pooler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.encoder import BertEncoder
from trainer.model.heads import MaskedLanguageModelHead, Pooler
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, LossTerm, classification_term

IGNORED_LABEL = -100


class BertForMaskedLanguageModel(nn.Module):
    """The encoder with its MLM head, run on predicted positions only.

    `label_smoothing` and `z_loss` are part of the loss in training and of none in evaluation.
    """

    def __init__(self, config: ModelConfig, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.encoder = BertEncoder(config)
        self.head = MaskedLanguageModelHead(config, word=self.encoder.embeddings.word)

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
        targets = layout.to(labels.device).flatten(labels)
        rows = (targets != IGNORED_LABEL).nonzero().squeeze(1)
        targets = targets[rows].to(input_ids.device, dtype=torch.int64, non_blocking=True)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
            rows=rows.to(input_ids.device, non_blocking=True),
        )
        logits = self.head(hidden)
        count_correct = not self.training if count_correct is None else count_correct
        extra = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss} if self.training else {}
        return {MASKED_LANGUAGE_MODEL: classification_term(logits, targets, count_correct=count_correct, **extra)}

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
        self.encoder = BertEncoder(config)
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
