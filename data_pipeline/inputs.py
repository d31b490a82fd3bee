"""Which files a command reads: paths, folders and globs become one ordered list of input files."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainer.errors import UserError

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
    """One file of raw text; `size` in bytes as it lies on the disk, `modified_ns` since 1970."""

    path: Path
    kind: Kind
    compression: Compression
    size: int
    modified_ns: int = field(default=0, compare=False)


def expand_inputs(paths: Sequence[str | Path]) -> list[InputFile]:
    """The input files in reading order: in the order of `paths`, each folder or glob sorted by name.

    A folder is searched to its full depth for files of a known suffix; other files in it are left alone. Raises
    UserError for a missing path, a glob or folder without text, an unknown suffix, an empty file, a file named twice.
    """
    if not paths:
        raise UserError("no input was named; give at least one file, folder or glob")
    named_by: dict[Path, str] = {}
    files = []
    for given in paths:
        for path in _expand(str(given)):
            real = path.resolve()
            if real in named_by:
                raise UserError(
                    f"{path} is named twice in the input, by {named_by[real]} and by {given}; "
                    "each document may be read once: remove one of them"
                )
            named_by[real] = str(given)
            files.append(_input_file(path))
    return files


def _expand(given: str) -> Iterator[Path]:
    path = Path(given)
    if path.is_dir():
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


def _input_file(path: Path) -> InputFile:
    known = _format(path)
    if known is None:
        raise UserError(f"{path} has an unknown suffix; text is read from files ending in {_known_suffixes()}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; its text could not be read twice")
    status = path.stat()
    if status.st_size == 0:
        raise UserError(f"{path} is empty; remove it or fill it")
    return InputFile(path, *known, status.st_size, status.st_mtime_ns)


def _format(path: Path) -> tuple[Kind, Compression] | None:
    name = path.name.lower()
    return next((known for suffix, known in _FORMATS.items() if name.endswith(suffix)), None)


def _known_suffixes() -> str:
    return " ".join(_FORMATS)
