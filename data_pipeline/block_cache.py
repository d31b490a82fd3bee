"""A bounded cache of byte ranges on the local disk, which the processes of one host may share.

An entry's name is its content's: the tar's SHA-256 and the range. Entries appear whole or not at all. They are not
trusted: a reader checks what it gets as if it came from the network, and discards what is damaged.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from data_pipeline.atomic import TEMPORARY_SUFFIX, refused_writes

_ENTRY_SUFFIX = ".range"
# A process looks at the whole folder when it has written this share of the bound since it last looked, and then makes
# as much room as eight processes need until they look again.
_LOOK_SHARE = 64
_ROOM_SHARE = 8
_ABANDONED_S = 3600.0


def write_shared(path: Path, content: bytes) -> None:
    """Write a file that several processes may be writing at once, whole or not at all; raises UserError."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    with refused_writes(path, kept="choose another data.cache.folder or a smaller data.cache.max_gib"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


class BlockCache:
    """Ranges of tars in `folder`, together at most `max_bytes`; the least recently used go first."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._unseen_bytes = max_bytes  # What others left here is looked at by the first write.

    def get(self, sha256: str, *, start: int, end: int) -> bytes | None:
        """The range if it is here, and whatever its file now holds; None otherwise."""
        path = self._path(sha256, start, end)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            # Another process may have made room in between; a disk that cannot read it is no better than none.
            return None
        return content

    def holds(self, sha256: str, *, start: int, end: int) -> bool:
        """Whether the range is here, whatever its file now holds."""
        return self._path(sha256, start, end).exists()

    def put(self, sha256: str, content: bytes, *, start: int, end: int) -> None:
        """Keep a range, and make room where that is due; raises UserError when the disk refuses."""
        if len(content) > self._max_bytes // _ROOM_SHARE:
            return
        write_shared(self._path(sha256, start, end), content)
        self._unseen_bytes += len(content)
        if self._unseen_bytes * _LOOK_SHARE >= self._max_bytes:
            self._make_room()

    def discard(self, sha256: str, *, start: int, end: int) -> None:
        """Forget a range."""
        self._path(sha256, start, end).unlink(missing_ok=True)

    def _path(self, sha256: str, start: int, end: int) -> Path:
        return self._folder / f"{sha256}-{start}-{end}{_ENTRY_SUFFIX}"

    def _make_room(self) -> None:
        with (self._folder / ".lock").open("a") as lock:
            # Waited for, so that whoever wrote last sees what all wrote.
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._unseen_bytes = 0
            entries = self._entries()
            total = sum(size for _, size, _ in entries)
            if total <= self._max_bytes - self._max_bytes // _ROOM_SHARE:
                return
            for _, size, path in sorted(entries):
                if total <= self._max_bytes - self._max_bytes // _ROOM_SHARE:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use in seconds, bytes, path) of every entry; what a killed process left half written is removed."""
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _ENTRY_SUFFIX:
                    found.append((status.st_mtime, status.st_size, path))
                elif path.suffix == TEMPORARY_SUFFIX and time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
        return found
