"""A checkpoint folder on disk: its files, their checksums, and reading parameters back from any layout's pieces.

step-00000100/
    partition-00000-of-00002.safetensors   each rank's fragments of weights, their average and optimiser state
    state.json                             everything else: counters, cursor, shapes, scalers, recipe
    checksums.json                         size and crc32 of every other file; written last
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trainer.errors import UserError, refusals_of
from trainer.fragments import AVERAGE, WEIGHT
from trainer.model.safetensors_file import write_safetensors

SCHEMA_VERSION = 1
STATE_FILE = "state.json"
CHECKSUMS_FILE = "checksums.json"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class FileRecord:
    """Name, size in bytes and crc32 of a written file."""

    name: str
    bytes: int
    crc32: int


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> FileRecord:
    """Write a JSON file durably and atomically: it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with refusals_of(path, written_as=temporary):
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    return record_file(path)


def write_partition(folder: Path, tensors: dict[str, Tensor], *, rank: int, world_size: int) -> FileRecord:
    """Write one rank's fragments durably."""
    path = folder / f"partition-{rank:05d}-of-{world_size:05d}.safetensors"
    write_safetensors(path, tensors)
    fsync_path(path)
    return record_file(path)


def record_file(path: Path) -> FileRecord:
    """Size and crc32 of a file as it lies on disk."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return FileRecord(name=path.name, bytes=size, crc32=crc)


def seal(folder: Path, records: list[FileRecord]) -> None:
    """Write the checksums, which make the folder a checkpoint."""
    files = {record.name: {"bytes": record.bytes, "crc32": record.crc32} for record in records}
    write_json(folder / CHECKSUMS_FILE, {"schema_version": SCHEMA_VERSION, "files": files})


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, naming the file, or None when every checksum holds."""
    try:
        sealed = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        version = sealed["schema_version"]
        files = [FileRecord(name, **expected) for name, expected in sealed["files"].items()]
    except FileNotFoundError:
        return f"{CHECKSUMS_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS_FILE} cannot be read"
    if version != SCHEMA_VERSION:
        return f"its format is version {version}, this program reads version {SCHEMA_VERSION}"
    for expected in files:
        path = folder / expected.name
        if not path.is_file():
            return f"{expected.name} is missing"
        if path.stat().st_size != expected.bytes:
            return f"{expected.name} has {path.stat().st_size} bytes instead of {expected.bytes}"
        if record_file(path).crc32 != expected.crc32:
            return f"{expected.name} does not match its checksum"
    return None if STATE_FILE in {expected.name for expected in files} else f"{CHECKSUMS_FILE} cannot be read"


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint so that a half-removed one is never taken for whole: the seal goes first."""
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class CheckpointReader:
    """Reads one sealed checkpoint, whatever the layout that wrote it; does not check checksums (`find_damage`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.state: Mapping[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / STATE_FILE}: no readable checkpoint ({error}); name a step-* folder") from error
        # Typed as Any: safetensors' file objects carry no types.
        self._files: list[Any] = [
            safe_open(path, framework="pt") for path in sorted(folder.glob("partition-*-of-*.safetensors"))
        ]
        # (kind, parameter) -> its fragments as (first element, element behind the last, file number, key)
        self._pieces: dict[tuple[str, str], list[tuple[int, int, int, str]]] = defaultdict(list)
        for number, file in enumerate(self._files):
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                kind, name, start = key.rsplit("|", 2)
                numel = file.get_slice(key).get_shape()[0]
                self._pieces[kind, name].append((int(start), int(start) + numel, number, key))
        for pieces in self._pieces.values():
            pieces.sort()

    @property
    def shared(self) -> Mapping[str, Any]:
        """What the engine saved once for all ranks."""
        shared: Mapping[str, Any] = self.state["engine"]
        return shared

    def optimizer_keys(self, name: str) -> list[str]:
        """The optimiser's tensors of a parameter by key, empty when nothing had been updated yet."""
        return sorted({kind for kind, of in self._pieces if of == name} - {WEIGHT, AVERAGE})

    @property
    def has_average(self) -> bool:
        """Whether the run kept a moving average of its weights."""
        return any(kind == AVERAGE for kind, _ in self._pieces)

    def read(self, kind: str, name: str, *, start: int, numel: int) -> Tensor:
        """Elements [start, start + numel) of a flattened parameter's weight or optimiser state, fp32."""
        end = start + numel
        result = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for piece_start, piece_end, number, key in self._pieces[kind, name]:
            low, high = max(start, piece_start), min(end, piece_end)
            if low < high:
                part = self._files[number].get_slice(key)[low - piece_start : high - piece_start]
                result[low - start : high - start] = part
                filled += high - low
        if filled != numel:
            raise UserError(
                f"{self.folder}: {kind} of {name} holds {filled} of the elements {start}..{end}; "
                "the checkpoint belongs to another model"
            )
        return result

    def weights(self) -> dict[str, Tensor]:
        """All fp32 master weights by parameter name, in their shapes: what training goes on from."""
        return self._whole(WEIGHT)

    def evaluation_weights(self) -> dict[str, Tensor]:
        """What is evaluated and exported: the weights' moving average where the run kept one, else the weights."""
        return self._whole(AVERAGE if self.has_average else WEIGHT)

    def _whole(self, kind: str) -> dict[str, Tensor]:
        shapes: dict[str, list[int]] = self.shared["parameter_shapes"]
        return {
            name: self.read(kind, name, start=0, numel=_numel(shape)).reshape(shape) for name, shape in shapes.items()
        }


def _numel(shape: list[int]) -> int:
    numel = 1
    for size in shape:
        numel *= size
    return numel
