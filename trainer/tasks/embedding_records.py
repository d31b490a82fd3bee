"""Texts to be embedded, and labelled: pairs that belong together, or pairs with a number for how alike they are."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import SentenceEmbeddingConfig
from trainer.tasks.classification_records import finite_number
from trainer.tasks.examples import Record
from trainer.tasks.tables import Row, read_table


class EmbeddingReader:
    """Reads (first, second) records, the target being the pair's score if it has one; unlabelled, single texts."""

    def __init__(self, config: SentenceEmbeddingConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._data = data

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a table; UserError with file and line for a bad one.

        The training file holds pairs without a score whatever the recipe says of the others.
        """
        rows = read_table(path, columns=self._data.columns)
        if not labelled:
            return [Record(row.where, (row.text(self._config.text),)) for row in rows]
        score = self._config.score if path != Path(self._data.train) else None
        return [self._pair(row, score=score) for row in rows]

    def from_line(self, line: str, *, where: str) -> Record:
        """A text from a line."""
        if not line.strip():
            raise UserError(f"{where}: the line must be a text that is not empty")
        return Record(where, (line.strip(),))

    def _pair(self, row: Row, *, score: str | None) -> Record:
        texts = (row.text(self._config.first), row.text(self._config.second))
        if score is None:
            return Record(row.where, texts)
        return Record(row.where, texts, finite_number(row.value(score), where=f"{row.where}: column {score!r}"))
