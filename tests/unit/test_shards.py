from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.manifest import Manifest
from data_pipeline.shards import BlockStore, ShardDamage, load_manifest
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

DOCUMENTS = made_up_documents(300)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    text = write_lines(tmp_path / "text.txt", DOCUMENTS)
    build_shards(
        [text],
        tokenizer=small_tokenizer(),
        out=tmp_path / "shards",
        workers=1,
        shard_tokens=3000,
        block_tokens=500,
        validation_fraction=0.2,
        progress=False,
    )
    return tmp_path / "shards"


def _store(folder: Path, split: str = "train") -> BlockStore:
    return BlockStore(folder, manifest=load_manifest(folder), split=split)


def _documents(store: BlockStore) -> list[list[int]]:
    blocks = [store.read_block(number) for number in range(store.num_blocks)]
    return [
        document.tolist()
        for block in blocks
        for document in np.split(block.tokens, np.cumsum(block.lengths, dtype=np.int64)[:-1])
    ]


def test_both_splits_together_are_the_documents_in_order_with_sentencepieces_ids(shards: Path) -> None:
    expected = [ids.tolist() for ids in Tokenizer.load(small_tokenizer()).encode_batch(DOCUMENTS)]
    train, validation = _documents(_store(shards)), _documents(_store(shards, "validation"))
    assert [ids for ids in expected if ids not in validation] == train
    assert [ids for ids in expected if ids not in train] == validation
    assert len(train) + len(validation) == 300


def test_a_stock_webdataset_reader_gives_the_same_blocks(shards: Path) -> None:
    store = _store(shards)
    tars = [str(shards / shard.name) for shard in store.manifest.splits["train"].shards]
    assert len(tars) > 1
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{number:06d}" for number in range(store.num_blocks)]
    for number, sample in enumerate(samples):
        block = store.read_block(number)
        assert sample["tokens.npy"].dtype == np.uint16
        assert sample["lengths.npy"].dtype == np.uint32
        assert np.array_equal(sample["tokens.npy"], block.tokens)
        assert np.array_equal(sample["lengths.npy"], block.lengths)


def test_lengths_come_from_the_index_without_reading_tokens(shards: Path) -> None:
    store = _store(shards)
    wanted = [store.read_block(number).lengths.tolist() for number in range(store.num_blocks)]
    for tar in shards.glob("*.tar"):
        tar.unlink()
    assert [lengths.tolist() for lengths in store.iter_lengths()] == wanted
    assert store.block_lengths(3).tolist() == wanted[3]
    assert store.block_lengths(3).dtype == np.uint32


def test_blocks_are_read_only_and_within_their_size(shards: Path) -> None:
    store = _store(shards)
    for number in range(store.num_blocks):
        block = store.read_block(number)
        assert not block.tokens.flags.writeable
        assert not block.lengths.flags.writeable
        assert not store.block_lengths(number).flags.writeable
        assert len(block.tokens) == block.lengths.sum() <= 500


def test_threads_may_read_at_once(shards: Path) -> None:
    store = _store(shards)
    numbers = list(range(store.num_blocks)) * 5
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda number: int(store.read_block(number).tokens.sum()), numbers))
    assert sums == [int(_store(shards).read_block(number).tokens.sum()) for number in numbers]


def test_a_large_vocabulary_is_stored_in_uint32(shards: Path) -> None:
    assert load_manifest(shards).dtype == np.uint16
    manifest = replace(load_manifest(shards), dtype=np.dtype(np.uint32))
    with pytest.raises(ShardDamage, match=r"000000\.tokens\.npy is uint16 .* where uint32"):
        BlockStore(shards, manifest=manifest, split="train").read_block(0)


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _refusal(manifest: Manifest, folder: Path, *, block: int = 0) -> str:
    with pytest.raises(UserError) as refused:
        BlockStore(folder, manifest=manifest, split="train").read_block(block)
    assert f"python -m data_pipeline verify {folder}" in str(refused.value)
    return str(refused.value)


def test_every_kind_of_damage_is_named(shards: Path) -> None:
    manifest = load_manifest(shards)
    tar, index = shards / "train-000000.tar", shards / "train-000000.index.npz"
    whole_tar, whole_index = tar.read_bytes(), index.read_bytes()
    with np.load(index) as arrays:
        position = int(arrays["tokens_offset"][1])

    _flip(tar, position + 130)
    assert "train-000000.tar: the crc32 of 000001.tokens.npy is " in _refusal(manifest, shards, block=1)
    tar.write_bytes(whole_tar[: position + 200])
    assert "the size of 000001.tokens.npy is 200, where " in _refusal(manifest, shards, block=1)
    tar.unlink()
    assert "train-000000.tar: the file is missing" in _refusal(manifest, shards)
    tar.write_bytes(whole_tar)

    _flip(index, len(whole_index) // 2)
    assert "train-000000.index.npz: the sha256 is " in _refusal(manifest, shards)
    index.unlink()
    assert "train-000000.index.npz: the file is missing" in _refusal(manifest, shards)


def test_user_errors_of_shards_survive_pickling(shards: Path) -> None:
    error = ShardDamage.of(shards / "a.tar", "the size", expected=1, found=2)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.finding) == (str(error), f"{shards}/a.tar: the size is 2, where 1 is expected")
