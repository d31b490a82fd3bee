"""Decomposition of Chinese characters and words into their components (拆字)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.hashing import derive_key
from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.seq2seq_config import DecompositionConfig
from trainer.tasks.examples import Outputs, Record
from trainer.tasks.seq2seq import Seq2Seq
from trainer.tasks.seq2seq_records import Seq2SeqReader
from trainer.tasks.task import Prediction
from trainer.tasks.text_lines import read_bytes

_PART = re.compile(r"(?P<file>.+\.json(\.gz)?)(#(?P<first>\d+):(?P<end>\d+))?")


class DecompositionReader(Seq2SeqReader):
    """Reads tables, and dictionaries: `.json` objects of characters, each with a list of lists of components.

    `FILE.json#80:90` is the part of a dictionary that a hash of the entry puts from 80 to 90 percent: adding an
    entry moves no other.
    """

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a table or of a dictionary's part; UserError for a bad one."""
        found = _PART.fullmatch(str(path))
        if found is None:
            return super().read(path, labelled=labelled)
        first, end = int(found["first"] or 0), int(found["end"] or 100)
        if not 0 <= first < end <= 100:
            raise UserError(f"{path}: a part of a dictionary is #FROM:TO in percent, as in #80:90")
        entries = _read_dictionary(Path(found["file"]))
        part = {text: ways for text, ways in entries.items() if first <= derive_key("entry", text) % 100 < end}
        if not part:
            raise UserError(f"{path}: no entry of the dictionary is in this part; make it wider")
        return [
            Record(f"{found['file']}: {text}", (text,), tuple(map(" ".join, ways)) if labelled else None)
            for text, ways in part.items()
        ]


def _read_dictionary(path: Path) -> dict[str, list[list[str]]]:
    try:
        entries = json.loads(read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: JSON does not parse ({error})") from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: a JSON {type(entries).__name__}, where an object of characters is needed")
    return {text.strip(): _ways(text, value, path=path) for text, value in entries.items()}


def _ways(text: str, value: Any, *, path: Path) -> list[list[str]]:
    """An entry's lists of components; one that is empty says nothing, and another must be there."""
    if not text.strip():
        raise UserError(f"{path}: an entry without a character; remove it")
    are_lists = isinstance(value, list) and all(isinstance(way, list) for way in value)
    if not are_lists or not any(value) or not all(isinstance(p, str) and p.strip() for way in value for p in way):
        raise UserError(
            f"{path}: {text} has {json.dumps(value, ensure_ascii=False)[:60]}, where a list of lists of components is "
            "needed; mend or remove it"
        )
    return [way for way in value if way]


class Decomposition(Seq2Seq):
    """The task; scores compare in Unicode's form NFKC, which is what the vocabulary can write."""

    metric = "exact_match"
    metric_names: tuple[str, ...] = ("exact_match", "component_f1")

    def __init__(self, config: DecompositionConfig, data: TaskDataConfig) -> None:
        super().__init__(config, data, term="decomposition")
        self._by_code_point = config.spelling == "code_point"

    def source_text(self, record: Record) -> str:
        """The characters, or the digits of their code points: 明天 is `6 6 0 E / 5 9 2 9`."""
        text = super().source_text(record)
        return " / ".join(" ".join(f"{ord(character):X}") for character in text) if self._by_code_point else text

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`parts`, and `score`, their log-probability over the length penalty."""
        found = super().prediction(record, outputs)
        return {"parts": found["text"].split(), "score": found["score"]}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Share of records with exactly the parts of one of their targets; the mean of each one's best F1 of parts."""
        exact = f1 = 0.0
        for record, prediction in zip(records, predictions, strict=True):
            ways = [unicodedata.normalize("NFKC", target).split() for target in record.target]
            parts = unicodedata.normalize("NFKC", " ".join(prediction["parts"])).split()
            exact += parts in ways
            f1 += max(_f1(parts, way) for way in ways)
        return {"exact_match": exact / len(records), "component_f1": f1 / len(records)}


def _f1(found: Sequence[str], true: Sequence[str]) -> float:
    return 2 * (Counter(found) & Counter(true)).total() / (len(found) + len(true))
