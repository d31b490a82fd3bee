"""Records of tasks from text to text: a source and the targets that are right for it, from a table."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.tasks.examples import Record
from trainer.tasks.tables import Row, read_table


class Seq2SeqReader:
    """Reads the two columns that the recipe names; a record's target is a tuple of one text or several."""

    def __init__(self, config: Seq2SeqConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a table, with targets if `labelled`; UserError with file and line for a bad one."""
        return [self._record(row, labelled=labelled) for row in read_table(path, columns=self._columns)]

    def from_line(self, line: str, *, where: str) -> Record:
        """An unlabelled record from a line, which is the source."""
        if not line.strip():
            raise UserError(f"{where}: the line must be a text that is not empty")
        return Record(where, (line.strip(),))

    def _record(self, row: Row, *, labelled: bool) -> Record:
        source = row.text(self._config.source)
        return Record(row.where, (source,), self._targets(row) if labelled else None)

    def _targets(self, row: Row) -> tuple[str, ...]:
        column = self._config.target
        values = row.value(column)
        if not isinstance(values, list):
            return (row.text(column),)
        if not values:
            raise UserError(f"{row.where}: column {column!r} is an empty list; fill it or remove the line")
        return tuple(Row(row.where, {column: value}).text(column) for value in values)
