"""The memory that one rank's loader adds to a process, on few shards and on more blocks than it has lanes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.manifest import load_manifest
from data_pipeline.shards import BlockStore
from tests.benchmarks.isolation import run_on_cores
from tests.benchmarks.loader_memory import MOST_MB, made_up_shards, memory_used_mb
from trainer.data_config import DEFAULT_LANES


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of a gigabyte of shards."""
    return made_up_shards(tmp_path_factory.mktemp("large") / "shards", blocks=DEFAULT_LANES + 100)


def test_a_rank_alone_stays_under_300_mb_whatever_the_corpus(large: Path, tmp_path: Path) -> None:
    small = made_up_shards(tmp_path / "shards", blocks=20)
    few, many = (run_on_cores(1, memory_used_mb, shards, rows_a_lane=2) for shards in (small, large))
    # A window of one block a lane, of two bytes a token, and little else.
    window_mb = DEFAULT_LANES * 196_608 / 1e6
    assert few < window_mb / 2
    assert window_mb < many < MOST_MB


def test_an_index_takes_32_bytes_a_block_while_a_run_lasts(large: Path) -> None:
    store = BlockStore(large, manifest=load_manifest(large), split="train")
    whole, kept = store.read_index(0), store._index(0)
    arrays = [*kept.offset.values(), *kept.size.values(), *kept.crc32.values(), kept.block_documents, kept.block_tokens]
    blocks = len(kept.block_tokens)
    assert sum(array.nbytes for array in arrays) == 32 * blocks
    assert all(array.base is None for array in arrays)
    assert kept.offset["tokens"].tolist() == whole.offset["tokens"].tolist()
    assert len(kept.lengths) == 0
