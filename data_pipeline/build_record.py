"""What a folder of shards is being built from: kept beside the shards, so that a restart goes on with the same."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from data_pipeline.atomic import TEMPORARY_SUFFIX, refused_writes, write_atomically
from data_pipeline.inputs import InputFile
from data_pipeline.manifest import MANIFEST_FILE
from data_pipeline.streams import BLOCK_BYTES
from trainer.errors import UserError

RECORD_FILE = "build.json"
LOCK_FILE = "build.lock"
_NOTHING_BUILT = "nothing was built"


@dataclass(frozen=True)
class BuildRecord:
    """Everything that decides the shards' bytes; `inputs` are (place, bytes, version) of each InputFile in order."""

    inputs: tuple[tuple[str, int, int | str], ...]
    tokenizer_sha256: str
    shard_tokens: int
    block_tokens: int
    validation_fraction: float
    document: str
    text_field: str
    word_starts: str = "vocabulary"
    deduplicate: bool = False
    chunk_bytes: int = BLOCK_BYTES

    @classmethod
    def of(
        cls,
        files: Sequence[InputFile],
        *,
        tokenizer_sha256: str,
        shard_tokens: int,
        block_tokens: int,
        validation_fraction: float,
        document: str,
        text_field: str,
        word_starts: str,
        deduplicate: bool,
    ) -> BuildRecord:
        """The record of a build from these files."""
        return cls(
            inputs=tuple((file.place, file.size, file.version) for file in files),
            tokenizer_sha256=tokenizer_sha256,
            shard_tokens=shard_tokens,
            block_tokens=block_tokens,
            validation_fraction=validation_fraction,
            document=document,
            text_field=text_field,
            word_starts=word_starts,
            deduplicate=deduplicate,
        )


def read_record(folder: Path) -> BuildRecord | None:
    """What the shards in `folder` were built from; None where no record lies beside them, or one of another version."""
    try:
        content = json.loads((folder / RECORD_FILE).read_bytes())
        inputs = tuple((place, size, version) for place, size, version in content["inputs"])
        return BuildRecord(**{**content, "inputs": inputs})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def begin_build(folder: Path, *, record: BuildRecord) -> Iterator[bool]:
    """Hold a shard folder for one build; gives whether a build of the same record is already finished there.

    Raises UserError when another process builds there, and when the folder holds anything but a build of `record` or
    one that has finished no shard yet.
    """
    with refused_writes(folder, kept=_NOTHING_BUILT):
        folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder)
    with refused_writes(folder / LOCK_FILE, kept=_NOTHING_BUILT):
        lock = (folder / LOCK_FILE).open("w")
    with lock:
        _lock(lock, folder=folder)
        _begin_or_compare(folder, record=record)
        for left_over in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            left_over.unlink()
        yield (folder / MANIFEST_FILE).is_file()


def _lock(file: IO[str], *, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is building in {folder}; wait for it, or choose another --out") from error
    except OSError as error:
        # Some cluster file systems have no locks; this one only guards against starting the same build twice.
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise


def _check_folder(folder: Path) -> None:
    """A folder is ours when it has our record, or nothing but what a build leaves before it writes that."""
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(name for name in names - {LOCK_FILE} if not name.endswith(TEMPORARY_SUFFIX))
    if RECORD_FILE not in names and foreign:
        raise UserError(
            f"{folder} holds other files ({foreign[0]}) and no {RECORD_FILE}; choose a new folder for --out"
        )


def _begin_or_compare(folder: Path, *, record: BuildRecord) -> None:
    path = folder / RECORD_FILE
    wanted = json.loads(json.dumps(asdict(record)))
    # Where no shard was finished, a build that was refused for its text leaves nothing to go on with.
    if not path.exists() or not any(folder.glob("*.tar")):
        write_atomically(path, (json.dumps(wanted, indent=2, sort_keys=True) + "\n").encode(), kept=_NOTHING_BUILT)
        return
    try:
        begun = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; remove {folder} and build again") from error
    for name, value in wanted.items():
        if not isinstance(begun, dict) or begun.get(name) != value:
            was = begun.get(name) if isinstance(begun, dict) else begun
            difference = _first_difference(was, value) if name == "inputs" else f"{name} was {was}, now {value}"
            raise UserError(
                f"{folder} was begun with other settings: {difference}; use the same, choose another --out, "
                f"or remove {folder}"
            )


def _first_difference(was: object, now: list[list[object]]) -> str:
    """Which input file is new, gone or changed; a file counts as changed when its size or version did."""
    before = was if isinstance(was, list) else []
    for number, (old, new) in enumerate(zip(before, now, strict=False)):
        if old[:2] == new[:2] and old != new:
            return f"input file {number + 1}, {new[0]}, was written to since"
        if old != new:
            return f"input file {number + 1} was {old[0]} ({old[1]:,} bytes), now {new[0]} ({new[1]:,} bytes)"
    return f"the input was {len(before)} files, now {len(now)}"
