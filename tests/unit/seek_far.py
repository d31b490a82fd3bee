"""A program that plans one step far into a made-up corpus of a billion documents, and tells what it cost.

`python seek_far.py FOLDER STEP RANKS`: FOLDER keeps the row counts; without STEP they are made. One of 8 ranks reads a
micro-batch; one alone as many rows as there are lanes, so that its window of blocks is full. Torch is not imported, so
that the memory told is the planning's and the rows' own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_pipeline.hashing import derive_key, permutation
from data_pipeline.order import rank_rows
from data_pipeline.packing import PLAIN_PIECE, count_rows
from data_pipeline.reader import RowReader
from data_pipeline.row_counts import _keep, _path
from data_pipeline.shards import Block

BLOCKS, BLOCK_DOCUMENTS = 1_953_125, 512
BATCH_ROWS, MICRO_ROWS, LANES = 4096, 32, 960
SHAPE = {"max_seq_len": 512, "packing": "packed"}


class MadeUpStore:
    """A billion documents: every block has the same lengths in an order of its own, drawn when it is asked for."""

    split = "train"
    num_blocks = BLOCKS
    is_remote = False
    manifest = SimpleNamespace(fingerprint="made-up", special_token_ids={"pad": 0, "cls": 1, "sep": 2})

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lengths = (20 + permutation(7, BLOCK_DOCUMENTS) % 350).astype(np.uint32)

    def fetch_ahead(self, block: int) -> bool:
        return True

    def read_or_skip(self, block: int, *, words: bool) -> Block:
        lengths = self.lengths[permutation(derive_key("lengths", block), BLOCK_DOCUMENTS)]
        return Block(np.zeros(int(lengths.sum()), dtype=np.uint16), lengths)

    def first_document(self, block: int) -> int:
        return block * BLOCK_DOCUMENTS


def peak_kb() -> int:
    """The largest resident set; getrusage would include that of the process which started this one."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


def main(folder: Path, step: int | None, ranks: int) -> dict[str, object]:
    store = MadeUpStore(folder)
    if step is None:
        rows = count_rows(store.lengths, **SHAPE)
        counts = np.empty((2, BLOCKS), dtype=np.int64)
        counts[:] = [[rows], [int(store.lengths.sum())]]
        _keep(_path(store, **SHAPE, shape=PLAIN_PIECE), counts)
        return {}
    started = time.process_time()
    reader = RowReader(store, **SHAPE, lanes=LANES, seed=0, dp_world_size=ranks)
    rows = rank_rows(step * BATCH_ROWS, batch_size=BATCH_ROWS, dp_rank=ranks // 2, dp_world_size=ranks)
    reader.order.locate(rows)
    for first in range(0, MICRO_ROWS if ranks > 1 else LANES, MICRO_ROWS):
        batch = reader.read(rows[first : first + MICRO_ROWS])
    return {
        "seconds": time.process_time() - started,
        "peak_mb": peak_kb() / 1024,
        "torch": "torch" in sys.modules,
        "largest_document": int(max(documents.max() for documents in batch.row_documents)),
        "tokens": batch.tokens,
        "blocks": len(reader._window),
    }


if __name__ == "__main__":
    step, ranks = map(int, sys.argv[2:4]) if len(sys.argv) > 2 else (None, 1)
    print(json.dumps(main(Path(sys.argv[1]), step, ranks)))
