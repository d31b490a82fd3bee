"""ModernBERT's encoder (Warner et al. 2024) on the flat layout: rotary, gated, local and global by turns, no biases."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.attention import document_attention
from trainer.model.dropout import Dropout
from trainer.model.encoder import ACTIVATIONS, Encoder, layer_norm, vocab_size
from trainer.model.layout import DocumentGroups
from trainer.model.rotary import rotate


class WordEmbeddings(nn.Module):
    """Words alone, then a norm and dropout: where a word stands only attention is told."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size(config), config.hidden_size)
        self.norm = layer_norm(config)
        own = config.embedding_dropout
        self.dropout = Dropout(config.hidden_dropout if own is None else own)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """[T] integers -> [T, hidden]; positions are counted within each document, and types there are none."""
        embedded: Tensor = self.dropout(self.norm(self.word(input_ids)))
        return embedded


class RotarySelfAttention(nn.Module):
    """Attention whose queries and keys are turned by their place in the document (Su et al. 2021).

    `reach` is how many places away a token sees, None for the whole document.
    """

    def __init__(self, config: ModelConfig, *, theta: float, reach: int | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.theta = theta
        self.reach = reach
        self.dropout_rate = config.attention_dropout
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = Dropout(config.attention_dropout)

    def forward(self, hidden: Tensor, groups: DocumentGroups, rows: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden], or [R, hidden] where only the flat positions `rows` are wanted."""
        heads = (-1, 3, self.num_heads, hidden.shape[1] // self.num_heads)
        query, key, value = self.query_key_value(hidden).view(heads).unbind(1)
        context = document_attention(
            rotate(query, groups, theta=self.theta),
            rotate(key, groups, theta=self.theta),
            value,
            groups=groups,
            dropout_rate=self.dropout_rate if self.training else 0.0,
            reach=self.reach,
        ).flatten(1)
        output: Tensor = self.dropout(self.output(context if rows is None else context[rows]))
        return output


class GatedFeedForward(nn.Module):
    """One projection's activation times another, projected back: GEGLU for gelu (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.hidden_dropout)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.up(hidden).chunk(2, dim=-1)
        output: Tensor = self.down(self.dropout(self.activation(value) * gate))
        return output


class ModernBertLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and with a residual; layer 0 reads embeddings that are normed."""

    def __init__(self, config: ModelConfig, *, number: int) -> None:
        super().__init__()
        is_global = number % config.global_every == 0
        self.attention_norm = layer_norm(config) if number > 0 else nn.Identity()
        self.attention = RotarySelfAttention(
            config,
            theta=config.global_rope_theta if is_global else config.local_rope_theta,
            reach=None if is_global else config.local_window // 2,
        )
        self.feed_forward_norm = layer_norm(config)
        self.feed_forward = GatedFeedForward(config)

    def forward(self, hidden: Tensor, groups: DocumentGroups, rows: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden], or [R, hidden] where only the flat positions `rows` are wanted."""
        residual = hidden if rows is None else hidden[rows]
        hidden = residual + self.attention(self.attention_norm(hidden), groups, rows)
        output: Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return output


class ModernBertEncoder(Encoder):
    """The encoder of `transformers.ModernBertModel`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config,
            embeddings=WordEmbeddings(config),
            layers=(ModernBertLayer(config, number=number) for number in range(config.num_layers)),
            final_norm=layer_norm(config),
        )
