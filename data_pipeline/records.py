"""Texts that come as records rather than lines: the rows of a parquet file, the samples of a WebDataset tar."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.inputs import InputFile
from data_pipeline.lines import too_long
from trainer.errors import UserError

CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 1024


class Record(NamedTuple):
    """One text as stored; `name` points to it in an error, `is_json` says that the text is a field of an object."""

    name: str
    payload: bytes
    is_json: bool


def read_records(
    handle: BinaryIO, *, file: InputFile, text_field: str, max_document_bytes: int
) -> Iterator[tuple[list[Record], int]]:
    """Records of an open parquet file or tar in lists of about a megabyte, each with the file position behind it.

    Raises UserError for a damaged file, a missing or non-text column, a tar without texts, a text over the limit.
    """
    rows = _parquet_records if file.kind == "parquet" else _tar_records
    held: list[Record] = []
    held_bytes = position = 0
    for record, position in rows(handle, file, text_field, max_document_bytes):
        held.append(record)
        held_bytes += len(record.payload)
        if held_bytes >= CHUNK_BYTES:
            yield held, position
            held, held_bytes = [], 0
    if held:
        yield held, position


def _parquet_records(
    handle: BinaryIO, file: InputFile, text_field: str, max_document_bytes: int
) -> Iterator[tuple[Record, int]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file.path} needs pyarrow, which is missing: pip install 'bertline[parquet]'") from error
    try:
        table = pq.ParquetFile(handle)
        _check_column(table.schema_arrow, pa=pa, file=file, text_field=text_field)
        rows_before = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
            # As bytes, so that invalid UTF-8 is found where all text is decoded, and named.
            texts = batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            for row, text in enumerate(texts, rows_before + 1):
                where = f"{file.path}: row {row}"
                if text is None:
                    raise UserError(f"{where}: the column {text_field!r} is null; remove the row or fill it")
                if len(text) > max_document_bytes:
                    raise too_long(where, size=len(text), max_document_bytes=max_document_bytes)
                yield Record(f"row {row}", text, False), file.size * row // table.metadata.num_rows
            rows_before += len(texts)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path} is not a whole parquet file: {error}; fetch or make it again") from error


def _check_column(schema: Any, *, pa: Any, file: InputFile, text_field: str) -> None:
    if text_field not in schema.names:
        known = ", ".join(map(repr, schema.names[:8]))
        raise UserError(f"{file.path}: no column {text_field!r}; the columns are {known}: name one by --text-field")
    column = schema.field(text_field).type
    plain = column.value_type if pa.types.is_dictionary(column) else column
    if not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        raise UserError(f"{file.path}: the column {text_field!r} holds {column}, not strings; name one by --text-field")


def _tar_records(
    handle: BinaryIO, file: InputFile, text_field: str, max_document_bytes: int
) -> Iterator[tuple[Record, int]]:
    _check_tar_end(handle, file=file)
    found = False
    try:
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            for _, members in itertools.groupby(_tar_files(archive), key=_sample_key):
                texts = {_extension(member): member for member in members}
                # A sample with both is a text with its description.
                extension = "txt" if "txt" in texts else "json"
                if extension not in texts:
                    continue
                found = True
                member = texts[extension]
                if member.size > max_document_bytes:
                    where = f"{file.path}: member {member.name}"
                    raise too_long(where, size=member.size, max_document_bytes=max_document_bytes)
                stream = archive.extractfile(member)
                assert stream is not None, "regular files only"
                yield Record(f"member {member.name}", stream.read(), extension == "json"), archive.offset
    except tarfile.TarError as error:
        raise UserError(f"{file.path} is not a whole tar: {error}; fetch or make it again") from error
    if not found:
        raise UserError(f"{file.path} holds no .txt or .json member; a WebDataset of text has one for each document")


def _tar_files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        # The archive would otherwise remember every member it has passed.
        archive.members = []  # type: ignore[attr-defined]
        if member.isfile():
            yield member


def _check_tar_end(handle: BinaryIO, *, file: InputFile) -> None:
    """A tar cut between two members is read without complaint; only the blocks of zeros at its end show it whole."""
    end = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, end - 2 * tarfile.BLOCKSIZE))
    tail = handle.read()
    handle.seek(0)
    if len(tail) < 2 * tarfile.BLOCKSIZE or any(tail):
        raise UserError(f"{file.path} is not a whole tar: it has no end mark; fetch or make it again")


def _sample_key(member: tarfile.TarInfo) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}"


def _extension(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()
