"""What a run does about damaged blocks: it stops, or leaves them out on every rank alike and says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batch import Batch
from data_pipeline.corpus import check_sizes, open_folder
from data_pipeline.damage import BlockDamage, ShardDamage, SkippedBlocks
from data_pipeline.manifest import load_manifest
from data_pipeline.reader import RowReader
from data_pipeline.shards import BlockStore
from trainer.errors import UserError

ARRAYS = ("input_ids", "position_ids", "document_ids", "labels")
DAMAGED = (1, 6)


def flip(folder: Path, block: int) -> None:
    """Change one bit of a block's tokens."""
    store = BlockStore(folder, manifest=load_manifest(folder), split="train")
    shard, local = store._locate(block)
    path = folder / store._shards[shard].name
    content = bytearray(path.read_bytes())
    content[int(store.read_index(shard).offset["tokens"][local]) + 150] ^= 4
    path.write_bytes(content)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """The shards with a flipped bit in two blocks of the training split."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    for block in DAMAGED:
        flip(folder, block)
    return folder


def reader(folder: Path, *, skipped: SkippedBlocks | None = None, world: int = 1) -> RowReader:
    store = BlockStore(folder, manifest=load_manifest(folder), split="train", skipped=skipped)
    return RowReader(store, max_seq_len=32, packing="packed", lanes=4, seed=3, dp_world_size=world)


def rows_of(batch: Batch) -> dict[int, list[bytes]]:
    return {
        number: [getattr(batch, name)[row].tobytes() for name in ARRAYS]
        for row, number in enumerate(batch.row_ids.tolist())
    }


def test_by_default_a_damaged_block_stops(damaged: Path) -> None:
    found = reader(damaged)
    with pytest.raises(BlockDamage, match=r"the crc32 of 00000[16]\.tokens\.npy"):
        found.read(np.arange(found.order.rows_per_epoch))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_skipped_blocks_are_empty_rows_under_their_numbers_and_all_others_are_as_before(
    shards: Path, damaged: Path, world: int
) -> None:
    whole = reader(shards)
    numbers = np.arange(2 * whole.order.rows_per_epoch)
    expected = rows_of(whole.read(numbers))
    lost = set(numbers[np.isin(whole.order.locate(numbers).block, DAMAGED)].tolist())
    assert 0 < len(lost) < len(numbers)
    found: dict[int, list[bytes]] = {}
    findings: dict[str, str] = {}
    for rank in range(world):
        skipped = SkippedBlocks()
        batch = reader(damaged, skipped=skipped, world=world).read(numbers[rank::world])
        found.update(rows_of(batch))
        empty = set(batch.row_ids[batch.document_ids[:, 0] == 0].tolist())
        assert empty == lost & set(numbers[rank::world].tolist())
        assert (batch.labels[batch.document_ids[:, 0] == 0] == -100).all()
        findings.update(skipped.findings())
    fingerprint = load_manifest(damaged).fingerprint[:12]
    assert sorted(findings) == [f"block {block} of train, shards {fingerprint}" for block in DAMAGED]
    assert all("the crc32 of" in finding for finding in findings.values())
    assert {number: row for number, row in found.items() if number not in lost} == {
        number: row for number, row in expected.items() if number not in lost
    }


def test_a_missing_tar_and_a_wrong_index_stop_even_where_blocks_are_skipped(damaged: Path) -> None:
    found = reader(damaged, skipped=SkippedBlocks())
    numbers = np.arange(found.order.rows_per_epoch)
    (damaged / "train-000000.tar").unlink()
    with pytest.raises(ShardDamage, match=r"train-000000\.tar: the file is missing"):
        found.read(numbers)
    shutil.copyfile(damaged / "train-000001.index.npz", damaged / "train-000000.index.npz")
    with pytest.raises(ShardDamage, match=r"train-000000\.index\.npz: the sha256 is"):
        reader(damaged, skipped=SkippedBlocks()).read(numbers)


def test_a_disk_that_cannot_be_read_is_no_damage(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    found = reader(damaged, skipped=SkippedBlocks())
    found._store._index(0)
    monkeypatch.setattr("os.pread", fail)
    with pytest.raises(
        UserError, match=r"train-\d+\.tar could not be read: Input/output error; see to the disk"
    ) as stop:
        found.read(np.arange(4))
    assert not isinstance(stop.value, ShardDamage)


def test_a_shard_cut_short_or_gone_is_found_before_any_block_is_read(damaged: Path) -> None:
    check_sizes(open_folder(damaged))
    last = damaged / load_manifest(damaged).splits["validation"].shards[-1].name
    size = last.stat().st_size
    last.write_bytes(last.read_bytes()[:-512])
    with pytest.raises(
        ShardDamage, match=rf"{last.name}: size in bytes is {size - 512}, where {size} is expected; see what else"
    ):
        check_sizes(open_folder(damaged))
    last.unlink()
    with pytest.raises(ShardDamage, match=rf"{last.name}: size in bytes is missing, where {size} is expected"):
        check_sizes(open_folder(damaged))
