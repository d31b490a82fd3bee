"""Writing the shards of one split: blocks into WebDataset tars of the same bytes wherever they are written."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.atomic import publish, refused_writes, temporary_path, write_atomically
from data_pipeline.blocks import START, ClosedBlock, Position
from data_pipeline.manifest import WORDS_FIELD, Shard, SplitName, index_name
from data_pipeline.shards import ShardIndex, parse_index
from data_pipeline.tar_structure import structure_damage
from trainer.errors import UserError

KEPT = "finished shards are kept"
_OWNER = "bertline"
_TAR_RECORD = 512


def shard_name(split: SplitName, number: int) -> str:
    """The file name of a split's shard."""
    return f"{split}-{number:06d}.tar"


class ShardWriter:
    """Writes blocks in order, closing a shard at the first block boundary at which it holds `shard_tokens`.

    A shard gets its name only when it is whole and on the disk, and its index after it: a shard with an index is
    finished. Use as a context manager; on an error the shard under way is removed. Raises UserError when the disk
    refuses.
    """

    def __init__(self, folder: Path, *, split: SplitName, shard_tokens: int, finished: Sequence[Shard] = ()) -> None:
        self.shards = list(finished)
        self._folder = folder
        self._split: SplitName = split
        self._shard_tokens = shard_tokens
        self.tokens = sum(shard.tokens for shard in finished)
        self._next_block = sum(shard.blocks for shard in finished)
        self._open: _OpenShard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open is not None and kind is not None:
            self._open.discard()

    def write(self, block: ClosedBlock) -> None:
        """Add a block; gives the shard its name when that fills it."""
        if self._open is None:
            self._open = _OpenShard(self._folder / shard_name(self._split, len(self.shards)))
        self._open.write(block, number=self._next_block)
        self._next_block += 1
        self.tokens += len(block.tokens)
        if self._open.tokens >= self._shard_tokens:
            self.finish()

    def finish(self) -> None:
        """Close the shard under way, if there is one."""
        if self._open is not None:
            self.shards.append(self._open.finish())
            self._open = None


@dataclass
class _Rows:
    """The index under construction."""

    offset: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    size: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    crc32: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    block_tokens: list[int] = field(default_factory=list)
    lengths: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    first_document: int = 0
    end: Position = START

    def freeze(self) -> ShardIndex:
        return ShardIndex(
            offset={name: np.array(values, np.int64) for name, values in self.offset.items()},
            size={name: np.array(values, np.int64) for name, values in self.size.items()},
            crc32={name: np.array(values, np.uint32) for name, values in self.crc32.items()},
            block_documents=np.array([len(lengths) for lengths in self.lengths], np.int64),
            block_tokens=np.array(self.block_tokens, np.int64),
            lengths=np.concatenate(self.lengths),
            document_range=np.array([self.first_document, self.end.documents], np.int64),
            resume_position=np.array([self.end.chunk, self.end.document_in_chunk], np.int64),
        )


class _OpenShard:
    """One tar being written under its temporary name."""

    def __init__(self, path: Path) -> None:
        # webdataset imports torch, which takes seconds: nobody need wait for it to hear of a mistake.
        import webdataset

        self._path = path
        self._rows = _Rows()
        self.tokens = 0
        with refused_writes(path, kept=KEPT):
            self._file = _HashedFile(temporary_path(path).open("wb", buffering=0))
        self._tar = webdataset.TarWriter(self._file, user=_OWNER, group=_OWNER, mode=0o444, mtime=0, compress=False)

    def write(self, block: ClosedBlock, *, number: int) -> None:
        members = {"lengths": _npy(block.lengths), "tokens": _npy(block.tokens)}
        if block.word_starts is not None:
            members[WORDS_FIELD] = _npy(np.packbits(block.word_starts))
        offset = self._tar.tarstream.offset
        with refused_writes(self._path, kept=KEPT):
            self._tar.write({"__key__": f"{number:06d}", **{f"{name}.npy": data for name, data in members.items()}})
        rows = self._rows
        # TarWriter writes the members of a sample in alphabetical order, in which they stand here.
        for name, payload in members.items():
            rows.offset[name].append(offset + _TAR_RECORD)
            rows.size[name].append(len(payload))
            rows.crc32[name].append(zlib.crc32(payload))
            offset += _TAR_RECORD + -(-len(payload) // _TAR_RECORD) * _TAR_RECORD
        if offset != self._tar.tarstream.offset:
            raise RuntimeError(
                f"webdataset laid out {self._path} otherwise: {self._tar.tarstream.offset}, not {offset}"
            )
        if not rows.block_tokens:
            rows.first_document = block.first_document
        rows.block_tokens.append(len(block.tokens))
        rows.lengths.append(block.lengths)
        rows.end = block.end
        self.tokens += len(block.tokens)

    def finish(self) -> Shard:
        with refused_writes(self._path, kept=KEPT):
            self._tar.close()
            self._file.sync()
            publish(self._path)
        index = self._rows.freeze()
        raw = index.to_bytes()
        write_atomically(self._path.with_name(index_name(self._path.name)), raw, kept=KEPT)
        return _shard(self._path, index, raw=raw, size=self._file.size, sha256=self._file.sha256)

    def discard(self) -> None:
        self._file.discard()
        self._tar.close()
        temporary_path(self._path).unlink(missing_ok=True)


class _HashedFile:
    """A file being written that knows its size and SHA-256."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        # A tar stream writes its end whenever it is let go, even when the file was given up before.
        if not self._file.closed:
            written = 0
            while written < len(data):
                written += self._file.write(memoryview(data)[written:])
            self._hash.update(data)
            self.size += len(data)
        return len(data)

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._file.close()


def finished_shards(folder: Path, *, split: SplitName) -> tuple[list[Shard], Position]:
    """The shards of a split that an earlier build finished, and the position behind their last document.

    Raises UserError when one of them was damaged since.
    """
    shards: list[Shard] = []
    end = START
    while True:
        path = folder / shard_name(split, len(shards))
        index_path = path.with_name(index_name(path.name))
        if not (path.is_file() and index_path.is_file()):
            return shards, end
        raw = index_path.read_bytes()
        try:
            index = parse_index(raw)
            if wrong := structure_damage(path, index, first_block=sum(shard.blocks for shard in shards)):
                raise ValueError(wrong)
            sha256 = _checked_sha256(path, index)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} or its index was damaged since it was finished: {error}; "
                f"remove {path} and run the same again: it and what follows is built anew"
            ) from error
        shards.append(_shard(path, index, raw=raw, size=path.stat().st_size, sha256=sha256))
        end = Position(int(index.document_range[1]), *index.resume_position.tolist())


def _checked_sha256(path: Path, index: ShardIndex) -> str:
    """SHA-256 of a tar whose every member has the crc32 of the index; raises ValueError for one that has not."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in index.offset:
            for offset, size, crc32 in zip(index.offset[name], index.size[name], index.crc32[name], strict=True):
                if zlib.crc32(content[offset : offset + size]) != crc32:
                    raise ValueError(f"the crc32 of {name} at byte {offset} is wrong")
        return hashlib.sha256(content).hexdigest()


def _shard(path: Path, index: ShardIndex, *, raw: bytes, size: int, sha256: str) -> Shard:
    return Shard(
        name=path.name,
        bytes=size,
        sha256=sha256,
        index_sha256=hashlib.sha256(raw).hexdigest(),
        blocks=len(index.block_tokens),
        documents=len(index.lengths),
        tokens=int(index.block_tokens.sum()),
    )


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
