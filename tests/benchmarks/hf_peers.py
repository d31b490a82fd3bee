"""What users of transformers put together for masked-language modelling: its tokenizer and `group_texts` rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizer import MODEL_FILE, SPECIAL_TOKEN_IDS
from tests.benchmarks.peer_loaders import full_rows
from trainer.model.hf_tokenizer import SPECIAL_TOKENS, build_tokenizer, read_sentencepiece

Int64Array = npt.NDArray[np.int64]


def fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One of our tokenizers as transformers' own kind."""
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(read_sentencepiece(folder / MODEL_FILE)), **SPECIAL_TOKENS
    )


def framed(tokens: npt.NDArray[Any], *, longest: int | None = None) -> Int64Array:
    """[CLS] tokens [SEP], cut to `longest` ids in all."""
    body = tokens if longest is None else tokens[: longest - 2]
    row = np.empty(len(body) + 2, dtype=np.int64)
    row[0], row[-1] = SPECIAL_TOKEN_IDS["cls"], SPECIAL_TOKEN_IDS["sep"]
    row[1:-1] = body
    return row


def group_texts(documents: Iterable[npt.NDArray[Any]], *, row_tokens: int) -> Iterator[Int64Array]:
    """Framed documents laid end to end and cut into full rows (run_mlm.py's way)."""
    return full_rows(map(framed, documents), row_tokens=row_tokens)
