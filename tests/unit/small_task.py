"""Tiny labelled files and recipes that train on them in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path

GOOD = ("fine", "great", "lovely", "bright")
BAD = ("poor", "awful", "dull", "grim")
PLAIN = ("the", "film", "was", "a", "night", "story", "with", "music")

RECIPE = """\
name: tiny
seed: 3
start:
  model:
    hidden_size: 16
    num_layers: 2
    num_heads: 2
    intermediate_size: 32
    max_positions: 32
    hidden_dropout: 0.0
    attention_dropout: 0.0
  tokenizer:
    vocab_size: {pieces}
task:
{task}
data:
  train: {folder}/train.{suffix}
  validation: {folder}/dev.{suffix}
  test: {folder}/test.{suffix}
  max_length: 32
train:
  epochs: 2
  global_batch_size: 8
  micro_batch_size: 4
  log_every_steps: 1
optimizer:
  learning_rate: 5e-3
engine:
  ds_config: zero1
  precision: fp32
"""


def sentiment_lines(count: int, *, seed: int) -> list[str]:
    """`label⇥text` lines whose label hangs on one word."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        label = generator.choice(("pos", "neg"))
        words = [generator.choice(PLAIN) for _ in range(generator.randint(2, 9))]
        words.insert(generator.randrange(len(words)), generator.choice(GOOD if label == "pos" else BAD))
        lines.append(f"{label}\t{' '.join(words)}")
    return lines


def write_sentiment(folder: Path) -> None:
    """train.tsv, dev.tsv and test.tsv with a header line."""
    for number, (part, count) in enumerate({"train": 48, "dev": 24, "test": 24}.items()):
        lines = ["label\ttext", *sentiment_lines(count, seed=number)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_translations(folder: Path) -> None:
    """train.tsv, dev.tsv and test.tsv: one or two numbers in English, and in German from last to first."""
    words = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
    texts = [*([one] for one in words), *([one, other] for one in words for other in words)]
    lines = [f"{' '.join(text)}\t{' '.join(words[word] for word in reversed(text))}" for text in texts]
    for number, (part, count) in enumerate({"train": 5, "dev": 1, "test": 1}.items()):
        shuffled = random.Random(number).sample(lines * count, count * len(lines))
        (folder / f"{part}.tsv").write_text("\n".join(["source\ttarget", *shuffled]) + "\n", encoding="utf-8")


def write_pairs(folder: Path, *, suffix: str) -> None:
    """train, dev and test files of texts and targets: a tsv without header, jsonl, or json dictionaries."""
    words = {"open": "打开", "close": "关闭", "the file": "文件", "the window": "窗口"}
    for number, part in enumerate(("train", "dev", "test")):
        generator = random.Random(number)
        path = folder / f"{part}.{suffix}"
        if suffix == "json":
            entries = {chr(0x4E00 + 3 * place + number): [["木", generator.choice("日月")]] for place in range(24)}
            path.write_text(json.dumps(entries), encoding="utf-8")
            continue
        lines = []
        for _ in range(24):
            chosen = [generator.choice(list(words)[:2]), generator.choice(list(words)[2:])]
            source, target = " ".join(chosen), "".join(words[word] for word in chosen)
            row = {"source": f"{source}. It is done.", "target": source}
            lines.append(f"{source}\t{target}\tmade" if suffix == "tsv" else json.dumps(row))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_recipe(folder: Path, *, task: str = "  name: classification", suffix: str = "tsv", pieces: int = 40) -> Path:
    """A recipe over the files of `folder`."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(task=task, folder=folder, suffix=suffix, pieces=pieces), encoding="utf-8")
    return path


def write_sentences(folder: Path) -> None:
    """train.txt, dev.txt and test.txt: words of one to three characters between blanks."""
    words = ("甲", "乙丙", "丁戊己", "庚辛")
    for number, (part, count) in enumerate({"train": 40, "dev": 12, "test": 12}.items()):
        generator = random.Random(number)
        lines = [" ".join(generator.choice(words) for _ in range(generator.randint(1, 8))) for _ in range(count)]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_entities(folder: Path) -> None:
    """train.conll, dev.conll and test.conll: BIO, persons of two words, places of one."""
    for number, (part, count) in enumerate({"train": 40, "dev": 12, "test": 12}.items()):
        generator = random.Random(number)
        lines = []
        for _ in range(count):
            sentence = [(generator.choice(PLAIN), "O") for _ in range(generator.randint(1, 4))]
            sentence += generator.choice(([("ann", "B-PER"), ("lee", "I-PER")], [("rome", "B-LOC")]))
            lines += [f"{word}\t{tag}" for word, tag in sentence] + [""]
        (folder / f"{part}.conll").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_questions(folder: Path) -> None:
    """train.json, dev.json and test.json in SQuAD's form: asked is the good word of a context, which a third lack."""
    for number, (part, count) in enumerate({"train": 48, "dev": 12, "test": 12}.items()):
        generator = random.Random(number)
        paragraphs = []
        for question in range(count):
            words = [generator.choice(PLAIN) for _ in range(generator.randint(3, 20))]
            answers = []
            if question % 3:
                place = generator.randrange(len(words))
                words.insert(place, generator.choice(GOOD))
                answers = [{"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}]
            qas = [{"id": str(question), "question": "what was", "answers": answers, "is_impossible": not answers}]
            paragraphs.append({"context": " ".join(words), "qas": qas})
        content = {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")


def write_matches(folder: Path) -> None:
    """train.jsonl, dev.jsonl and test.jsonl: a word and a text that holds it, to be matched, ranked or chosen."""
    for number, (part, count) in enumerate({"train": 48, "dev": 16, "test": 16}.items()):
        generator = random.Random(number)
        lines = []
        for _ in range(count):
            word, *others = generator.sample((*GOOD, *BAD), 3)
            texts = [" ".join([generator.choice(PLAIN), other, generator.choice(PLAIN)]) for other in (word, *others)]
            label = generator.randrange(3)
            options = [*texts[1 : label + 1], texts[0], *texts[label + 1 :]]
            pair = {"query": word, "document": texts[0], "target": word, "source": texts[0]}
            lines.append(json.dumps({"question": word, "options": options, "label": label, **pair}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
