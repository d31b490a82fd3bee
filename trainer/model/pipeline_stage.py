"""One pipeline stage of the encoder: consecutive units of the plain model, the same modules, joined by tensors."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.model.bert import BertForMaskedLanguageModel, predicted_rows
from trainer.model.encoder import run_layer
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, LossTerm, classification_term

# What the first stage takes, by the name that the plain model's forward has for it.
STAGE_INPUTS = ("input_ids", "position_ids", "document_ids", "labels")


class Stage(nn.Module):
    """Units `first` to `last` - 1 of a model: unit 0 is the embeddings, the last one final norm, head and loss.

    What travels to the next stage has one shape for all batches: hidden states [B, S, hidden], zero where there is
    no token or, behind the last layer, none to predict; then document ids and labels [B, S]. Each stage lays its
    tokens out flat again, so that it does no work on padding.
    """

    def __init__(self, model: BertForMaskedLanguageModel, *, first: int, last: int) -> None:
        super().__init__()
        encoder = model.encoder
        num_layers = len(encoder.layers)
        self.recompute = encoder.recompute
        self.extra_loss = {"label_smoothing": model.label_smoothing, "z_loss": model.z_loss}
        self.embeddings = encoder.embeddings if first == 0 else None
        self.layers = nn.ModuleList(encoder.layers[max(first - 1, 0) : min(last - 1, num_layers)])
        self.ends_encoder = first <= num_layers < last
        self.follows_encoder = first > num_layers
        self.final_norm = encoder.final_norm if last == num_layers + 2 else None
        self.head = model.head if last == num_layers + 2 else None

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor] | dict[str, LossTerm]:
        """STAGE_INPUTS or what the stage before gave -> what the next one takes, or the loss terms."""
        *arrived, document_ids, labels = inputs
        layout = TokenLayout.from_document_ids(document_ids)
        rows, targets = predicted_rows(layout, labels)
        if self.embeddings is not None:
            ids, positions = (layout.flatten(values) for values in arrived)
            hidden = self.embeddings(ids, positions, ids.new_zeros(ids.shape))
        else:
            hidden = layout.flatten(arrived[0])
        if self.follows_encoder:
            hidden = hidden[rows]
        for number, layer in enumerate(self.layers, start=1):
            wanted = rows if self.ends_encoder and number == len(self.layers) else None
            hidden = run_layer(layer, hidden, layout.groups, wanted, recompute=self.recompute)
        if self.head is not None and self.final_norm is not None:
            logits = self.head(self.final_norm(hidden))
            extra = self.extra_loss if self.training else {}
            term = classification_term(logits, targets, count_correct=not self.training, **extra)
            return {MASKED_LANGUAGE_MODEL: term}
        if self.ends_encoder:
            hidden = hidden.new_zeros((len(layout.index), hidden.shape[1])).index_copy(0, rows, hidden)
        return layout.scatter(hidden, shape=(labels.shape[0], labels.shape[1])), document_ids, labels
