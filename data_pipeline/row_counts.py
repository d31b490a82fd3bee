"""Rows and tokens of each block at one row length: counted once from the indexes and kept beside the shards."""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array
from data_pipeline.packing import FRAME_TOKENS, Packing, count_rows
from data_pipeline.shards import BlockStore


@dataclass(frozen=True)
class BlockCounts:
    """What each block comes to in an epoch: its rows, and the tokens in them that are not padding; int64 [blocks]."""

    rows: Int64Array
    tokens: Int64Array


def count_blocks(store: BlockStore, *, max_seq_len: int, packing: Packing) -> BlockCounts:
    """Count rows and tokens; any number of ranks may call it at once, none waits for another."""
    path = _path(store, max_seq_len=max_seq_len, packing=packing)
    kept = _kept(path)
    if kept is not None and kept.dtype == np.int64 and kept.shape == (2, store.num_blocks):
        return BlockCounts(*kept)
    counts = np.empty((2, store.num_blocks), dtype=np.int64)
    for block, lengths in enumerate(store.iter_lengths()):
        counts[0, block] = count_rows(lengths, max_seq_len=max_seq_len, packing=packing)
        counts[1, block] = _count_tokens(lengths, max_seq_len=max_seq_len)
    _keep(path, counts)
    return BlockCounts(*counts)


def _count_tokens(lengths: npt.NDArray[np.uint32], *, max_seq_len: int) -> int:
    """The documents' tokens and the frames of all their pieces."""
    pieces = -(-lengths.astype(np.int64) // (max_seq_len - FRAME_TOKENS))
    return int(lengths.sum(dtype=np.int64) + FRAME_TOKENS * pieces.sum())


def _path(store: BlockStore, *, max_seq_len: int, packing: Packing) -> Path:
    # The fingerprint is in the name: counts of a folder's former content are never taken for the present one's.
    return store.folder / f"rows-{store.split}-{packing}-{max_seq_len}-{store.manifest.fingerprint[:16]}.npy"


def _kept(path: Path) -> Int64Array | None:
    """The counts of an earlier run, None when there are none or the file is damaged: they can be made again."""
    try:
        counts: Int64Array = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return counts


def _keep(path: Path, counts: Int64Array) -> None:
    # Ranks of several hosts may write at once.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, counts, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # Shards on a read-only file system are legitimate; the counts are then made again in each run.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
