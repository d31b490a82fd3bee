from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.blocks import START, ClosedBlock, Position
from data_pipeline.manifest import manifest_bytes
from data_pipeline.shard_writer import ShardWriter, finished_shards
from data_pipeline.shards import parse_index
from trainer.errors import UserError


def _block(number: int, *, tokens: int = 6) -> ClosedBlock:
    return ClosedBlock(
        np.full(tokens, number, np.uint16),
        np.array([1, tokens - 1], np.uint32),
        first_document=10 * number,
        end=Position(10 * number + 2, number, 2),
    )


def _write(folder: Path, *, blocks: int = 5) -> ShardWriter:
    with ShardWriter(folder, split="train", shard_tokens=12) as writer:
        for number in range(blocks):
            writer.write(_block(number))
        writer.finish()
    return writer


def test_a_shard_closes_at_the_block_that_fills_it(tmp_path: Path) -> None:
    writer = _write(tmp_path)
    assert [(shard.blocks, shard.documents, shard.tokens) for shard in writer.shards] == [
        (2, 4, 12),
        (2, 4, 12),
        (1, 2, 6),
    ]
    assert writer.tokens == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"train-{number:06d}.{suffix}" for number in range(3) for suffix in ("index.npz", "tar")
    ]


def test_the_index_is_where_the_members_lie(tmp_path: Path) -> None:
    _write(tmp_path)
    index = parse_index((tmp_path / "train-000001.index.npz").read_bytes())
    with tarfile.open(tmp_path / "train-000001.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        f"{block:06d}.{field}.npy" for block in (2, 3) for field in ("lengths", "tokens")
    ]
    assert [member.offset_data for member in members[::2]] == index.offset["lengths"].tolist()
    assert [member.offset_data for member in members[1::2]] == index.offset["tokens"].tolist()
    assert [member.size for member in members[1::2]] == index.size["tokens"].tolist()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "bertline", "bertline", 0o444)
    }
    assert index.block_documents.tolist() == [2, 2]
    assert index.block_tokens.tolist() == [6, 6]
    assert index.lengths.tolist() == [1, 5, 1, 5]
    assert index.document_range.tolist() == [20, 32]
    assert index.resume_position.tolist() == [3, 2]


def test_the_bytes_of_known_blocks_never_change(tmp_path: Path) -> None:
    # Shards built by an older version must go on, and runs trained on them: the manifest names every file's sha256.
    # Its own bytes are those of schema 2, which put its own sha256 into it.
    content = manifest_bytes(
        {"train": _write(tmp_path).shards, "validation": []},
        block_tokens=6,
        vocab_size=300,
        tokenizer_sha256="0" * 64,
        special_token_ids={"pad": 0},
        input_documents=11,
    )
    fingerprint = "61a4defd4d95a3d2d5fca57678910768b4425bfad7004ac58ccf719a3ba6d9dd"
    assert hashlib.sha256(content).hexdigest() == fingerprint


def test_an_error_leaves_finished_shards_and_nothing_else(tmp_path: Path) -> None:
    def fail_in_the_second_shard() -> None:
        with ShardWriter(tmp_path, split="train", shard_tokens=12) as writer:
            for number in range(3):
                writer.write(_block(number))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_second_shard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.index.npz", "train-000000.tar"]


def test_finished_shards_are_found_again_and_writing_goes_on_behind_them(tmp_path: Path) -> None:
    whole = _write(tmp_path).shards
    shards, end = finished_shards(tmp_path, split="train")
    assert shards == whole
    assert end == Position(42, 4, 2)
    assert finished_shards(tmp_path, split="validation") == ([], START)

    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "train-000001.index.npz").unlink()
    shards, end = finished_shards(tmp_path, split="train")
    assert (shards, end) == (whole[:1], Position(12, 1, 2))
    with ShardWriter(tmp_path, split="train", shard_tokens=12, finished=shards) as writer:
        for number in (2, 3, 4):
            writer.write(_block(number))
        writer.finish()
    assert writer.shards == whole
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.index.npz"])
def test_a_shard_damaged_since_is_not_taken_for_finished(tmp_path: Path, name: str) -> None:
    _write(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"train-000000\.tar or its index was damaged since"):
        finished_shards(tmp_path, split="train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content, header: content[:header] + b"1" + content[header + 1 :],
            r"the member .* is",
        ),
        (lambda content, header: content[:-512], r"the size is 9728 bytes, where a tar of these members has 10240"),
        (lambda content, header: content[:-1] + b"x", "something lies behind the tar's last member"),
    ],
    ids=["a header's bit", "a cut end", "something behind the end"],
)
def test_a_tar_whose_members_are_whole_but_whose_structure_is_not_is_not_taken_for_finished(
    tmp_path: Path, change: Callable[[bytes, int], bytes], message: str
) -> None:
    _write(tmp_path)
    path = tmp_path / "train-000000.tar"
    with np.load(tmp_path / "train-000000.index.npz") as index:
        header = int(index["tokens_offset"][1]) - 512
    path.write_bytes(change(path.read_bytes(), header))
    with pytest.raises(UserError, match=rf"train-000000\.tar or its index was damaged since .*: {message}"):
        finished_shards(tmp_path, split="train")
