"""Rotary positions: queries and keys turned by where their token stands in its document."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainer.model.layout import DocumentGroups, document_offsets


def rotate(values: Tensor, groups: DocumentGroups, *, theta: float) -> Tensor:
    """Turn [T, heads, head_dim] of the flat layout, number d and number d + head_dim / 2 as a pair (Su et al. 2021).

    The pair's angle is the token's place in its document times theta^(-2 d / head_dim); it is applied in fp32.
    """
    cos, sin = _turns(groups, theta, values.shape[-1], values.device)
    first, second = values.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(values.dtype)


# A batch's two thetas, once for all layers, and once more behind it for its backward pass.
@lru_cache(maxsize=4)
def _turns(groups: DocumentGroups, theta: float, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all angles, [T, 1, head_dim / 2] fp32 each."""
    offsets = np.array(document_offsets(groups))
    places = torch.from_numpy(np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)))
    # In fp32, as transformers computes them: an exported model is to turn as far as the trained one.
    rates = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = places[:, None, None].float() * rates
    return angles.cos().to(device), angles.sin().to(device)
