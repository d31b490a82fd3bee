"""Windows, the head, predictions and scores of question answering, on inputs small enough to work out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from letter_tokenizer import LetterTokenizer
from small_task import write_questions, write_recipe

from trainer.errors import UserError
from trainer.finetune import train_and_score
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import QuestionAnsweringConfig
from trainer.metrics import read_records
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_predict import write_predictions
from trainer.tasks.examples import Record, join_outputs, make_batch
from trainer.tasks.question_answering import QuestionAnswering
from trainer.tasks.question_head import QuestionHead
from trainer.tasks.question_records import Answer
from trainer.tasks.question_scores import answer_metrics, exact_match, f1, normalized


def config(**settings: object) -> QuestionAnsweringConfig:
    small = {"stride": 2, "max_question_length": 2, "dropout": 0.0}
    return QuestionAnsweringConfig.model_validate({"name": "question_answering", **small, **settings})


def task(*, overlong: str = "cut", **settings: object) -> QuestionAnswering:
    data = TaskDataConfig.model_validate({"train": "t", "validation": "v", "max_length": 8, "overlong": overlong})
    return QuestionAnswering(config(**settings), data)


def test_a_context_becomes_windows_behind_the_whole_question() -> None:
    record = Record("x", ("ab", "cd efg hij"), (Answer("g h", 5),))
    examples = task().examples([record], LetterTokenizer())
    assert [example.input_ids.tolist() for example in examples] == [
        [2, 10, 11, 3, 12, 13, 14, 3],
        [2, 10, 11, 3, 14, 15, 16, 3],
        [2, 10, 11, 3, 16, 17, 18, 3],
        [2, 10, 11, 3, 18, 19, 3],
    ]
    assert examples[0].token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [example.rows.tolist() for example in examples] == [[0, 4, 5, 6]] * 3 + [[0, 4, 5]]
    # Only the third window holds the answer whole; in the others [CLS] is right.
    assert [example.targets.tolist() for example in examples if example.targets is not None] == [
        [[0, 0]],
        [[0, 0]],
        [[1, 2]],
        [[0, 0]],
    ]
    assert examples[2].known["offsets"][0].tolist() == [[5, 6], [7, 8], [8, 9]]
    assert make_batch(examples, term="question_answering").term_counts() == {"question_answering": 4}


def test_without_an_answer_the_right_row_is_the_first_and_unlabelled_there_is_none() -> None:
    records = [Record("x", ("ab", "cd"), ()), Record("y", ("ab", "cd"))]
    none, unlabelled = task().examples(records, LetterTokenizer())
    assert none.targets is not None
    assert (none.targets.tolist(), unlabelled.targets) == ([[0, 0]], None)


def test_every_context_token_is_in_a_window_whatever_the_stride() -> None:
    for length in range(1, 12):
        for stride in (1, 2, 3):
            examples = task(stride=stride).examples([Record("x", ("ab", "c" * length))], LetterTokenizer())
            seen = {int(i) for e in examples for i, _ in e.known["offsets"][0]}
            assert seen == set(range(length))
            assert len(examples) == 1 + max(0, -((3 - length) // stride))


def test_a_long_question_is_cut_and_counted_once_or_refused() -> None:
    record = Record("x:3", ("abcd", "efghijk"))
    examples = task().examples([record], LetterTokenizer())
    assert [example.cut_tokens for example in examples] == [2, 0, 0]
    with pytest.raises(UserError, match=r"x:3: the question has 4 tokens, more than task\.max_question_length=2"):
        task(overlong="refuse").examples([record], LetterTokenizer())
    with pytest.raises(UserError, match=r"x:4: 12 tokens, longer than data\.max_length=8"):
        task(overlong="refuse").examples([Record("x:4", ("ab", "efghijk"))], LetterTokenizer())


def test_what_the_vocabulary_has_no_token_for_is_named() -> None:
    with pytest.raises(UserError, match=r"x: the vocabulary has no token for anything in the context"):
        task().examples([Record("x", ("ab", "  "))], LetterTokenizer())
    with pytest.raises(UserError, match=r"x: the vocabulary has no token for anything in the answer ' '"):
        task().examples([Record("x", ("ab", "c d"), (Answer(" ", 1),))], LetterTokenizer())


def test_windows_that_would_step_over_tokens_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, task="  {name: question_answering, stride: 20, max_question_length: 10}")
    message = r"data\.max_length=32 less task\.max_question_length=10 and 3 leaves room for 19 context tokens, and task"
    with pytest.raises(UserError, match=message):
        load_finetune_recipe(str(recipe))


def head(**settings: object) -> QuestionHead:
    """A head whose start and end scores are the hidden states themselves."""
    made = QuestionHead(config(**settings), hidden_size=2)
    with torch.no_grad():
        made.project.weight.copy_(torch.eye(2))
        made.project.bias.zero_()
    return made


# A window of [CLS] and three tokens, and one of [CLS] and one token.
HIDDEN = torch.tensor([[1.0, 0.5], [3.0, 0.0], [0.0, 1.0], [2.0, 4.0], [0.0, 0.25], [1.0, 2.0]])
COUNTS = torch.tensor([4, 2])


def test_the_loss_is_the_mean_of_both_ends_over_the_rows_of_each_window() -> None:
    loss, number = head().loss(HIDDEN, COUNTS, torch.tensor([[1, 3], [0, 0]]))
    starts = -HIDDEN[:4, 0].log_softmax(0)[1] - HIDDEN[4:, 0].log_softmax(0)[0]
    ends = -HIDDEN[:4, 1].log_softmax(0)[3] - HIDDEN[4:, 1].log_softmax(0)[0]
    torch.testing.assert_close(loss, (starts + ends) / 2)
    assert int(number) == 2


def test_dropout_is_there_in_training_alone() -> None:
    wet, dry = head(dropout=0.5), head()
    torch.manual_seed(0)
    assert wet.outputs(HIDDEN, COUNTS)["scores"].tolist() != dry.outputs(HIDDEN, COUNTS)["scores"].tolist()
    assert wet.eval().outputs(HIDDEN, COUNTS)["scores"].tolist() == dry.outputs(HIDDEN, COUNTS)["scores"].tolist()


def test_the_best_pieces_are_those_that_end_behind_their_start_and_are_short_enough() -> None:
    outputs = head(n_best=3).outputs(HIDDEN, COUNTS)
    assert outputs["spans"][0].tolist() == [[0, 2], [2, 2], [0, 1]]
    assert outputs["scores"][0].tolist() == [7.0, 6.0, 4.0]
    assert outputs["scores"][1].tolist() == [3.0, -float("inf"), -float("inf")]
    assert outputs["null"].tolist() == [1.5, 0.25]
    assert head(n_best=3, max_answer_length=2).outputs(HIDDEN, COUNTS)["spans"][0].tolist() == [[2, 2], [0, 1], [1, 2]]
    # More than there are pieces in all.
    many = head(n_best=20).outputs(HIDDEN, COUNTS)["scores"]
    assert many.shape == (2, 20)
    assert int(many.isfinite().sum()) == 6 + 1


def outputs(null: float) -> dict[str, Any]:
    """Two windows of the context "in May 1990." that both hold the same piece, with offsets that begin at blanks."""
    return {
        "spans": np.array([[[1, 2], [0, 0]], [[0, 1], [1, 1]]]),
        "scores": np.array([[2.0, 1.0], [3.0, -np.inf]]),
        "null": np.array([null, null + 9.0]),
        "offsets": np.array([[[0, 2], [2, 6], [6, 11]], [[2, 6], [6, 11], [0, 0]]]),
    }


def test_a_prediction_joins_windows_and_counts_characters_of_the_context() -> None:
    record = Record("x", ("When?", "in May 1990."))
    found = task().prediction(record, outputs(null=9.0))
    weights = np.exp([3.0, 1.0]) / np.exp([3.0, 1.0]).sum()
    assert found["n_best"] == [
        {"answer": "May 1990", "start": 3, "end": 11, "score": pytest.approx(weights[0])},
        {"answer": "in", "start": 0, "end": 2, "score": pytest.approx(weights[1])},
    ]
    assert {key: found[key] for key in ("answer", "start", "end")} == {"answer": "May 1990", "start": 3, "end": 11}
    assert len(task(n_best=1).prediction(record, outputs(null=9.0))["n_best"]) == 1


def test_no_answer_is_given_where_every_window_says_so_by_more_than_the_threshold() -> None:
    record = Record("x", ("When?", "in May 1990."))
    none = task(no_answer=True).prediction(record, outputs(null=3.5))
    assert (none["answer"], none["start"], none["end"], none["null_margin"]) == ("", None, None, 0.5)
    assert none["score"] == pytest.approx(float(np.exp(3.5) / np.exp([3.5, 3.0, 1.0]).sum()))
    assert [answer["answer"] for answer in none["n_best"]] == ["", "May 1990", "in"]
    assert task(no_answer=True, null_threshold=0.5).prediction(record, outputs(null=3.5))["answer"] == "May 1990"
    assert task(no_answer=True).prediction(record, outputs(null=2.0))["answer"] == "May 1990"
    # One window that is sure of an answer outweighs the others.
    two = outputs(null=9.0)
    two["null"][0] = -1.0
    assert task(no_answer=True).prediction(record, two)["answer"] == "May 1990"


def test_answers_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalized("  The U.S.A.,\tan  Apple! ") == "usa apple"
    assert normalized("theatre banana") == "theatre banana"
    assert exact_match("The cat.", ["a dog", "cat"]) == 1.0
    assert exact_match("", []) == 1.0
    assert exact_match("cat", []) == 0.0


def test_f1_is_over_bags_of_words_and_the_best_answer_counts() -> None:
    assert f1("the cat sat", ["a cat sat down"]) == pytest.approx(2 * 2 / 5)
    assert f1("cat cat", ["cat", "dog"]) == pytest.approx(2 * 1 / 3)
    assert f1("cat", ["dog"]) == 0.0
    assert (f1("", []), f1("cat", []), f1("", ["cat"])) == (1.0, 0.0, 0.0)


def test_scores_are_also_given_for_questions_with_and_without_an_answer() -> None:
    found, answers = ["cat", "", "a dog", ""], [["cat sat"], [], ["dog"], ["bird"]]
    scores = answer_metrics(found, answers, no_answer=True)
    assert scores == pytest.approx(
        {
            "f1": (2 / 3 + 1 + 1 + 0) / 4,
            "exact_match": 2 / 4,
            "f1_answerable": (2 / 3 + 1 + 0) / 3,
            "accuracy_unanswerable": 1.0,
        }
    )
    assert tuple(scores) == task(no_answer=True).metric_names
    assert tuple(answer_metrics(found, answers, no_answer=False)) == task().metric_names
    assert task().metric == "f1"


def test_known_values_join_what_the_model_gives_window_by_window() -> None:
    examples = task().examples([Record("x", ("ab", "cdefg")), Record("y", ("a", "b"))], LetterTokenizer())
    joined = join_outputs([{"null": np.array([float(n)])} for n in range(3)], examples)
    assert [of_record["null"].tolist() for of_record in joined] == [[0.0, 1.0], [2.0]]
    assert [[len(window) for window in of_record["offsets"]] for of_record in joined] == [[3, 3], [1]]


TASK = """\
  name: question_answering
  no_answer: true
  stride: 8
  max_question_length: 6
  dropout: 0.0"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over contexts some of which hold the good word that is asked for, and longer than a window."""
    folder = tmp_path_factory.mktemp("questions")
    write_questions(folder)
    return write_recipe(folder, task=TASK, suffix="json", pieces=36)


SETTINGS = ["data.max_length=24", "optimizer.learning_rate=2e-2", "train.global_batch_size=16"]


def train(recipe: Path, runtime: Runtime, folder: Path, *settings: str) -> list[str]:
    told: list[str] = []
    config = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *SETTINGS, *settings])
    train_and_score(config, runtime=runtime, resume="never", report=told.append)
    return told


def test_it_learns_to_answer_and_predicts_characters_of_the_text(
    recipe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    told = train(recipe, runtime, tmp_path, "train.epochs=16", "evaluation.every_steps=48")
    assert re.match(r"48 training records, [\d,]+ tokens in \d\d+ sequences$", told[0]), told
    scores = json.loads((tmp_path / "tiny/scores.json").read_text())["parts"]["test"]
    assert scores["f1"] > 0.9, scores
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    contexts = ["  the film was lovely with music", "the film was a story"]
    source.write_text("".join(json.dumps({"question": "what was", "context": c}) + "\n" for c in contexts))
    assert write_predictions(tmp_path / "tiny", which="auto", source=str(source), out=out) == 2
    one, other = (json.loads(line) for line in out.read_text().splitlines())
    # The small vocabulary cuts the word in two; what counts is that the characters are those of the text as it was.
    assert one["answer"] == contexts[0][one["start"] : one["end"]]
    assert one["answer"]
    assert contexts[0].index("lovely") <= one["start"] < one["end"] == contexts[0].index("lovely") + len("lovely")
    assert (other["answer"], other["start"]) == ("", None)


def test_micro_batches_and_zero_stages_give_the_same_curve(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    curves = []
    for number, settings in enumerate(([], ["train.micro_batch_size=16", "engine.ds_config=zero3"])):
        train(recipe, runtime, tmp_path / str(number), "train.epochs=1", *settings)
        records = read_records(tmp_path / str(number) / "tiny/metrics.jsonl")
        curves.append([record["train/loss"] for record in records if "train/loss" in record])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert len(curves[0]) >= 3
