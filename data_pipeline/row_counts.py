"""How many rows each block has at one row length: counted once from the indexes and kept beside the shards."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.packing import Packing, count_rows
from data_pipeline.shards import BlockStore


def block_row_counts(store: BlockStore, *, max_seq_len: int, packing: Packing) -> Int64Array:
    """Rows a block, int64 [blocks]; any number of ranks may call it at once, none waits for another."""
    path = _path(store, max_seq_len=max_seq_len, packing=packing)
    kept = _kept(path)
    if kept is not None and kept.dtype == np.int64 and kept.shape == (store.num_blocks,):
        return kept
    counts = np.fromiter(
        (count_rows(lengths, max_seq_len=max_seq_len, packing=packing) for lengths in store.iter_lengths()),
        dtype=np.int64,
        count=store.num_blocks,
    )
    _keep(path, counts)
    return counts


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
