"""The index beside a shard: where each block's members lie in the tar, and what their bytes sum up to."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.compact import CompactArray, compact
from data_pipeline.damage import ShardDamage
from data_pipeline.manifest import FIELDS, FIELDS_WITH_WORDS, WORDS_FIELD, Shard, index_name

_PLAIN_ARRAYS = ("block_documents", "block_tokens", "lengths", "document_range", "resume_position")


@dataclass(frozen=True)
class ShardIndex:
    """Where each block's members lie in one tar; every array has one element a block, but for the last three.

    `lengths` has one element a document, `document_range` is (first, end) among all documents of the input, and
    `resume_position` is (chunk of the input, document of the chunk) behind the last document.
    """

    offset: dict[str, CompactArray]
    size: dict[str, CompactArray]
    crc32: dict[str, npt.NDArray[np.uint32]]
    block_documents: CompactArray
    block_tokens: CompactArray
    lengths: npt.NDArray[np.uint32]
    document_range: npt.NDArray[np.int64]
    resume_position: npt.NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """The index file's bytes: an npz without pickles, the same for the same index."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for field in self.offset:
            arrays[f"{field}_offset"] = self.offset[field]
            arrays[f"{field}_size"] = self.size[field]
            arrays[f"{field}_crc32"] = self.crc32[field]
        arrays.update({name: getattr(self, name) for name in _PLAIN_ARRAYS})
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def to_keep(self) -> ShardIndex:
        """The index as a run keeps it for every shard: 32 bytes a block, and without the documents' lengths."""
        return replace(
            self,
            offset={field: compact(values) for field, values in self.offset.items()},
            size={field: compact(values) for field, values in self.size.items()},
            block_documents=compact(self.block_documents),
            block_tokens=compact(self.block_tokens),
            lengths=self.lengths[:0].copy(),
        )


def member_name(block: int, *, field: str) -> str:
    """The name of a block's member in the tar."""
    return f"{block:06d}.{field}.npy"


def read_index(folder: Path, *, shard: Shard) -> ShardIndex:
    """The index of one shard in a local folder, checked against the manifest; raises ShardDamage."""
    path = folder / index_name(shard.name)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardDamage.of(path, "the file", expected="present", found="missing") from error
    return checked_index(raw, where=str(path), shard=shard)


def checked_index(raw: bytes, *, where: str, shard: Shard) -> ShardIndex:
    """The index of one shard from its file's bytes, which came from `where`; raises ShardDamage."""
    digest = hashlib.sha256(raw).hexdigest()
    if digest != shard.index_sha256:
        raise ShardDamage.of(where, "the sha256", expected=shard.index_sha256[:16], found=digest[:16])
    try:
        index = parse_index(raw)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ShardDamage.of(where, "the file", expected="an index", found=str(error)) from error
    counts = {
        "blocks": len(index.block_tokens),
        "tokens": int(index.block_tokens.sum()),
        "documents": len(index.lengths),
    }
    for name, found in counts.items():
        if found != getattr(shard, name):
            raise ShardDamage.of(where, f"the number of {name}", expected=getattr(shard, name), found=found)
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
