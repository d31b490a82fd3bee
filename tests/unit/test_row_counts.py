from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.manifest import load_manifest
from data_pipeline.packing import count_rows
from data_pipeline.row_counts import count_blocks
from data_pipeline.shards import BlockStore


@pytest.fixture
def store(shards: Path, tmp_path: Path) -> BlockStore:
    folder = shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("rows-*"))
    return BlockStore(folder, manifest=load_manifest(folder), split="train")


def kept_files(store: BlockStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("rows-*"))


def test_every_block_is_counted_and_the_counts_are_kept_beside_the_shards(store: BlockStore) -> None:
    counts = count_blocks(store, max_seq_len=32, packing="packed").rows
    assert counts.dtype == np.int64
    assert counts.tolist() == [
        count_rows(store.block_lengths(block), max_seq_len=32, packing="packed") for block in range(store.num_blocks)
    ]
    assert kept_files(store) == [f"rows-train-packed-32-{store.manifest.fingerprint[:16]}.npy"]


def test_tokens_are_counted_with_the_frames_of_all_pieces(store: BlockStore) -> None:
    counts = count_blocks(store, max_seq_len=12, packing="packed")
    for block in range(store.num_blocks):
        lengths = store.block_lengths(block).tolist()
        assert counts.tokens[block] == sum(length + 2 * -(-length // 10) for length in lengths)


def test_kept_counts_are_used_without_reading_an_index(store: BlockStore) -> None:
    counts = count_blocks(store, max_seq_len=32, packing="packed").rows
    for index in store.folder.glob("*.index.npz"):
        index.unlink()
    fresh = BlockStore(store.folder, manifest=store.manifest, split="train")
    assert np.array_equal(count_blocks(fresh, max_seq_len=32, packing="packed").rows, counts)


def test_each_row_shape_and_split_has_counts_of_its_own(store: BlockStore) -> None:
    counts = {
        (length, packing): int(count_blocks(store, max_seq_len=length, packing=packing).rows.sum())
        for length in (16, 32)
        for packing in ("packed", "padded")
    }
    assert len(set(counts.values())) == 4
    validation = BlockStore(store.folder, manifest=store.manifest, split="validation")
    count_blocks(validation, max_seq_len=32, packing="packed")
    assert len(kept_files(store)) == 5


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no counts at all"])
def test_a_damaged_file_of_counts_is_made_again(store: BlockStore, content: bytes) -> None:
    counts = count_blocks(store, max_seq_len=32, packing="packed").rows
    path = store.folder / kept_files(store)[0]
    whole = path.read_bytes()
    path.write_bytes(content)
    assert np.array_equal(count_blocks(store, max_seq_len=32, packing="packed").rows, counts)
    assert path.read_bytes() == whole


def test_counts_of_another_number_of_blocks_are_made_again(store: BlockStore) -> None:
    counts = count_blocks(store, max_seq_len=32, packing="packed").rows
    path = store.folder / kept_files(store)[0]
    np.save(path, np.load(path)[:, :-1])
    assert np.array_equal(count_blocks(store, max_seq_len=32, packing="packed").rows, counts)


def test_a_full_disk_is_named_and_leaves_nothing_behind(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        count_blocks(store, max_seq_len=32, packing="packed")
    assert str(caught.value.filename).startswith(f"{store.folder}/rows-train-packed-32-")
    assert kept_files(store) == []


def test_shards_that_may_not_be_written_are_counted_all_the_same(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str = "r", **settings: Any) -> Any:
        if "w" in mode:
            raise OSError(30, "Read-only file system")
        return opened(path, mode, **settings)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    assert count_blocks(store, max_seq_len=32, packing="packed").rows.sum() > 0
    assert kept_files(store) == []
