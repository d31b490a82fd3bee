"""A tokenizer whose ids can be told by looking: a token for each letter, its place in the alphabet from 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array


class LetterTokenizer:
    """Blanks give no token."""

    vocab_size, unk_id, cls_id, sep_id = 40, 1, 2, 3

    def encode(self, texts: Sequence[str]) -> list[Int32Array]:
        return [np.array([ord(c) - 87 for c in text if c != " "], dtype=np.int32) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[list[Int32Array], list[Int64Array]]:
        places = [[(i, i + 1) for i, c in enumerate(text) if c != " "] for text in texts]
        return self.encode(texts), [np.array(of_text, dtype=np.int64).reshape(-1, 2) for of_text in places]

    def encode_words(self, words: Sequence[str]) -> list[Int32Array]:
        return self.encode(words)
