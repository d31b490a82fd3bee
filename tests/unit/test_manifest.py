from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import Shard, index_name, load_manifest, manifest_bytes, seal, token_dtype
from trainer.errors import UserError

SHARD = Shard("train-000000.tar", 10_240, "ab", "cd", blocks=2, documents=3, tokens=40)


def _bytes(vocab_size: int = 300) -> bytes:
    return manifest_bytes(
        {"train": [SHARD, SHARD], "validation": []},
        block_tokens=8192,
        vocab_size=vocab_size,
        tokenizer_sha256="ef",
        special_token_ids={"pad": 0},
        input_documents=7,
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(_bytes())
    manifest = load_manifest(tmp_path)
    assert manifest.fingerprint == hashlib.sha256(_bytes()).hexdigest()
    assert manifest.dtype == np.uint16
    assert (manifest.vocab_size, manifest.tokenizer_sha256, manifest.block_tokens) == (300, "ef", 8192)
    assert manifest.special_token_ids == {"pad": 0}
    train = manifest.splits["train"]
    assert (train.shards, train.blocks, train.documents, train.tokens) == ((SHARD, SHARD), 4, 6, 80)
    assert manifest.splits["validation"].shards == ()
    assert (manifest.input_documents, manifest.dropped_documents) == (7, 1)


def test_its_bytes_are_canonical_json() -> None:
    content = json.loads(_bytes())
    assert (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() == _bytes()
    assert content["schema_version"] == 2


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
    assert index_name("train-000000.tar") == "train-000000.index.npz"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"schema_version": 2', b'"schema_version": 1', "schema_version 1, older than this program's 2"),
        (b'"schema_version": 2', b'"schema_version": 3', "schema_version 3, newer than this program's 2"),
        (b'"tokens": 80', b'"tokens": 81', "is damaged: .*counts are not the sums"),
        (b'"uint16"', b'"uint32"', "is damaged: .*does not go with vocab_size 300"),
        (b'"sha256": "ef"', b'"sha": "ef"', "is damaged: KeyError"),
        (b'"blocks": 2,', b"", "is damaged: TypeError"),
        (b'"name": "train-000000.tar"', b'"name": "../x.tar"', "is damaged: .*'../x.tar' is no name of a shard"),
        (b'"bytes": 10240', b'"bytes": "10240"', "is damaged: .*the number of bytes of train-000000.tar is '10240'"),
        (b'"index_sha256": "cd"', b'"index_sha256": null', "is damaged: TypeError: the index_sha256 of"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    assert old in _bytes()
    (tmp_path / "manifest.json").write_bytes(seal(json.loads(_bytes().replace(old, new))))
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


def test_a_changed_manifest_is_refused_by_its_own_checksum(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(_bytes().replace(b'"pad": 0', b'"pad": 1'))
    with pytest.raises(UserError, match=r"is damaged: ValueError: its content is not what its own sha256 says"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(_bytes().replace(b"}", b""))
    with pytest.raises(UserError, match="is damaged: JSONDecodeError"):
        load_manifest(tmp_path)


def test_a_missing_folder_and_an_unfinished_build_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_manifest(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; name a folder of shards"):
        load_manifest(tmp_path / "file")
    with pytest.raises(UserError, match="holds no finished shards"):
        load_manifest(tmp_path)
