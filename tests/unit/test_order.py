import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import RowOrder, rank_rows


def places(order: RowOrder, numbers) -> list[tuple[int, int, int]]:
    found = order.locate(np.asarray(numbers, dtype=np.int64))
    return list(zip(found.epoch.tolist(), found.block.tolist(), found.row.tolist(), strict=True))


def all_rows(block_rows) -> list[tuple[int, int]]:
    return [(block, row) for block, rows in enumerate(block_rows) for row in range(rows)]


def test_lanes_walk_their_own_stretches_of_the_permuted_blocks():
    order = RowOrder(np.array([3, 2, 4]), lanes=2, seed=0)
    sequence = [(block, row) for block in order._epoch_sequence(0)[0] for row in range([3, 2, 4][block])]
    # Nine rows over two lanes: lane 0 has rows 0-4 of the sequence, lane 1 rows 5-8; row n belongs to lane n mod 2.
    expected = [sequence[i] for i in (0, 5, 1, 6, 2, 7, 3, 8, 4)]
    assert [(block, row) for _, block, row in places(order, range(9))] == expected


@given(
    block_rows=st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(sum),
    lanes=st.integers(1, 30),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_exactly_once_an_epoch(block_rows, lanes, seed, epoch):
    order = RowOrder(np.array(block_rows), lanes=lanes, seed=seed)
    total = sum(block_rows)
    found = places(order, range(epoch * total, (epoch + 1) * total))
    assert sorted((block, row) for _, block, row in found) == all_rows(block_rows)
    assert {e for e, _, _ in found} == {epoch}


@given(
    block_rows=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    numbers=st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
)
def test_a_row_does_not_depend_on_what_else_is_asked(block_rows, numbers):
    order = RowOrder(np.array(block_rows), lanes=6, seed=3)
    fresh = RowOrder(np.array(block_rows), lanes=6, seed=3)
    together = places(order, numbers)
    assert together == [places(fresh, [number])[0] for number in numbers]


@settings(deadline=None)
@given(data=st.data())
def test_ranks_together_take_the_global_batch_in_order_for_every_world_size(data):
    lanes = data.draw(st.sampled_from([12, 24, 60]))
    world = data.draw(st.sampled_from([w for w in range(1, lanes + 1) if lanes % w == 0]))
    batch_size = world * data.draw(st.integers(1, 4))
    first = batch_size * data.draw(st.integers(0, 1000))
    ranks = [rank_rows(first, batch_size=batch_size, dp_rank=r, dp_world_size=world) for r in range(world)]
    assert np.stack(ranks, axis=1).ravel().tolist() == list(range(first, first + batch_size))


def test_a_rank_is_at_lanes_over_world_blocks_at_a_time():
    lanes, world = 12, 3
    order = RowOrder(np.full(120, 50), lanes=lanes, seed=1)
    rows = rank_rows(0, batch_size=2400, dp_rank=1, dp_world_size=world)
    blocks = order.locate(rows).block.reshape(-1, lanes // world)
    # One column is one lane: it stays in a block until the block is finished and never comes back to it.
    for lane in blocks.T:
        changes = lane[1:] != lane[:-1]
        assert len(np.unique(lane)) == changes.sum() + 1


def test_epochs_and_seeds_and_phases_are_shuffled_differently():
    rows = np.full(40, 3)
    orders = [
        places(RowOrder(rows, lanes=4, seed=0), range(120)),
        places(RowOrder(rows, lanes=4, seed=0), range(120, 240)),
        places(RowOrder(rows, lanes=4, seed=1), range(120)),
        places(RowOrder(rows, lanes=4, seed=0, phase=1), range(120)),
    ]
    assert len({tuple((b, r) for _, b, r in found) for found in orders}) == 4


def test_an_order_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        RowOrder(np.array([0, 0]), lanes=2, seed=0)


def test_seeking_ten_million_steps_ahead_in_a_billion_documents_is_as_cheap_as_ten():
    # A billion documents of 200 tokens are about two million blocks of 98,304 tokens, 192 rows of 512 each.
    block_rows = np.full(2_035_000, 192)
    tracemalloc.start()
    started = time.perf_counter()
    order = RowOrder(block_rows, lanes=960, seed=0)
    order.locate(rank_rows(10 * 4096, batch_size=4096, dp_rank=0, dp_world_size=8))
    order.locate(rank_rows(10_000_000 * 4096, batch_size=4096, dp_rank=0, dp_world_size=8))
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200e6
    assert seconds < 10  # each of the two epochs takes about 0.3 s on a quiet core
