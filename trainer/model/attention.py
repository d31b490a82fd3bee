"""Self-attention in which a token sees its own document and nothing else."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.dropout import dropout
from trainer.model.layout import DocumentGroups, document_offsets


class MultiHeadAttention(nn.Module):
    """What multi-head attention is made of (Vaswani et al. 2017, section 3.2): projections, heads, dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout_rate = config.attention_dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    @property
    def present_dropout(self) -> float:
        """The dropout rate of attention's weights; 0 outside training."""
        return self.dropout_rate if self.training else 0.0


class SelfAttention(MultiHeadAttention):
    """Attention over the flat layout, with its output projection."""

    def forward(self, hidden: Tensor, groups: DocumentGroups, rows: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden], or [R, hidden] where only the flat positions `rows` are wanted."""
        heads = (-1, self.num_heads, hidden.shape[1] // self.num_heads)
        query, key, value = (project(hidden).view(heads) for project in (self.query, self.key, self.value))
        context = document_attention(query, key, value, groups=groups, dropout_rate=self.present_dropout).flatten(1)
        output: Tensor = self.output(context if rows is None else context[rows])
        return output


def document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    groups: DocumentGroups,
    dropout_rate: float,
    reach: int | None = None,
) -> Tensor:
    """softmax(q k' / sqrt(d)) v within each document; all tensors are [T, heads, head_dim] in the flat layout.

    With `reach` a token sees those of its document that are at most so many places away.

    One call of the device's variable-length kernel where there is one, else one call for each distinct
    length over a zero-copy view [documents, heads, length, head_dim]: no mask and no work on other documents.
    """
    if not groups:
        return query * 0 + key * 0 + value * 0  # empty, yet every projection stays in the graph
    if dropout_rate == 0.0 and has_variable_length_kernel(query.device, query.dtype, query.shape[-1]):
        return _variable_length_attention(query, key, value, groups, reach=reach)
    # split, not slices: the gradient of each slice would be a zero tensor of the whole batch.
    sizes = [count * length for count, length in groups]
    parts = zip(*(torch.split(whole, sizes) for whole in (query, key, value)), groups, strict=True)
    longest = groups[-1][1]
    band = None if reach is None or longest <= reach + 1 else _band(longest, reach, query.device)
    return torch.cat(
        [
            _group_attention(q, k, v, group, dropout_rate, None if band is None else band[: group[1], : group[1]])
            for q, k, v, group in parts
        ]
    )


def _group_attention(
    query: Tensor, key: Tensor, value: Tensor, group: tuple[int, int], dropout_rate: float, band: Tensor | None
) -> Tensor:
    q, k, v = (part.view(*group, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
    return attend(q, k, v, dropout_rate=dropout_rate, mask=band).transpose(1, 2).flatten(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout_rate: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v of [batch, heads, length, head_dim]; `mask` is true where a key may be seen."""
    if not dropout_rate or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_rate)
    # torch's own CPU form with dropout is not fused either, and draws its mask slowly.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(dropout(scores.softmax(-1), rate=dropout_rate, training=True), value)


# Of the longest document, for a shorter one's is a corner of it.
@lru_cache(maxsize=2)
def _band(length: int, reach: int, device: torch.device) -> Tensor:
    """Which tokens of a document see each other: bool [length, length]."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places).abs() <= reach


@lru_cache(maxsize=8)
def has_variable_length_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `torch.nn.attention.varlen` (torch 2.10 or later, no dropout) runs there: CUDA sm80, half precision."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or head_dim % 8 or head_dim > 256:
        return False
    if torch.version.cuda is None or find_spec("torch.nn.attention.varlen") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache(maxsize=4)
def _offsets_on(device: torch.device, groups: DocumentGroups) -> Tensor:
    return torch.tensor(document_offsets(groups), dtype=torch.int32, device=device)


def _variable_length_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: DocumentGroups, *, reach: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets = _offsets_on(query.device, groups)
    longest = groups[-1][1]
    if reach is None:
        return cast(Tensor, varlen_attn(query, key, value, offsets, offsets, longest, longest))
    window = (reach, reach)
    return cast(Tensor, varlen_attn(query, key, value, offsets, offsets, longest, longest, window_size=window))
