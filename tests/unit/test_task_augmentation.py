"""Disturbed training rows: what moves, what stays, what goes along, and that it hangs on seed, epoch and row alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from letter_tokenizer import LetterTokenizer
from small_task import write_entities, write_matches, write_questions, write_recipe, write_sentences, write_sentiment

from trainer.augmentation_config import TaskAugmentationConfig
from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, SegmentationConfig, TaggingConfig, TaskDataConfig
from trainer.finetune_data import read_task_data
from trainer.matching_config import QuestionAnsweringConfig, RankingConfig
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.tasks.augment import augmented
from trainer.tasks.classification import Classification
from trainer.tasks.examples import Example, Record
from trainer.tasks.question_answering import QuestionAnswering
from trainer.tasks.question_records import Answer
from trainer.tasks.ranking import Ranking
from trainer.tasks.rows import TrainingRows
from trainer.tasks.segmentation import Segmentation
from trainer.tasks.tagging import Tagging

DATA = TaskDataConfig(train="t", validation="v", max_length=32)
EPOCHS = range(40)


def disturbed(rows: TrainingRows, *, seed: int = 1, **settings: Any) -> TrainingRows:
    rates = {name: settings.pop(name) for name in ("insert", "swap", "delete") if name in settings}
    return augmented(
        rows, rates=TaskAugmentationConfig.model_validate(rates), seed=seed, tokenizer=LetterTokenizer(), **settings
    )


def classified(*inputs: str, pooling: str = "first") -> TrainingRows:
    config = ClassificationConfig.model_validate({"name": "classification", "pooling": pooling})
    task = Classification(config, DATA, labels=("no", "yes"))
    return TrainingRows(task.examples([Record("x", inputs, "yes")], LetterTokenizer()))


def epochs(rows: TrainingRows) -> list[Example]:
    return [rows.example(0, epoch=epoch) for epoch in EPOCHS]


def ids(examples: Sequence[Example]) -> list[list[int]]:
    return [example.input_ids.tolist() for example in examples]


def test_each_rate_does_what_it_says_between_the_frames() -> None:
    plain = classified("abcdef")
    whole = plain.examples[0].input_ids.tolist()
    deleted = ids(epochs(disturbed(plain, delete=0.3)))
    assert all(row[0] == 2 and row[-1] == 3 and 3 <= len(row) <= 8 for row in deleted)
    assert all([token for token in whole if token in row] == row for row in deleted)
    assert len({len(row) for row in deleted}) > 2
    swapped = ids(epochs(disturbed(plain, swap=0.5)))
    assert all(sorted(row) == sorted(whole) for row in swapped)
    assert any(row != whole for row in swapped)
    inserted = ids(epochs(disturbed(plain, insert=0.3)))
    assert all(len(row) == len(whole) for row in inserted)  # what is too much is cut off
    assert any(len(set(row)) < len(row) for row in inserted)


def test_a_row_follows_seed_epoch_and_number_and_what_is_scored_stays() -> None:
    plain = classified("abcdef")
    rows = disturbed(plain, swap=0.4, delete=0.2)
    assert ids(epochs(rows)) == ids(epochs(disturbed(plain, swap=0.4, delete=0.2)))
    assert ids(epochs(rows)) != ids(epochs(disturbed(plain, seed=2, swap=0.4, delete=0.2)))
    assert rows.examples == plain.examples
    assert len({plain.fingerprint(), rows.fingerprint(), disturbed(plain, swap=0.4).fingerprint()}) == 3


def test_types_and_read_tokens_follow_their_places() -> None:
    for example in epochs(disturbed(classified("abcd", "efgh", pooling="mean"), insert=0.4, swap=0.4, delete=0.4)):
        second = int(np.flatnonzero(example.input_ids == 3)[0]) + 1
        assert example.token_type_ids.tolist() == [0] * second + [1] * (len(example) - second)
        assert example.rows.tolist() == list(range(len(example)))
        assert example.targets is not None
        assert (example.predictions, example.targets.tolist()) == (1, [1])


TAGS = {"a": "O", "b": "B-X", "c": "I-X", "d": "O", "e": "B-Y", "f": "O"}


def test_entities_stay_whole_and_words_keep_their_tags() -> None:
    labels = ("B-X", "B-Y", "I-X", "O")
    task = Tagging(TaggingConfig(name="tagging"), DATA, labels=labels)
    rows = TrainingRows(task.examples([Record("x", tuple(TAGS), tuple(TAGS.values()))], LetterTokenizer()))
    seen = set()
    for example in epochs(disturbed(rows, insert=0.2, swap=0.5, delete=0.3, starts_unit=task.starts_unit)):
        words = [chr(87 + token) for token in example.input_ids[1:-1].tolist()]
        assert example.rows.tolist() == list(range(1, 1 + len(words)))
        assert example.targets is not None
        assert [labels[target] for target in example.targets] == [TAGS[word] for word in words]
        assert example.predictions == len(words)
        assert all(words[place - 1] == "b" for place, word in enumerate(words) if word == "c")
        seen.add("".join(words))
    assert len(seen) > 20


def test_the_words_of_a_segmentation_are_units() -> None:
    task = Segmentation(SegmentationConfig(name="segmentation"), DATA)
    rows = TrainingRows(task.examples([Record("x", tuple("abcdef"), tuple("BESBME"))], LetterTokenizer()))
    assert task.starts_unit.tolist() == [True, False, False, True]
    for example in epochs(disturbed(rows, swap=0.6, delete=0.2, starts_unit=task.starts_unit)):
        text = "".join(chr(87 + token) for token in example.input_ids[1:-1].tolist())
        assert ("a" in text) == ("ab" in text)
        assert ("d" in text) == ("def" in text)


def test_plain_tags_make_every_word_a_unit() -> None:
    task = Tagging(TaggingConfig(name="tagging", scheme="plain"), DATA, labels=("I-X", "N"))
    assert task.starts_unit.tolist() == [True, True]


def test_of_a_question_with_a_context_the_question_alone_is_disturbed() -> None:
    config = QuestionAnsweringConfig(name="question_answering", stride=8, max_question_length=8)
    task = QuestionAnswering(config, DATA)
    record = Record("x", ("abcdef", "ghijklm"), (Answer("ij", 2),))
    rows = TrainingRows(task.examples([record], LetterTokenizer()))
    for example in epochs(disturbed(rows, delete=0.4, swap=0.4, first_text_only=True)):
        start = len(example) - 8
        assert example.input_ids[start:].tolist() == [*range(16, 23), 3]
        assert example.rows.tolist() == [0, *range(start, start + 7)]
        assert example.targets is not None
        assert example.targets.tolist() == [[3, 4]]
        assert example.predictions == 1
    assert len({len(example) for example in epochs(disturbed(rows, delete=0.4, first_text_only=True))}) > 1


def test_drawn_negatives_are_disturbed_too_and_sequences_counted_anew() -> None:
    task = Ranking(RankingConfig(name="ranking", negatives=2), DATA)
    records = [Record("t", (letter, letter * 5), 0) for letter in "abcdefg"]
    plain = task.training_rows(records, LetterTokenizer(), seed=1)
    for epoch in EPOCHS:
        before = plain.example(0, epoch=epoch)
        example = disturbed(plain, delete=0.5).example(0, epoch=epoch)
        assert example.sequences is not None
        assert sum(example.sequences) == len(example) < len(before)
        assert example.rows.tolist() == [0, example.sequences[0], sum(example.sequences[:2])]
        assert (example.input_ids[example.rows] == 2).all()
        assert set(example.input_ids) == set(before.input_ids)


TASKS = {
    "classification": ("  name: classification", "tsv", 40, write_sentiment),
    "tagging": ("  name: tagging", "conll", 27, write_entities),
    "segmentation": ("  name: segmentation", "txt", 16, write_sentences),
    "question_answering": (
        "  {name: question_answering, no_answer: true, stride: 8, max_question_length: 6}",
        "json",
        36,
        write_questions,
    ),
    "ranking": ("  {name: ranking, negatives: 3, candidates: 4, recall_at: [1]}", "jsonl", 38, write_matches),
    "multiple_choice": ("  name: multiple_choice", "jsonl", 38, write_matches),
    "sentence_embedding": (
        "  {name: sentence_embedding, first: target, second: source, group_size: 4}",
        "jsonl",
        38,
        write_matches,
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_has_its_training_rows_disturbed_and_no_others(kind: str, runtime: Runtime, tmp_path: Path) -> None:
    task, suffix, pieces, write = TASKS[kind]
    write(tmp_path)
    recipe = write_recipe(tmp_path, task=task, suffix=suffix, pieces=pieces)
    found = []
    for number, settings in enumerate(([], ["data.augmentation={delete: 0.5, swap: 0.5}"])):
        loaded = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={tmp_path}/{number}", *settings])
        found.append(read_task_data(loaded, runtime=runtime, report=lambda text: None))
    plain, changed = found
    numbers = range(len(plain.rows))
    assert [len(e) for e in plain.rows.examples] == [len(e) for e in changed.rows.examples]
    assert any(
        changed.rows.example(n, epoch=0).input_ids.tolist() != plain.rows.example(n, epoch=0).input_ids.tolist()
        for n in numbers
    )
    assert ids(plain.validation.examples) == ids(changed.validation.examples)


def test_targets_that_are_no_tags_stay_in_their_order_however_many_rows_there_are() -> None:
    written = Example(
        record=0,
        input_ids=np.array([2, 10, 11, 12, 3], dtype=np.int32),
        token_type_ids=np.zeros(5, dtype=np.int32),
        rows=np.arange(5),
        predictions=5,
        targets=np.array([5, 6, 7, 8, 9]),
    )
    found = epochs(disturbed(TrainingRows([written]), delete=0.5, swap=0.5))
    assert len(set(map(len, found))) > 1
    for example in found:
        assert example.targets is not None
        assert (example.predictions, example.targets.tolist()) == (5, [5, 6, 7, 8, 9])


def test_rates_that_change_nothing_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(UserError, match=r"insert, swap and delete are all 0: set one of them"):
        load_finetune_recipe(str(recipe), overrides=["data.augmentation={swap: 0.0}"])
