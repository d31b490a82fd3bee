from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from data_pipeline.block_cache import BlockCache
from trainer.errors import UserError

A, B = "a" * 64, "b" * 64


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.range"))


def test_a_range_comes_back_by_content_and_place_alone(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=1 << 20)
    cache.put(A, b"first", start=0, end=5)
    cache.put(B, b"other", start=0, end=5)
    cache.put(A, b"second", start=5, end=11)
    assert cache.get(A, start=0, end=5) == b"first"
    assert cache.get(B, start=0, end=5) == b"other"
    assert cache.get(A, start=5, end=11) == b"second"
    assert cache.get(B, start=5, end=11) is None
    cache.discard(A, start=0, end=5)
    assert cache.get(A, start=0, end=5) is None


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=8000)
    for number in range(7):
        cache.put(A, bytes(1000), start=number, end=number + 1000)
        os.utime(next(tmp_path.glob(f"*-{number}-*.range")), (number, number))
    assert cache.get(A, start=0, end=1000) is not None
    cache.put(A, bytes(1000), start=7, end=1007)
    present = [number for number in range(8) if cache.get(A, start=number, end=number + 1000) is not None]
    assert present == [0, 2, 3, 4, 5, 6, 7]
    for number in range(100, 160):
        cache.put(B, bytes(1000), start=number, end=number + 1000)
        assert held(tmp_path) <= 8000


def test_a_smaller_bound_holds_for_what_an_earlier_run_left(tmp_path: Path) -> None:
    large = BlockCache(tmp_path, max_bytes=1 << 20)
    for number in range(20):
        large.put(A, bytes(1000), start=number, end=number + 1000)
    BlockCache(tmp_path, max_bytes=8000).put(B, bytes(10), start=0, end=10)
    assert held(tmp_path) <= 8000


def test_many_writers_and_readers_of_one_folder_never_see_half_an_entry(tmp_path: Path) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        cache = BlockCache(tmp_path, max_bytes=40_000)
        for turn in range(150):
            number = (seed + turn * 7) % 30
            found = cache.get(A, start=number, end=number + 2000)
            if found is None:
                cache.put(A, bytes([number]) * 2000, start=number, end=number + 2000)
            elif found != bytes([number]) * 2000:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert held(tmp_path) <= 40_000
    assert not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "x.range.1.tmp", tmp_path / "x.range.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    BlockCache(tmp_path, max_bytes=8000).put(A, b"x", start=0, end=1)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"could not be written: No space left on device; .*data\.cache\.max_gib"):
        BlockCache(tmp_path, max_bytes=8000).put(A, b"x", start=0, end=1)
    assert list(tmp_path.iterdir()) == []
