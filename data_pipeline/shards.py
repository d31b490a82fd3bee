"""Token shards as a reader sees them: blocks of documents, found through indexes and read by byte range.

A shard is a plain WebDataset tar. Its sample NNNNNN is one block of consecutive documents: `NNNNNN.tokens.npy`
(the ids of all of them, uint16 or uint32) and `NNNNNN.lengths.npy` (tokens a document, uint32). Where words were
found by a segmenter, `NNNNNN.words.npy` holds one bit a token, packed by `numpy.packbits`: the token begins a word.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import (
    FIELDS,
    FIELDS_WITH_WORDS,
    LENGTH_DTYPE,
    WORDS_FIELD,
    Manifest,
    Shard,
    index_name,
    load_manifest,
)
from trainer.errors import UserError

__all__ = [
    "Block",
    "BlockStore",
    "Manifest",
    "ShardDamage",
    "ShardIndex",
    "load_manifest",
    "member_name",
    "parse_index",
    "read_index",
]

# Document lengths of a whole shard; only reading in order needs more than one at a time, and never many.
_SHARDS_OF_LENGTHS = 4
_PLAIN_ARRAYS = ("block_documents", "block_tokens", "lengths", "document_range", "resume_position")

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class Block:
    """One block: `tokens` [sum of lengths] and `lengths` [documents], both read-only.

    `word_starts`, bool [sum of lengths], says which tokens begin a word; None where it was not asked for, and where
    the shards hold none because the vocabulary's pieces say it themselves.
    """

    tokens: AnyArray
    lengths: npt.NDArray[np.uint32]
    word_starts: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ShardIndex:
    """Where each block's members lie in one tar; every array has one element a block, but for the last three.

    `lengths` has one element a document, `document_range` is (first, end) among all documents of the input, and
    `resume_position` is (chunk of the input, document of the chunk) behind the last document.
    """

    offset: dict[str, npt.NDArray[np.int64]]
    size: dict[str, npt.NDArray[np.int64]]
    crc32: dict[str, npt.NDArray[np.uint32]]
    block_documents: npt.NDArray[np.int64]
    block_tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.uint32]
    document_range: npt.NDArray[np.int64]
    resume_position: npt.NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """The index file's bytes: an npz without pickles, the same for the same index."""
        arrays: dict[str, AnyArray] = {}
        for field in self.offset:
            arrays[f"{field}_offset"] = self.offset[field]
            arrays[f"{field}_size"] = self.size[field]
            arrays[f"{field}_crc32"] = self.crc32[field]
        arrays.update({name: getattr(self, name) for name in _PLAIN_ARRAYS})
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


class ShardDamage(UserError):
    """A shard or index that is not what the manifest says; `finding` is what and where, without the advice."""

    finding: str

    @classmethod
    def of(cls, path: Path, what: str, *, expected: object, found: object) -> ShardDamage:
        """The damage of `what` in the file `path`."""
        finding = f"{path}: {what} is {found}, where {expected} is expected"
        damage = cls(
            f"{finding}; see what else is damaged by `python -m data_pipeline verify {path.parent}`, "
            "then copy or build the shards again"
        )
        damage.finding = finding
        return damage


class BlockStore:
    """Random access to the blocks of one split; any thread of any rank may read.

    Indexes are read when first needed and checked against the manifest; every block read is checked against its
    index. A mismatch raises ShardDamage, which is a UserError.
    """

    def __init__(self, folder: str | Path, *, manifest: Manifest, split: str) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        self.split = split
        self._shards = manifest.splits[split].shards
        self._first_block = [0, *accumulate(shard.blocks for shard in self._shards)]
        self._first_document = [0, *accumulate(shard.documents for shard in self._shards)]
        self._index = lru_cache(maxsize=None)(self._load_index)
        self._lengths = lru_cache(maxsize=_SHARDS_OF_LENGTHS)(self._load_lengths)

    @property
    def num_blocks(self) -> int:
        """Blocks in the split."""
        return self._first_block[-1]

    def first_document(self, block: int) -> int:
        """The number, within the split, of a block's first document."""
        shard, local = self._locate(block)
        return self._first_document[shard] + int(self._index(shard).block_documents[:local].sum())

    def block_lengths(self, block: int) -> npt.NDArray[np.uint32]:
        """Tokens of each document of a block, from the index: no token is read."""
        shard, local = self._locate(block)
        return self._lengths(shard)[local]

    def iter_lengths(self) -> Iterator[npt.NDArray[np.uint32]]:
        """`block_lengths` of every block, in order."""
        for shard in range(len(self._shards)):
            yield from self._lengths(shard)

    def read_block(self, block: int, *, words: bool = False) -> Block:
        """Read one block, with its word starts if asked; raises ShardDamage when it is not what the manifest says."""
        lengths = self.read_member(block, field="lengths")
        tokens = self.read_member(block, field="tokens")
        total = int(lengths.sum(dtype=np.int64))
        if total != len(tokens):
            what = f"the sum of {member_name(block, field='lengths')}"
            raise ShardDamage.of(self._path(block), what, expected=len(tokens), found=total)
        if not words or WORDS_FIELD not in self.manifest.fields:
            return Block(tokens, lengths)
        bits = np.unpackbits(self.read_member(block, field=WORDS_FIELD), count=total)
        bits.setflags(write=False)
        return Block(tokens, lengths, bits.view(np.bool_))

    def read_member(self, block: int, *, field: str) -> AnyArray:
        """Read one of the manifest's `fields` of one block by its byte range; raises ShardDamage."""
        shard, local = self._locate(block)
        index = self._index(shard)
        path, name = self._path(block), member_name(block, field=field)
        size = int(index.size[field][local])
        payload = _read_range(path, offset=int(index.offset[field][local]), size=size)
        if len(payload) != size:
            raise ShardDamage.of(path, f"the size of {name}", expected=size, found=len(payload))
        expected, found = int(index.crc32[field][local]), zlib.crc32(payload)
        if found != expected:
            raise ShardDamage.of(path, f"the crc32 of {name}", expected=f"{expected:08x}", found=f"{found:08x}")
        tokens, documents = int(index.block_tokens[local]), int(index.block_documents[local])
        count = {"tokens": tokens, "lengths": documents, WORDS_FIELD: -(-tokens // 8)}[field]
        dtype = {"tokens": self.manifest.dtype, "lengths": LENGTH_DTYPE, WORDS_FIELD: np.dtype(np.uint8)}[field]
        return _parse_npy(payload, path=path, name=name, dtype=dtype, count=count)

    def _locate(self, block: int) -> tuple[int, int]:
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} of {self.num_blocks}")
        shard = bisect_right(self._first_block, block) - 1
        return shard, block - self._first_block[shard]

    def _path(self, block: int) -> Path:
        return self.folder / self._shards[self._locate(block)[0]].name

    def _load_index(self, shard: int) -> ShardIndex:
        """The index without its lengths, which are by far its greatest part."""
        index = read_index(self.folder, shard=self._shards[shard])
        return ShardIndex(**{**vars(index), "lengths": index.lengths[:0].copy()})

    def _load_lengths(self, shard: int) -> list[npt.NDArray[np.uint32]]:
        index = read_index(self.folder, shard=self._shards[shard])
        index.lengths.setflags(write=False)
        return np.split(index.lengths, np.cumsum(index.block_documents)[:-1])


def member_name(block: int, *, field: str) -> str:
    """The name of a block's member in the tar."""
    return f"{block:06d}.{field}.npy"


def read_index(folder: Path, *, shard: Shard) -> ShardIndex:
    """The index of one shard, checked against the manifest; raises UserError."""
    path = folder / index_name(shard.name)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardDamage.of(path, "the file", expected="present", found="missing") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != shard.index_sha256:
        raise ShardDamage.of(path, "the sha256", expected=shard.index_sha256[:16], found=digest[:16])
    index = parse_index(raw)
    counts = {
        "blocks": len(index.block_tokens),
        "tokens": int(index.block_tokens.sum()),
        "documents": len(index.lengths),
    }
    for name, found in counts.items():
        if found != getattr(shard, name):
            raise ShardDamage.of(path, f"the number of {name}", expected=getattr(shard, name), found=found)
    return index


def parse_index(raw: bytes) -> ShardIndex:
    """An index from its file's bytes; raises ValueError, KeyError or zipfile.BadZipFile when they are none."""
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        fields = FIELDS_WITH_WORDS if f"{WORDS_FIELD}_offset" in arrays else FIELDS
        return ShardIndex(
            offset={field: arrays[f"{field}_offset"] for field in fields},
            size={field: arrays[f"{field}_size"] for field in fields},
            crc32={field: arrays[f"{field}_crc32"] for field in fields},
            **{name: arrays[name] for name in _PLAIN_ARRAYS},
        )


def _parse_npy(payload: bytes, *, path: Path, name: str, dtype: np.dtype[Any], count: int) -> AnyArray:
    try:
        array: AnyArray = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
    except ValueError as error:
        raise ShardDamage.of(path, name, expected="a .npy array", found=str(error)) from error
    if array.dtype != dtype or array.shape != (count,):
        raise ShardDamage.of(path, name, expected=f"{dtype} ({count},)", found=f"{array.dtype} {array.shape}")
    array.setflags(write=False)
    return array


def _read_range(path: Path, *, offset: int, size: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise ShardDamage.of(path, "the file", expected="present", found="missing") from error
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
