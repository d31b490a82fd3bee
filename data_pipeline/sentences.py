"""The lines a tokenizer is trained on: documents cut to what sentencepiece takes, and an even sample of them."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterable, Iterator

# sentencepiece leaves out any longer line.
SENTENCE_BYTES = 4192


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
