"""One task of a suite: its files, as they were published, as records of one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UserError
from trainer.tasks.tables import json_row
from trainer.tasks.text_lines import numbered_lines

# `text`, for a pair `pair`, and `label`, or in a test file `index`; None for a line that is not of the file's form.
Content = dict[str, Any]
Lines = Iterator[tuple[str, Content | None]]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class SuiteTask:
    """A classification of texts or pairs, or a number for a pair.

    folders: where its files may lie. read: a file's lines, labelled or not. dev: the first decides the best
    checkpoint. tests: a file by the name of its answers. metrics: as they are published. bounds: of a number's answers.
    """

    name: str
    folders: Sequence[str]
    is_pair: bool
    metrics: Sequence[Metric]
    read: Callable[[Path, bool], Lines]
    train: str
    dev: Sequence[str]
    tests: Mapping[str, str]
    bounds: tuple[float, float] | None = None

    @property
    def is_number(self) -> bool:
        """Whether a number is predicted, and no label."""
        return self.bounds is not None

    def folder(self, files: Path) -> Path | None:
        """Where the task's training file is at hand, None if it is not."""
        return next((files / name for name in self.folders if (files / name / self.train).is_file()), None)


def read_tsv(path: Path, *, columns: Sequence[str] | None) -> Iterator[tuple[str, dict[str, str] | None]]:
    """Lines by column, the header's or `columns`; quotes are plain characters. None for one of another width."""
    names = columns
    for number, line in numbered_lines(path):
        cells = line.split("\t")
        if names is None:
            names = [cell.strip() for cell in cells]
        elif line.strip():
            yield f"{path}:{number}", dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects, one a line."""
    for number, line in numbered_lines(path):
        if line.strip():
            row = json_row(line, where=f"{path}:{number}")
            yield row.where, dict(row.values)


def picked(values: Mapping[str, Any], columns: Mapping[str, str], *, where: str) -> Content:
    """Columns by their names in a record; UserError where the file has none of that name."""
    if missing := [column for column in columns.values() if column not in values]:
        there = ", ".join(map(repr, list(values)[:8]))
        raise UserError(f"{where}: no column {missing[0]!r}, but {there}; is this the published file?")
    return {name: values[column] for name, column in columns.items()}


def convert(task: SuiteTask, source: Path, out: Path, *, labelled: bool) -> tuple[list[Any], int]:
    """Write a published file as JSON lines of one form; gives the indexes (None in labelled files), and how many
    lines were left out, which a test file must not have: UserError."""
    indexes, left_out = [], 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for where, content in task.read(source, labelled):
            if content is not None and all(str(content[part]).strip() for part in ("text", "pair") if part in content):
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
                indexes.append(content.get("index"))
            elif labelled:
                left_out += 1
            else:
                raise UserError(
                    f"{where}: not of the file's form, and each line of a test file needs an answer; mend it"
                )
    return indexes, left_out
