"""Questions, contexts and answers: what is read from SQuAD's JSON and from tables, and every mistake by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import QuestionAnsweringConfig
from trainer.tasks.examples import Record
from trainer.tasks.question_records import Answer, QuestionReader

CONTEXT = " Ann sold the red house in 1990. "


def reader(**settings: object) -> QuestionReader:
    config = QuestionAnsweringConfig.model_validate({"name": "question_answering", **settings})
    return QuestionReader(config, TaskDataConfig(train="t", validation="v"))


def question(**parts: Any) -> dict[str, Any]:
    return {"id": "1", "question": "When?", "answers": [{"text": "1990", "answer_start": 27}], **parts}


def squad(path: Path, *questions: dict[str, Any], context: str = CONTEXT) -> Path:
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]
    path.write_text(json.dumps({"version": "v2.0", "data": data}, indent=1), encoding="utf-8")
    return path


def test_squad_json_is_read_with_line_and_path_of_every_question(tmp_path: Path) -> None:
    impossible = question(answers=[], is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 0}])
    path = squad(tmp_path / "a.json", question(), impossible)
    records = reader(no_answer=True).read(path, labelled=True)
    assert [record.inputs for record in records] == [("When?", CONTEXT)] * 2
    assert [record.target for record in records] == [(Answer("1990", 27),), ()]
    lines = [n for n, line in enumerate(path.read_text().splitlines(), start=1) if '"question":' in line]
    assert [record.where for record in records] == [
        f"{path}:{line}: data[0].paragraphs[0].qas[{k}]" for k, line in enumerate(lines)
    ]
    assert [record.target for record in reader().read(path, labelled=False)] == [None, None]


def test_a_table_has_answers_as_a_list_or_in_the_columns_of_datasets(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    forms = [[{"text": "1990", "answer_start": 27}], {"text": ["1990"], "answer_start": [27]}]
    path.write_text("".join(json.dumps({"q": " When? ", "c": CONTEXT, "a": form}) + "\n" for form in forms))
    named = reader(question="q", context="c", answers="a")
    assert named.read(path, labelled=True) == [
        Record(f"{path}:{line}", ("When?", CONTEXT), (Answer("1990", 27),)) for line in (1, 2)
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"answers": [{"text": "1990", "answer_start": 26}]},
            r"a\.json:12: data\[0\]\.paragraphs\[0\]\.qas\[0\]: the answer '1990' is not in its context at character "
            r"26: it stands at 27; mend",
        ),
        (
            {"answers": [{"text": "Bob", "answer_start": 1}]},
            r"the answer 'Bob' is not in its context.*: it is nowhere in",
        ),
        (
            {"answers": [{"text": "1990", "answer_start": -6}]},
            r"is not in its context at character -6: it stands at 27",
        ),
        (
            {"answers": [{"text": "1990"}]},
            r"an answer needs a 'text' that is not empty and a whole number 'answer_start'",
        ),
        ({"answers": [{"text": " ", "answer_start": 0}]}, r"an answer needs a 'text' that is not empty"),
        ({"answers": ["1990"]}, r"an answer needs a 'text'"),
        ({"answers": []}, r"the question has no answer; remove it, or set task\.no_answer: true"),
        ({"answers": "1990"}, r"'answers' is str, where a list of answers is needed"),
        ({"answers": {"text": ["1990"], "answer_start": []}}, r"'answers' has as many 'answer_start' as 'text'"),
        ({"is_impossible": True}, r"is_impossible is true, and there are answers; mend one of them"),
        ({"question": " "}, r"column 'question' is empty"),
        ({"question": 3}, r"qas\[0\] has no 'question' that is a text, as SQuAD's form asks for"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reader().read(squad(tmp_path / "a.json", question(**parts)), labelled=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data":\n [', r"a\.json:2: JSON does not parse"),
        ("[1]", r"a\.json:1 has no 'data' that is a list"),
        ('{"data": [{}]}', r"a\.json:1: data\[0\] has no 'paragraphs' that is a list"),
        ('{"data": [{"paragraphs": [{}]}]}', r"data\[0\]\.paragraphs\[0\] has no 'context' that is a text"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', r"data\[0\]\.paragraphs\[0\] has no 'qas' that is a list"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": [{"question": "x"}]}]}]}', r"column 'context' is empty"),
        ('{"data": []}', r"a\.json: the file holds no question"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        reader(no_answer=True).read(tmp_path / "a.json", labelled=False)


def test_columns_are_not_named_for_squads_form(tmp_path: Path) -> None:
    data = TaskDataConfig(train="t", validation="v", columns=["question"])
    with pytest.raises(
        UserError, match=r"a\.json: SQuAD's form has names of its own; data\.columns is for tsv and csv"
    ):
        QuestionReader(QuestionAnsweringConfig(), data).read(squad(tmp_path / "a.json", question()), labelled=True)


def test_a_line_is_json_or_question_and_context_with_a_tab_between() -> None:
    wanted = Record("x:1", ("When?", "In 1990."))
    assert reader().from_line("When?\tIn 1990.", where="x:1") == wanted
    assert reader().from_line('{"question": "When?", "context": "In 1990."}', where="x:1") == wanted
    for line in ("When?", "When?\t ", "a\tb\tc"):
        with pytest.raises(UserError, match=r"x:2: the line must be a question and its context with a tab between"):
            reader().from_line(line, where="x:2")
    with pytest.raises(UserError, match=r"x:3: no column 'context'"):
        reader().from_line('{"question": "When?"}', where="x:3")
