"""Which files a command reads: paths, URLs, folders and globs become one ordered list of input files."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from data_pipeline.remote_text import RemoteFile, find_remote
from trainer.errors import UserError
from trainer.places import remote_scheme

Kind = Literal["text", "json", "parquet", "tar"]
Compression = Literal["none", "gzip", "zstd"]

_FORMATS: dict[str, tuple[Kind, Compression]] = {
    ".txt": ("text", "none"),
    ".txt.gz": ("text", "gzip"),
    ".txt.zst": ("text", "zstd"),
    ".jsonl": ("json", "none"),
    ".jsonl.gz": ("json", "gzip"),
    ".jsonl.zst": ("json", "zstd"),
    ".parquet": ("parquet", "none"),
    ".tar": ("tar", "none"),
}


@dataclass(frozen=True)
class InputFile:
    """One file of raw text; `size` in bytes as it is stored.

    `version` is another when the file was written to: nanoseconds since 1970, or what the source tells of it (an ETag).
    """

    path: Path | RemoteFile
    kind: Kind
    compression: Compression
    size: int
    version: int | str = field(default=0, compare=False)

    @property
    def place(self) -> str:
        """The absolute path, links followed, or the URL."""
        return str(self.path.resolve()) if isinstance(self.path, Path) else str(self.path)

    def open(self) -> BinaryIO:
        """The file's bytes as they are stored, from any position."""
        return self.path.open("rb") if isinstance(self.path, Path) else self.path.open()


def expand_inputs(paths: Sequence[str | Path]) -> list[InputFile]:
    """The input files in reading order: in the order of `paths`, each folder or glob sorted by name.

    A folder is searched to its full depth for files of a known suffix; other files in it are left alone. Raises
    UserError for a missing path, a glob or folder without text, an unknown suffix, an empty file, a file named twice,
    a URL of a scheme that is not read, and a source on the network that stays away.
    """
    if not paths:
        raise UserError("no input was named; give at least one file, folder or glob")
    named_by: dict[str, str] = {}
    files = []
    for given in map(str, paths):
        for path in _expand(given):
            file = _input_file(path)
            if file.place in named_by:
                raise UserError(
                    f"{path} is named twice in the input, by {named_by[file.place]} and by {given}; "
                    "each document may be read once: remove one of them"
                )
            named_by[file.place] = given
            files.append(file)
    return files


def _expand(given: str) -> Iterator[Path | RemoteFile]:
    path = Path(given)
    if _is_remote(given):
        yield from find_remote(given, suffixes=tuple(_FORMATS))
    elif path.is_dir():
        yield from _text_files(path)
    elif path.exists():
        yield path
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise UserError(f"the glob {given} matches no file; check its spelling and the folder it starts from")
        for match in map(Path, matches):
            yield from _text_files(match) if match.is_dir() else [match]
    else:
        raise UserError(f"{given} does not exist; name a file, a folder or a glob")


def _is_remote(given: str) -> bool:
    try:
        return remote_scheme(given) is not None
    except ValueError as error:
        raise UserError(str(error)) from error


def _text_files(folder: Path) -> list[Path]:
    files = sorted(path for path in _visible_files(folder, above=()) if _format(path) is not None)
    if not files:
        raise UserError(f"the folder {folder} holds no text; it needs files ending in {_known_suffixes()}")
    return files


def _visible_files(folder: Path, *, above: tuple[Path, ...]) -> Iterator[Path]:
    """Files below a folder, linked folders too; hidden ones (`.ipynb_checkpoints`, `._a.txt`) are no text of ours."""
    real = folder.resolve()
    if real in above:
        raise UserError(f"{folder} links to a folder that it lies in; remove the link")
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _visible_files(path, above=(*above, real))
        elif path.is_file():
            yield path


def _input_file(path: Path | RemoteFile) -> InputFile:
    known = _format(path)
    if known is None:
        raise UserError(f"{path} has an unknown suffix; text is read from files ending in {_known_suffixes()}")
    size, version = _state(path) if isinstance(path, Path) else (path.state.size, path.state.version)
    if size == 0:
        raise UserError(f"{path} is empty; remove it or fill it")
    return InputFile(path, *known, size, version)


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a local file."""
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; its text could not be read twice")
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _format(path: Path | RemoteFile) -> tuple[Kind, Compression] | None:
    name = path.name.lower()
    return next((known for suffix, known in _FORMATS.items() if name.endswith(suffix)), None)


def _known_suffixes() -> str:
    return " ".join(_FORMATS)
