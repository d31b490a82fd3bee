from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer import checkpoint_writer
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader, find_damage, write_partition
from trainer.checkpoint_writer import CheckpointWriter
from trainer.errors import UserError
from trainer.fragments import EngineState
from trainer.runtime import Runtime
from trainer.topology import Topology


class Ranks:
    """The writers of two ranks in one process, which meet through its store."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        first_turn = 1000 * (1 + next(runtime.turns))
        self.checkpoints = CheckpointStore(folder / "checkpoints")
        self.writers = [
            CheckpointWriter(self.checkpoints, runtime=replace(runtime, topology=topology, turns=turns))
            for topology, turns in (
                (Topology(rank=rank, local_rank=rank, world_size=2, local_world_size=2), itertools.count(first_turn))
                for rank in range(2)
            )
        ]

    def start(self, step: int, *, only: int | None = None) -> None:
        for rank, writer in enumerate(self.writers):
            if only in (None, rank):
                tensors = {f"weight|w|{2 * rank}": torch.tensor([step + rank / 10, step + rank / 10])}
                state = EngineState(tensors=tensors, shared={"parameter_shapes": {"w": [4]}})
                writer.start(step, state, state={}, keep_last=2, best_step=None)

    def failures(self) -> list[str]:
        found = []
        for writer in self.writers:
            try:
                writer.wait()
            except UserError as error:
                found.append(str(error))
        return found


@pytest.fixture
def ranks(runtime: Runtime, tmp_path: Path) -> Ranks:
    return Ranks(runtime, tmp_path)


def held_up(monkeypatch: pytest.MonkeyPatch, *, rank: int, error: OSError | None = None) -> Callable[[], None]:
    """Let one rank's disk wait until the function given back is called, and then write or fail."""
    go_on = threading.Event()

    def write(folder: Path, tensors: dict[str, torch.Tensor], **who: int) -> object:
        if who["rank"] == rank:
            assert go_on.wait(20)
            if error is not None:
                raise error
        return write_partition(folder, tensors, **who)

    monkeypatch.setattr(checkpoint_writer, "write_partition", write)
    return go_on.set


def test_all_ranks_parts_are_in_the_checkpoint(ranks: Ranks) -> None:
    ranks.start(3)
    assert ranks.failures() == []
    assert find_damage(ranks.checkpoints.path(3)) is None
    assert CheckpointReader(ranks.checkpoints.path(3)).weights()["w"].tolist() == pytest.approx([3, 3, 3.1, 3.1])


def test_training_goes_on_while_a_slow_disk_writes(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.start(1)
    assert ranks.failures() == []
    let_go = held_up(monkeypatch, rank=1)
    ranks.start(2)
    for writer in ranks.writers:
        writer.poll()
    # Nothing of it can be seen yet, and what was saved before is whole.
    assert ranks.checkpoints.steps() == [1]
    assert ranks.checkpoints.newest_whole(report=print) == ranks.checkpoints.path(1)
    let_go()
    assert ranks.failures() == []
    assert ranks.checkpoints.steps() == [1, 2]


def test_what_one_rank_cannot_write_ends_every_rank_with_the_same_line(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.start(1)
    assert ranks.failures() == []
    held_up(monkeypatch, rank=1, error=OSError(28, "No space left on device", "part"))()
    ranks.start(2)
    line = (
        "the checkpoint of step 2 could not be written (rank 1): No space left on device: part; earlier checkpoints "
        "are untouched: free space or mend the folder, and start again to resume"
    )
    assert ranks.failures() == [line, line]
    assert [path.name for path in ranks.checkpoints.folder.iterdir() if path.name != "latest"] == ["step-00000001"]


def test_a_failure_surfaces_when_it_is_polled_for(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    held_up(monkeypatch, rank=0, error=OSError(30, "Read-only file system", "part"))()
    ranks.start(2)
    for writer in ranks.writers:
        assert writer._thread is not None
        writer._thread.join()
        with pytest.raises(UserError, match=r"step 2 could not be written \(rank 0\): Read-only file system"):
            writer.poll()
        writer.poll()


def test_the_next_checkpoint_waits_for_the_one_before(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = held_up(monkeypatch, rank=0)
    ranks.start(1)
    threading.Timer(0.3, let_go).start()
    assert ranks.checkpoints.steps() == []
    ranks.start(2, only=0)
    assert ranks.checkpoints.steps() == [1]
    ranks.start(2, only=1)
    assert ranks.failures() == []
    assert ranks.checkpoints.steps() == [1, 2]


def test_what_a_crash_left_is_removed(ranks: Ranks) -> None:
    stale = ranks.checkpoints.temporary(2)
    stale.mkdir(parents=True)
    (stale / "partition-00000-of-00009.safetensors").write_bytes(b"of another layout")
    ranks.start(2)
    assert ranks.failures() == []
    names = {path.name for path in ranks.checkpoints.path(2).iterdir()}
    assert names == {
        "checksums.json",
        "state.json",
        "partition-00000-of-00002.safetensors",
        "partition-00001-of-00002.safetensors",
    }
