"""Token shards as a reader sees them: blocks of documents, found through indexes and read by byte range.

Shards lie in a folder, or on the network behind a folder that mirrors their small files (`open_shards`).

A shard is a plain WebDataset tar. Its sample NNNNNN is one block of consecutive documents: `NNNNNN.tokens.npy`
(the ids of all of them, uint16 or uint32) and `NNNNNN.lengths.npy` (tokens a document, uint32). Where words were
found by a segmenter, `NNNNNN.words.npy` holds one bit a token, packed by `numpy.packbits`: the token begins a word.
"""

from __future__ import annotations

import io
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.damage import BlockDamage, ShardDamage, SkippedBlocks
from data_pipeline.manifest import FIELDS, LENGTH_DTYPE, WORDS_FIELD, Manifest, index_name, load_manifest
from data_pipeline.remote_shards import SOURCE_FILE, RemoteShards
from data_pipeline.shard_index import ShardIndex, checked_index, member_name, parse_index, read_index
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
# What NumPy writes before a plain one-dimensional array.
_NPY_HEAD_BYTES = 128

AnyArray = npt.NDArray[Any]
# The bytes of a block's members by field, cut from one range.
Payloads: TypeAlias = dict[str, memoryview]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Block:
    """One block: `tokens` [sum of lengths] and `lengths` [documents], both read-only.

    `word_starts`, bool [sum of lengths], says which tokens begin a word; None where it was not asked for, and where
    the shards hold none because the vocabulary's pieces say it themselves.
    """

    tokens: AnyArray
    lengths: npt.NDArray[np.uint32]
    word_starts: npt.NDArray[np.bool_] | None = None


class BlockStore:
    """Random access to the blocks of one split; any thread of any rank may read.

    Indexes are read when first needed and checked against the manifest; every block read is checked against its
    index. A mismatch raises ShardDamage, which is a UserError. With `skipped`, blocks whose own bytes are wrong are
    noted there by `read_or_skip` and left out; a missing file and a wrong index stop all the same.
    """

    def __init__(
        self, folder: str | Path, *, manifest: Manifest, split: str, skipped: SkippedBlocks | None = None
    ) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        self.split = split
        self._skipped = skipped
        self._remote = RemoteShards(self.folder) if (self.folder / SOURCE_FILE).is_file() else None
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

    @property
    def is_remote(self) -> bool:
        """Whether blocks come over the network, so that fetching ahead is worth planning."""
        return self._remote is not None

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
        fields = self.manifest.fields if words else FIELDS
        return self._read(block, fields=fields, parse=partial(self._parse_block, block, fields))

    def read_or_skip(self, block: int, *, words: bool = False) -> Block | None:
        """`read_block`, or None for a damaged block where the recipe says to leave these out."""
        try:
            return self.read_block(block, words=words)
        except BlockDamage as damage:
            if self._skipped is None:
                raise
            name = f"block {block} of {self.split}, shards {self.manifest.fingerprint[:12]}"
            self._skipped.add(name, finding=damage.finding)
            return None

    def read_member(self, block: int, *, field: str) -> AnyArray:
        """Read one of the manifest's `fields` of one block by its byte range; raises ShardDamage."""
        return self._read(block, fields=(field,), parse=lambda payloads: self._parse(block, field, payloads[field]))

    def fetch_ahead(self, block: int) -> bool:
        """Begin to fetch a block that will be read soon; False where as many as may be are under way."""
        if self._remote is None:
            return True
        start, end, cut = self._span(block, self.manifest.fields)
        shard = self._shards[self._locate(block)[0]]
        check = partial(self._parse_block, block, self.manifest.fields)
        return self._remote.fetch_ahead(shard, start=start, end=end, parse=lambda content: check(cut(content)))

    def _read(self, block: int, *, fields: Sequence[str], parse: Callable[[Payloads], Parsed]) -> Parsed:
        # Over the network a block always comes whole, so that the cache holds each byte once.
        start, end, cut = self._span(block, self.manifest.fields if self._remote is not None else fields)
        shard = self._shards[self._locate(block)[0]]
        if self._remote is not None:
            return self._remote.read(shard, start=start, end=end, parse=lambda content: parse(cut(content)))
        return parse(cut(_read_range(self.folder / shard.name, offset=start, size=end - start)))

    def _span(self, block: int, fields: Sequence[str]) -> tuple[int, int, Callable[[bytes], Payloads]]:
        """The range of a tar that holds these members of a block, and how to cut it into them."""
        shard, local = self._locate(block)
        index = self._index(shard)
        places = {field: (int(index.offset[field][local]), int(index.size[field][local])) for field in fields}
        start = min(offset for offset, _ in places.values())
        end = max(offset + size for offset, size in places.values())

        def cut(content: bytes) -> Payloads:
            view = memoryview(content)
            return {field: view[offset - start : offset - start + size] for field, (offset, size) in places.items()}

        return start, end, cut

    def _parse_block(self, block: int, fields: Sequence[str], payloads: Payloads) -> Block:
        arrays = {field: self._parse(block, field, payloads[field]) for field in fields}
        lengths, tokens = arrays["lengths"], arrays["tokens"]
        total = int(lengths.sum(dtype=np.int64))
        if total != len(tokens):
            what = f"the sum of {member_name(block, field='lengths')}"
            raise BlockDamage.of(self._where(block), what, expected=len(tokens), found=total)
        if WORDS_FIELD not in arrays:
            return Block(tokens, lengths)
        bits = np.unpackbits(arrays[WORDS_FIELD], count=total)
        bits.setflags(write=False)
        return Block(tokens, lengths, bits.view(np.bool_))

    def _parse(self, block: int, field: str, payload: memoryview) -> AnyArray:
        shard, local = self._locate(block)
        index = self._index(shard)
        where, name = self._where(block), member_name(block, field=field)
        size = int(index.size[field][local])
        if len(payload) != size:
            raise BlockDamage.of(where, f"the size of {name}", expected=size, found=len(payload))
        expected, found = int(index.crc32[field][local]), zlib.crc32(payload)
        if found != expected:
            raise BlockDamage.of(where, f"the crc32 of {name}", expected=f"{expected:08x}", found=f"{found:08x}")
        tokens, documents = int(index.block_tokens[local]), int(index.block_documents[local])
        count = {"tokens": tokens, "lengths": documents, WORDS_FIELD: -(-tokens // 8)}[field]
        dtype = {"tokens": self.manifest.dtype, "lengths": LENGTH_DTYPE, WORDS_FIELD: np.dtype(np.uint8)}[field]
        return _parse_npy(payload, where=where, name=name, dtype=dtype, count=count)

    def _locate(self, block: int) -> tuple[int, int]:
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} of {self.num_blocks}")
        shard = bisect_right(self._first_block, block) - 1
        return shard, block - self._first_block[shard]

    def _where(self, block: int) -> str:
        """The tar of a block, as a person finds it."""
        name = self._shards[self._locate(block)[0]].name
        return str(self.folder / name) if self._remote is None else self._remote.url_of(name)

    def _load_index(self, shard: int) -> ShardIndex:
        return self.read_index(shard).to_keep()

    def _load_lengths(self, shard: int) -> list[npt.NDArray[np.uint32]]:
        index = self.read_index(shard)
        index.lengths.setflags(write=False)
        return np.split(index.lengths, np.cumsum(index.block_documents)[:-1])

    def read_index(self, shard: int) -> ShardIndex:
        """The index of the split's shard of this number, checked against the manifest; raises ShardDamage."""
        entry = self._shards[shard]
        if self._remote is None:
            return read_index(self.folder, shard=entry)
        where = self._remote.url_of(index_name(entry.name))
        return checked_index(self._remote.read_index(entry), where=where, shard=entry)


def _parse_npy(payload: memoryview, *, where: str, name: str, dtype: np.dtype[Any], count: int) -> AnyArray:
    """The array, which is the payload itself behind its head."""
    head = io.BytesIO(payload[:_NPY_HEAD_BYTES])
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("an array of another format")
        shape, _, found = np.lib.format.read_array_header_1_0(head)
        array: AnyArray = np.frombuffer(payload, dtype=found, offset=head.tell())
    except ValueError as error:
        raise BlockDamage.of(where, name, expected="a .npy array", found=str(error)) from error
    if (found, shape, array.shape) != (dtype, (count,), (count,)):
        raise BlockDamage.of(where, name, expected=f"{dtype} ({count},)", found=f"{found} {shape}")
    return array


def _read_range(path: Path, *, offset: int, size: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ShardDamage.of(path, "the file", expected="present", found="missing") from error
    except OSError as error:
        # Never damage: a mount that hangs or a refused permission says nothing of the bytes.
        raise UserError(f"{path} could not be read: {error.strerror}; see to the disk or mount, then go on") from error
