"""Cutting a stream of bytes into pieces of whole lines or whole paragraphs, none of them unboundedly long."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.errors import UserError

_BLANK_LINE = re.compile(rb"^[ \t\r]*\n", re.MULTILINE)


def line_pieces(blocks: Iterator[bytes], *, path: object, max_document_bytes: int) -> Iterator[bytes]:
    """Regroup blocks of bytes so that every piece ends at a line's end (the last one may lack its newline).

    Raises UserError, naming the line and its size, for a line longer than `max_document_bytes`; no more than that
    is ever held.
    """
    held: list[bytes] = []
    held_bytes = 0
    lines_before = 0
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            piece = b"".join([*held, block[:end]])
            yield piece
            lines_before += piece.count(b"\n")
            held, held_bytes = [], 0
        held.append(block[end:])
        held_bytes += len(block) - end
        if held_bytes > max_document_bytes:
            size = held_bytes + _bytes_to_newline(blocks)
            raise too_long(f"{path}:{lines_before + 1}", size=size, max_document_bytes=max_document_bytes)
    if held_bytes:
        yield b"".join(held)


def paragraph_pieces(pieces: Iterator[bytes], *, path: object, max_document_bytes: int) -> Iterator[bytes]:
    """Regroup pieces of whole lines so that every piece ends at a blank line; limits and errors as `line_pieces`."""
    held: list[bytes] = []
    held_bytes = 0
    lines_before = 0
    for piece in pieces:
        end = max((found.end() for found in _BLANK_LINE.finditer(piece)), default=0)
        if end:
            group = b"".join([*held, piece[:end]])
            yield group
            lines_before += group.count(b"\n")
            held, held_bytes = [], 0
        held.append(piece[end:])
        held_bytes += len(piece) - end
        if held_bytes > max_document_bytes:
            raise too_long(f"{path}:{lines_before + 1}", size=held_bytes, max_document_bytes=max_document_bytes)
    if held_bytes:
        yield b"".join(held)


def too_long(where: str, *, size: int, max_document_bytes: int) -> UserError:
    """The refusal of one document of `size` bytes or more at `where`."""
    return UserError(
        f"{where}: one document of {size:,} bytes is over --max-document-bytes {max_document_bytes:,}; "
        "split it into lines (or --document blank-line), or raise the limit"
    )


def _bytes_to_newline(blocks: Iterator[bytes]) -> int:
    count = 0
    for block in blocks:
        end = block.find(b"\n")
        if end >= 0:
            return count + end
        count += len(block)
    return count
