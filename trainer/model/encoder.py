"""The encoder: embeddings and layers, on the flat layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.config import ModelConfig
from trainer.encoder_config import EncoderConfig
from trainer.errors import UserError
from trainer.model.attention import SelfAttention
from trainer.model.dropout import Dropout
from trainer.model.layout import DocumentGroups, TokenLayout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """A norm over the hidden size with the recipe's epsilon, and the bias that the family has or lacks."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.family == "bert")


def vocab_size(config: EncoderConfig) -> int:
    """The vocabulary's size; a UserError where the recipe leaves it to the tokenizer and nobody has filled it in."""
    if config.vocab_size is None:
        raise UserError(
            "model.vocab_size is not set: it must be known to build a model; take it from the tokenizer or set it"
        )
    return config.vocab_size


def feed_forward_flops(config: ModelConfig) -> int:
    """FLOPs of one token's way through a layer's feed-forward part: two projections, or three where it is gated."""
    return 2 * (3 if config.family == "modernbert" else 2) * config.hidden_size * config.intermediate_size


def sinusoidal_table(config: ModelConfig) -> Tensor:
    """[max_positions, hidden] fp32 of Vaswani et al. 2017, section 3.5: sines at even, cosines at odd places.

    Scaled by `initializer_range`. The paper raises its word embeddings to unit variance instead (section 3.4),
    which weights shared with the MLM head do not allow; the ratio of words to positions is the same.
    """
    position = torch.arange(config.max_positions, dtype=torch.float64)[:, None]
    even = torch.arange(0, config.hidden_size, 2, dtype=torch.float64)
    angle = position * torch.exp(even * (-math.log(10000.0) / config.hidden_size))
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, : config.hidden_size]
    return (table * config.initializer_range).float()


class SinusoidalPositions(nn.Module):
    """The fixed table of `sinusoidal_table`, looked up by position; it is no weight and is in no checkpoint."""

    table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_table(config), persistent=False)

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.table[position_ids]


class Embeddings(nn.Module):
    """Word + position + token type, then (post-norm only) a norm, then dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        learned = config.positions == "learned"
        self.word = nn.Embedding(vocab_size(config), hidden)
        self.position = nn.Embedding(config.max_positions, hidden) if learned else SinusoidalPositions(config)
        self.token_type = nn.Embedding(config.type_vocab_size, hidden)
        self.norm = layer_norm(config) if config.norm == "post" else nn.Identity()
        own = config.embedding_dropout
        self.dropout = Dropout(config.hidden_dropout if own is None else own)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Three [T] integer tensors -> [T, hidden]."""
        summed = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        embedded: Tensor = self.dropout(self.norm(summed))
        return embedded


class FeedForward(nn.Module):
    """Two projections and the activation between them (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down(self.activation(self.up(hidden)))
        return output


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with a residual and a norm.

    Post: the norm follows the sum (Devlin et al. 2019). Pre: it precedes the sublayer (Shoeybi et al. 2019, figure 7).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, groups: DocumentGroups, rows: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden], or [R, hidden] where only the flat positions `rows` are wanted."""
        residual = hidden if rows is None else hidden[rows]
        if self.pre_norm:
            hidden = residual + self.dropout(self.attention(self.attention_norm(hidden), groups, rows))
            output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        else:
            hidden = self.attention_norm(residual + self.dropout(self.attention(hidden, groups, rows)))
            output = self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
        return output


def run_layer(
    layer: nn.Module, hidden: Tensor, groups: DocumentGroups, rows: Tensor | None, *, recompute: bool
) -> Tensor:
    """One encoder layer; with `recompute` only its input is kept, and the backward pass computes it again.

    The reentrant form: it runs a layer to its end both times, as ZeRO-3's hooks, which gather its weights and let them
    go again, expect.
    """
    if not recompute or not torch.is_grad_enabled():
        output: Tensor = layer(hidden, groups, rows)
    else:
        output = checkpoint(layer, hidden, groups, rows, use_reentrant=True)
    return output


class Encoder(nn.Module):
    """Embeddings, layers and a last norm over packed documents: no token sees another document's tokens."""

    def __init__(
        self, config: ModelConfig, *, embeddings: nn.Module, layers: Iterable[nn.Module], final_norm: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    @property
    def word(self) -> nn.Embedding:
        """The words' embedding, by which the head of masked-language modelling decodes."""
        return cast(nn.Embedding, self.embeddings.word)

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
        """[B, S] integer tensors -> hidden states [T, hidden] in the order of `layout`, padding left out.

        `layout` spares a second computation of it. With `rows` ([R] flat positions) only these are returned,
        [R, hidden], and the last layer computes nothing but attention's keys and values for the others.
        """
        layout = (layout or TokenLayout.from_document_ids(document_ids)).to(input_ids.device)
        flat_ids = layout.flatten(input_ids)
        types = torch.zeros_like(flat_ids) if token_type_ids is None else layout.flatten(token_type_ids)
        hidden = self.embeddings(flat_ids, layout.flatten(position_ids), types)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            wanted = rows if number == last else None
            hidden = run_layer(layer, hidden, layout.groups, wanted, recompute=self.recompute)
        output: Tensor = self.final_norm(hidden)
        return output


class BertEncoder(Encoder):
    """BERT's encoder (Devlin et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config,
            embeddings=Embeddings(config),
            layers=(EncoderLayer(config) for _ in range(config.num_layers)),
            final_norm=layer_norm(config) if config.norm == "pre" else nn.Identity(),
        )
