"""Lines of a text file as strings with their numbers; anything that is not UTF-8 is refused by line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError

_UTF8_MARK = b"\xef\xbb\xbf"


def read_bytes(path: Path) -> bytes:
    """A file's content, unpacked where it ends in .gz; UserError when it is missing, empty or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name a file of examples")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error}); pack or copy it again") from None
    if not content.strip():
        raise UserError(f"{path}: the file is empty; it must hold at least one example")
    return content


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number from 1, without its end; blank lines too. UserError where a line is not UTF-8."""
    lines = read_bytes(path).removeprefix(_UTF8_MARK).rstrip(b"\r\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        yield number, decode_line(line, where=f"{path}:{number}")


def decode_line(line: bytes, *, where: str) -> str:
    """A line's text without its end; UserError where it is not UTF-8 or holds a zero byte (UTF-16, most likely)."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 at byte {error.start} of the line (0x{line[error.start]:02x}); convert it to UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{where}: a zero byte, as in UTF-16; convert the file to UTF-8")
    return text.rstrip("\r\n")
