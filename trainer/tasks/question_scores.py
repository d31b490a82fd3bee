"""Exact match and F1 of answers as SQuAD defines them (Rajpurkar et al. 2016, section 6.1; 2018 for no answer)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single blanks between words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(found: str, answers: Sequence[str]) -> float:
    """1 where the normalised answer is one of `answers`; without any, where nothing was answered."""
    return max(float(normalized(found) == normalized(answer)) for answer in answers or ("",))


def f1(found: str, answers: Sequence[str]) -> float:
    """The best F1 over `answers` of the bags of words; without any, or where all words fall away, an exact match."""
    return max(_f1_of_words(normalized(found).split(), normalized(answer).split()) for answer in answers or ("",))


def _f1_of_words(found: list[str], answer: list[str]) -> float:
    if not found or not answer:
        return float(found == answer)
    shared = (Counter(found) & Counter(answer)).total()
    return 2.0 * shared / (len(found) + len(answer))


def answer_metrics(found: Sequence[str], answers: Sequence[Sequence[str]], *, no_answer: bool) -> dict[str, float]:
    """Means over questions; with `no_answer` also over those that have an answer, and over those that have none.

    The mean over no questions is 0.
    """
    exact = [exact_match(text, of_question) for text, of_question in zip(found, answers, strict=True)]
    partial = [f1(text, of_question) for text, of_question in zip(found, answers, strict=True)]
    scores = {"f1": _mean(partial), "exact_match": _mean(exact)}
    if no_answer:
        scores["f1_answerable"] = _mean([value for value, known in zip(partial, answers, strict=True) if known])
        scores["accuracy_unanswerable"] = _mean(
            [value for value, known in zip(exact, answers, strict=True) if not known]
        )
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
