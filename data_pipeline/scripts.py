"""Which scripts the text of shards is written in, counted by letters and by documents, from token ids alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.inspect import SAMPLED_BLOCKS, spread
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer

NO_LETTERS = "none"


@dataclass(frozen=True)
class ScriptShare:
    """Letters of one script in the sample, and documents of which it has the most letters."""

    script: str
    letters: int
    documents: int


def letter_script(character: str) -> str | None:
    """The script of a letter (Latin, CJK, Cyrillic, ...), None for what is none.

    That is the first word of the character's Unicode name, which names the script of nearly every letter; full-width
    and other compatible forms are taken for what they stand for.
    """
    plain = unicodedata.normalize("NFKC", character)[0]
    if not unicodedata.category(plain).startswith("L"):
        return None
    name = unicodedata.name(plain, "UNNAMED").split()[0].partition("-")[0]
    return name if name == "CJK" else name.capitalize()


def piece_letters(pieces: Sequence[str], *, special_ids: Sequence[int]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The scripts of a vocabulary, sorted, and the letters of each in each piece, int32 [pieces, scripts]."""
    places: list[tuple[int, str]] = [
        (number, script)
        for number, piece in enumerate(pieces)
        if number not in special_ids
        for character in piece
        if (script := letter_script(character)) is not None
    ]
    scripts = sorted({script for _, script in places})
    column = {script: number for number, script in enumerate(scripts)}
    letters = np.zeros((len(pieces), len(scripts)), np.int32)
    if places:
        np.add.at(letters, ([number for number, _ in places], [column[script] for _, script in places]), 1)
    return scripts, letters


def script_shares(store: BlockStore, *, tokenizer: Tokenizer) -> list[ScriptShare]:
    """Scripts in up to 256 blocks spread evenly over the split, most letters first; `none` for wordless documents.

    A letter that the vocabulary lacks is part of an unknown token and counts for no script.
    """
    scripts, letters_of = piece_letters(tokenizer.pieces(), special_ids=list(tokenizer.special_token_ids.values()))
    letters = np.zeros(len(scripts) + 1, np.int64)
    documents = np.zeros(len(scripts) + 1, np.int64)
    for number in spread(store.num_blocks, wanted=SAMPLED_BLOCKS):
        block = store.read_block(number)
        starts = np.cumsum(block.lengths, dtype=np.int64) - block.lengths
        by_document = np.add.reduceat(letters_of.take(block.tokens, axis=0), starts, axis=0)
        letters[:-1] += by_document.sum(axis=0, dtype=np.int64)
        with_letters = by_document[by_document.any(axis=1)]
        documents[-1] += len(by_document) - len(with_letters)
        if len(with_letters):
            documents += np.bincount(with_letters.argmax(axis=1), minlength=len(documents))
    named = zip([*scripts, NO_LETTERS], letters.tolist(), documents.tolist(), strict=True)
    return sorted((ScriptShare(*row) for row in named if any(row[1:])), key=lambda share: -share.letters)
