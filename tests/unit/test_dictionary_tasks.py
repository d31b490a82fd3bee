"""The constructed sets: what they ask, where the answers are, and that their parts share nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.benchmarks.dictionary_tasks import read_entries, write_sets
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import MultipleChoiceConfig, QuestionAnsweringConfig
from trainer.tasks.examples import Record
from trainer.tasks.multiple_choice import MultipleChoiceReader
from trainer.tasks.question_records import QuestionReader


def entry(number: int) -> str:
    sentence = f"A thing with the serial sign {number * 7919}, which nobody has named yet."
    return f"word{number}\n<field> (W{number}) {sentence}\nMore."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 plain entries, and some that are no question."""
    path = tmp_path_factory.mktemp("dictionary") / "corpus.jsonl.gz"
    other = [
        ("novel", entry(1)),
        ("foldoc", "noun\nA definition that has no field before it, as the others have."),
        ("foldoc", "short\n<field> Too short."),
        ("foldoc", "itself\n<field> A thing that is called itself by everybody who has met it."),
        ("foldoc", "word1\n<field> A second entry of a headword that was there before it."),
        ("foldoc", "half\n<field> A sentence whose bracket (which nobody closes. Then comes another."),
    ]
    documents = [*(("foldoc", entry(number)) for number in range(120)), *other]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"src": source, "text": text}) + "\n" for source, text in documents)
    return path


def test_an_entry_is_a_headword_with_one_plain_sentence(corpus: Path) -> None:
    entries = [*read_entries(corpus)]
    assert len(entries) == 120
    assert entries[1] == ("word1", "A thing with the serial sign 7919, which nobody has named yet.")


PARTS = ("train", "dev", "test")


def test_the_questions_have_squads_form_and_parts_share_no_entry(corpus: Path, tmp_path: Path) -> None:
    counts = write_sets(corpus, tmp_path)
    reader = QuestionReader(
        QuestionAnsweringConfig(name="question_answering", no_answer=True), TaskDataConfig(train="t", validation="v")
    )
    parts = {part: reader.read(tmp_path / f"questions_{part}.json", labelled=True) for part in PARTS}
    assert [len(parts[part]) for part in PARTS] == [counts[f"questions_{part}.json"] for part in PARTS] == [40, 5, 5]
    words = [words_of(records) for records in parts.values()]
    assert len(words[0] | words[1] | words[2]) == sum(map(len, words)) == 120
    for record in (record for records in parts.values() for record in records):
        question, context = record.inputs
        definition = question.removeprefix("Which term means: ")
        assert (definition in context) == bool(record.target)
        for answer in record.target:
            assert f"\n{answer.text}: {definition}" in f"\n{context}"
    assert json.loads((tmp_path / "questions_train.json").read_text())["constructed"] is True


def test_the_right_option_is_the_definitions_headword_and_the_same_set_is_written_again(
    corpus: Path, tmp_path: Path
) -> None:
    counts = write_sets(corpus, tmp_path)
    assert write_sets(corpus, tmp_path / "again") == counts
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes() for name in counts)
    definitions = {entry.definition: entry.headword for entry in read_entries(corpus)}
    reader = MultipleChoiceReader(MultipleChoiceConfig(), TaskDataConfig(train="t", validation="v"))
    records = reader.read(tmp_path / "choices_train.jsonl", labelled=True)
    assert len(records) == counts["choices_train.jsonl"] == 96
    for record in records:
        definition, *options = record.inputs
        assert options[record.target] == definitions[definition]
        assert len(set(options)) == 4
    assert len({record.target for record in records}) == 4


def words_of(records: list[Record]) -> set[str]:
    """The headwords of the records' passages."""
    return {line.split(":")[0] for record in records for line in record.inputs[1].split("\n")}
