from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batch import Batch
from data_pipeline.manifest import load_manifest
from data_pipeline.reader import EMPTY_ROW, RowReader, validation_batches
from data_pipeline.shards import BlockStore, ShardDamage
from trainer.errors import UserError

ARRAYS = ("row_ids", "input_ids", "position_ids", "document_ids", "labels")


class CountingStore(BlockStore):
    """A store that counts how often each block was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, manifest=load_manifest(folder), split="train")
        self.reads: list[int] = []

    def read_block(self, block, **settings):  # type: ignore[no-untyped-def]
        self.reads.append(block)
        return super().read_block(block, **settings)


def reader(shards: Path, *, lanes: int = 4, dp_world_size: int = 1, seed: int = 0) -> tuple[RowReader, CountingStore]:
    store = CountingStore(shards)
    made = RowReader(store, max_seq_len=32, packing="packed", lanes=lanes, seed=seed, dp_world_size=dp_world_size)
    return made, store


def rows_of(batch: Batch) -> list[list[bytes]]:
    return [[getattr(batch, name)[row].tobytes() for name in ARRAYS] for row in range(len(batch.row_ids))]


def test_a_row_is_the_same_whatever_else_is_read_with_it(shards: Path) -> None:
    numbers = np.array([3, 700, 0, 3, 41])
    together = rows_of(reader(shards)[0].read(numbers))
    for number, row in zip(numbers, together, strict=True):
        assert rows_of(reader(shards)[0].read(np.array([number]))) == [row]
    assert together[0] == together[3]


def test_an_empty_row_is_padding_and_changes_no_other(shards: Path) -> None:
    found = reader(shards)[0]
    batch = found.read(np.array([EMPTY_ROW, 5, EMPTY_ROW]))
    assert batch.row_ids.tolist() == [EMPTY_ROW, 5, EMPTY_ROW]
    assert not batch.document_ids[[0, 2]].any()
    assert (batch.input_ids[[0, 2]] == load_manifest(shards).special_token_ids["pad"]).all()
    alone = found.read(np.array([5]))
    assert rows_of(batch)[1] == rows_of(alone)[0]
    assert (batch.tokens, batch.sum_squared_lengths) == (alone.tokens, alone.sum_squared_lengths)


def test_a_walk_through_an_epoch_reads_a_block_again_only_at_the_edge_of_a_lane(shards: Path) -> None:
    found, store = reader(shards, lanes=4)
    for number in range(found.order.rows_per_epoch):
        found.read(np.array([number]))
    # Each of the four lanes ends somewhere inside a block, which the next lane began with.
    assert set(store.reads) == set(range(store.num_blocks))
    assert store.num_blocks <= len(store.reads) <= store.num_blocks + 3


def test_a_rank_keeps_as_many_blocks_as_it_has_lanes(shards: Path) -> None:
    found, _ = reader(shards, lanes=12, dp_world_size=3)
    for number in range(1, found.order.rows_per_epoch, 3):
        found.read(np.array([number]))
        assert len(found._window) <= 4


def test_damage_is_named_when_its_block_is_read(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    tar = folder / "train-000002.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    found, _ = reader(folder)
    with pytest.raises(ShardDamage, match=r"train-000002\.tar: the size of 0000\d\d\.\w+\.npy is \d+, where"):
        found.read(np.arange(found.order.rows_per_epoch))


def test_validation_rows_are_dealt_evenly_and_the_end_is_filled_with_empty_rows() -> None:
    ranks = [validation_batches(7, micro_batch_size=2, dp_rank=rank, dp_world_size=2) for rank in (0, 1)]
    assert [[batch.tolist() for batch in rank] for rank in ranks] == [[[0, 2], [4, 6]], [[1, 3], [5, -1]]]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_every_validation_row_is_in_one_batch_of_one_rank(world: int, micro_batch_size: int) -> None:
    ranks = [
        validation_batches(10, micro_batch_size=micro_batch_size, dp_rank=rank, dp_world_size=world)
        for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert {len(batch) for rank in ranks for batch in rank} == {micro_batch_size}
    numbers = np.concatenate([batch for rank in ranks for batch in rank])
    assert sorted(numbers[numbers != EMPTY_ROW]) == list(range(10))


def test_kept_row_counts_that_do_not_fit_the_blocks_are_refused(shards: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(shards, tmp_path / "shards")
    reader(copied)
    (kept,) = copied.glob("rows-train-packed-32-*.npy")
    np.save(kept, np.load(kept) + 1)
    with pytest.raises(UserError, match=r"kept counts say \d+; remove rows-train-\*.npy there"):
        reader(copied)[0].read(np.arange(8))
