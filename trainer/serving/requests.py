"""What a request to `/predict` may hold, and how it becomes records."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from trainer.errors import UserError
from trainer.tasks.examples import Record
from trainer.tasks.task import RecordReader
from trainer.tasks.text_lines import decode_line

_FORM = 'the body must be {"inputs": a text, or a list of texts and of pairs [text, text]}'


class RequestError(Exception):
    """A request that is answered with an HTTP status and one line: 413 for size, 422 for content, 503 for load."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


def read_records(body: bytes, *, reader: RecordReader, max_texts: int) -> list[Record]:
    """The records of a request's body, each read as `trainer predict` reads a line; RequestError for a bad one."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise RequestError(422, f"not JSON ({error}); {_FORM}") from None
    if not isinstance(content, dict) or content.keys() != {"inputs"}:
        raise RequestError(422, f"another form than is known; {_FORM}")
    inputs = content["inputs"] if isinstance(content["inputs"], list) else [content["inputs"]]
    if not inputs:
        raise RequestError(422, f"inputs is empty; {_FORM}")
    if len(inputs) > max_texts:
        raise RequestError(413, f"{len(inputs)} inputs, and one request may hold {max_texts}; send several requests")
    return [_record(value, reader=reader, where=f"inputs[{number}]") for number, value in enumerate(inputs)]


def _record(value: Any, *, reader: RecordReader, where: str) -> Record:
    parts = value if isinstance(value, list) else [value]
    is_pair = isinstance(value, list)
    if not all(isinstance(part, str) for part in parts) or (is_pair and len(parts) != 2):
        raise RequestError(422, f"{where}: neither a text nor a pair [text, text]")
    if is_pair and any("\t" in part for part in parts):
        raise RequestError(422, f"{where}: a text of a pair holds a tab; put a blank there")
    try:
        record = reader.from_line(decode_line("\t".join(parts).encode(), where=where), where=where)
    except UserError as error:
        raise RequestError(422, str(error)) from None
    if is_pair and record.inputs != tuple(part.strip() for part in parts):
        raise RequestError(422, f"{where}: a pair, and this run was trained on single texts; send a text")
    return record
