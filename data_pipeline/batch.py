"""A batch of rows as NumPy arrays, and how rows are laid out in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.compact import Bits
from data_pipeline.hashing import Int64Array
from data_pipeline.sequences import Sequences

Int32Array = npt.NDArray[np.int32]
IGNORED_LABEL = -100
EMPTY_ROW_SOURCE = -1
_NO_DOCUMENTS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class PackedBlock:
    """One block's rows in one epoch: framed sequences, here called pieces, end to end, row after row.

    `tokens` (uint16 or uint32) holds [CLS] A [SEP] or [CLS] A [SEP] B [SEP] for every piece; row r is
    tokens[token_starts[r]:token_starts[r+1]], made of the pieces piece_starts[r] to piece_starts[r+1], whose
    framed lengths are `piece_lengths` and whose documents (numbers within the split) are `piece_documents`.
    `source` is the number of the mixture's source that the block is of.
    Of each token: `word_starts`, true for the frame's tokens too, where rows carry them, and `token_types`, true for
    B and the [SEP] behind it, where there are pairs. `pair_labels`, [pieces], as in `Sequences`.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    token_starts: Int64Array
    piece_starts: Int64Array
    piece_lengths: Int64Array
    piece_documents: Int64Array
    source: int
    word_starts: Bits | None = None
    token_types: Bits | None = None
    pair_labels: npt.NDArray[np.int8] | None = None


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
    word_starts: bool [B, S], which tokens begin a word or are special; None where the vocabulary's pieces say it.
    With pairs, else None and 0: token_type_ids, int32 [B, S], 1 in the second segment; pair_labels, int64 [B, S], at a
    pair's first token 0 where the second segment is the true one, else 1, IGNORED_LABEL everywhere else;
    paired_sequences: number of such labels; pairs: number of predictions, each made from one sequence or several.
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
    word_starts: npt.NDArray[np.bool_] | None = None
    token_type_ids: Int32Array | None = None
    pair_labels: Int64Array | None = None
    paired_sequences: int = 0
    pairs: int = 0

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
        inputs: dict[str, npt.NDArray[Any] | None] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "document_ids": self.document_ids,
            "labels": self.labels,
            "token_type_ids": self.token_type_ids,
            "pair_labels": self.pair_labels,
        }
        return {name: array for name, array in inputs.items() if array is not None}

    def term_counts(self) -> dict[str, int]:
        """How many predictions each loss term is a sum over."""
        masked = {"mlm": self.predicted_tokens}
        return masked if self.pair_labels is None else {**masked, "pairs": self.pairs}


def frame_rows(
    tokens: npt.NDArray[np.unsignedinteger],
    sequences: Sequences,
    *,
    cls_id: int,
    sep_id: int,
    word_starts: npt.NDArray[np.bool_] | None = None,
    first_document: int = 0,
    source_number: int = 0,
) -> PackedBlock:
    """Lay a block's tokens out row by row: [CLS] before each sequence, [SEP] behind each of its segments."""
    opens = sequences.opens
    framed = sequences.length + 1 + opens
    ends = np.cumsum(framed)
    starts = ends - framed
    total = int(ends[-1]) if len(ends) else 0
    # Position p of an opening segment comes from token start + p - 1; the frame's own places are overwritten below.
    shift = (sequences.start - starts - opens).astype(np.int32)
    source = np.arange(total, dtype=np.int32)
    source += np.repeat(shift, framed)
    first = starts[opens]

    def laid_out(values: npt.NDArray[Any], *, cls: Any, sep: Any) -> npt.NDArray[Any]:
        placed = values.take(source, mode="clip")
        placed[first] = cls
        placed[ends - 1] = sep
        return placed

    return PackedBlock(
        tokens=laid_out(tokens, cls=cls_id, sep=sep_id),
        token_starts=np.append(first, total)[sequences.row_starts],
        piece_starts=sequences.row_starts,
        piece_lengths=np.diff(first, append=total),
        piece_documents=first_document + sequences.documents,
        source=source_number,
        word_starts=None if word_starts is None else Bits.of(laid_out(word_starts, cls=True, sep=True)),
        token_types=None if sequences.pair_labels is None else Bits.of(np.repeat(~opens, framed)),
        pair_labels=sequences.pair_labels,
    )


def assemble(
    row_ids: Int64Array,
    rows: Sequence[tuple[PackedBlock, int] | None],
    *,
    max_seq_len: int,
    pad_id: int,
    candidates: int | None = None,
) -> Batch:
    """Rows, None being an empty one, as a batch in which no token is predicted yet.

    `candidates` is the number of sequences that one pair prediction is made from, None without pairs.
    """
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
    batch = Batch(
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
        word_starts=_gathered_words(rows, shape=shape),
    )
    return batch if candidates is None else _with_pairs(batch, rows, candidates=candidates)


def _gathered_words(
    rows: Sequence[tuple[PackedBlock, int] | None], *, shape: tuple[int, int]
) -> npt.NDArray[np.bool_] | None:
    """Word starts of the rows, [B, S]; all blocks hold them or none does."""
    places = [(i, *place) for i, place in enumerate(rows) if place is not None]
    if not any(block.word_starts is not None for _, block, _ in places):
        return None
    gathered = np.zeros(shape, dtype=bool)
    for i, block, row in places:
        assert block.word_starts is not None
        start, end = block.token_starts[row], block.token_starts[row + 1]
        gathered[i, : end - start] = block.word_starts.between(start, end)
    return gathered


def _with_pairs(batch: Batch, rows: Sequence[tuple[PackedBlock, int] | None], *, candidates: int) -> Batch:
    """The batch with the token types and the labels of its pairs."""
    token_type_ids = np.zeros_like(batch.input_ids)
    pair_labels = np.full(batch.labels.shape, IGNORED_LABEL, dtype=np.int64)
    for i, place in enumerate(rows):
        if place is None:
            continue
        block, row = place
        assert block.token_types is not None
        assert block.pair_labels is not None
        start, end = block.token_starts[row], block.token_starts[row + 1]
        token_type_ids[i, : end - start] = block.token_types.between(start, end)
        pieces = slice(block.piece_starts[row], block.piece_starts[row + 1])
        lengths = block.piece_lengths[pieces]
        pair_labels[i, np.cumsum(lengths) - lengths] = block.pair_labels[pieces]
    paired_sequences = int(np.count_nonzero(pair_labels != IGNORED_LABEL))
    return replace(
        batch,
        token_type_ids=token_type_ids,
        pair_labels=pair_labels,
        paired_sequences=paired_sequences,
        pairs=paired_sequences // candidates,
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
