"""Questions with their contexts and answers: SQuAD's JSON, version 1 and 2, or tables in the form of HF `datasets`."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import QuestionAnsweringConfig
from trainer.tasks.examples import Record
from trainer.tasks.tables import Row, json_row, read_table, suffix_of
from trainer.tasks.text_lines import numbered_lines

_QUESTION_KEY = re.compile(r'(?<!\\)"question"\s*:')


class Answer(NamedTuple):
    """A piece of a context, and the character that it starts at."""

    text: str
    start: int


class QuestionReader:
    """Reads (question, context) records; the target is a tuple of answers, empty where there is none."""

    def __init__(self, config: QuestionAnsweringConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every question, with answers if `labelled`; UserError with file and line for a bad one."""
        if suffix_of(path) == ".json":
            if self._columns is not None:
                raise UserError(
                    f"{path}: SQuAD's form has names of its own; data.columns is for tsv and csv: remove it"
                )
            rows = _squad(path)
            names = QuestionAnsweringConfig()
        else:
            rows, names = read_table(path, columns=self._columns), self._config
        records = [self._record(row, names=names, labelled=labelled) for row in rows]
        if not records:
            raise UserError(f"{path}: the file holds no question; it must hold at least one")
        return records

    def from_line(self, line: str, *, where: str) -> Record:
        """An unlabelled question from a line: a JSON object, or question and context with a tab between."""
        if line.lstrip().startswith("{"):
            return self._record(json_row(line, where=where), names=self._config, labelled=False)
        parts = line.split("\t")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise UserError(
                f"{where}: the line must be a question and its context with a tab between, or a JSON object"
            )
        return Record(where, (parts[0].strip(), parts[1]))

    def _record(self, row: Row, *, names: QuestionAnsweringConfig, labelled: bool) -> Record:
        question, context = row.text(names.question), row.value(names.context)
        row.text(names.context)  # it is not stripped: answers are counted from its first character
        target = self._answers(row, names=names, context=context) if labelled else None
        return Record(row.where, (question, context), target)

    def _answers(self, row: Row, *, names: QuestionAnsweringConfig, context: str) -> tuple[Answer, ...]:
        value = row.value(names.answers)
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            # The columns of HF `datasets`: a list of texts beside a list of starts.
            starts = value.get("answer_start")
            if not isinstance(starts, list) or len(starts) != len(value["text"]):
                raise UserError(f"{row.where}: {names.answers!r} has as many 'answer_start' as 'text'; mend the line")
            value = [{"text": text, "answer_start": at} for text, at in zip(value["text"], starts, strict=True)]
        if not isinstance(value, list):
            raise UserError(
                f"{row.where}: {names.answers!r} is {type(value).__name__}, where a list of answers is needed"
            )
        if not value and not self._config.no_answer:
            raise UserError(f"{row.where}: the question has no answer; remove it, or set task.no_answer: true")
        if value and row.values.get("is_impossible") is True:
            raise UserError(f"{row.where}: is_impossible is true, and there are answers; mend one of them")
        return tuple(_answer(item, context=context, where=row.where) for item in value)


def _answer(item: Any, *, context: str, where: str) -> Answer:
    text, start = (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (None, None)
    if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or isinstance(start, bool):
        raise UserError(f"{where}: an answer needs a 'text' that is not empty and a whole number 'answer_start'")
    if start < 0 or context[start : start + len(text)] != text:
        place = context.find(text)
        there = f"stands at {place}" if place >= 0 else "is nowhere in it"
        raise UserError(
            f"{where}: the answer {text[:60]!r} is not in its context at character {start}: it {there}; mend "
            "'answer_start' or the text"
        )
    return Answer(text, start)


def _squad(path: Path) -> Iterator[Row]:
    """The file's questions as rows; each is named by its line and its way through the JSON."""
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise UserError(f"{path}:{line}: JSON does not parse ({error}); copy the file again") from None
    ends = [match.start() for match in re.finditer("\n", text)]
    lines = (bisect_right(ends, match.start()) + 1 for match in _QUESTION_KEY.finditer(text))
    line = 1
    for i, article in enumerate(_member(document, "data", list, where=f"{path}:1")):
        for j, paragraph in enumerate(_member(article, "paragraphs", list, where=f"{path}:{line}: data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            context = _member(paragraph, "context", str, where=f"{path}:{line}: {place}")
            for k, question in enumerate(_member(paragraph, "qas", list, where=f"{path}:{line}: {place}")):
                line = next(lines, line)
                where = f"{path}:{line}: {place}.qas[{k}]"
                _member(question, "question", str, where=where)
                yield Row(where, {"answers": [], **question, "context": context})


def _member(value: Any, key: str, kind: type, *, where: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise UserError(
            f"{where} has no {key!r} that is a {'list' if kind is list else 'text'}, as SQuAD's form asks for"
        )
    return found
