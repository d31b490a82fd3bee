"""Sequences of several lengths as rows of one length, for attention, and flat for everything else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedLayout:
    """Where the tokens of flat sequences, one after the other, lie in rows that are padded behind their ends."""

    present: Tensor
    """Bool [sequences, longest]: where there is a token."""
    place: Tensor
    """[T] int64: for each flat token its position in the rows, row after row."""

    @classmethod
    def from_lengths(cls, lengths: Tensor) -> PaddedLayout:
        """The layout of sequences of so many tokens, int64 [sequences]; waits for the device that they are on."""
        present = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return cls(present, present.flatten().nonzero().squeeze(1))

    @classmethod
    def of_single_tokens(cls, count: int, *, device: torch.device) -> PaddedLayout:
        """The layout of so many sequences of one token each."""
        present = torch.ones((count, 1), dtype=torch.bool, device=device)
        return cls(present, torch.arange(count, device=device))

    def pad(self, flat: Tensor) -> Tensor:
        """[T, ...] -> [sequences, longest, ...], zero where there is no token."""
        sequences, longest = self.present.shape
        rows = flat.new_zeros((sequences * longest, *flat.shape[1:]))
        return rows.index_copy(0, self.place, flat).view(sequences, longest, *flat.shape[1:])

    def flatten(self, rows: Tensor) -> Tensor:
        """[sequences, longest, ...] -> [T, ...]."""
        return rows.flatten(0, 1)[self.place]
