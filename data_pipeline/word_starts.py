"""Which tokens begin a word, for text written without blanks: words are found by a segmenter when shards are built.

Where words are parted by blanks, the vocabulary's own pieces say it, for each piece that begins a word begins with
"▁"; nothing is stored then. A token begins a word when its first character belongs to another word than the last
character of the token before it. So the tokens that share characters with one word always stay together, and a token
that spans the border of two words joins them; white space belongs to the word behind it, as in the vocabulary.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError

WordStarts = Literal["vocabulary", "jieba"]
BoolArray = npt.NDArray[np.bool_]


def check_word_starts(word_starts: str) -> None:
    """Raise UserError when the segmenter asked for is unknown or not installed."""
    if word_starts not in ("vocabulary", "jieba"):
        raise UserError(f"--word-starts {word_starts} is unknown; choose vocabulary or jieba")
    if word_starts == "jieba":
        try:
            import jieba  # noqa: F401
        except ImportError as error:
            raise UserError("--word-starts jieba needs jieba, which is missing: pip install 'bertline[zh]'") from error


def segment_words(text: str) -> npt.NDArray[np.int64]:
    """The number of the word that each character belongs to, int64 [characters], by jieba (its own dictionary)."""
    words = _jieba().lcut(text)
    number = np.repeat(np.arange(len(words)), [len(word) for word in words])
    blank = np.fromiter((word.isspace() for word in words), np.bool_, len(words))
    # A run of blanks takes the number of the word behind it.
    following = np.arange(len(words))
    for place in np.flatnonzero(blank)[::-1].tolist():
        following[place] = following[min(place + 1, len(words) - 1)]
    return following[number]


def word_starts(offsets: npt.NDArray[np.int64], *, words: npt.NDArray[np.int64]) -> BoolArray:
    """Which tokens begin a word, bool [tokens]; the first always does.

    `offsets` [tokens, 2] are the first character of each token and the one behind its last; a token without
    characters of its own lies at the character that it was made from. `words` is what `segment_words` gives.
    """
    if not len(words):
        return np.ones(len(offsets), np.bool_)
    first = np.minimum(offsets[:, 0], len(words) - 1)
    last = np.clip(offsets[:, 1] - 1, first, len(words) - 1)
    starts = np.ones(len(offsets), np.bool_)
    starts[1:] = words[first[1:]] != words[last[:-1]]
    return starts


def batch_word_starts(texts: Sequence[str], offsets: Sequence[npt.NDArray[np.int64]]) -> BoolArray:
    """`word_starts` of several documents, end to end."""
    parts = [word_starts(spans, words=segment_words(text)) for text, spans in zip(texts, offsets, strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, np.bool_)


@lru_cache(maxsize=1)
def _jieba() -> Any:
    """A segmenter of this process's own: nobody's added words change the shards."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    # Its dictionary would otherwise be kept in, and next time be unmarshalled from, a folder that anyone may write to.
    with tempfile.TemporaryDirectory(prefix="bertline-jieba-") as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter
