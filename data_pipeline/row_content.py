"""What stands in a row: plain pieces, or disturbed ones, or pairs; from a block and its plan to its rows' tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_pipeline.augmentation import Augmentation, augment_pieces
from data_pipeline.batch import PackedBlock, frame_rows
from data_pipeline.packing import PLAIN_PIECE, PackingPlan, PieceShape
from data_pipeline.pairs import Borders, PairRule, pair_sequences
from data_pipeline.sequences import plain_sequences
from data_pipeline.shards import Block
from data_pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class RowContent:
    """How a block's pieces become its rows; all but plain pieces need the vocabulary's tables.

    `words`: whether rows carry word starts, from the shards where these hold them.
    """

    vocabulary: Vocabulary | None = None
    pairs: PairRule | None = None
    augmentation: Augmentation | None = None
    words: bool = False

    @property
    def shape(self) -> PieceShape:
        """What a piece takes of a row."""
        return PLAIN_PIECE if self.pairs is None else self.pairs.shape

    def lay_out(
        self,
        block: Block,
        plan: PackingPlan,
        *,
        key: tuple[int, ...],
        cls_id: int,
        sep_id: int,
        first_document: int = 0,
        source_number: int = 0,
    ) -> PackedBlock:
        """The block's rows in one epoch; `key` is (seed, phase, epoch, block): the same key, the same draws."""
        tokens, word_starts = block.tokens, block.word_starts
        if self.words and word_starts is None:
            word_starts = self._tables.word_start.take(tokens)
        if self.augmentation is not None:
            pieces, source = augment_pieces(
                plan.pieces, sentence_borders=self._sentence_borders(tokens), rule=self.augmentation, key=key
            )
            plan = replace(plan, pieces=pieces)
            tokens = tokens[source]
            word_starts = None if word_starts is None else word_starts[source]
        if self.pairs is None:
            sequences = plain_sequences(plan)
        else:
            begins_word = self._tables.word_start.take(tokens) if word_starts is None else word_starts
            borders = Borders(self._sentence_borders(tokens), np.flatnonzero(begins_word))
            sequences = pair_sequences(plan, borders, rule=self.pairs, key=key)
        return frame_rows(
            tokens,
            sequences,
            cls_id=cls_id,
            sep_id=sep_id,
            word_starts=word_starts,
            first_document=first_document,
            source_number=source_number,
        )

    @property
    def _tables(self) -> Vocabulary:
        if self.vocabulary is None:
            raise ValueError("words, pairs and augmentation need a vocabulary")
        return self.vocabulary

    def _sentence_borders(self, tokens: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._tables.sentence_end.take(tokens)) + 1


PLAIN_CONTENT = RowContent()
