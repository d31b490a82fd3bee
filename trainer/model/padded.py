"""The encoder over padded batches with a mask: the form that other programs feed, computed by the very same layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.attention import SelfAttention
from trainer.model.encoder import BertEncoder
from trainer.model.heads import MaskedLanguageModelHead, PairHead, Pooler


class PaddedAttention(nn.Module):
    """A layer's attention with a mask in the place of a layout."""

    def __init__(self, flat: SelfAttention) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, hidden: Tensor, keep: Tensor, rows: None = None) -> Tensor:
        """[B × S, hidden] and `keep`, bool [B, 1, 1, S], where keys may be seen -> [B × S, hidden]."""
        heads = (keep.shape[0], keep.shape[3], self.flat.num_heads, hidden.shape[1] // self.flat.num_heads)
        projections = (self.flat.query, self.flat.key, self.flat.value)
        query, key, value = (project(hidden).view(heads).transpose(1, 2) for project in projections)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        output: Tensor = self.flat.output(context.transpose(1, 2).flatten(2).flatten(0, 1))
        return output


class PaddedEncoder(nn.Module):
    """A copy of an encoder, without dropout, for texts that begin at position 0 and are padded behind."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        for layer in self.encoder.layers:
            layer.attention = PaddedAttention(layer.attention)  # type: ignore[arg-type]
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Three int64 [B, S] -> hidden states [B, S, hidden]; `attention_mask` is 1 for tokens, 0 for padding."""
        batch, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device).expand(batch, length)
        hidden = self.encoder.embeddings(input_ids.flatten(), positions.flatten(), token_type_ids.flatten())
        keep = attention_mask.bool()[:, None, None]
        for layer in self.encoder.layers:
            hidden = layer(hidden, keep)
        output: Tensor = self.encoder.final_norm(hidden).view(batch, length, -1)
        return output


class PretrainedModel(nn.Module):
    """An encoder with those heads of pretraining that `parts` names, for its weights by their names to be loaded."""

    def __init__(self, config: ModelConfig, parts: Iterable[str]) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        made: dict[str, Callable[[], nn.Module]] = {
            "head": lambda: MaskedLanguageModelHead(config, word=self.encoder.word),
            "pooler": lambda: Pooler(config),
            "pair_head": lambda: PairHead(config),
        }
        for part in parts:
            setattr(self, part, made[part]())


class PaddedPretrained(nn.Module):
    """All that a pretrained model gives of padded texts; `output_names` are those of its outputs."""

    def __init__(self, model: PretrainedModel) -> None:
        super().__init__()
        self.encoder = PaddedEncoder(model.encoder)
        self.head = getattr(model, "head", None)
        self.pooler = getattr(model, "pooler", None)
        self.pair_head = getattr(model, "pair_head", None)
        heads = {"pooler_output": self.pooler, "logits": self.head, "seq_relationship_logits": self.pair_head}
        self.output_names = ("last_hidden_state", *(name for name, head in heads.items() if head is not None))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """[B, S] -> hidden states, and of the heads there are: pooled vectors, the vocabulary's logits, a pair's."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids)
        outputs = [hidden]
        if self.pooler is not None:
            outputs.append(self.pooler(hidden[:, 0]))
        if self.head is not None:
            outputs.append(self.head(hidden))
        if self.pair_head is not None:
            outputs.append(self.pair_head(outputs[1]))
        return tuple(outputs)
