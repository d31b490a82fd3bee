"""Tables as records: tsv, csv, jsonl and parquet, whose columns the recipe names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import UserError
from trainer.tasks.text_lines import numbered_lines, read_bytes


class Row(NamedTuple):
    """One record by column name, and the place an error can point to: `dev.tsv:12`."""

    where: str
    values: Mapping[str, Any]

    def value(self, column: str) -> Any:
        """A column's value; UserError, naming the columns there are, where the record has none of that name."""
        if column not in self.values:
            there = ", ".join(map(repr, list(self.values)[:8])) or "none"
            raise UserError(f"{self.where}: no column {column!r}; the columns are {there}: name one in the recipe")
        return self.values[column]

    def text(self, column: str) -> str:
        """A column's text, stripped; UserError where it is empty or no string."""
        value = self.value(column)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: column {column!r} is {type(value).__name__}, not text")
        if not value.strip():
            raise UserError(f"{self.where}: column {column!r} is empty; fill it or remove the line")
        return value.strip()


def suffix_of(path: Path) -> str:
    """`.tsv` for both `a.tsv` and `a.tsv.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def read_table(path: Path, *, columns: Sequence[str] | None) -> Iterator[Row]:
    """Every record of a table; `columns` names those of a tsv or csv file without a header line.

    UserError, with the line, for a line of another width, broken JSON or quotes, a column named twice, and for a
    suffix that is none of a table.
    """
    readers: dict[str, Callable[[], Iterator[Row]]] = {
        ".tsv": lambda: _with_header(_tsv(path), path=path, columns=columns),
        ".csv": lambda: _with_header(_csv(path), path=path, columns=columns),
        ".jsonl": lambda: _json_lines(path),
        ".parquet": lambda: _parquet(path),
    }
    suffix = suffix_of(path)
    if suffix not in readers:
        raise UserError(f"{path}: its suffix is none of a table's: {', '.join(readers)}, each also with .gz")
    if columns is not None and suffix not in (".tsv", ".csv"):
        raise UserError(f"{path}: its columns have names of their own; data.columns is for tsv and csv: remove it")
    rows = readers[suffix]()
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: the table holds no record; it must hold at least one below its header")
    return chain([first], rows)


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines cut at tabs, blank ones left out; quotes are characters like all others, as in the published task files."""
    return ((number, line.split("\t")) for number, line in numbered_lines(path) if line.strip())


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = "\n".join(line for _, line in numbered_lines(path))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first_line = 1
    try:
        for cells in reader:
            if cells:
                yield first_line, cells
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{first_line}: not CSV ({error}); check its quotes") from None


def _with_header(lines: Iterable[tuple[int, list[str]]], *, path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    names = list(columns) if columns is not None else None
    for number, cells in lines:
        if names is None:
            names = [cell.strip() for cell in cells]
            if len(set(names)) < len(names):
                raise UserError(f"{path}:{number}: the header names a column twice; rename one")
            continue
        if len(cells) != len(names):
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, where there are {len(names)} ({', '.join(names[:8])}); mend "
                "the line"
                + ("" if columns is not None else ", or name the columns in data.columns if none is a header")
            )
        yield Row(f"{path}:{number}", dict(zip(names, cells, strict=True)))


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        if line.strip():
            yield json_row(line, where=f"{path}:{number}")


def json_row(line: str, *, where: str) -> Row:
    """One JSON object as a record; UserError where the line is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: JSON does not parse ({error}); each line must be one JSON object") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: a JSON {type(values).__name__}, where an object is needed")
    return Row(where, values)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet files need the package pyarrow; pip install 'bertline[parquet]'") from None
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(read_bytes(path)))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); copy it again") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}: row {number}", values)
