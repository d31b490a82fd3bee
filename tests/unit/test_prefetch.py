import threading
import time

import pytest

from data_pipeline.prefetch import Prefetcher


def test_items_come_in_order_and_then_end():
    prefetcher = Prefetcher(range(5), depth=2)
    assert list(prefetcher) == [0, 1, 2, 3, 4]
    assert list(prefetcher) == []


def test_a_failure_of_the_source_reaches_the_consumer_after_the_good_items():
    def source():
        yield 1
        raise ValueError("broken block")

    prefetcher = Prefetcher(source(), depth=4)
    assert next(prefetcher) == 1
    with pytest.raises(ValueError, match="broken block"):
        next(prefetcher)


def test_it_runs_ahead_by_its_depth_and_no_further():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    prefetcher = Prefetcher(source(), depth=3)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(made) == 4  # three in the queue and one waiting for a place
    prefetcher.close()


def test_close_ends_the_thread_of_an_endless_source():
    def source():
        while True:
            yield 0

    prefetcher = Prefetcher(source(), depth=1)
    assert next(prefetcher) == 0
    prefetcher.close()
    prefetcher.close()
    assert not any(thread.name == "bertline-prefetch" for thread in threading.enumerate())
