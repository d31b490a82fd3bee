"""Packing: which documents share a row, planned from document lengths alone, one block at a time.

A document becomes pieces, as long as fit a row with their frame, [CLS] and [SEP] at least. `packed` lays
pieces together by best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", 1973; for language
models Krell et al. 2021, arXiv:2107.02027); `padded` gives each piece a row of its own. The number of rows
depends only on the lengths, not on the shuffle, so it can be counted once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array, derive_key, permutation

Packing = Literal["packed", "padded"]

# [CLS] before and [SEP] behind each piece.
FRAME_TOKENS = 2


@dataclass(frozen=True)
class PieceShape:
    """What a piece of n tokens takes of a row at most: `copies` sequences of n + `frame_tokens` tokens."""

    frame_tokens: int = FRAME_TOKENS
    copies: int = 1

    def longest(self, max_seq_len: int) -> int:
        """Tokens of the longest piece that fits a row."""
        return max_seq_len // self.copies - self.frame_tokens

    def needs(self, lengths: Int64Array) -> Int64Array:
        """Row tokens for pieces of these lengths."""
        return self.copies * (lengths + self.frame_tokens)


PLAIN_PIECE = PieceShape()


@dataclass(frozen=True)
class Pieces:
    """A block's documents cut to fit rows: int64 [pieces] each; `start` counts tokens within the block."""

    document: Int64Array
    start: Int64Array
    length: Int64Array


@dataclass(frozen=True)
class PackingPlan:
    """Rows of one block: `piece` (numbers into Pieces) row by row, row r being piece[row_starts[r]:row_starts[r+1]]."""

    pieces: Pieces
    piece: Int64Array
    row_starts: Int64Array

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1


def cut_documents(lengths: npt.ArrayLike, *, max_seq_len: int, shape: PieceShape = PLAIN_PIECE) -> Pieces:
    """Cut documents into consecutive pieces that fit a row together with their frame."""
    document_lengths = np.asarray(lengths, dtype=np.int64)
    body = shape.longest(max_seq_len)
    pieces_per_document = -(-document_lengths // body)
    document = np.repeat(np.arange(len(document_lengths)), pieces_per_document)
    first_piece = np.cumsum(pieces_per_document) - pieces_per_document
    offset = (np.arange(len(document)) - first_piece[document]) * body
    document_start = np.cumsum(document_lengths) - document_lengths
    return Pieces(
        document=document,
        start=document_start[document] + offset,
        length=np.minimum(document_lengths[document] - offset, body),
    )


def _best_fit(needs: list[int], *, capacity: int) -> tuple[list[int], int]:
    """Row of each need, needs given in decreasing order, and the number of rows; each goes where least is left over."""
    rows_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set while some row has exactly s free: the tightest fit is one shift and one lowest bit
    rows: list[int] = []
    num_rows = 0
    for need in needs:
        fitting = spaces >> need
        if fitting:
            space = need + (fitting & -fitting).bit_length() - 1
            candidates = rows_with_space[space]
            row = candidates.pop()
            if not candidates:
                spaces ^= 1 << space
            space -= need
        else:
            row = num_rows
            num_rows += 1
            space = capacity - need
        rows.append(row)
        if space > FRAME_TOKENS:
            rows_with_space[space].append(row)
            spaces |= 1 << space
    return rows, num_rows


def count_rows(lengths: npt.ArrayLike, *, max_seq_len: int, packing: Packing, shape: PieceShape = PLAIN_PIECE) -> int:
    """Number of rows a block with these document lengths has, in every epoch."""
    pieces = cut_documents(lengths, max_seq_len=max_seq_len, shape=shape)
    if packing == "padded":
        return len(pieces.length)
    needs = np.sort(shape.needs(pieces.length))[::-1]
    full = int(np.count_nonzero(needs == max_seq_len))
    return full + _best_fit(needs[full:].tolist(), capacity=max_seq_len)[1]


def plan_rows(
    lengths: npt.ArrayLike,
    *,
    max_seq_len: int,
    packing: Packing,
    seed: int,
    phase: int,
    epoch: int,
    block: int,
    shape: PieceShape = PLAIN_PIECE,
) -> PackingPlan:
    """Rows of one block in one epoch, shuffled by (seed, phase, epoch, block)."""
    pieces = cut_documents(lengths, max_seq_len=max_seq_len, shape=shape)
    num_pieces = len(pieces.length)
    piece_shuffle = permutation(derive_key("pieces", seed, phase, epoch, block), num_pieces)
    if packing == "padded":
        return PackingPlan(pieces=pieces, piece=piece_shuffle, row_starts=np.arange(num_pieces + 1, dtype=np.int64))
    needs = shape.needs(pieces.length[piece_shuffle])
    decreasing = np.argsort(-needs, kind="stable")
    ordered = piece_shuffle[decreasing]
    needs = needs[decreasing]
    full = int(np.count_nonzero(needs == max_seq_len))
    partial_rows, num_partial_rows = _best_fit(needs[full:].tolist(), capacity=max_seq_len)
    num_rows = full + num_partial_rows
    row_of_piece = np.concatenate([np.arange(full), full + np.asarray(partial_rows, dtype=np.int64)])
    row_rank = permutation(derive_key("rows", seed, phase, epoch, block), num_rows)
    rank_of_piece = row_rank[row_of_piece]
    by_row = np.argsort(rank_of_piece, kind="stable")
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(rank_of_piece, minlength=num_rows))])
    return PackingPlan(pieces=pieces, piece=ordered[by_row], row_starts=row_starts)
