from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.atomic import write_atomically
from trainer.errors import UserError


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_write_keeps_the_old_file_and_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"/a could not be written: No space left on device; shards are kept"):
        write_atomically(path, b"two", kept="shards are kept")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
