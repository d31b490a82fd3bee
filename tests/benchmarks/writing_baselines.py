"""Simple baselines of tasks from text to text: what a decoder must beat."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence

from trainer.tasks.examples import Record
from trainer.tasks.task import Prediction


def nearest_translation(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """The translation of the training text that is nearest by TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2))
    known = words.fit_transform([record.inputs[0] for record in train])
    nearest = (words.transform([record.inputs[0] for record in test]) @ known.T).tocsr()
    return [{"text": train[int(row.argmax())].target[0]} for row in nearest]


def first_sentence(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """Lead-1: the source up to its first full stop."""
    return [{"text": re.split(r"(?<=[.!?。！？])\s|\n", record.inputs[0], maxsplit=1)[0]} for record in test]


def neighbouring_character(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """The components of the training entry that comes before in the order of code points, or else the first one's."""
    known = sorted(train, key=lambda record: record.inputs[0])
    texts = [record.inputs[0] for record in known]
    before = (max(0, bisect(texts, record.inputs[0]) - 1) for record in test)
    return [{"parts": known[place].target[0].split()} for place in before]
