"""What a build does to one chunk of text, in whichever process: parse, choose the split, tokenize, pack."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import connection, parent_process

import numpy as np
import numpy.typing as npt

from data_pipeline.blocks import EncodedDocuments
from data_pipeline.duplicates import Digests, text_digests
from data_pipeline.manifest import LENGTH_DTYPE, SPLITS, SplitName, token_dtype
from data_pipeline.text import Chunk, TextOptions, parse_chunk
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.word_starts import WordStarts, batch_word_starts
from trainer.errors import UserError

_SPLIT_KEY = b"bertline validation split"


@dataclass(frozen=True)
class EncodeJob:
    """What is the same for every chunk of a build.

    `done` is, for each split, (chunk, document of the chunk) behind the last document in a finished shard: what
    lies before is not tokenized again. `loaded` is the tokenizer for workers in this process; others load it from
    its folder `tokenizer`.
    """

    tokenizer: str
    options: TextOptions
    validation_fraction: float
    done: dict[SplitName, tuple[int, int]]
    word_starts: WordStarts = "vocabulary"
    deduplicate: bool = False
    loaded: Tokenizer | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "loaded": None}


@dataclass(frozen=True)
class EncodedChunk:
    """A tokenized chunk: how many documents it had in all, and those still needed of each split.

    `digests` uint64 [documents, 2] are those of all its texts, None where duplicates stay.
    """

    documents: int
    splits: dict[SplitName, EncodedDocuments]
    digests: Digests | None = None


def encode_chunk(chunk: Chunk, *, number: int, job: EncodeJob) -> EncodedChunk:
    """Tokenize chunk `number` of the input; raises UserError for bad text."""
    documents = parse_chunk(chunk, options=job.options)
    digests = text_digests(documents) if job.deduplicate else None
    if all((number + 1, 0) <= job.done[split] for split in SPLITS):
        return EncodedChunk(len(documents), {}, digests)
    held_out = is_validation(documents, fraction=job.validation_fraction)
    places = np.arange(len(documents), dtype=np.uint32)
    members: dict[SplitName, npt.NDArray[np.bool_]] = {"train": ~held_out, "validation": held_out}
    needed: dict[SplitName, npt.NDArray[np.uint32]] = {}
    for split, member in members.items():
        done_chunk, done_documents = job.done[split]
        first = 0 if number > done_chunk else done_documents if number == done_chunk else len(documents)
        needed[split] = places[member & (places >= first)]
    return EncodedChunk(
        len(documents),
        {split: encode_documents(documents, chosen, job=job) for split, chosen in needed.items()},
        digests,
    )


def encode_documents(documents: Sequence[str], chosen: npt.NDArray[np.uint32], *, job: EncodeJob) -> EncodedDocuments:
    """Tokenize the documents at the places `chosen`; those without a token are left out."""
    tokenizer = job.loaded or _load_tokenizer(job.tokenizer)
    texts = [documents[place] for place in chosen.tolist()]
    starts = None
    if job.word_starts == "vocabulary":
        ids = tokenizer.encode_batch(texts)
    else:
        ids, offsets = tokenizer.encode_with_offsets(texts)
        starts = batch_word_starts(texts, offsets)
    dtype = token_dtype(tokenizer.vocab_size)
    lengths = np.fromiter(map(len, ids), LENGTH_DTYPE, len(ids))
    # Joined as bytes, which takes a third of np.concatenate's time for so many short arrays.
    joined = b"".join(ids)  # type: ignore[arg-type]  # before Python 3.12 arrays are not declared as buffers
    tokens = np.frombuffer(joined, np.int32).astype(dtype)
    kept = lengths > 0
    return EncodedDocuments(tokens, lengths[kept], chosen[kept], starts)


def is_validation(documents: Sequence[str], *, fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out, bool [documents]: a function of each text alone, so equal texts stay together."""
    if fraction == 0.0:
        return np.zeros(len(documents), np.bool_)
    # Digests compare as byte strings, so the first bytes decide.
    limit = min(int(fraction * 2.0**64), 2**64 - 1).to_bytes(8, "big")
    return np.fromiter(
        (hashlib.sha256(_SPLIT_KEY + text.encode("utf-8")).digest() < limit for text in documents),
        np.bool_,
        len(documents),
    )


def start_worker() -> None:
    """Make a worker process end with its parent, however that ends, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def encode_in_worker(chunk: Chunk, number: int, job: EncodeJob) -> EncodedChunk:
    """`encode_chunk`, with whatever goes wrong as one line that says where: a traceback would not reach the user."""
    try:
        return encode_chunk(chunk, number=number, job=job)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a build worker failed on chunk {number} of the input, in {chunk.path}: {type(error).__name__}: {error}"
        ) from error


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@lru_cache(maxsize=1)
def _load_tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)
