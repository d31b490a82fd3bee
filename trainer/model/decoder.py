"""The decoder: BERT's layer with a causal mask and attention to the encoder's states, on flat sequences.

As Hugging Face's BertLMHeadModel computes it with `is_decoder` and `add_cross_attention` (Rothe et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.attention import MultiHeadAttention, attend
from trainer.model.dropout import Dropout
from trainer.model.encoder import Embeddings, FeedForward, layer_norm
from trainer.model.padding import PaddedLayout


class KeysValues(NamedTuple):
    """What attention looks at: [sequences, heads, length, head_dim] each."""

    key: Tensor
    value: Tensor

    def select(self, sequences: Tensor) -> KeysValues:
        """Those of some sequences, in the order of their numbers."""
        return KeysValues(self.key[sequences], self.value[sequences])


@dataclass
class LayerCache:
    """What one layer has seen: the encoder's states, and the target's tokens so far."""

    memory: KeysValues
    own: KeysValues | None = None

    def extend(self, new: KeysValues) -> KeysValues:
        """Add the next tokens; gives those of all tokens up to them."""
        if self.own is not None:
            new = KeysValues(*(torch.cat(pair, dim=2) for pair in zip(self.own, new, strict=True)))
        self.own = new
        return new


@dataclass
class DecoderCache:
    """What the decoder has seen of some source sequences, each with one target or several side by side."""

    layers: list[LayerCache]
    memory_mask: Tensor
    """Bool [sources, 1, 1, longest]: where a source has a token."""

    def select(self, *, sources: Tensor | None, targets: Tensor) -> None:
        """Keep some targets, in the order of their numbers, and the sources that they belong to; None keeps all."""
        for layer in self.layers:
            if sources is not None:
                layer.memory = layer.memory.select(sources)
            if layer.own is not None:
                layer.own = layer.own.select(targets)
        if sources is not None:
            self.memory_mask = self.memory_mask[sources]


class DecoderAttention(MultiHeadAttention):
    """Attention over given keys and values, with its output projection."""

    def keys_values(self, states: Tensor, layout: PaddedLayout) -> KeysValues:
        """Flat states [T, hidden] as what attention looks at."""
        return KeysValues(*(self._by_head(layout.pad(project(states))) for project in (self.key, self.value)))

    def forward(self, hidden: Tensor, *, layout: PaddedLayout, seen: KeysValues, mask: Tensor | None) -> Tensor:
        """Flat [T, hidden] -> [T, hidden]; `mask` is true where a key may be seen.

        Where `seen` has fewer sequences than there are targets, each is looked at by as many targets side by side.
        """
        query = layout.pad(self.query(hidden))
        context = attend(
            self._by_head(query.view(len(seen.key), -1, query.shape[2])),
            *seen,
            mask=mask,
            dropout_rate=self.present_dropout,
        )
        output: Tensor = self.output(layout.flatten(context.transpose(1, 2).reshape(query.shape)))
        return output

    def _by_head(self, rows: Tensor) -> Tensor:
        """[sequences, length, hidden] -> [sequences, heads, length, head_dim]."""
        return rows.view(*rows.shape[:2], self.num_heads, -1).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Causal attention, attention to the source and feed-forward, each with a residual and a norm as in the encoder.

    What it shares with the encoder's layer has the same names there.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention = DecoderAttention(config)
        self.attention_norm = layer_norm(config)
        self.cross_attention = DecoderAttention(config)
        self.cross_attention_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self, hidden: Tensor, *, layout: PaddedLayout, cache: LayerCache, mask: Tensor | None, memory_mask: Tensor
    ) -> Tensor:
        """Flat [T, hidden] -> [T, hidden]; adds the tokens to the cache."""

        def look_back(states: Tensor) -> Tensor:
            seen = cache.extend(self.attention.keys_values(states, layout))
            output: Tensor = self.attention(states, layout=layout, seen=seen, mask=mask)
            return output

        def look_at_source(states: Tensor) -> Tensor:
            output: Tensor = self.cross_attention(states, layout=layout, seen=cache.memory, mask=memory_mask)
            return output

        hidden = self._add(hidden, look_back, norm=self.attention_norm)
        hidden = self._add(hidden, look_at_source, norm=self.cross_attention_norm)
        return self._add(hidden, self.feed_forward, norm=self.feed_forward_norm)

    def _add(self, hidden: Tensor, sublayer: Callable[[Tensor], Tensor], *, norm: nn.LayerNorm) -> Tensor:
        if self.pre_norm:
            added: Tensor = hidden + self.dropout(sublayer(norm(hidden)))
        else:
            added = norm(hidden + self.dropout(sublayer(hidden)))
        return added


class BertDecoder(nn.Module):
    """Embeddings and layers: whole targets at once under teacher forcing, or token by token with a cache."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = layer_norm(config) if config.norm == "pre" else nn.Identity()

    def remember(self, hidden: Tensor, source_lengths: Tensor) -> DecoderCache:
        """The cache of sources whose encoder states are [T, hidden], one after the other, before any target token."""
        layout = PaddedLayout.from_lengths(source_lengths)
        layers = cast("list[DecoderLayer]", [*self.layers])
        memories = [layer.cross_attention.keys_values(hidden, layout) for layer in layers]
        return DecoderCache([LayerCache(memory) for memory in memories], layout.present[:, None, None, :])

    def forward(self, input_ids: Tensor, position_ids: Tensor, *, layout: PaddedLayout, cache: DecoderCache) -> Tensor:
        """[T] integer tensors of whole targets, or of each target's next token -> hidden states [T, hidden]."""
        hidden = self.embeddings(input_ids, position_ids, torch.zeros_like(input_ids))
        length = layout.present.shape[1]
        mask = None
        if length > 1:
            # Padding lies behind every token of its row, so that the causal mask hides it too.
            mask = torch.ones((length, length), dtype=torch.bool, device=hidden.device).tril()
        for layer, of_layer in zip(self.layers, cache.layers, strict=True):
            hidden = layer(hidden, layout=layout, cache=of_layer, mask=mask, memory_mask=cache.memory_mask)
        output: Tensor = self.final_norm(hidden)
        return output
