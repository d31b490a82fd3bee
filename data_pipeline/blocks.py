"""Cutting a stream of tokenized documents into blocks: consecutive, never splitting a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# A rank that reads all 960 lanes holds 960 blocks: 960 × 196,608 bytes is under 200 MB. Small corpora get blocks
# of the same size, since lanes may share a block: larger blocks fill rows better.
_BLOCK_BYTES = 196_608


class Position(NamedTuple):
    """A place between two documents: how many lie before it in all, and where that is in the input's chunks."""

    documents: int
    chunk: int
    document_in_chunk: int


START = Position(0, 0, 0)


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of one chunk that fall into one split.

    `tokens` [sum of lengths], `lengths` [documents] in tokens, `places` [documents]: where each lay in the chunk,
    `word_starts` bool [sum of lengths], or None where nobody looked for them.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.uint32]
    places: npt.NDArray[np.uint32]
    word_starts: npt.NDArray[np.bool_] | None = None

    def only(self, kept: npt.NDArray[np.bool_]) -> EncodedDocuments:
        """The documents that are `kept`, bool [documents]."""
        kept_tokens = np.repeat(kept, self.lengths)
        return EncodedDocuments(
            self.tokens[kept_tokens],
            self.lengths[kept],
            self.places[kept],
            None if self.word_starts is None else self.word_starts[kept_tokens],
        )


@dataclass(frozen=True)
class ClosedBlock:
    """A whole block; `first_document` counts over the whole input, `end` is the position behind its last document."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.uint32]
    first_document: int
    end: Position
    word_starts: npt.NDArray[np.bool_] | None = None


def default_block_tokens(dtype: np.dtype[Any]) -> int:
    """The block size, in tokens of this type: 98,304 of uint16, 49,152 of uint32."""
    return _BLOCK_BYTES // dtype.itemsize


class BlockAssembler:
    """Gathers one split's documents until the next would pass `block_tokens`; a longer document is a block alone."""

    def __init__(self, *, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tokens: list[npt.NDArray[Any]] = []
        self._lengths: list[npt.NDArray[np.uint32]] = []
        self._word_starts: list[npt.NDArray[np.bool_]] = []
        self._held = 0
        self._first_document = 0
        self._end = START

    def add(self, documents: EncodedDocuments, *, chunk: int, documents_before: int) -> Iterator[ClosedBlock]:
        """Take the documents of chunk number `chunk`, before which `documents_before` lie; gives the blocks closed."""
        ends = np.cumsum(documents.lengths, dtype=np.int64)
        taken = tokens_taken = 0
        while taken < len(ends):
            room = tokens_taken + self._block_tokens - self._held
            until = int(np.searchsorted(ends, room, side="right"))
            if until <= taken and self._held:
                yield self._close()
                continue
            until = max(until, taken + 1)
            if not self._held:
                self._first_document = documents_before + int(documents.places[taken])
            self._tokens.append(documents.tokens[tokens_taken : ends[until - 1]])
            self._lengths.append(documents.lengths[taken:until])
            if documents.word_starts is not None:
                self._word_starts.append(documents.word_starts[tokens_taken : ends[until - 1]])
            self._held += int(ends[until - 1]) - tokens_taken
            place = int(documents.places[until - 1]) + 1
            self._end = Position(documents_before + place, chunk, place)
            taken, tokens_taken = until, int(ends[until - 1])

    def finish(self) -> Iterator[ClosedBlock]:
        """Give the block under way, if there is one: the input has ended."""
        if self._held:
            yield self._close()

    def _close(self) -> ClosedBlock:
        block = ClosedBlock(
            np.concatenate(self._tokens),
            np.concatenate(self._lengths),
            self._first_document,
            self._end,
            np.concatenate(self._word_starts) if self._word_starts else None,
        )
        self._tokens, self._lengths, self._word_starts, self._held = [], [], [], 0
        return block
