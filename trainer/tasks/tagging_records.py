"""Tagging's records: sentences of words with tags, from CoNLL files or from tables whose columns hold lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.finetune_config import TaggingConfig, TaskDataConfig
from trainer.tasks.conll import read_conll
from trainer.tasks.examples import Record
from trainer.tasks.tables import Row, read_table, suffix_of
from trainer.tasks.tag_schemes import find_break


class TaggingReader:
    """Reads the columns that the recipe names, and refuses tags that break its scheme."""

    def __init__(self, config: TaggingConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every sentence, with tags if `labelled`; UserError with file and line for a bad one."""
        if suffix_of(path) == ".conll":
            words, tags = self._config.words, self._config.tags
            if not (isinstance(words, int) and isinstance(tags, int)):
                raise UserError(f"{path}: columns of a .conll file are numbers; set task.words and task.tags to such")
            sentences = [*read_conll(path, words=words, tags=tags if labelled else None)]
            self._refuse_breaks([(record, f"{path}:{{line}}", line) for record, line in sentences], labelled=labelled)
            return [record for record, _ in sentences]
        records = [*self._of_table(path, labelled=labelled)]
        self._refuse_breaks([(record, f"{record.where}: word {{line}}", 1) for record in records], labelled=labelled)
        return records

    def from_line(self, line: str, *, where: str) -> Record:
        """A sentence from a line: words between blanks, or every character that is not blank."""
        words = tuple(line.split() if self._config.unit == "word" else "".join(line.split()))
        if not words:
            raise UserError(f"{where}: the line is empty, and must hold a sentence")
        return Record(where, words)

    def _refuse_breaks(self, places: list[tuple[Record, str, int]], *, labelled: bool) -> None:
        """`places`: a record, the form of a place in it, and the number of its first word there."""
        if not labelled or self._config.scheme == "plain":
            return
        for record, form, first in places:
            if broken := find_break(record.target, scheme=self._config.scheme):
                word, reason = broken
                raise UserError(
                    f"{form.format(line=first + word)}: {reason}: not {self._config.scheme.upper()}; mend the tags, "
                    "or set task.scheme"
                )

    def _of_table(self, path: Path, *, labelled: bool) -> Iterator[Record]:
        for row in read_table(path, columns=self._columns):
            words = _strings(row, self._config.words)
            tags = _strings(row, self._config.tags) if labelled else None
            if tags is not None and len(tags) != len(words):
                raise UserError(f"{row.where}: {len(words)} words and {len(tags)} tags; each word needs one")
            yield Record(row.where, words, tags)


def _strings(row: Row, column: int | str) -> tuple[str, ...]:
    if isinstance(column, int):
        raise UserError(f"{row.where}: columns of a table have names; set task.words and task.tags to such")
    value: Any = row.value(column)
    parts = value.split() if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise UserError(f"{row.where}: column {column!r} must be a list of words, none of them empty")
    return tuple(parts)
