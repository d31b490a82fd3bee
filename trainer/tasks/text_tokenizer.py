"""One face for the vocabularies that models come with: sentencepiece of our runs, WordPiece of BERTs from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import METADATA_FILE, Int32Array, Tokenizer
from trainer.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"
SETTINGS_FILE = "tokenizer_config.json"
_BARE_SPACE = "▁"


class TextTokenizer(Protocol):
    """Texts to ids, without special tokens."""

    vocab_size: int
    unk_id: int
    cls_id: int
    sep_id: int

    def encode(self, texts: Sequence[str]) -> list[Int32Array]:
        """The ids of each text."""
        ...

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[list[Int32Array], list[Int64Array]]:
        """`encode`, and where in its text each token lies: int64 [tokens, 2], first character and the end."""
        ...

    def encode_words(self, words: Sequence[str]) -> list[Int32Array]:
        """The ids of each word by itself, at least one: [UNK] where the vocabulary has nothing for it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        ...


class SentencePieceTexts:
    """The tokenizer of a run of ours, or of one that begins with new weights."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.load(folder)
        self.vocab_size = self._tokenizer.vocab_size
        self.unk_id, self.cls_id = self._tokenizer.unk_id, self._tokenizer.cls_id
        self.sep_id = self._tokenizer.sep_id
        self._bare_space = self._tokenizer.processor.piece_to_id(_BARE_SPACE)

    def encode(self, texts: Sequence[str]) -> list[Int32Array]:
        return self._tokenizer.encode_batch(texts)

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[list[Int32Array], list[Int64Array]]:
        return self._tokenizer.encode_with_offsets(texts)

    def encode_words(self, words: Sequence[str]) -> list[Int32Array]:
        # A word that the vocabulary has only without a blank before it would begin with a blank by itself.
        found = (ids[1:] if len(ids) > 1 and ids[0] == self._bare_space else ids for ids in self.encode(words))
        return [ids if len(ids) else np.array([self.unk_id], dtype=np.int32) for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class WordPieceTexts:
    """A vocabulary read by `tokenizers`: `tokenizer.json`, or `vocab.txt` with or without settings beside it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _load_wordpiece(folder)
        self.vocab_size = int(self._tokenizer.get_vocab_size())
        self.unk_id, self.cls_id, self.sep_id = (self._id(name, folder) for name in ("[UNK]", "[CLS]", "[SEP]"))

    def _id(self, name: str, folder: Path) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise UserError(f"{folder}: its vocabulary has no {name}; only BERT's vocabularies are read")
        return int(found)

    def encode(self, texts: Sequence[str]) -> list[Int32Array]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[list[Int32Array], list[Int64Array]]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return (
            [np.array(encoding.ids, dtype=np.int32) for encoding in found],
            [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in found],
        )

    def encode_words(self, words: Sequence[str]) -> list[Int32Array]:
        return [ids if len(ids) else np.array([self.unk_id], dtype=np.int32) for ids in self.encode(words)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_texts(folder: Path) -> TextTokenizer:
    """The tokenizer in a folder, of whichever kind; UserError when there is none."""
    if (folder / METADATA_FILE).is_file():
        return SentencePieceTexts(folder)
    if any((folder / name).is_file() for name in (TOKENIZER_FILE, VOCABULARY_FILE)):
        return WordPieceTexts(folder)
    raise UserError(f"{folder} holds no tokenizer: none of {METADATA_FILE}, {TOKENIZER_FILE}, {VOCABULARY_FILE}")


def _load_wordpiece(folder: Path) -> Any:
    tokenizers = _require_tokenizers()
    try:
        if (folder / TOKENIZER_FILE).is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        else:
            # transformers' own defaults where there are no settings.
            path = folder / SETTINGS_FILE
            settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            tokenizer = tokenizers.BertWordPieceTokenizer(
                str(folder / VOCABULARY_FILE),
                lowercase=settings.get("do_lower_case", True),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
                strip_accents=settings.get("strip_accents"),
            )
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        raise UserError(f"{folder}: its tokenizer cannot be read ({error}); copy it again") from None
    # Sequences are cut and laid side by side here, by rules of our own.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("WordPiece vocabularies need the package tokenizers; pip install 'bertline[hf]'") from None
    return tokenizers
