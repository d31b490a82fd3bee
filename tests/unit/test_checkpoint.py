from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader, find_damage
from trainer.checkpoint_writer import CheckpointWriter
from trainer.errors import UserError
from trainer.fragments import EngineState
from trainer.runtime import Runtime

OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def save(
    store: CheckpointStore, runtime: Runtime, step: int, *, keep_last: int = 2, best_step: int | None = None
) -> None:
    writer = CheckpointWriter(store, runtime=runtime)
    begin(writer, step, keep_last=keep_last, best_step=best_step)
    writer.wait()


def begin(writer: CheckpointWriter, step: int, *, keep_last: int = 2, best_step: int | None = None) -> None:
    writer.start(
        step,
        EngineState(tensors={"weight|w|0": torch.full((4,), float(step))}, shared={"parameter_shapes": {"w": [4]}}),
        state={"tokens": 10 * step},
        keep_last=keep_last,
        best_step=best_step,
    )


def newest(store: CheckpointStore) -> tuple[int, list[float]] | None:
    """Step and weights of what a start would resume from."""
    folder = store.newest_whole(report=lambda _: None)
    if folder is None:
        return None
    reader = CheckpointReader(folder)
    return reader.state["step"], reader.weights()["w"].tolist()


def pointer(store: CheckpointStore, name: str) -> str:
    return (store.folder / name).read_text()


def test_a_saved_checkpoint_is_found_and_read_back(store: CheckpointStore, runtime: Runtime) -> None:
    assert newest(store) is None
    save(store, runtime, 3)
    assert newest(store) == (3, [3.0] * 4)
    assert CheckpointReader(store.path(3)).state["tokens"] == 30
    assert (pointer(store, "latest"), store.best_step()) == ("step-00000003\n", None)
    assert {path.name for path in store.folder.iterdir()} == {"latest", "step-00000003"}


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_last_ones_are_kept(store: CheckpointStore, runtime: Runtime, keep_last: int, kept: list[int]) -> None:
    for step in (1, 2, 3, 4):
        save(store, runtime, step, keep_last=keep_last)
    assert store.steps() == kept


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [2, 5]), (2, [2, 4, 5])])
def test_the_best_is_kept_beside_them(
    store: CheckpointStore, runtime: Runtime, keep_last: int, kept: list[int]
) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(store, runtime, step, keep_last=keep_last, best_step=best)
    assert store.steps() == kept
    assert store.best_step() == 2
    assert (store.named("best"), store.named("latest")) == (store.path(2), store.path(5))


def test_a_best_that_a_crash_left_unnamed_is_named_by_the_next_save(store: CheckpointStore, runtime: Runtime) -> None:
    save(store, runtime, 1, best_step=1)
    save(store, runtime, 2, best_step=2)
    (store.folder / "best").write_text("step-00000001\n")
    save(store, runtime, 3, keep_last=1, best_step=2)
    assert (store.best_step(), store.steps()) == (2, [2, 3])


def test_damaged_ones_behind_which_a_run_resumed_do_not_push_out_whole_ones(
    store: CheckpointStore, runtime: Runtime
) -> None:
    for step in (1, 2, 5):
        save(store, runtime, step, keep_last=3, best_step=5 if step == 5 else None)
    (store.path(5) / "state.json").unlink()
    save(store, runtime, 3, keep_last=1)
    assert newest(store) == (3, [3.0] * 4)
    assert store.steps() == [3]
    assert (store.named("latest"), store.best_step()) == (store.path(3), None)


def test_a_step_saved_again_replaces_its_damaged_folder(store: CheckpointStore, runtime: Runtime) -> None:
    save(store, runtime, 1)
    (store.path(1) / "state.json").write_text("{}")
    save(store, runtime, 1)
    assert find_damage(store.path(1)) is None


def test_damaged_ones_are_named_and_the_one_before_is_used(store: CheckpointStore, runtime: Runtime) -> None:
    for step in (1, 2, 3):
        save(store, runtime, step, keep_last=3)
    partition = "partition-00000-of-00001.safetensors"
    (store.path(3) / partition).unlink()
    (store.path(2) / "state.json").write_text("{}")
    told: list[str] = []
    assert store.newest_whole(report=told.append) == store.path(1)
    assert told == [
        f"{store.path(3)} is damaged: {partition} is missing; trying the one before",
        f"{store.path(2)} is damaged: state.json has 2 bytes instead of "
        f"{len((store.path(1) / 'state.json').read_bytes())}; trying the one before",
    ]
    (store.path(1) / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"none of the 3 checkpoints is whole; restore one from a copy"):
        newest(store)


@pytest.mark.parametrize("torn", [b"", b"step-0000", b"\xff\xff", b"step-00000009\n"])
def test_a_torn_pointer_misleads_nobody(store: CheckpointStore, runtime: Runtime, torn: bytes) -> None:
    save(store, runtime, 1, best_step=1)
    for name in ("latest", "best"):
        (store.folder / name).write_bytes(torn)
    assert newest(store) == (1, [1.0] * 4)
    assert store.best_step() is None
    with pytest.raises(UserError, match=r"no checkpoint 'latest'; there are: step-00000001"):
        store.named("latest")
    save(store, runtime, 2, best_step=1)
    assert (store.named("latest"), store.named("best")) == (store.path(2), store.path(1))


def test_a_checkpoint_is_named_by_its_step(store: CheckpointStore, runtime: Runtime) -> None:
    save(store, runtime, 12)
    assert store.named("step-00000012") == store.path(12)
    for wrong in ("step-12", "12", "step-00000013", "newest"):
        with pytest.raises(UserError, match="no checkpoint"):
            store.named(wrong)
    (store.path(12) / "state.json").unlink()
    with pytest.raises(UserError, match=r"step-00000012 is damaged: state.json is missing; name another checkpoint"):
        store.named("step-00000012")


class PowerCut(BaseException):
    """Nothing catches it, as nothing catches a power cut."""


def failing_at(monkeypatch: pytest.MonkeyPatch, *, nth: int, error: BaseException) -> Callable[[], int]:
    """Let the nth file operation raise instead of being done; gives a function that counts them."""
    done = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **settings: Any) -> Any:
            nonlocal done
            done += 1
            if done == nth:
                raise error
            return original(*arguments, **settings)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: done


@pytest.fixture
def before(store: CheckpointStore, runtime: Runtime) -> Path:
    """Checkpoints 1, the best, 2 and 3 of which saving 4 with keep_last=2 removes one and moves both pointers."""
    for step in (1, 2, 3):
        save(store, runtime, step, keep_last=3, best_step=1)
    return store.folder


def operations_of_a_save(store: CheckpointStore, runtime: Runtime) -> int:
    with pytest.MonkeyPatch.context() as patch:
        count = failing_at(patch, nth=-1, error=PowerCut())
        save(store, runtime, 4, best_step=4)
        return count()


@pytest.mark.parametrize("error", [PowerCut(), OSError(28, "No space left on device", "file")], ids=["cut", "full"])
def test_whatever_operation_is_the_last_a_whole_checkpoint_is_found_and_the_next_save_works(
    store: CheckpointStore, runtime: Runtime, before: Path, tmp_path: Path, error: BaseException
) -> None:
    shutil.copytree(before, tmp_path / "before")
    operations = operations_of_a_save(store, runtime)
    assert operations > 15
    reached = set()
    for nth in range(1, operations + 1):
        shutil.rmtree(before)
        shutil.copytree(tmp_path / "before", before)
        with pytest.MonkeyPatch.context() as patch:
            failing_at(patch, nth=nth, error=error)
            told = ""
            try:
                save(store, runtime, 4, best_step=4)
            except (PowerCut, UserError) as end:
                told = str(end)
        if told:
            assert told.startswith("the checkpoint of step 4 could not be written (rank 0): No space left on device")
            assert not list(before.glob(".saving-*"))
        assert 4 not in store.steps() or find_damage(store.path(4)) is None, nth
        found = newest(store)
        assert found in ((3, [3.0] * 4), (4, [4.0] * 4)), nth
        assert find_damage(store.named("latest")) is None, nth
        assert find_damage(store.named("best")) is None, nth
        reached.add(found[0] if found else None)
        save(store, runtime, 5, best_step=4)
        assert newest(store) == (5, [5.0] * 4)
        assert [path.name for path in before.iterdir() if not path.name.startswith(("step-", "latest", "best"))] == []
    assert reached == {3, 4}


def test_a_disk_that_fills_up_in_a_partition_leaves_the_earlier_ones(
    store: CheckpointStore, runtime: Runtime, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("trainer.model.safetensors_file.save_file", full)
    with pytest.raises(UserError) as caught:
        save(store, runtime, 4)
    assert str(caught.value) == (
        "the checkpoint of step 4 could not be written (rank 0): No space left on device: "
        f"{store.folder}/.saving-step-00000004/partition-00000-of-00001.safetensors; earlier checkpoints are "
        "untouched: free space or mend the folder, and start again to resume"
    )
    assert {path.name for path in before.iterdir()} == {
        "latest",
        "best",
        "step-00000001",
        "step-00000002",
        "step-00000003",
    }
