"""One pipeline stage of the encoder: consecutive units of the plain model, the same modules, joined by tensors."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.encoder import run_layer
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import LossTerm

# What the first stage takes, in this order and by the names that the plain model's forward has for it; the model's
# `label_inputs` follow. Without token types all are 0.
STAGE_INPUTS = ("input_ids", "position_ids", "token_type_ids", "document_ids")


class Stage(nn.Module):
    """Units `first` to `last` - 1 of a model: unit 0 is the embeddings, the last one final norm, heads and loss.

    What travels to the next stage has one shape for all batches: hidden states [B, S, hidden], zero where there is
    no token or, behind the last layer, none that a head reads; then document ids and labels [B, S]. Each stage lays
    its tokens out flat again, so that it does no work on padding.
    """

    def __init__(self, model: BertForMaskedLanguageModel, *, first: int, last: int) -> None:
        super().__init__()
        encoder = model.encoder
        num_layers = len(encoder.layers)
        self.recompute = encoder.recompute
        self.embeddings = encoder.embeddings if first == 0 else None
        self.layers = nn.ModuleList(encoder.layers[max(first - 1, 0) : min(last - 1, num_layers)])
        self.ends_encoder = first <= num_layers < last
        self.follows_encoder = first > num_layers
        self.is_last = last == num_layers + 2
        self.final_norm = encoder.final_norm if self.is_last else nn.Identity()
        self.heads = _without_encoder(model, keep_heads=self.is_last)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | dict[str, LossTerm]:
        """STAGE_INPUTS and labels, or what the stage before gave -> what the next one takes, or the loss terms."""
        num_labels = len(self.heads.label_inputs)
        arrived, (document_ids, *labels) = inputs[: -1 - num_labels], inputs[-1 - num_labels :]
        layout = TokenLayout.from_document_ids(document_ids)
        rows, targets = self.heads.predictions(layout, *labels)
        flat = [layout.flatten(values) for values in arrived]
        if self.embeddings is not None:
            ids, positions, types = flat if len(flat) == 3 else (*flat, flat[0].new_zeros(flat[0].shape))
            hidden: Tensor = self.embeddings(ids, positions, types)
        else:
            hidden = flat[0]
        if self.follows_encoder:
            hidden = hidden[rows]
        for number, layer in enumerate(self.layers, start=1):
            wanted = rows if self.ends_encoder and number == len(self.layers) else None
            hidden = run_layer(layer, hidden, layout.groups, wanted, recompute=self.recompute)
        if self.is_last:
            return self.heads.terms(self.final_norm(hidden), targets, count_correct=not self.training)
        if self.ends_encoder:
            hidden = hidden.new_zeros((len(layout.index), hidden.shape[1])).index_copy(0, rows, hidden)
        shape = (document_ids.shape[0], document_ids.shape[1])
        return layout.scatter(hidden, shape=shape), document_ids, *labels


def _without_encoder(model: BertForMaskedLanguageModel, *, keep_heads: bool) -> BertForMaskedLanguageModel:
    """The model's heads, the same modules, or none of them: what it predicts from a hidden state remains."""
    heads = copy.copy(model)
    heads._modules = {name: head for name, head in model._modules.items() if keep_heads and name != "encoder"}
    return heads
