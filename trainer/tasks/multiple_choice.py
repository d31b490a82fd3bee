"""Multiple choice: which of a question's options is right; each is read together with the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import MultipleChoiceConfig
from trainer.tasks.choice import ChoiceTask, encode_texts, mean_loss, probabilities
from trainer.tasks.examples import Outputs, Record
from trainer.tasks.rows import TrainingRows
from trainer.tasks.tables import Row, read_table
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer


class MultipleChoiceReader:
    """Reads (question, option, option, ...) records; the target is the number of the right option, from 0."""

    def __init__(self, config: MultipleChoiceConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a table, with targets if `labelled`; UserError with file and line for a bad one."""
        return [self._record(row, labelled=labelled) for row in read_table(path, columns=self._columns)]

    def from_line(self, line: str, *, where: str) -> Record:
        """An unlabelled record from a line: the question and its options, with tabs between."""
        texts = tuple(part.strip() for part in line.split("\t"))
        if len(texts) < 3 or not all(texts):
            raise UserError(f"{where}: the line must be a question and two options or more, with tabs between")
        return Record(where, texts)

    def _record(self, row: Row, *, labelled: bool) -> Record:
        options = self._options(row)
        target = _choice(row, self._config.label, count=len(options)) if labelled else None
        return Record(row.where, (row.text(self._config.question), *options), target)

    def _options(self, row: Row) -> tuple[str, ...]:
        columns = self._config.options
        return texts_of_list(row, columns, least=2) if isinstance(columns, str) else tuple(map(row.text, columns))


def texts_of_list(row: Row, column: str, *, least: int) -> tuple[str, ...]:
    """A column's list of texts, stripped; UserError where it is none, is too short, or holds an empty text."""
    values: Any = row.value(column)
    if not isinstance(values, list) or len(values) < least:
        raise UserError(f"{row.where}: column {column!r} must be a list of {least} texts or more")
    for number, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{row.where}: column {column!r} holds no text in place {number} (from 0); mend the line")
    return tuple(value.strip() for value in values)


def _choice(row: Row, column: str, *, count: int) -> int:
    value = row.value(column)
    text = "" if isinstance(value, bool) else str(value).strip()
    if not text.isdecimal() or int(text) >= count:
        raise UserError(f"{row.where}: column {column!r} is {value!r}, and the {count} options are numbered from 0")
    return int(text)


class MultipleChoice(ChoiceTask):
    """The task; it has no labels."""

    metric = "accuracy"
    metric_names: tuple[str, ...] = ("accuracy",)

    def __init__(self, config: MultipleChoiceConfig, data: TaskDataConfig) -> None:
        super().__init__(data, term="multiple_choice", dropout=config.dropout)

    def training_rows(self, records: Sequence[Record], tokenizer: TextTokenizer, *, seed: int) -> TrainingRows:
        """A row for each question, in which its options compete; nothing is drawn."""
        ids = encode_texts(records, tokenizer)
        return TrainingRows(
            [
                self.group(number, record, record.inputs[1:], right=record.target, ids=ids, tokenizer=tokenizer)
                for number, record in enumerate(records)
            ]
        )

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`option` by number and `text`, its probability `score`, and those of all options in `scores`."""
        scores = probabilities(outputs)
        best = max(range(len(scores)), key=scores.__getitem__)
        return {"option": best, "text": record.inputs[1 + best], "score": scores[best], "scores": scores}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Accuracy, and the loss."""
        pairs = list(zip(records, predictions, strict=True))
        hits = sum(prediction["option"] == record.target for record, prediction in pairs)
        loss = mean_loss([prediction["scores"][record.target] for record, prediction in pairs])
        return {"loss": loss, "accuracy": hits / len(pairs)}
