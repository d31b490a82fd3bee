from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint_files import (
    CHECKSUMS_FILE,
    STATE_FILE,
    CheckpointReader,
    FileRecord,
    find_damage,
    record_file,
    remove_folder,
    seal,
    write_json,
    write_partition,
)
from trainer.errors import UserError
from trainer.fragments import fragment_key

STATE = {"step": 3, "engine": {"parameter_shapes": {"w": [2, 5], "b": [3]}, "optimizer_scalars": {"step": 3.0}}}
WEIGHTS = {"w": torch.arange(10.0).reshape(2, 5), "b": torch.tensor([7.0, 8.0, 9.0])}


def write_checkpoint(folder: Path, *, cuts: tuple[int, ...] = (4,), kinds: tuple[str, ...] = ("weight",)) -> Path:
    """A checkpoint of two parameters; `w` is cut at these elements and dealt over as many ranks as there are pieces."""
    folder.mkdir(parents=True)
    edges = [0, *sorted(set(cuts) & set(range(1, 10))), 10]
    world_size = len(edges) - 1
    records = []
    for rank in range(world_size):
        start, end = edges[rank], edges[rank + 1]
        tensors = {}
        for number, kind in enumerate(kinds):
            tensors[fragment_key(kind, "w", start)] = WEIGHTS["w"].reshape(-1)[start:end] + 100 * number
            if rank == 0:
                tensors[fragment_key(kind, "b", 0)] = WEIGHTS["b"] + 100 * number
        records.append(write_partition(folder, tensors, rank=rank, world_size=world_size))
    records.append(write_json(folder / STATE_FILE, STATE))
    seal(folder, records)
    return folder


def test_a_file_is_recorded_as_it_lies_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert record_file(tmp_path / "a") == FileRecord("a", 7, zlib.crc32(b"content"))
    assert write_json(tmp_path / "b", {"x": 1}) == record_file(tmp_path / "b")
    assert json.loads((tmp_path / "b").read_text()) == {"x": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_sealed_folder_is_whole(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    assert find_damage(folder) is None
    names = {"partition-00000-of-00002.safetensors", "partition-00001-of-00002.safetensors", "state.json"}
    assert {path.name for path in folder.iterdir()} == names | {CHECKSUMS_FILE}


@pytest.mark.parametrize("name", ["partition-00000-of-00002.safetensors", "partition-00001-of-00002.safetensors"])
def test_a_missing_a_cut_and_a_changed_file_are_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-3])
    assert find_damage(folder) == f"{name} has {len(whole) - 3} bytes instead of {len(whole)}"
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert find_damage(folder) == f"{name} does not match its checksum"
    (folder / name).unlink()
    assert find_damage(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (None, "checksums.json is missing"),
        (b"", "checksums.json cannot be read"),
        (b"\xff\xfe", "checksums.json cannot be read"),
        (b"[]", "checksums.json cannot be read"),
        (b'{"schema_version": 1, "files": []}', "checksums.json cannot be read"),
        (b'{"schema_version": 1, "files": {}}', "checksums.json cannot be read"),
        (b'{"schema_version": 1, "files": {"state.json": 7}}', "checksums.json cannot be read"),
        (b'{"schema_version": 1, "files": {"state.json": {"bytds": 1, "crc32": 2}}}', "checksums.json cannot be read"),
        (b'{"schema_version": 2, "files": {}}', "its format is version 2, this program reads version 1"),
    ],
)
def test_a_damaged_seal_is_damage(tmp_path: Path, content: bytes | None, damage: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    if content is None:
        (folder / CHECKSUMS_FILE).unlink()
    else:
        (folder / CHECKSUMS_FILE).write_bytes(content)
    assert find_damage(folder) == damage


def test_no_flipped_byte_anywhere_passes_unseen(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            # White space between the seal's words may become other white space: what it says is then unchanged.
            assert find_damage(folder) is not None or path.name == CHECKSUMS_FILE
        path.write_bytes(whole)
    assert find_damage(folder) is None


def test_a_folder_loses_its_seal_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "c")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    remove_folder(folder)
    assert find_damage(folder) == "checksums.json is missing"
    monkeypatch.undo()
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()


@given(cuts=st.sets(st.integers(1, 9)).map(tuple), start=st.integers(0, 9), numel=st.integers(1, 10))
def test_any_range_is_read_from_any_layouts_pieces(
    tmp_path_factory: pytest.TempPathFactory, cuts: tuple[int, ...], start: int, numel: int
) -> None:
    reader = CheckpointReader(write_checkpoint(tmp_path_factory.mktemp("c") / "c", cuts=cuts))
    numel = min(numel, 10 - start)
    assert reader.read("weight", "w", start=start, numel=numel).tolist() == list(range(start, start + numel))


def test_all_weights_come_in_their_shapes(tmp_path: Path) -> None:
    weights = CheckpointReader(write_checkpoint(tmp_path / "c", cuts=(1, 2, 7))).weights()
    assert weights.keys() == WEIGHTS.keys()
    assert all(weights[name].equal(WEIGHTS[name]) for name in WEIGHTS)


def test_the_optimisers_tensors_are_told_apart_from_the_weights(tmp_path: Path) -> None:
    assert CheckpointReader(write_checkpoint(tmp_path / "plain")).optimizer_keys("b") == []
    reader = CheckpointReader(write_checkpoint(tmp_path / "adam", kinds=("weight", "exp_avg_sq", "exp_avg")))
    assert reader.optimizer_keys("b") == ["exp_avg", "exp_avg_sq"]
    assert reader.read("exp_avg", "b", start=1, numel=2).tolist() == [208.0, 209.0]
    assert reader.shared["optimizer_scalars"] == {"step": 3.0}


def test_elements_that_nobody_saved_are_refused(tmp_path: Path) -> None:
    reader = CheckpointReader(write_checkpoint(tmp_path / "c"))
    with pytest.raises(UserError, match=r"weight of w holds 2 of the elements 8\.\.12; .* belongs to another model"):
        reader.read("weight", "w", start=8, numel=4)
    with pytest.raises(UserError, match=r"weight of other holds 0 of the elements 0\.\.1"):
        reader.read("weight", "other", start=0, numel=1)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state\.json: no readable checkpoint .*; name a step-\* folder"):
        CheckpointReader(tmp_path)


def test_a_tensor_file_that_cannot_be_written_is_the_systems_refusal(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the reason is the system's own
        write_partition(tmp_path / "missing", {}, rank=0, world_size=1)
    assert str(caught.value.filename).endswith("missing/partition-00000-of-00001.safetensors")
