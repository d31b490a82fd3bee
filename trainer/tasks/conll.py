"""Sentences of a CoNLL file: a word a line with its tag in a column, a blank line between sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError
from trainer.tasks.examples import Record
from trainer.tasks.text_lines import numbered_lines


def read_conll(path: Path, *, words: int, tags: int | None) -> Iterator[tuple[Record, int]]:
    """Every sentence with the number of its first line; columns by number, -1 being the last; no tags with None.

    Cells are parted by a tab where the line has one, else by blanks. UserError for a line without the columns.
    """
    found: list[tuple[str, str]] = []
    first_line = 0
    for number, line in [*numbered_lines(path), (0, "")]:
        if line.strip():
            first_line = first_line if found else number
            cells = line.split("\t") if "\t" in line else line.split()
            found.append(
                (
                    _cell(cells, words, where=f"{path}:{number}"),
                    "" if tags is None else _cell(cells, tags, where=f"{path}:{number}"),
                )
            )
        elif found:
            target = None if tags is None else tuple(tag for _, tag in found)
            yield Record(f"{path}:{first_line}", tuple(word for word, _ in found), target), first_line
            found = []


def _cell(cells: list[str], column: int, *, where: str) -> str:
    if not -len(cells) <= column < len(cells):
        raise UserError(
            f"{where}: {len(cells)} columns, and the recipe asks for column {column}; name another, or mend the line"
        )
    if not cells[column].strip():
        raise UserError(f"{where}: column {column} is empty; fill it or remove the line")
    return cells[column].strip()
