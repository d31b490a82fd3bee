"""What the loader of one rank takes of memory, over a process that has imported the same modules."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from data_pipeline.atomic import write_atomically
from data_pipeline.blocks import ClosedBlock, Position
from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import MANIFEST_FILE, manifest_bytes
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.tokenizer import SPECIAL_TOKEN_IDS
from tests.benchmarks.isolation import run_on_cores
from tests.benchmarks.report import Figure
from trainer.config import Config, DataConfig, TrainConfig
from trainer.data_config import DEFAULT_LANES

MOST_MB = 300.0
_BLOCK_TOKENS, _BLOCK_DOCUMENTS = 98_304, 480
_VOCAB_SIZE = 29_000
_BATCH_ROWS = 480
# One block of each lane and a half of the next.
_ROWS_A_LANE = 3 * _BLOCK_TOKENS // (2 * 512)


def measure_memory(blocks: int, *, rows_a_lane: int = _ROWS_A_LANE) -> Figure:
    """What a rank alone, which reads all lanes at once, takes for shards of so many blocks."""
    with tempfile.TemporaryDirectory(prefix="bertline-bench-") as name:
        shards = made_up_shards(Path(name) / "shards", blocks=blocks)
        size = sum(path.stat().st_size for path in shards.glob("*.tar"))
        used = run_on_cores(1, memory_used_mb, shards, rows_a_lane=rows_a_lane)
    return Figure(f"memory of a rank on {size / 1e6:,.0f} MB of shards", used, limit=MOST_MB, unit="MB")


def made_up_shards(folder: Path, *, blocks: int) -> Path:
    """Shards of random tokens, in documents of unlike lengths and blocks of the usual size; no text behind them."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    with ShardWriter(folder, split="train", shard_tokens=100 * _BLOCK_TOKENS) as writer:
        for number in range(blocks):
            cuts = np.sort(draw.choice(_BLOCK_TOKENS - 1, _BLOCK_DOCUMENTS - 1, replace=False)) + 1
            lengths = np.diff(cuts, prepend=0, append=_BLOCK_TOKENS).astype(np.uint32)
            tokens = draw.integers(len(SPECIAL_TOKEN_IDS), _VOCAB_SIZE, _BLOCK_TOKENS, dtype=np.uint16)
            first = number * _BLOCK_DOCUMENTS
            end = Position(first + _BLOCK_DOCUMENTS, number, _BLOCK_DOCUMENTS)
            writer.write(ClosedBlock(tokens, lengths, first, end))
        writer.finish()
    content = manifest_bytes(
        {"train": writer.shards, "validation": ()},
        block_tokens=_BLOCK_TOKENS,
        vocab_size=_VOCAB_SIZE,
        tokenizer_sha256="0" * 64,
        special_token_ids=SPECIAL_TOKEN_IDS,
        input_documents=blocks * _BLOCK_DOCUMENTS,
    )
    write_atomically(folder / MANIFEST_FILE, content)
    return folder


def memory_used_mb(shards: Path, *, rows_a_lane: int) -> float:
    """Call in a new process: the peak of its resident memory, in MB over what it had before it opened the shards."""
    before = _status_kb("VmRSS")
    corpus = open_folder(shards)
    config = Config(
        name="bench",
        data=DataConfig(shards=str(shards), max_seq_len=512),
        train=TrainConfig(steps=100_000, global_batch_size=_BATCH_ROWS, micro_batch_size=_BATCH_ROWS // 15),
    )
    loader = loader_for(config, corpus, dp_rank=0, dp_world_size=1)
    for _ in range(rows_a_lane * DEFAULT_LANES // _BATCH_ROWS):
        next(loader)
    loader.close()
    return (_status_kb("VmHWM") - before) * 1024 / 1e6


def _status_kb(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith(f"{field}:")).split()[1])
