"""A model for any task: the encoder, and a head that reads the hidden states of chosen tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.encoder_config import BiLSTMConfig, EncoderConfig
from trainer.model.bilstm import BiLSTMEncoder
from trainer.model.encoder import Encoder
from trainer.model.family import create_encoder
from trainer.model.layout import TokenLayout
from trainer.model.loss_term import LossTerm


class Predicted(NamedTuple):
    """A forward pass for predictions: the loss where targets were given, and outputs [predictions, ...] by name."""

    terms: dict[str, LossTerm]
    outputs: dict[str, Tensor]


class TaskHead(nn.Module, ABC):
    """What a task puts on the encoder.

    collective: set where all ranks must run its modules equally often, as ZeRO-3 gathers their weights in each.
    """

    collective = False

    def start_weights(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By own name, what a start's weights hold for this head: the pooler's."""
        return {name: weight for name, weight in start.items() if name.startswith("pooler.")}

    @abstractmethod
    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss, and number of predictions, from [R, hidden] states and a batch's row counts."""

    @abstractmethod
    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """What is predicted, by name, each [predictions, ...]."""


class TaskModel(nn.Module):
    """The encoder with a task's head; `term` names its loss."""

    def __init__(self, config: EncoderConfig, head: TaskHead, *, term: str) -> None:
        super().__init__()
        self.config = config
        self.term = term
        self.encoder: Encoder | BiLSTMEncoder
        self.encoder = BiLSTMEncoder(config) if isinstance(config, BiLSTMConfig) else create_encoder(config)
        self.head = head

    def freeze_below(self, layers: int) -> None:
        """Keep the embeddings and so many lowest layers as they are: no gradient flows into them."""
        last = self.encoder.layers[layers - 1] if layers else self.encoder.embeddings
        last.register_forward_hook(lambda module, inputs, output: output.detach())

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        document_ids: Tensor,
        token_type_ids: Tensor,
        rows: Tensor,
        row_counts: Tensor,
        targets: Tensor | None = None,
        *,
        predict: bool = False,
    ) -> dict[str, LossTerm] | Predicted:
        """A `TaskBatch`'s arrays -> the task's loss, or with `predict` what it predicts."""
        layout = TokenLayout.from_document_ids(document_ids).to(input_ids.device)
        # Flat token t of the batch is token place[t] of the layout: nothing is padded.
        place = torch.empty_like(layout.index)
        place[layout.index] = torch.arange(len(place), device=place.device)
        hidden = self.encoder(
            input_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            layout=layout,
            rows=place[rows],
        )
        terms = {} if targets is None else {self.term: self._term(hidden, row_counts, targets)}
        return Predicted(terms, self.head.outputs(hidden, row_counts)) if predict else terms

    def _term(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> LossTerm:
        loss, predictions = self.head.loss(hidden, row_counts, targets)
        return LossTerm(loss, predictions, torch.zeros_like(predictions))


def mean_rows(hidden: Tensor, row_counts: Tensor) -> Tensor:
    """[R, hidden] -> the means of so many rows each, [parts, hidden]."""
    parts = torch.repeat_interleave(torch.arange(len(row_counts), device=hidden.device), row_counts)
    sums = hidden.new_zeros(len(row_counts), hidden.shape[1]).index_add(0, parts, hidden)
    return sums / row_counts[:, None].to(hidden.dtype)


def count_of(number: int, *, like: Tensor) -> Tensor:
    """A number of predictions as a scalar on the device of `like`."""
    return torch.full((), number, dtype=torch.int64, device=like.device)
