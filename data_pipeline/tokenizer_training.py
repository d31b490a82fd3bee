"""Training a tokenizer on raw text with sentencepiece (Kudo and Richardson 2018): same text and seed, same model."""

from __future__ import annotations

import io
import itertools
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from data_pipeline.inputs import expand_inputs
from data_pipeline.progress import status
from data_pipeline.text import DEFAULT_MAX_DOCUMENT_BYTES, DocumentRule, TextOptions, check_options, iter_documents
from data_pipeline.tokenizer import METADATA_FILE, SPECIAL_PIECES, SPECIAL_TOKEN_IDS, ModelType, Tokenizer, write_tokenizer
from trainer.errors import UserError

DEFAULT_MAX_SENTENCES = 1_000_000
# sentencepiece leaves out any longer line.
SENTENCE_BYTES = 4192
# Part of what fixes the vocabulary: a Unigram model sums its counts thread by thread.
TRAINING_THREADS = 8

_SILENT = 2
# [CLS] and [SEP] take the places of the begin and end marks; as a control symbol [MASK] never comes out of text.
_SPECIAL_OPTIONS = {
    f"{ours}_{part}": value
    for ours, name in {"pad": "pad", "unk": "unk", "bos": "cls", "eos": "sep"}.items()
    for part, value in {"id": SPECIAL_TOKEN_IDS[name], "piece": SPECIAL_PIECES[name]}.items()
}


def train_tokenizer(
    paths: Sequence[str | Path],
    *,
    out: str | Path,
    vocab_size: int,
    model_type: ModelType = "unigram",
    character_coverage: float = 0.9995,
    seed: int = 0,
    document: DocumentRule = "line",
    text_field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    max_sentences: int = DEFAULT_MAX_SENTENCES,
    progress: bool = True,
) -> Tokenizer:
    """Train a tokenizer on text and write it to the folder `out`; one process calls this.

    At most `max_sentences` lines, drawn evenly from the whole input by `seed`, are held and learnt from. Raises
    UserError for bad input, a folder that already holds a tokenizer, and a vocabulary the text does not allow.
    """
    out = Path(out)
    if (out / METADATA_FILE).exists():
        raise UserError(f"{out} already holds a tokenizer; choose another --out, or remove it first")
    if vocab_size <= len(SPECIAL_TOKEN_IDS):
        raise UserError(f"--vocab-size {vocab_size} leaves no room beside the {len(SPECIAL_TOKEN_IDS)} special tokens")
    if not 0.0 < character_coverage <= 1.0:
        raise UserError(f"--character-coverage {character_coverage} is outside (0, 1]; use 0.9995, or 1.0 for few letters")
    options = TextOptions(document, text_field, max_document_bytes)
    files = expand_inputs(paths)
    check_options(files, options=options)
    with status("reading text for the tokenizer", enabled=progress):
        sample = sample_sentences(sentences(iter_documents(files, options=options)), size=max_sentences, seed=seed)
    if not sample:
        raise UserError(f"{paths[0]}: the input holds no document, only blank lines; name files with text")
    with status(f"training a {model_type} vocabulary of {vocab_size:,} on {len(sample):,} lines", enabled=progress):
        model = _train(sample, vocab_size=vocab_size, model_type=model_type, character_coverage=character_coverage)
    return write_tokenizer(
        out,
        model=model,
        metadata={
            "vocab_size": vocab_size,
            "model_type": model_type,
            "character_coverage": character_coverage,
            "seed": seed,
            "sampled_sentences": len(sample),
            "max_sentences": max_sentences,
            "training_threads": TRAINING_THREADS,
            "sentencepiece_version": sentencepiece.__version__,
        },
    )


def sentences(documents: Iterable[str]) -> Iterator[str]:
    """The lines of documents, long ones cut at white space, or between characters, to what sentencepiece takes."""
    for document in documents:
        for line in document.split("\n"):
            if len(line) * 4 <= SENTENCE_BYTES:
                if line.strip():
                    yield line
            else:
                yield from _cut(line.encode("utf-8"))


def sample_sentences(lines: Iterable[str], *, size: int, seed: int) -> list[str]:
    """An even sample of at most `size` lines in one pass (Li 1994, "Reservoir-Sampling Algorithms", algorithm L)."""
    generator = random.Random(seed)
    stream = iter(lines)
    sample = list(itertools.islice(stream, size))
    weight = 1.0
    while True:
        # 1 - random() lies in (0, 1], where the logarithm is defined.
        weight *= (1.0 - generator.random()) ** (1.0 / size)
        skip = math.log(1.0 - generator.random()) / math.log1p(-weight) if weight < 1.0 else 0.0
        drawn = next(itertools.islice(stream, min(int(skip), sys.maxsize), None), None)
        if drawn is None:
            return sample
        sample[generator.randrange(size)] = drawn


def _cut(line: bytes) -> Iterator[str]:
    """Pieces of at most SENTENCE_BYTES of one line of UTF-8."""
    start = 0
    while start < len(line):
        end = min(start + SENTENCE_BYTES, len(line))
        if end < len(line):
            blank = line.rfind(b" ", start + 1, end + 1)
            end = blank if blank > start else _character_start(line, end)
        piece = line[start:end].decode("utf-8").strip()
        if piece:
            yield piece
        start = end


def _character_start(line: bytes, position: int) -> int:
    while line[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _train(sample: list[str], *, vocab_size: int, model_type: ModelType, character_coverage: float) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            max_sentence_length=SENTENCE_BYTES,
            num_threads=TRAINING_THREADS,
            minloglevel=_SILENT,
            control_symbols=[SPECIAL_PIECES["mask"]],
            **_SPECIAL_OPTIONS,
        )
    except RuntimeError as error:
        raise _explained(str(error), vocab_size=vocab_size) from error
    return model.getvalue()


def _explained(message: str, *, vocab_size: int) -> UserError:
    """What sentencepiece's refusal means, in one line."""
    if most := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is larger than this text allows; the largest that fits is {most[1]}: "
            "use that, or give more text"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is smaller than the {least[1]} characters and special tokens of this text; "
            "use a larger one, or a lower --character-coverage"
        )
    return UserError(f"sentencepiece refuses to train on this text: {message}")
