"""Classification's records: texts or pairs with a label, several labels or a number, from a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, TaskDataConfig
from trainer.tasks.examples import Record
from trainer.tasks.tables import Row, read_table


class ClassificationReader:
    """Reads the columns that the recipe names."""

    def __init__(self, config: ClassificationConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a table, with targets if `labelled`; UserError with file and line for a bad one."""
        return [self._record(row, labelled=labelled) for row in read_table(path, columns=self._columns)]

    def from_line(self, line: str, *, where: str) -> Record:
        """One record from a line: the text, or both texts of a pair with a tab between."""
        texts = tuple(part.strip() for part in (line.split("\t") if self._config.pair else [line]))
        wanted = 2 if self._config.pair else 1
        if len(texts) != wanted or not all(texts):
            form = "two texts with a tab between" if wanted == 2 else "a text that is not empty"
            raise UserError(f"{where}: the line must be {form}")
        return Record(where, texts)

    def _record(self, row: Row, *, labelled: bool) -> Record:
        config = self._config
        texts = tuple(row.text(column) for column in (config.text, config.pair) if column is not None)
        return Record(row.where, texts, self._target(row) if labelled else None)

    def _target(self, row: Row) -> Any:
        value, column = row.value(self._config.label), self._config.label
        if self._config.output == "number":
            return finite_number(value, where=f"{row.where}: column {column!r}")
        if self._config.output == "labels":
            parts = value.split(self._config.separator) if isinstance(value, str) else value
            if not isinstance(parts, list):
                raise UserError(f"{row.where}: column {column!r} is {value!r}, neither a list of labels nor text")
            return tuple(name for part in parts if (name := str(part).strip()))
        if value is None or isinstance(value, list | dict) or not (name := str(value).strip()):
            raise UserError(f"{row.where}: column {column!r} holds no label, but {value!r}")
        return name


def finite_number(value: Any, *, where: str) -> float:
    """A target that is a number; UserError where it is none or not finite."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where} is {value!r}, where a finite number is needed; mend or remove the line")
    return number
