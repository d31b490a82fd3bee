"""The order of rows: row n of a run as a pure function of the row counts of the blocks, the seed and n.

An epoch visits the blocks in a permuted order; their rows, laid end to end, form the epoch's sequence of
R rows. `lanes` readers walk that sequence at once, each over its own contiguous stretch of R/lanes rows, and
row n belongs to lane n mod lanes. A data-parallel rank that takes every W-th row, W dividing the lanes,
therefore touches lanes/W blocks at a time, however many ranks there are, and nothing is read twice but the
block at a stretch's edge. Because the stretches are counted from the first row of the epoch, an epoch is
exactly the rows [epoch * R, (epoch + 1) * R): no row is empty and none is left over.

Finding row n is arithmetic and one binary search in a prefix sum over blocks, the same for every n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipeline.compact import CompactArray, compact
from data_pipeline.hashing import Int64Array, derive_key, permutation


@dataclass(frozen=True)
class RowPlaces:
    """Where rows lie: for each asked row its epoch, block and row within the block's packing, int64 [rows]."""

    epoch: Int64Array
    block: Int64Array
    row: Int64Array


class RowOrder:
    """The order of one phase over blocks whose numbers of rows are known."""

    def __init__(self, block_rows: Int64Array, *, lanes: int, seed: int, phase: int = 0) -> None:
        self.block_rows = compact(np.asarray(block_rows, dtype=np.int64))
        self.lanes = lanes
        self.seed = seed
        self.phase = phase
        self.rows_per_epoch = int(self.block_rows.sum())
        if self.rows_per_epoch == 0:
            raise ValueError("an order needs at least one row")
        # Rows of two epochs meet in one batch at most, so two permutations are ever alive.
        self._epoch_sequence = lru_cache(maxsize=2)(self._compute_epoch_sequence)

    def _compute_epoch_sequence(self, epoch: int) -> tuple[CompactArray, CompactArray]:
        """The blocks as they come in an epoch, and the rows behind each."""
        blocks = compact(permutation(derive_key("blocks", self.seed, self.phase, epoch), len(self.block_rows)))
        return blocks, compact(np.cumsum(self.block_rows[blocks], dtype=np.int64))

    def locate(self, rows: Int64Array) -> RowPlaces:
        """Places of the rows with these numbers, counted from the beginning of the phase; any order, any gaps."""
        numbers = np.asarray(rows, dtype=np.int64)
        epochs, within = np.divmod(numbers, self.rows_per_epoch)
        lane, turn = within % self.lanes, within // self.lanes
        stretch, longer_lanes = divmod(self.rows_per_epoch, self.lanes)
        position = lane * stretch + np.minimum(lane, longer_lanes) + turn
        block = np.empty_like(numbers)
        row = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            blocks, ends = self._epoch_sequence(int(epoch))
            # In the sequence's own type, or NumPy would copy all of it into a common one.
            nth = np.searchsorted(ends, position[here].astype(ends.dtype), side="right")
            block[here] = blocks[nth]
            row[here] = position[here] - (ends[nth] - self.block_rows[blocks[nth]])
        return RowPlaces(epoch=epochs, block=block, row=row)


def rank_rows(first_row: int, *, batch_size: int, dp_rank: int, dp_world_size: int) -> Int64Array:
    """Row numbers that one data-parallel rank takes of the global batch [first_row, first_row + batch_size)."""
    return np.arange(first_row + dp_rank, first_row + batch_size, dp_world_size, dtype=np.int64)
