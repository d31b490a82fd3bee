"""Tag schemes: which tag may follow which, and the spans that a sequence of tags marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_PREFIXES = {"bio": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """An entity: words [start, end) of a type."""

    start: int
    end: int
    type: str


def find_break(tags: Sequence[str], *, scheme: str) -> tuple[int, str] | None:
    """The first place where tags break `bio` or `bioes`, as (word, what is wrong); None if they do not.

    BIO is that of CoNLL-2003's IOB2: every entity begins with B.
    """
    previous = "O"
    for word, tag in enumerate([*tags, "O"]):
        if word < len(tags) and tag != "O" and (tag[:2] not in {f"{p}-" for p in _PREFIXES[scheme]} or len(tag) < 3):
            wanted = " or ".join(f"{prefix}-TYPE" for prefix in _PREFIXES[scheme])
            return word, f"{tag!r} is neither O nor {wanted}"
        goes_on = tag[0] in "IE" and tag != "O"
        inside = previous[0] in ("BI") and previous != "O"
        if goes_on and not (inside and previous[2:] == tag[2:]):
            return word, f"{tag!r} follows {previous!r} and goes on with no {tag[2:]}"
        if scheme == "bioes" and inside and not goes_on:
            return min(word, len(tags) - 1), f"{previous!r} is not ended by an E-{previous[2:]}"
        previous = tag
    return None


def spans(tags: Sequence[str]) -> list[Span]:
    """Entities of a sequence of BIO or BIOES tags, broken ones read as conlleval reads them (Tjong Kim Sang 2000)."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [Span(start, last + 1, kind) for kind, start, last in get_entities(list(tags))]


def words_of_bmes(characters: Sequence[str], tags: Sequence[str]) -> list[str]:
    """The words that B, M, E, S tags of characters mark; after an end whatever comes starts a word."""
    words: list[str] = []
    open_word = False
    for character, tag in zip(characters, tags, strict=True):
        if open_word and tag in "ME":
            words[-1] += character
        else:
            words.append(character)
        open_word = tag in "BM"
    return words


def bmes_of_words(words: Sequence[str]) -> list[str]:
    """A tag for every character of the words: S for a word of one, else B, M ..., E."""
    return [tag for word in words for tag in ("S" if len(word) == 1 else f"B{'M' * (len(word) - 2)}E")]
