"""A batch of rows as NumPy arrays, and how rows are laid out in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array
from data_pipeline.packing import FRAME_TOKENS, PackingPlan

Int32Array = npt.NDArray[np.int32]
IGNORED_LABEL = -100
EMPTY_ROW_SOURCE = -1
_NO_DOCUMENTS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class PackedBlock:
    """One block's rows in one epoch: framed pieces end to end, row after row.

    `tokens` (uint16 or uint32) holds [CLS] piece [SEP] for every piece; row r is
    tokens[token_starts[r]:token_starts[r+1]], made of the pieces piece_starts[r] to piece_starts[r+1], whose
    framed lengths are `piece_lengths` and whose documents (numbers within the split) are `piece_documents`.
    `source` is the number of the mixture's source that the block is of.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    token_starts: Int64Array
    piece_starts: Int64Array
    piece_lengths: Int64Array
    piece_documents: Int64Array
    source: int


@dataclass(frozen=True)
class Batch:
    """`B` rows of `S` tokens, ready for a forward pass.

    row_ids: int64 [B], the rows' numbers, -1 for an empty row.
    input_ids, position_ids: int32 [B, S]; positions restart at 0 in each piece, padding has position 0.
    document_ids: int32 [B, S], 0 for padding, 1... for the pieces of a row; attention stays within one.
    labels: int64 [B, S], the token to predict, IGNORED_LABEL where nothing is predicted.
    tokens: number of tokens that are not padding; predicted_tokens: number of labels that count.
    sum_squared_lengths: sum of squared piece lengths, which attention's cost is proportional to.
    row_documents: for each row the documents of its pieces, as numbers within the split of its source.
    row_sources: for each row the number of its source in the mixture, EMPTY_ROW_SOURCE for an empty row.
    """

    row_ids: Int64Array
    input_ids: Int32Array
    position_ids: Int32Array
    document_ids: Int32Array
    labels: Int64Array
    tokens: int
    predicted_tokens: int
    sum_squared_lengths: int
    row_documents: tuple[Int64Array, ...] = ()
    row_sources: tuple[int, ...] = ()

    def tokens_by_source(self, num_sources: int) -> Int64Array:
        """Tokens that are not padding, of each source of the mixture, int64 [num_sources]."""
        if num_sources == 1:
            return np.array([self.tokens], dtype=np.int64)
        # Empty rows, the only ones without a source, have no tokens.
        sources = np.maximum(self.row_sources, 0)
        tokens = np.count_nonzero(self.document_ids, axis=1)
        return np.bincount(sources, weights=tokens, minlength=num_sources).astype(np.int64)

    def model_inputs(self) -> dict[str, npt.NDArray[Any]]:
        """What the model's forward takes, by argument name."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "document_ids": self.document_ids,
            "labels": self.labels,
        }

    def term_counts(self) -> dict[str, int]:
        """How many predictions each loss term is a sum over."""
        return {"mlm": self.predicted_tokens}


def frame_rows(
    tokens: npt.NDArray[np.unsignedinteger],
    plan: PackingPlan,
    *,
    cls_id: int,
    sep_id: int,
    first_document: int = 0,
    source_number: int = 0,
) -> PackedBlock:
    """Lay a block's tokens out row by row as the plan says, each piece between [CLS] and [SEP]."""
    length = plan.pieces.length[plan.piece]
    framed = length + FRAME_TOKENS
    ends = np.cumsum(framed)
    starts = ends - framed
    total = int(ends[-1]) if len(ends) else 0
    # Position p of a framed piece comes from token start + p - 1; the frame's own places are overwritten below.
    shift = (plan.pieces.start[plan.piece] - starts - 1).astype(np.int32)
    source = np.arange(total, dtype=np.int32)
    source += np.repeat(shift, framed)
    laid_out = tokens.take(source, mode="clip")
    laid_out[starts] = cls_id
    laid_out[ends - 1] = sep_id
    return PackedBlock(
        tokens=laid_out,
        token_starts=np.concatenate([[0], ends])[plan.row_starts],
        piece_starts=plan.row_starts,
        piece_lengths=framed,
        piece_documents=first_document + plan.pieces.document[plan.piece],
        source=source_number,
    )


def assemble(
    row_ids: Int64Array, rows: Sequence[tuple[PackedBlock, int] | None], *, max_seq_len: int, pad_id: int
) -> Batch:
    """Rows, None being an empty one, as a batch in which nothing is predicted yet."""
    shape = (len(rows), max_seq_len)
    input_ids = np.full(shape, pad_id, dtype=np.int32)
    lengths: list[Int64Array] = []
    used = np.zeros(len(rows), dtype=np.int64)
    pieces = np.zeros(len(rows), dtype=np.int64)
    documents = [_NO_DOCUMENTS] * len(rows)
    sources = [EMPTY_ROW_SOURCE] * len(rows)
    for i, place in enumerate(rows):
        if place is None:
            continue
        block, row = place
        start, end = block.token_starts[row], block.token_starts[row + 1]
        input_ids[i, : end - start] = block.tokens[start:end]
        used[i] = end - start
        first_piece, end_piece = block.piece_starts[row], block.piece_starts[row + 1]
        lengths.append(block.piece_lengths[first_piece:end_piece])
        pieces[i] = end_piece - first_piece
        documents[i] = block.piece_documents[first_piece:end_piece]
        sources[i] = block.source
    flat_lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    document_ids, position_ids = _number_documents(flat_lengths, pieces=pieces, used=used, max_seq_len=max_seq_len)
    return Batch(
        row_ids=row_ids,
        input_ids=input_ids,
        position_ids=position_ids.reshape(shape),
        document_ids=document_ids.reshape(shape),
        labels=np.full(shape, IGNORED_LABEL, dtype=np.int64),
        tokens=int(used.sum()),
        predicted_tokens=0,
        sum_squared_lengths=int(np.square(flat_lengths).sum()),
        row_documents=tuple(documents),
        row_sources=tuple(sources),
    )


def _number_documents(
    lengths: Int64Array, *, pieces: Int64Array, used: Int64Array, max_seq_len: int
) -> tuple[Int32Array, Int32Array]:
    """Flat document ids and positions of rows whose padding is one more segment, numbered 0."""
    num_rows = len(pieces)
    first_segment = np.cumsum(pieces + 1) - (pieces + 1)
    padding_segment = first_segment + pieces
    is_piece = np.ones(int(pieces.sum()) + num_rows, dtype=bool)
    is_piece[padding_segment] = False
    segment_lengths = np.empty(len(is_piece), dtype=np.int64)
    segment_lengths[is_piece] = lengths
    segment_lengths[padding_segment] = max_seq_len - used
    segment_ids = np.arange(len(is_piece), dtype=np.int32) - np.repeat(first_segment, pieces + 1).astype(np.int32) + 1
    segment_ids[padding_segment] = 0
    starts = (np.cumsum(segment_lengths) - segment_lengths).astype(np.int32)
    document_ids = np.repeat(segment_ids, segment_lengths)
    positions = np.arange(num_rows * max_seq_len, dtype=np.int32)
    positions -= np.repeat(starts, segment_lengths)
    positions[document_ids == 0] = 0
    return document_ids, positions
