"""Reading rows by number: from row numbers to the tokens they hold, with the blocks in use kept packed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from data_pipeline.batch import Batch, PackedBlock, assemble
from data_pipeline.hashing import Int64Array
from data_pipeline.order import RowOrder, RowPlaces
from data_pipeline.packing import Packing, plan_rows
from data_pipeline.row_content import PLAIN_CONTENT, RowContent
from data_pipeline.row_counts import count_blocks
from data_pipeline.shards import BlockStore
from trainer.errors import UserError

EMPTY_ROW = -1
# A row as its place: a packed block and the row's number within it.
PackedRow: TypeAlias = tuple[PackedBlock, int]


class Reader(Protocol):
    """Reads rows by number, of one source or of several."""

    @property
    def rows_before_repeat(self) -> int:
        """Rows before any source begins again."""
        ...

    def read(self, row_numbers: Int64Array) -> Batch:
        """The rows with these numbers as an unmasked batch."""
        ...


class RowReader:
    """Reads rows of one split in the order of (shards, row shape, seed); holds no position of its own.

    `dp_world_size` only sizes the window of packed blocks: a rank that reads every dp_world_size-th row is at
    lanes / dp_world_size blocks at a time. `source` is the split's number in a mixture.
    """

    def __init__(
        self,
        store: BlockStore,
        *,
        max_seq_len: int,
        packing: Packing,
        lanes: int,
        seed: int,
        phase: int = 0,
        dp_world_size: int = 1,
        source: int = 0,
        content: RowContent = PLAIN_CONTENT,
    ) -> None:
        self._store = store
        self._source = source
        self._content = content
        self._max_seq_len = max_seq_len
        self._packing = packing
        self._special_ids = store.manifest.special_token_ids
        self._window_blocks = -(-lanes // dp_world_size)
        self._window: OrderedDict[tuple[int, int], PackedBlock | None] = OrderedDict()
        # Blocks that were asked for ahead of need and are not in the window yet.
        self._under_way: set[tuple[int, int]] = set()
        counts = count_blocks(store, max_seq_len=max_seq_len, packing=packing, shape=content.shape)
        self.order = RowOrder(counts.rows, lanes=lanes, seed=seed, phase=phase)
        self.tokens_per_epoch = int(counts.tokens.sum())
        # Half a block further in every lane: the next block of a lane is under way when half of this one is left.
        self._rows_ahead = lanes * max(1, int(counts.rows.mean()) // 2)

    @property
    def rows_before_repeat(self) -> int:
        """Rows before the source begins again: an epoch."""
        return self.order.rows_per_epoch

    def read(self, row_numbers: Int64Array) -> Batch:
        """The rows with these numbers as an unmasked batch, int64 [B] in; EMPTY_ROW gives a row of padding.

        Raises UserError when a block is damaged; where the store leaves such a block out, its rows are padding too.
        """
        present = row_numbers != EMPTY_ROW
        found = iter(self.find(row_numbers[present]))
        return self.assemble(row_numbers, [next(found) if there else None for there in present.tolist()])

    def find(self, row_numbers: Int64Array) -> list[PackedRow | None]:
        """Where rows lie, without copying them, None for rows of a block that is left out; raises as `read`."""
        places = self.order.locate(row_numbers)
        if self._store.is_remote:
            self._fetch_ahead(row_numbers, now=places)
        return [
            None if (packed := self._packed_block(epoch, block)) is None else (packed, row)
            for epoch, block, row in zip(places.epoch.tolist(), places.block.tolist(), places.row.tolist(), strict=True)
        ]

    def assemble(self, row_numbers: Int64Array, rows: Sequence[PackedRow | None]) -> Batch:
        """Found rows, None being an empty one, as an unmasked batch under these row numbers."""
        return assemble(
            row_numbers,
            rows,
            max_seq_len=self._max_seq_len,
            pad_id=self._special_ids["pad"],
            candidates=None if self._content.pairs is None else self._content.pairs.candidates,
        )

    def _fetch_ahead(self, row_numbers: Int64Array, *, now: RowPlaces) -> None:
        soon = self.order.locate(row_numbers + self._rows_ahead)
        for places in (now, soon):
            for key in dict.fromkeys(zip(places.epoch.tolist(), places.block.tolist(), strict=True)):
                if key not in self._window and key not in self._under_way and self._store.fetch_ahead(key[1]):
                    self._under_way.add(key)

    def _packed_block(self, epoch: int, number: int) -> PackedBlock | None:
        """A block of the window, None for one that is left out.

        Lanes are walked in turn, so a finished block is always the one longest unused.
        """
        key = (epoch, number)
        if key in self._window:
            self._window.move_to_end(key)
            return self._window[key]
        while len(self._window) >= self._window_blocks:
            self._window.popitem(last=False)
        block = self._store.read_or_skip(number, words=self._content.words)
        self._under_way.discard(key)
        if block is None:
            self._window[key] = None
            return None
        plan = plan_rows(
            block.lengths,
            max_seq_len=self._max_seq_len,
            packing=self._packing,
            seed=self.order.seed,
            phase=self.order.phase,
            epoch=epoch,
            block=number,
            shape=self._content.shape,
        )
        if plan.num_rows != self.order.block_rows[number]:
            raise UserError(
                f"{self._store.folder}: block {number} of {self._store.split} has {plan.num_rows} rows, where the kept "
                f"counts say {self.order.block_rows[number]}; remove rows-{self._store.split}-*.npy there: they are "
                "counted again"
            )
        packed = self._content.lay_out(
            block,
            plan,
            key=(self.order.seed, self.order.phase, epoch, number),
            cls_id=self._special_ids["cls"],
            sep_id=self._special_ids["sep"],
            first_document=self._store.first_document(number),
            source_number=self._source,
        )
        self._window[key] = packed
        return packed


def validation_batches(num_rows: int, *, micro_batch_size: int, dp_rank: int, dp_world_size: int) -> list[Int64Array]:
    """Row numbers of one rank's evaluation batches over rows 0 ... num_rows-1.

    Every rank gets equally many batches of one size, because a forward pass may be collective; what is missing
    at the end is made up with empty rows.
    """
    rows_a_round = micro_batch_size * dp_world_size
    rounds = -(-num_rows // rows_a_round)
    numbers = np.arange(rounds * rows_a_round, dtype=np.int64)
    numbers[num_rows:] = EMPTY_ROW
    return list(numbers.reshape(rounds, micro_batch_size, dp_world_size)[:, :, dp_rank])
