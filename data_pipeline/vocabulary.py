"""What the pieces of a vocabulary say of words and sentences, as tables over its ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import TOKENIZER_FOLDER, Manifest
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

BoolArray = npt.NDArray[np.bool_]

# sentencepiece writes the space before a word as this character, at the beginning of the word's first piece.
_WORD_MARK = "▁"
_SENTENCE_ENDS = tuple(".!?。！？…｡\n\u2028\u2029")
_NEWLINE_BYTE = "<0x0A>"
_CLOSING = "\"'”’»)]）」』】"
# Seen: 0.08 to 0.12 in Chinese vocabularies, whose text holds English words too; well over a half in English ones.
_LEAST_WORD_STARTS = 0.3


@dataclass(frozen=True)
class Vocabulary:
    """For each id, bool [vocab_size]: whether its piece begins a word, and whether it ends a sentence."""

    word_start: BoolArray
    sentence_end: BoolArray

    @classmethod
    def of_pieces(cls, pieces: Sequence[str]) -> Vocabulary:
        """The tables of a sentencepiece vocabulary, pieces in the order of their ids."""
        word_start = [piece.startswith(_WORD_MARK) for piece in pieces]
        sentence_end = [piece == _NEWLINE_BYTE or piece.rstrip(_CLOSING).endswith(_SENTENCE_ENDS) for piece in pieces]
        return cls(np.array(word_start, dtype=bool), np.array(sentence_end, dtype=bool))

    @property
    def knows_words(self) -> bool:
        """Whether words can be told by the pieces alone."""
        return float(self.word_start.mean()) >= _LEAST_WORD_STARTS


def load_tokenizer(shards: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer that lies beside shards; UserError when it is not the one they were built with."""
    tokenizer = Tokenizer.load(shards / TOKENIZER_FOLDER)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{tokenizer.folder} is not the tokenizer that {shards} was built with (another sha256); copy the shards "
            "again, or build them anew"
        )
    return tokenizer
