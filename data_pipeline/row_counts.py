"""How many rows each block has at one row length: counted once from the indexes and kept beside the shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.packing import Packing, count_rows
from data_pipeline.shards import BlockStore


def block_row_counts(store: BlockStore, *, max_seq_len: int, packing: Packing) -> Int64Array:
    """Rows a block, int64 [blocks]; any number of ranks may call it at once, none waits for another."""
    path = _path(store, max_seq_len=max_seq_len, packing=packing)
    if path.exists():
        kept: Int64Array = np.load(path, allow_pickle=False)
        if kept.dtype == np.int64 and kept.shape == (store.num_blocks,):
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


def _keep(path: Path, counts: Int64Array) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, counts, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except PermissionError:
        # Shards on a read-only file system are legitimate; the counts are then made again in each run.
        temporary.unlink(missing_ok=True)
