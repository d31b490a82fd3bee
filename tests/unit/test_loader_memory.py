"""The memory that one rank's loader adds to a process, on few shards and on more blocks than it has lanes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.manifest import load_manifest
from data_pipeline.shards import BlockStore
from tests.benchmarks.isolation import run_on_cores
from tests.benchmarks.loader_memory import MOST_MB, made_up_shards, measure_memory, memory_used_mb
from trainer.data_config import DEFAULT_LANES


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of a gigabyte of shards."""
    return made_up_shards(tmp_path_factory.mktemp("large") / "shards", blocks=DEFAULT_LANES + 100)


# A window of one block a lane, of two bytes a token.
WINDOW_MB = DEFAULT_LANES * 196_608 / 1e6


def test_a_rank_alone_on_many_blocks_keeps_its_window_and_little_else(large: Path) -> None:
    assert WINDOW_MB < run_on_cores(1, memory_used_mb, large, rows_a_lane=2) < MOST_MB


def test_the_benchmark_tells_the_memory_on_shards_that_it_makes() -> None:
    few = measure_memory(20, rows_a_lane=2)
    assert (few.name, few.limit, few.unit) == ("memory of a rank on 4 MB of shards", MOST_MB, "MB")
    assert 0 < few.value < WINDOW_MB / 2


def test_an_index_takes_32_bytes_a_block_while_a_run_lasts(large: Path) -> None:
    store = BlockStore(large, manifest=load_manifest(large), split="train")
    whole, kept = store.read_index(0), store._index(0)
    shrunk = [*kept.offset.values(), *kept.size.values(), kept.block_documents, kept.block_tokens]
    assert sum(array.nbytes for array in [*shrunk, *kept.crc32.values()]) == 32 * len(kept.block_tokens)
    assert all(array.base is None for array in shrunk)
    assert kept.offset["tokens"].tolist() == whole.offset["tokens"].tolist()
    assert len(kept.lengths) == 0
