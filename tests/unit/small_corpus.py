"""A small made-up corpus and a tokenizer trained on it, for the tests of the text side."""

from __future__ import annotations

import random
import tempfile
from functools import lru_cache
from pathlib import Path

from data_pipeline.tokenizer import train_tokenizer

_SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "po", "ra", "si", "tu", "ve", "wo")


def made_up_documents(count: int, *, seed: int = 0, words: int = 30) -> list[str]:
    """Distinct documents of up to `words` words; a few characters are not ASCII."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices(_SYLLABLES, k=generator.randint(1, 4))) for _ in range(400)] + [
        "café",
        "水",
    ]
    return [
        f"{number} " + " ".join(generator.choices(vocabulary, k=generator.randint(1, words))) for number in range(count)
    ]


def made_up_sentences(count: int, *, seed: int = 0) -> list[str]:
    """Distinct documents of two to six sentences."""
    generator = random.Random(seed)
    sentences = iter(made_up_documents(6 * count, seed=seed, words=6))
    return [
        " ".join(f"{next(sentences)}{generator.choice('.!?')}" for _ in range(generator.randint(2, 6)))
        for _ in range(count)
    ]


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write lines of text and give the path back."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    # Kept by the cache, and removed with it when the tests' process ends.
    return tempfile.TemporaryDirectory(prefix="bertline-test-")


@lru_cache(maxsize=1)
def small_tokenizer() -> Path:
    """The folder of a tokenizer of 300 pieces, trained once for all tests."""
    folder = Path(_folder().name)
    text = write_lines(folder / "text.txt", made_up_documents(800))
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=300, progress=False)
    return folder / "tokenizer"


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a shard folder, but for the lock and the record of where its text lay."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("build.lock", "build.json")
    }
