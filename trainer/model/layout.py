"""Where each real token of a batch lies in the flat layout that the encoder runs on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

# Runs of documents of one length: (how many documents, how many tokens each).
DocumentGroups = tuple[tuple[int, int], ...]


def document_offsets(groups: DocumentGroups) -> list[int]:
    """Flat position at which each document begins, and, last, the number of tokens: `num_docs + 1` numbers."""
    lengths = chain.from_iterable(repeat(length, count) for count, length in groups)
    return [0, *np.cumsum(list(lengths), dtype=np.int64).tolist()]


@dataclass(frozen=True)
class TokenLayout:
    """A batch without its padding, documents sorted by length so that equal lengths lie side by side.

    Everything in an encoder but attention treats tokens one by one, so only attention has to know where
    documents begin, and there the documents of one length are a plain [count, length] view.
    """

    index: Tensor
    """[T] int64: for each flat token its position in the batch's B x S tokens, row after row."""
    groups: DocumentGroups

    @classmethod
    def from_document_ids(cls, document_ids: Tensor) -> TokenLayout:
        """Lay out a [B, S] batch: 0 is padding, equal neighbours in a row are one document.

        Computed on the host: it waits for the device where `document_ids` is on one, so leave them on the host.
        The sort is stable, hence the same batch always gives the same layout.
        """
        ids = document_ids.detach().cpu().numpy()
        flat = ids.reshape(-1)
        begins = np.ones(flat.size, dtype=bool)
        begins[1:] = flat[1:] != flat[:-1]
        begins[:: max(1, ids.shape[1])] = True
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=flat.size)
        real = flat[starts] != 0
        starts, lengths = starts[real], lengths[real]
        order = np.argsort(lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        shift = starts - (np.cumsum(lengths) - lengths)
        index = np.repeat(shift, lengths) + np.arange(lengths.sum())
        distinct, counts = np.unique(lengths, return_counts=True)
        groups = tuple(zip(counts.tolist(), distinct.tolist(), strict=True))
        return cls(index=torch.from_numpy(index).to(document_ids.device), groups=groups)

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout with its index on `device`; does not wait for it."""
        if self.index.device == device:
            return self
        return TokenLayout(index=self.index.to(device, non_blocking=True), groups=self.groups)

    @property
    def num_documents(self) -> int:
        """Documents in the batch."""
        return sum(count for count, _ in self.groups)

    def flatten(self, values: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...], padding removed."""
        return values.flatten(0, 1)[self.index]

    def scatter(self, flat: Tensor, *, shape: tuple[int, int]) -> Tensor:
        """[T, ...] -> [B, S, ...] for `shape` = (B, S), zero at padding."""
        rows, width = shape
        batch = flat.new_zeros((rows * width, *flat.shape[1:]))
        return batch.index_copy(0, self.index, flat).view(rows, width, *flat.shape[1:])

    def first_tokens(self) -> Tensor:
        """[num_docs] int64 flat positions of the documents' first tokens, in the order in which the rows hold them."""
        starts = torch.tensor(document_offsets(self.groups)[:-1], dtype=torch.int64, device=self.index.device)
        return starts[self.index[starts].argsort()]
