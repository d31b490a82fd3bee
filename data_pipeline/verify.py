"""Checking a folder of shards: every file, index, member and count against the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.damage import ShardDamage
from data_pipeline.manifest import SPLITS, TOKENIZER_FOLDER, WORDS_FIELD, Manifest, Shard
from data_pipeline.shards import BlockStore, member_name, read_index
from data_pipeline.tar_structure import structure_damage
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

_READ_BYTES = 1 << 22


def find_damage(folder: Path, *, manifest: Manifest) -> Iterator[str]:
    """One line for each thing that is not as the manifest says: file or member, what was found and expected.

    Everything is read once for the file's checksum and once for its members'. Nothing is given when all is well.
    """
    yield from tokenizer_damage(folder, manifest=manifest)
    for split in SPLITS:
        store = BlockStore(folder, manifest=manifest, split=split)
        first_block = 0
        for shard in manifest.splits[split].shards:
            yield from shard_damage(store, shard=shard, first_block=first_block)
            first_block += shard.blocks
    yield from stray_shards(folder, manifest=manifest)


def stray_shards(folder: Path, *, manifest: Manifest) -> Iterator[str]:
    """The tar files of a folder that are none of its shards: no run of ours reads them, a glob of others would."""
    own = {shard.name for part in manifest.splits.values() for shard in part.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in own:
            yield f"{path}: the manifest does not name this file; remove it"


def tokenizer_damage(folder: Path, *, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the tokenizer of a folder of shards."""
    try:
        found = Tokenizer.load(folder / TOKENIZER_FOLDER)
    except UserError as error:
        yield str(error)
        return
    if found.sha256 != manifest.tokenizer_sha256:
        yield (
            f"{found.folder}: the sha256 of the tokenizer is {found.sha256[:16]}, "
            f"where {manifest.tokenizer_sha256[:16]} is expected"
        )


def shard_damage(store: BlockStore, *, shard: Shard, first_block: int) -> Iterator[str]:
    """What is wrong with one shard of a local folder, its index and its blocks."""
    path = store.folder / shard.name
    if not path.is_file():
        yield f"{path}: the file is missing"
        return
    yield from _file_damage(path, shard=shard)
    try:
        index = read_index(store.folder, shard=shard)
    except ShardDamage as damage:
        yield damage.finding
        return
    if wrong := structure_damage(path, index, first_block=first_block):
        yield f"{path}: {wrong}"
    for block in range(first_block, first_block + shard.blocks):
        yield from _block_damage(store, path=path, block=block)


def _file_damage(path: Path, *, shard: Shard) -> Iterator[str]:
    size = path.stat().st_size
    if size != shard.bytes:
        yield f"{path}: the size is {size} bytes, where {shard.bytes} are expected"
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    if digest.hexdigest() != shard.sha256:
        yield f"{path}: the sha256 is {digest.hexdigest()[:16]}, where {shard.sha256[:16]} is expected"


def _block_damage(store: BlockStore, *, path: Path, block: int) -> Iterator[str]:
    arrays = {}
    for field in store.manifest.fields:
        try:
            arrays[field] = store.read_member(block, field=field)
        except ShardDamage as damage:
            yield damage.finding
    if len(arrays) < len(store.manifest.fields):
        return
    if not np.array_equal(arrays["lengths"], store.block_lengths(block)):
        yield f"{path}: {member_name(block, field='lengths')} is not what the index says"
    if int(arrays["lengths"].sum(dtype=np.int64)) != len(arrays["tokens"]):
        yield f"{path}: the sum of {member_name(block, field='lengths')} is not the number of tokens"
    elif WORDS_FIELD in arrays and not _words_fit(arrays):
        yield f"{path}: {member_name(block, field=WORDS_FIELD)} does not begin a word at each document's first token"
    highest = int(arrays["tokens"].max())
    if highest >= store.manifest.vocab_size:
        yield (
            f"{path}: {member_name(block, field='tokens')} holds the id {highest}, "
            f"beyond the vocabulary of {store.manifest.vocab_size}"
        )


def _words_fit(arrays: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether each document begins with a word's start, and no bit is set behind the last token."""
    bits = np.unpackbits(arrays[WORDS_FIELD])
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    return bool(bits[ends - arrays["lengths"]].all()) and not bits[ends[-1] :].any()
