"""Rows as training would see them: a block's documents packed and masked for real, told apart token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.batch import IGNORED_LABEL, Batch, assemble, frame_rows
from data_pipeline.inspect import spread
from data_pipeline.masking import TokenMasker
from data_pipeline.packing import FRAME_TOKENS, Packing, count_rows, cut_documents, plan_rows
from data_pipeline.sequences import plain_sequences
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer

ROW_LENGTHS = (128, 256, 512, 1024, 2048, 8192)
PACKINGS: tuple[Packing, ...] = ("packed", "padded")
_FILL_BLOCKS = 16

TokenKind = Literal["plain", "special", "unknown", "mask", "random", "kept"]


@dataclass(frozen=True)
class RowFill:
    """How many of the places of rows of `max_seq_len` hold a token, sampled."""

    max_seq_len: int
    packing: Packing
    fill: float


@dataclass(frozen=True)
class RowToken:
    """One token of a row: the piece that the model is given, and the one it must predict if its kind says so."""

    kind: TokenKind
    given: str
    original: str


@dataclass(frozen=True)
class ExampleRow:
    """One packed, masked row of a block; padding is left out."""

    block: int
    tokens: tuple[RowToken, ...]


def packing_fill(store: BlockStore) -> list[RowFill]:
    """Share of places filled at the usual row lengths, packed and padded, in up to 16 blocks spread over the split."""
    blocks = [store.block_lengths(number) for number in spread(store.num_blocks, wanted=_FILL_BLOCKS)]
    found = []
    for packing in PACKINGS:
        for max_seq_len in ROW_LENGTHS:
            pieces = np.concatenate([cut_documents(lengths, max_seq_len=max_seq_len).length for lengths in blocks])
            rows = sum(count_rows(lengths, max_seq_len=max_seq_len, packing=packing) for lengths in blocks)
            filled = int(pieces.sum()) + FRAME_TOKENS * len(pieces)
            found.append(RowFill(max_seq_len, packing, filled / (rows * max_seq_len)))
    return found


def example_rows(store: BlockStore, *, tokenizer: Tokenizer, wanted: int, max_seq_len: int) -> Iterator[ExampleRow]:
    """One row of each of `wanted` blocks spread evenly over the split, masked as by Devlin et al. 2019, section 3.1."""
    masker = TokenMasker(
        vocab_size=tokenizer.vocab_size,
        special_ids=list(tokenizer.special_token_ids.values()),
        mask_id=tokenizer.mask_id,
        mask_rate=0.15,
        mask_token_rate=0.8,
        random_token_rate=0.1,
        seed=0,
    )
    pieces = tokenizer.pieces()
    for number in spread(store.num_blocks, wanted=wanted):
        block = store.read_block(number)
        plan = plan_rows(
            block.lengths, max_seq_len=max_seq_len, packing="packed", seed=0, phase=0, epoch=0, block=number
        )
        packed = frame_rows(block.tokens, plain_sequences(plan), cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)
        row = assemble(np.array([number], np.int64), [(packed, 0)], max_seq_len=max_seq_len, pad_id=tokenizer.pad_id)
        yield ExampleRow(number, tuple(_row_tokens(masker.apply(row), tokenizer=tokenizer, pieces=pieces)))


def _row_tokens(batch: Batch, *, tokenizer: Tokenizer, pieces: list[str]) -> Iterator[RowToken]:
    """The tokens of a masked batch of one row."""
    framing = (tokenizer.cls_id, tokenizer.sep_id)
    used = batch.document_ids[0] > 0
    for given, label in zip(batch.input_ids[0, used].tolist(), batch.labels[0, used].tolist(), strict=True):
        kind: TokenKind = "plain"
        if label != IGNORED_LABEL:
            kind = "mask" if given == tokenizer.mask_id else "kept" if given == label else "random"
        elif given == tokenizer.unk_id:
            kind = "unknown"
        elif given in framing:
            kind = "special"
        yield RowToken(kind, pieces[given], pieces[given if label == IGNORED_LABEL else label])
