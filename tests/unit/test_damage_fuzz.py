"""Shards changed at random, more than ten thousand times: each time they are refused or give exactly the true tokens.

What is claimed: whatever happens to a tar, an index or the manifest, opening and reading raises UserError in one line,
or gives the tokens and lengths that were built. A manifest that somebody changes together with its own checksum may
name other shards, in another order, under another fingerprint; even then each block that is read is a true one.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.damage import BlockDamage
from data_pipeline.manifest import MANIFEST_FILE, index_name, load_manifest, manifest_bytes, seal
from data_pipeline.shards import BlockStore
from trainer.errors import UserError

# Of the first shard, which is the one that is changed.
_BLOCKS = 3
TAR, INDEX = "train-000000.tar", "train-000000.index.npz"
OTHER_TAR, OTHER_INDEX = "train-000001.tar", "train-000001.index.npz"
Truth = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def small(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of the corpus under a manifest of their own."""
    folder = tmp_path_factory.mktemp("small")
    whole = load_manifest(shards)
    kept = whole.splits["train"].shards[:2]
    for shard in kept:
        for name in (shard.name, index_name(shard.name)):
            shutil.copyfile(shards / name, folder / name)
    raw = manifest_bytes(
        {"train": kept, "validation": ()},
        block_tokens=whole.block_tokens,
        vocab_size=whole.vocab_size,
        tokenizer_sha256=whole.tokenizer_sha256,
        special_token_ids=whole.special_token_ids,
        input_documents=whole.input_documents,
    )
    (folder / MANIFEST_FILE).write_bytes(raw)
    return folder


@pytest.fixture(scope="module")
def truth(small: Path) -> Truth:
    return list(blocks_of(small).values())


def blocks_of(folder: Path, *, most: int = 1000) -> dict[int, tuple[bytes, bytes]]:
    store = BlockStore(folder, manifest=load_manifest(folder), split="train")
    blocks = {number: store.read_block(number) for number in range(min(most, store.num_blocks))}
    return {number: (block.tokens.tobytes(), block.lengths.tobytes()) for number, block in blocks.items()}


def read_or_refused(folder: Path, *, most: int) -> dict[int, tuple[bytes, bytes]] | None:
    """The first blocks, or None when that is refused in one line; every other exception fails the test."""
    try:
        return blocks_of(folder, most=most)
    except UserError as error:
        line = str(error)
    assert line
    assert "\n" not in line
    return None


def mutated(content: bytes, *, draw: random.Random, other: bytes) -> bytes:
    """The content after one of the things that happen to files."""
    size = len(content)
    start = draw.randrange(size)
    end = min(size, start + draw.choice([1, 2, 16, 512, 1024]))
    match draw.randrange(9):
        case 0:
            changed = bytearray(content)
            for _ in range(draw.choice([1, 1, 1, 2, 5])):
                changed[draw.randrange(size)] ^= 1 << draw.randrange(8)
            return bytes(changed)
        case 1:
            return content[:start]
        case 2:
            return content[: start // 512 * 512]
        case 3:
            return content[:start] + content[end:]
        case 4:
            return content[:start] + content[start:end] + content[start:]
        case 5:
            return content[:start] + bytes(end - start) + content[end:]
        case 6:
            return content[:start] + draw.randbytes(end - start) + content[end:]
        case 7:
            return content + draw.randbytes(draw.choice([1, 512, 10240]))
        case _:
            cut = draw.randrange(min(size, len(other)) + 1)
            return other[:cut] + content[cut:]


@pytest.mark.parametrize(("name", "rounds"), [(TAR, 5000), (INDEX, 3000), (MANIFEST_FILE, 3000)])
def test_no_random_change_of_a_file_makes_a_wrong_token(
    small: Path, truth: Truth, tmp_path: Path, name: str, rounds: int
) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    content = (folder / name).read_bytes()
    other = (folder / name.replace("000000", "000001")).read_bytes()
    draw = random.Random(name)
    refused = changed = 0
    while changed < rounds:
        damaged = mutated(content, draw=draw, other=other)
        if damaged == content:
            continue
        changed += 1
        (folder / name).write_bytes(damaged)
        found = read_or_refused(folder, most=_BLOCKS)
        refused += found is None
        assert found is None or list(found.values()) == truth[:_BLOCKS]
    # Nobody reads what lies between and behind the members of a tar, and JSON may be spaced otherwise.
    assert refused > rounds * (0.25 if name == TAR else 0.95)


def test_a_tar_cut_at_any_header_gives_the_blocks_before_the_cut_and_refuses_the_others(
    small: Path, truth: Truth, tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    content = (folder / TAR).read_bytes()
    store = BlockStore(folder, manifest=load_manifest(folder), split="train")
    index = store.read_index(0)
    ends = (index.offset["tokens"] + index.size["tokens"]).tolist()
    for cut in range(0, len(content), 512):
        (folder / TAR).write_bytes(content[:cut])
        for block, end in enumerate(ends):
            if end <= cut:
                assert store.read_block(block).tokens.tobytes() == truth[block][0]
            else:
                with pytest.raises(BlockDamage, match=rf"{TAR}: the size of {block:06d}\.\w+\.npy is \d+, where"):
                    store.read_block(block)


WHOLE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "swapped tar": (
        lambda folder: shutil.copyfile(folder / OTHER_TAR, folder / TAR),
        r"000\.tar: the (size|crc32) of 0",
    ),
    "swapped index": (lambda folder: shutil.copyfile(folder / OTHER_INDEX, folder / INDEX), r"npz: the sha256 is"),
    "no tar": (lambda folder: (folder / TAR).unlink(), r"000000\.tar: the file is missing"),
    "no index": (lambda folder: (folder / INDEX).unlink(), r"000000\.index\.npz: the file is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST_FILE).unlink(), r"holds no finished shards: manifest\.json is"),
    "deep manifest": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b"[" * 100_000), "is damaged: Recursion"),
    "a folder for a tar": (lambda folder: make_folder(folder / TAR), r"000\.tar could not be read: Is a directory"),
}


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("change", "message"), WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_what_happens_to_whole_files_is_named(
    small: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    change(folder)
    with pytest.raises(UserError, match=message):
        blocks_of(folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest together with the checksum in it."""
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    change(content)
    (folder / MANIFEST_FILE).write_bytes(seal(content))


def test_a_changed_manifest_is_refused_by_its_own_checksum(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    raw = (folder / MANIFEST_FILE).read_text()
    assert '"mask": 4' in raw
    (folder / MANIFEST_FILE).write_text(raw.replace('"mask": 4', '"mask": 5'))
    with pytest.raises(UserError, match=r"manifest\.json is damaged: ValueError: its content is not what its"):
        load_manifest(folder)


@pytest.mark.parametrize(("version", "age"), [(1, "older"), (0, "older"), (3, "newer"), ("2", "newer")])
def test_another_schema_is_named(small: Path, tmp_path: Path, version: object, age: str) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    edit(folder, lambda content: content.update(schema_version=version))
    with pytest.raises(UserError, match=rf"has schema_version {version}, {age} than this program's 2; build"):
        load_manifest(folder)


def values(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(content, key), *values(value)]]


def test_a_manifest_forged_with_its_checksum_still_gives_true_blocks_or_is_refused(
    small: Path, truth: Truth, tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "shards")
    raw = (folder / MANIFEST_FILE).read_bytes()
    fingerprint = load_manifest(folder).fingerprint
    draw = random.Random(0)
    strange = [None, -1, 0, 1, 2**70, 1.5, 1e400, "", "x", "../../etc/passwd", "uint8", [], {}, True, [[]], "float16"]

    def forge(content: dict[str, Any]) -> None:
        where, key = draw.choice(values(content))
        if draw.random() < 0.2:
            del where[key]
        elif draw.random() < 0.3:
            other, other_key = draw.choice(values(content))
            where[key] = json.loads(json.dumps(other[other_key]))
        else:
            where[key] = draw.choice(strange)

    accepted = 0
    for _ in range(500):
        (folder / MANIFEST_FILE).write_bytes(raw)
        edit(folder, forge)
        found = read_or_refused(folder, most=8)
        if found is not None:
            accepted += 1
            unchanged = (folder / MANIFEST_FILE).read_bytes() == raw
            assert unchanged or load_manifest(folder).fingerprint != fingerprint
            assert set(found.values()) <= set(truth)
    assert 0 < accepted < 250
