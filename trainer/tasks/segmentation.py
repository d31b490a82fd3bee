"""Word segmentation of Chinese: a tag of B, M, E, S for every character (Xue 2003)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from trainer.errors import UserError
from trainer.finetune_config import SegmentationConfig, TaskDataConfig
from trainer.tasks.examples import Outputs, Record
from trainer.tasks.tables import read_table, suffix_of
from trainer.tasks.tag_schemes import bmes_of_words, words_of_bmes
from trainer.tasks.tagging import TagTask
from trainer.tasks.task import Prediction
from trainer.tasks.text_lines import numbered_lines

TAGS = ("B", "M", "E", "S")


class SegmentationReader:
    """Reads a sentence a line: words between blanks where labelled, any text where not; blanks are never characters."""

    def __init__(self, config: SegmentationConfig, data: TaskDataConfig) -> None:
        self._text = config.text
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every sentence of a .txt file, or of a table's column; UserError with file and line for an empty one."""
        if suffix_of(path) == ".txt":
            lines = [(f"{path}:{number}", line) for number, line in numbered_lines(path)]
        else:
            lines = [(row.where, row.text(self._text)) for row in read_table(path, columns=self._columns)]
        return [_record(line, where=where, labelled=labelled) for where, line in lines]

    def from_line(self, line: str, *, where: str) -> Record:
        """An unlabelled sentence."""
        return _record(line, where=where, labelled=False)


def _record(line: str, *, where: str, labelled: bool) -> Record:
    words = line.split()
    if not words:
        raise UserError(f"{where}: the line is empty, and must hold a sentence; remove it")
    return Record(where, tuple("".join(words)), tuple(bmes_of_words(words)) if labelled else None)


class Segmentation(TagTask):
    """The task; its tags are always the four."""

    metric = "f1"
    metric_names: tuple[str, ...] = ("precision", "recall", "f1")
    _going_on = ("M", "E")

    def __init__(self, config: SegmentationConfig, data: TaskDataConfig) -> None:
        super().__init__(config.head, data, term="segmentation", labels=TAGS)

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`words`, and `score`: the least probability of any character's tag."""
        words = words_of_bmes(record.inputs, self._tags(outputs))
        return {"words": words, "score": float(outputs["scores"].min())}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Precision, recall and F1 of words, a word being right where both its ends are (Sproat and Emerson 2003)."""
        found = true = right = 0
        for record, prediction in zip(records, predictions, strict=True):
            gold, guess = (_ends(words) for words in (words_of_bmes(record.inputs, record.target), prediction["words"]))
            found, true, right = found + len(guess), true + len(gold), right + len(gold & guess)
        precision, recall = right / max(found, 1), right / max(true, 1)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        return {"precision": precision, "recall": recall, "f1": f1}


def _ends(words: Sequence[str]) -> set[tuple[int, int]]:
    ends = list(accumulate(map(len, words)))
    return set(zip([0, *ends], ends, strict=False))
