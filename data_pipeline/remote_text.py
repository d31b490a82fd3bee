"""Raw text on the network: which files a URL names, and their bytes as an ordinary file that can be read anywhere."""

from __future__ import annotations

import glob
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from data_pipeline.retry import OPENING, READING
from data_pipeline.storage import FileState, RemoteFolder
from trainer.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Of one request: long against the way to the server and back, short against what a broken connection costs.
REQUEST_BYTES = 8 << 20
_COPY_BYTES = 1 << 16
_LISTED = ("s3", "gs")


@dataclass(frozen=True)
class RemoteFile:
    """A file of raw text in the host or bucket `remote`, and what it was when it was found."""

    remote: RemoteFolder
    name: str
    state: FileState

    def __str__(self) -> str:
        return self.remote.url_of(self.name)

    def open(self) -> BinaryIO:
        """The file's bytes, fetched as they are read; a read raises UserError when the file is not what was found."""
        return io.BufferedReader(_Ranges(self), _COPY_BYTES)


def find_remote(url: str, *, suffixes: Sequence[str]) -> list[RemoteFile]:
    """The files of text that a URL names, sorted by name.

    A URL that ends in one of `suffixes` is a file. Under s3:// and gs://, others are folders, searched to their full
    depth for such files, or globs in which `*` stays within a folder's name and `**` stands for any folders; a folder
    that a glob matches is searched. Raises UserError.
    """
    scheme, _, rest = url.rstrip("/").partition("://")
    scheme = scheme.lower()
    host, _, path = rest.partition("/")
    opening, reading = (RemoteFolder(f"{scheme}://{host}", policy=policy) for policy in (OPENING, READING))
    if not glob.has_magic(path) and path.lower().endswith(tuple(suffixes)):
        return [RemoteFile(reading, path, opening.state(path))]
    if scheme not in _LISTED:
        raise UserError(
            f"{url} names no file ending in {' '.join(suffixes)}, and a {scheme} server lists neither folders nor "
            "globs; name each file"
        )
    wanted = path.split("/") if path else []
    fixed = next((number for number, part in enumerate(wanted) if glob.has_magic(part)), len(wanted))
    found = opening.find("/".join(wanted[:fixed]))
    files = [
        RemoteFile(reading, name, state)
        for name, state in found.items()
        if _is_wanted(name.split("/"), wanted, fixed=fixed, suffixes=tuple(suffixes))
    ]
    if not files:
        raise UserError(f"{url} names no text; it needs files ending in {' '.join(suffixes)}")
    return files


def _is_wanted(parts: list[str], wanted: list[str], *, fixed: int, suffixes: tuple[str, ...]) -> bool:
    """Whether a file is one that a glob matches, or one with text in a folder that it matches; hidden ones are not."""
    if any(part.startswith(".") for part in parts[fixed:]):
        return False
    if len(wanted) > fixed and _matches(parts, wanted):
        return True
    in_folder = any(_matches(parts[:depth], wanted) for depth in range(len(parts)))
    return in_folder and parts[-1].lower().endswith(suffixes)


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


class _Ranges(io.RawIOBase):
    """A remote file's bytes, fetched in pieces when they are read."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._position = 0
        # Two, for readers of tars go back across a border.
        self._piece = lru_cache(maxsize=2)(self._fetch)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.state.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._position >= self._file.state.size:
            return 0
        view = memoryview(buffer)
        number, within = divmod(self._position, REQUEST_BYTES)
        part = self._piece(number)[within : within + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _fetch(self, number: int) -> bytes:
        """One of the equal pieces that the file is fetched in."""
        file = self._file
        start = number * REQUEST_BYTES
        end = min(start + REQUEST_BYTES, file.state.size)
        content = file.remote.read_range(file.name, start=start, end=end, parse=bytes)
        # Pieces of two contents would make a third one.
        if len(content) < end - start or file.remote.state(file.name) != file.state:
            raise UserError(f"{file} was written to while it was read; run the same again when it is finished")
        return content
