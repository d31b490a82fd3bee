"""The recurrent baseline: layers of LSTM in both directions, in the encoder's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.encoder_config import BiLSTMConfig
from trainer.model.dropout import Dropout
from trainer.model.encoder import vocab_size
from trainer.model.layout import TokenLayout


class BiLSTM(nn.Module):
    """A layer of LSTM in each direction over padded sentences (Graves and Schmidhuber 2005).

    Not torch's own form over packed sentences, whose backward pass on a CPU is quadratic in their number of words.
    """

    def __init__(self, input_size: int, size: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(input_size, size, batch_first=True)
        self.back = nn.LSTM(input_size, size, batch_first=True)

    def forward(self, padded: Tensor, row_counts: Tensor) -> Tensor:
        """[sentences, longest, input] -> [sentences, longest, 2 size], nothing to be read behind a sentence's end."""
        place = torch.arange(padded.shape[1], device=padded.device)
        mirrored = row_counts[:, None] - 1 - place
        order = torch.where(mirrored >= 0, mirrored, place)[..., None]
        onward, _ = self.onward(padded)
        back, _ = self.back(padded.gather(1, order.expand_as(padded)))
        return torch.cat([onward, back.gather(1, order.expand_as(back))], dim=2)


class TokenEmbeddings(nn.Module):
    """Word + token type, then dropout; a recurrence knows positions by itself."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size(config), config.embedding_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Two [T] integer tensors -> [T, embedding]."""
        embedded: Tensor = self.dropout(self.word(input_ids) + self.token_type(token_type_ids))
        return embedded


class BiLSTMEncoder(nn.Module):
    """Takes and gives what `BertEncoder` does, with embeddings and layers by the same names."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        sizes = [config.embedding_size, *[config.hidden_size] * (config.num_layers - 1)]
        self.layers = nn.ModuleList(BiLSTM(size, config.hidden_size // 2) for size in sizes)
        self.dropout = Dropout(config.dropout)

    @property
    def word(self) -> nn.Embedding:
        """The words' embedding."""
        return self.embeddings.word

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor,
        document_ids: Tensor,
        token_type_ids: Tensor | None = None,
        layout: TokenLayout | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """[B, S] integer tensors -> states [T, hidden] in the order of `layout`, or of its flat positions `rows`.

        Documents are padded to the longest of the batch; `position_ids` are not looked at.
        """
        layout = (layout or TokenLayout.from_document_ids(document_ids)).to(input_ids.device)
        flat_ids = layout.flatten(input_ids)
        types = torch.zeros_like(flat_ids) if token_type_ids is None else layout.flatten(token_type_ids)
        lengths = [length for count, length in layout.groups for _ in range(count)]
        counts = torch.tensor(lengths, device=input_ids.device)
        hidden = pad_sequence(list(torch.split(self.embeddings(flat_ids, types), lengths)), batch_first=True)
        for layer in self.layers:
            hidden = self.dropout(layer(hidden, counts))
        hidden = hidden[torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None]]
        return hidden if rows is None else hidden[rows]
