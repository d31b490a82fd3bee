from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.manifest import load_manifest, seal
from data_pipeline.verify import find_damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    text = write_lines(folder / "text.txt", made_up_documents(200))
    build_shards(
        [text],
        tokenizer=small_tokenizer(),
        out=folder / "shards",
        workers=1,
        shard_tokens=2000,
        block_tokens=500,
        validation_fraction=0.2,
        progress=False,
    )
    return folder / "shards"


def _damage(whole: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes | None]) -> list[str]:
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    changed = change((folder / name).read_bytes())
    if changed is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(changed)
    found = list(find_damage(folder, manifest=load_manifest(folder)))
    assert all("\n" not in line for line in found)
    return [line.replace(f"{folder}/", "") for line in found]


def _payload(whole: Path, *, field: str, block: int) -> int:
    with np.load(whole / "train-000000.index.npz") as arrays:
        return int(arrays[f"{field}_offset"][block])


def _flip(position: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_whole_shards_have_no_damage(whole: Path) -> None:
    assert list(find_damage(whole, manifest=load_manifest(whole))) == []


def test_a_flipped_bit_is_found_and_its_member_named(whole: Path, tmp_path: Path) -> None:
    found = _damage(whole, tmp_path, "train-000000.tar", _flip(_payload(whole, field="tokens", block=2) + 140))
    assert len(found) == 2
    assert found[0].startswith("train-000000.tar: the sha256 is ")
    assert found[1].startswith("train-000000.tar: the crc32 of 000002.tokens.npy is ")


def test_a_flipped_bit_in_a_tar_header_is_found(whole: Path, tmp_path: Path) -> None:
    header = _payload(whole, field="lengths", block=1) - 512
    found = _damage(whole, tmp_path, "train-000000.tar", _flip(header))
    assert found[0].startswith("train-000000.tar: the sha256 is ")
    assert len(found) == 2
    assert found[1].startswith("train-000000.tar: the ")


@pytest.mark.parametrize("change", [lambda content: content[:-512], lambda content: content + b"x" + bytes(10239)])
def test_a_tar_that_ends_otherwise_is_found(whole: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    found = _damage(whole, tmp_path, "train-000000.tar", change)
    assert found[0].startswith("train-000000.tar: the size is ")
    assert found[1].startswith("train-000000.tar: the size is ")
    assert "where a tar of these members has" in found[1]


def test_a_cut_tar_is_found_and_each_lost_member_named(whole: Path, tmp_path: Path) -> None:
    cut = _payload(whole, field="lengths", block=3)
    found = _damage(whole, tmp_path, "train-000000.tar", lambda content: content[:cut])
    assert found[0].startswith(f"train-000000.tar: the size is {cut} bytes, where ")
    blocks = len(np.load(whole / "train-000000.index.npz")["block_tokens"])
    lost = [line for line in found if ".npy is 0, where " in line]
    assert len(lost) == 2 * (blocks - 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train-000001.tar", "train-000001.tar: the file is missing"),
        ("validation-000000.index.npz", "validation-000000.index.npz: the file is missing"),
        ("tokenizer/spiece.model", "tokenizer is no finished tokenizer: it has no spiece.model"),
    ],
)
def test_a_missing_file_is_named(whole: Path, tmp_path: Path, name: str, expected: str) -> None:
    (found,) = _damage(whole, tmp_path, name, lambda _: None)
    assert expected in found


def test_a_changed_index_is_named(whole: Path, tmp_path: Path) -> None:
    (found,) = _damage(whole, tmp_path, "train-000000.index.npz", _flip(400))
    assert found.startswith("train-000000.index.npz: the sha256 is ")


def test_ids_beyond_the_vocabulary_are_found(whole: Path, tmp_path: Path) -> None:
    found = _damage(
        whole,
        tmp_path,
        "manifest.json",
        lambda content: seal(json.loads(content.replace(b'"vocab_size": 300', b'"vocab_size": 30'))),
    )
    assert found
    assert all("beyond the vocabulary of 30" in line for line in found)


def test_a_tar_that_the_manifest_does_not_name_is_told(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "shards")
    shutil.copy(folder / "train-000000.tar", folder / "train-000099.tar")
    assert list(find_damage(folder, manifest=load_manifest(folder))) == [
        f"{folder}/train-000099.tar: the manifest does not name this file; remove it"
    ]
