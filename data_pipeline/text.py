"""Raw text as documents: files are cut into chunks of whole documents, and a chunk is parsed into strings.

Cutting touches each byte once and costs little, so that one process can feed many; parsing is done wherever a
chunk is used. Where chunks begin and end depends on the files alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import orjson

from data_pipeline.inputs import InputFile
from data_pipeline.lines import line_pieces, paragraph_pieces, too_long
from data_pipeline.records import Record, read_records
from data_pipeline.streams import byte_blocks
from trainer.errors import UserError

DocumentRule = Literal["line", "blank-line"]
DEFAULT_MAX_DOCUMENT_BYTES = 64 << 20

_UTF8_MARK = b"\xef\xbb\xbf"
_JSON = json.JSONDecoder()
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class TextOptions:
    """How documents are told apart: in .txt by line or blank line, in records by the field that holds the text."""

    document: DocumentRule = "line"
    text_field: str = "text"
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES


@dataclass(frozen=True)
class LineChunk:
    """Whole lines of a text or JSON-lines file; `first_line` counts from 1, `offset` in uncompressed bytes from 0."""

    path: str
    is_json: bool
    payload: bytes
    first_line: int
    offset: int
    input_position: int


@dataclass(frozen=True)
class RecordChunk:
    """Records of a parquet file or a tar, each with the name by which an error can point to it."""

    path: str
    records: tuple[Record, ...]
    input_position: int


Chunk = LineChunk | RecordChunk


def read_chunks(file: InputFile, *, options: TextOptions) -> Iterator[Chunk]:
    """One input file as chunks of about a megabyte; `input_position` says how many of its bytes are behind.

    Raises UserError for a damaged file and for a document over the limit.
    """
    with file.open() as handle:
        if file.kind in ("text", "json"):
            yield from _line_chunks(handle, file=file, options=options)
        else:
            for records, position in read_records(
                handle, file=file, text_field=options.text_field, max_document_bytes=options.max_document_bytes
            ):
                yield RecordChunk(str(file.path), tuple(records), position)


def parse_chunk(chunk: Chunk, *, options: TextOptions) -> list[str]:
    """The documents of a chunk, in order, stripped of outer white space; blank lines are no documents.

    Raises UserError for invalid UTF-8 (line and byte), for JSON that does not parse or lacks the text field as a
    string, and for a document over the limit.
    """
    if isinstance(chunk, RecordChunk):
        return [_record_text(chunk.path, record, options=options) for record in chunk.records]
    if chunk.is_json:
        if (texts := _json_texts_if_plain(chunk, options=options)) is not None:
            return texts
        numbered = [(number, line) for number, line in enumerate(_lines(chunk), chunk.first_line) if line]
        return [_json_text(line, where=f"{chunk.path}:{number}", options=options) for number, line in numbered]
    parts = _PARAGRAPH_BREAK.split("\n".join(_lines(chunk))) if options.document == "blank-line" else _lines(chunk)
    documents = [stripped for part in parts if (stripped := part.strip())]
    # A chunk that is itself within the limit holds no document beyond it.
    if len(chunk.payload) > options.max_document_bytes:
        _check_sizes(documents, chunk=chunk, options=options)
    return documents


def iter_documents(files: Sequence[InputFile], *, options: TextOptions) -> Iterator[str]:
    """Every document of the input, in order."""
    for file in files:
        for chunk in read_chunks(file, options=options):
            yield from parse_chunk(chunk, options=options)


def check_options(files: Sequence[InputFile], *, options: TextOptions) -> None:
    """Refuse an option that no file of the input would heed; raises UserError."""
    if options.document == "blank-line" and not any(file.kind == "text" for file in files):
        raise UserError(f"--document blank-line applies to .txt only, and {files[0].path} is none; leave it out")


def _line_chunks(handle: BinaryIO, *, file: InputFile, options: TextOptions) -> Iterator[LineChunk]:
    limit = options.max_document_bytes
    pieces = line_pieces(byte_blocks(handle, file=file), path=file.path, max_document_bytes=limit)
    if file.kind == "text" and options.document == "blank-line":
        pieces = paragraph_pieces(pieces, path=file.path, max_document_bytes=limit)
    first_line, offset = 1, 0
    for piece in pieces:
        yield LineChunk(str(file.path), file.kind == "json", piece, first_line, offset, handle.tell())
        first_line += piece.count(b"\n")
        offset += len(piece)


def _lines(chunk: LineChunk) -> list[str]:
    """The chunk's lines, stripped.

    Each is decoded by itself: most are pure ASCII, which Python then keeps and handles in a quarter of the space.
    """
    marked = chunk.offset == 0 and chunk.payload.startswith(_UTF8_MARK)
    lines = (chunk.payload[len(_UTF8_MARK) :] if marked else chunk.payload).split(b"\n")
    try:
        return [line.decode("utf-8").strip() for line in lines]
    except UnicodeDecodeError:
        raise _invalid_utf8(chunk) from None


def _json_texts_if_plain(chunk: LineChunk, *, options: TextOptions) -> list[str] | None:
    """The documents of a chunk of JSON lines, or None where any line needs a closer look.

    orjson takes half the time of json and never gives half a surrogate pair; what it refuses, and why, is said
    line by line by `_json_text`, which also takes what only Python's json does (NaN).
    """
    if len(chunk.payload) > options.max_document_bytes // 4 or chunk.payload.startswith(_UTF8_MARK):
        return None
    field = options.text_field
    lines = chunk.payload.split(b"\n")
    try:
        return [orjson.loads(line)[field].strip() for line in lines if line and not line.isspace()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _invalid_utf8(chunk: LineChunk) -> UserError:
    try:
        chunk.payload.decode("utf-8")
    except UnicodeDecodeError as error:
        line = chunk.first_line + chunk.payload.count(b"\n", 0, error.start)
        found = f"0x{chunk.payload[error.start]:02x}: {error.reason}"
        place = f"{chunk.path}:{line}: invalid UTF-8 at byte {chunk.offset + error.start} of the text ({found})"
        return UserError(f"{place}; convert the file to UTF-8")
    raise AssertionError("every line of valid UTF-8 is valid UTF-8")


def _json_text(line: str, *, where: str, options: TextOptions) -> str:
    """The text field of one JSON object."""
    try:
        record, end = _JSON.raw_decode(line)
        if end != len(line):
            raise json.JSONDecodeError("Extra data", line, end)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: JSON does not parse: {error}; each line must be one JSON object") from error
    field = options.text_field
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, where an object with the field {field!r} is needed")
    if field not in record:
        known = ", ".join(map(repr, list(record)[:8]))
        raise UserError(f"{where}: no field {field!r}; the fields are {known or 'none'}: name one by --text-field")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: the field {field!r} is {type(text).__name__}, not a string; each text is one string")
    if not text.isascii():
        _check_surrogates(text, where=where)
    if len(line) > options.max_document_bytes // 4 and (size := len(text.encode())) > options.max_document_bytes:
        raise too_long(where, size=size, max_document_bytes=options.max_document_bytes)
    return text.strip()


def _record_text(path: str, record: Record, *, options: TextOptions) -> str:
    where = f"{path}: {record.name}"
    try:
        text = record.payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: invalid UTF-8 at byte {error.start} ({error.reason}); convert the text to UTF-8"
        ) from error
    return _json_text(text.strip(), where=where, options=options) if record.is_json else text.strip()


def _check_surrogates(text: str, *, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a surrogate pair (\\u{ord(text[error.start]):04x}) at character {error.start} is no text; "
            "mend or remove it"
        ) from error


def _check_sizes(documents: list[str], *, chunk: LineChunk, options: TextOptions) -> None:
    for document in documents:
        size = len(document.encode("utf-8"))
        if size > options.max_document_bytes:
            text = "\n".join(_lines(chunk))
            where = f"{chunk.path}:{chunk.first_line + text.count(chr(10), 0, text.index(document))}"
            raise too_long(where, size=size, max_document_bytes=options.max_document_bytes)
