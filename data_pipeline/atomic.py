"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """The name a file has while it is being written; a reader never looks for it."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


@contextmanager
def refused_writes(path: Path, *, kept: str) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` (full disk, quota, permission) into one line.

    `kept` says what of the work done so far survives. Raises UserError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} could not be written: {reason}; {kept}: mend that, then run the same again") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path) -> None:
    """Give the flushed temporary file of `path` its final name, durably."""
    temporary_path(path).replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes, *, kept: str = "nothing else was changed") -> None:
    """Write a small file whole or not at all; raises UserError naming `path` and what is `kept`."""
    temporary = temporary_path(path)
    with refused_writes(path, kept=kept):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        publish(path)
