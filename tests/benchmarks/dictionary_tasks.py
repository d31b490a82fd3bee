"""Sets for question answering and multiple choice, constructed: headwords asked for by their definitions.

    python -m tests.benchmarks.dictionary_tasks

The entries are those of the dictionary of computing in the English text that development uses; none is in two of the
parts train, dev and test. Nobody has written these questions: they exercise the tasks.

questions_*.json, in SQuAD's form: a passage lists six entries; a question is the definition of one of them and its
headword the answer, or the definition of a seventh, which has no answer here. A definition stands in its passage word
for word, so that a score says little of reading. choices_*.jsonl: a definition, its headword and three others.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.material import SHARED_CORPUS

OUT = Path("runs/constructed/dictionary")
SEED = 17
ENTRIES, OPTIONS = 6, 4
_HEADWORD = re.compile(r"[A-Za-z][\w/+.-]*( [\w/+.-]+){0,2}")
_LABELS = re.compile(r"^(<[^>]*>|\([^)]*\))\s*")
_SENTENCE = re.compile(r"\S.{38,238}?\.(?=\s+[A-Z]|\s*$)")


class Entry(NamedTuple):
    """A headword and the first sentence of its definition."""

    headword: str
    definition: str


def read_entries(corpus: Path) -> Iterator[Entry]:
    """The dictionary's entries whose definition is one plain sentence that does not hold the headword."""
    seen: set[str] = set()
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if document["src"] != "foldoc":
                continue
            headword, _, text = document["text"].partition("\n")
            if not text.startswith("<") or not _HEADWORD.fullmatch(headword) or headword.lower() in seen:
                continue
            while (shorter := _LABELS.sub("", text)) != text:
                text = shorter
            sentence = _SENTENCE.match(text.replace("\n", " "))
            if sentence and _is_plain(sentence[0], headword):
                seen.add(headword.lower())
                yield Entry(headword, sentence[0])


def _is_plain(sentence: str, headword: str) -> bool:
    is_whole = sentence.count("(") == sentence.count(")")
    return is_whole and "http" not in sentence and headword.lower() not in sentence.lower()


def squad(entries: Sequence[Entry], *, draws: random.Random) -> dict[str, Any]:
    """Passages of six entries with two answerable questions each, every other with one that has no answer."""
    paragraphs = []
    for start in range(0, len(entries) - ENTRIES + 1, ENTRIES):
        own = list(entries[start : start + ENTRIES])
        context = "\n".join(f"{entry.headword}: {entry.definition}" for entry in own)
        asked = [(entry, True) for entry in draws.sample(own, 2)]
        if start // ENTRIES % 2:
            asked.append((entries[start - 1], False))
        questions = [
            {
                "id": f"{start + number}",
                "question": f"Which term means: {entry.definition}",
                "answers": [{"text": entry.headword, "answer_start": _place(context, entry)}] if has_answer else [],
                "is_impossible": not has_answer,
            }
            for number, (entry, has_answer) in enumerate(asked)
        ]
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "v2.0", "constructed": True, "data": [{"title": "Dictionary", "paragraphs": paragraphs}]}


def _place(context: str, entry: Entry) -> int:
    return f"\n{context}".index(f"\n{entry.headword}: {entry.definition}")


def choices(entries: Sequence[Entry], *, draws: random.Random) -> Iterator[dict[str, Any]]:
    """Each entry's definition with its headword among others', and the number of the right one."""
    for place, entry in enumerate(entries):
        others = draws.sample([*entries[:place], *entries[place + 1 :]], OPTIONS - 1)
        label = draws.randrange(OPTIONS)
        options = [other.headword for other in others]
        options.insert(label, entry.headword)
        yield {"question": entry.definition, "options": options, "label": label}


def write_sets(corpus: Path, out: Path) -> dict[str, int]:
    """Both sets' three files each; gives by file how many questions it has."""
    draws = random.Random(SEED)
    entries = [*read_entries(corpus)]
    draws.shuffle(entries)
    tenth = len(entries) // 10
    parts = {"dev": entries[:tenth], "test": entries[tenth : 2 * tenth], "train": entries[2 * tenth :]}
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, of_part in parts.items():
        content = squad(of_part, draws=draws)
        counts[f"questions_{name}.json"] = sum(len(passage["qas"]) for passage in content["data"][0]["paragraphs"])
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (out / f"questions_{name}.json").write_text(text, encoding="utf-8")
        lines = [json.dumps(choice, ensure_ascii=False) for choice in choices(of_part, draws=draws)]
        counts[f"choices_{name}.jsonl"] = len(lines)
        (out / f"choices_{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def main() -> None:
    """Write the sets and print how large they are."""
    parser = argparse.ArgumentParser(description="Write constructed sets for question answering and multiple choice.")
    parser.add_argument("--corpus", type=Path, default=SHARED_CORPUS, help="English text by source [%(default)s]")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the sets [%(default)s]")
    options = parser.parse_args()
    for name, count in write_sets(options.corpus, options.out).items():
        print(f"{options.out / name}: {count:,} questions")


if __name__ == "__main__":
    main()
