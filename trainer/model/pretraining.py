"""The whole model of pretraining with sentence pairs: encoder, masked-language-model head, pooler and pair head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.bert import IGNORED_LABEL, BertForMaskedLanguageModel
from trainer.model.heads import PairHead, Pooler
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import SENTENCE_PAIRS, LossTerm, classification_term


class BertForPreTraining(BertForMaskedLanguageModel):
    """Both heads on one pass of the encoder; `candidates` labelled sequences, side by side, make one pair prediction.

    With one, each pair is classified by itself: does B belong here? With several the true pair is found among them
    by a softmax over their log odds of "it does", so that the head means the same in both.
    """

    label_inputs: ClassVar[tuple[str, ...]] = ("labels", "pair_labels")

    def __init__(
        self, config: ModelConfig, *, candidates: int, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> None:
        super().__init__(config, label_smoothing=label_smoothing, z_loss=z_loss)
        self.candidates = candidates
        self.pooler = Pooler(config)
        self.pair_head = PairHead(config)

    def forward(  # type: ignore[override]  # pairs always come with their labels
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        document_ids: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        pair_labels: Tensor,
        count_correct: bool | None = None,
    ) -> dict[str, LossTerm]:
        """As without pairs, and the term `pairs`, summed over predictions.

        `pair_labels`, [B, S], holds at a sequence's first token 0 (B belongs here) or 1, IGNORED_LABEL elsewhere.
        """
        layout = TokenLayout.from_document_ids(document_ids)
        rows, targets = self.predictions(layout, labels, pair_labels)
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
        rows, targets = super().predictions(layout, labels[0])
        pair_targets, first = _labelled_sequences(layout, labels[1])
        return torch.cat([rows, first]), [*targets, pair_targets]

    def terms(self, hidden: Tensor, targets: Sequence[Tensor], *, count_correct: bool | None) -> dict[str, LossTerm]:
        masked, first_tokens = torch.split(hidden, [len(of_head) for of_head in targets])
        return {
            **super().terms(masked, targets[:1], count_correct=count_correct),
            SENTENCE_PAIRS: self.pair_term(first_tokens, targets[1], count_correct=count_correct),
        }

    def pair_term(self, first_tokens: Tensor, targets: Tensor, *, count_correct: bool | None) -> LossTerm:
        """The term `pairs` of hidden states [N, hidden] at sequences' first tokens, whose labels are `targets`, [N]."""
        logits = self.pair_head(self.pooler(first_tokens))
        targets = targets.to(logits.device, dtype=torch.int64, non_blocking=True)
        if self.candidates > 1:
            groups = (len(targets) // self.candidates, self.candidates)
            logits = (logits[:, 0] - logits[:, 1]).view(groups)
            targets = targets.view(groups).argmin(dim=1)
        count_correct = not self.training if count_correct is None else count_correct
        return classification_term(logits, targets, count_correct=count_correct)

    def pair_logits(
        self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """[B, S] integer tensors -> [num_docs, 2], documents in the order in which the rows hold them."""
        layout = TokenLayout.from_document_ids(document_ids).to(input_ids.device)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
            rows=layout.first_tokens(),
        )
        logits: Tensor = self.pair_head(self.pooler(hidden))
        return logits


def _labelled_sequences(layout: TokenLayout, pair_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The pair labels that count, in the order in which the rows hold them, and their flat positions."""
    layout = layout.to(pair_labels.device)
    first = layout.first_tokens()
    targets = layout.flatten(pair_labels)[first]
    counting = targets != IGNORED_LABEL
    return targets[counting], first[counting]
