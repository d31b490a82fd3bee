"""Multiple choice and ranking: what competes in a row, drawn negatives, the head, scores, and every bad line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from letter_tokenizer import LetterTokenizer
from small_task import write_matches, write_recipe

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.finetune import train_and_score
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import MultipleChoiceConfig, RankingConfig
from trainer.metrics import read_records
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_predict import write_predictions
from trainer.tasks.choice import ChoiceHead
from trainer.tasks.examples import Record, make_batch
from trainer.tasks.loader import ExampleLoader
from trainer.tasks.multiple_choice import MultipleChoice, MultipleChoiceReader
from trainer.tasks.ranking import Ranking, RankingReader
from trainer.tasks.rows import draw_others

SHAPE = ModelConfig(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16, vocab_size=30)


def data(**settings: object) -> TaskDataConfig:
    return TaskDataConfig.model_validate({"train": "train.tsv", "validation": "v", "max_length": 8, **settings})


def multiple_choice(**settings: object) -> MultipleChoiceConfig:
    return MultipleChoiceConfig.model_validate({"name": "multiple_choice", **settings})


def ranking(**settings: object) -> RankingConfig:
    small = {"negatives": 2, "candidates": 3, "recall_at": [1]}
    return RankingConfig.model_validate({"name": "ranking", **small, **settings})


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_the_options_of_a_question_compete_in_one_row_and_do_not_see_each_other() -> None:
    task = MultipleChoice(multiple_choice(), data())
    rows = task.training_rows([Record("x", ("a", "b", "cd"), 1)], LetterTokenizer(), seed=1)
    (example,) = rows.examples
    assert example.input_ids.tolist() == [2, 10, 3, 11, 3, 2, 10, 3, 12, 13, 3]
    assert example.token_type_ids.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert (example.rows.tolist(), example.sequences, example.predictions) == ([0, 5], (5, 6), 1)
    assert example.targets is not None
    assert example.targets.tolist() == [1]
    batch = make_batch([example, example], term="multiple_choice")
    assert batch.document_ids.tolist() == [[1] * 5 + [2] * 6 + [3] * 5 + [4] * 6]
    assert batch.position_ids.tolist() == [[*range(5), *range(6)] * 2]
    assert (batch.rows.tolist(), batch.row_counts.tolist()) == ([0, 5, 11, 16], [2, 2])
    assert batch.sum_squared_lengths == 2 * (25 + 36)
    assert batch.term_counts() == {"multiple_choice": 2}


def test_to_be_predicted_every_option_is_an_example_by_itself() -> None:
    task = MultipleChoice(multiple_choice(), data())
    examples = task.examples([Record("x", ("a", "b", "cd")), Record("y", ("a", "b", "b"))], LetterTokenizer())
    assert [(example.record, example.targets) for example in examples] == [(0, None), (0, None), (1, None), (1, None)]
    assert examples[1].input_ids.tolist() == [2, 10, 3, 12, 13, 3]
    refusing = MultipleChoice(multiple_choice(), data(overlong="refuse"))
    with pytest.raises(UserError, match=r"x:1: 10 tokens, longer than data\.max_length=8"):
        refusing.examples([Record("x:1", ("abcd", "e", "fgh"))], LetterTokenizer())


def test_the_loss_is_a_softmax_over_the_group_however_large() -> None:
    head = ChoiceHead(0.0, hidden_size=1)
    with torch.no_grad():
        head.project.weight.fill_(1.0)
        head.project.bias.zero_()
    hidden = torch.tensor([[1.0], [2.0], [0.5], [3.0], [1.0]])
    loss, number = head.loss(hidden, torch.tensor([2, 3]), torch.tensor([1, 0]))
    expected = -hidden[:2, 0].log_softmax(0)[1] - hidden[2:, 0].log_softmax(0)[0]
    torch.testing.assert_close(loss, expected)
    assert int(number) == 2
    assert head.outputs(hidden, torch.ones(5, dtype=torch.int64))["scores"].tolist() == [1.0, 2.0, 0.5, 3.0, 1.0]


def test_dropout_is_there_in_training_alone() -> None:
    task = Ranking(ranking(dropout=0.5), data())
    head = task.create_model(SHAPE).head
    hidden, counts = torch.ones(4, 8), torch.ones(4, dtype=torch.int64)
    torch.manual_seed(0)
    assert len(set(head.outputs(hidden, counts)["scores"].tolist())) > 1
    assert len(set(head.eval().outputs(hidden, counts)["scores"].tolist())) == 1


def test_a_choice_is_told_with_all_probabilities_and_scored_by_accuracy() -> None:
    task = MultipleChoice(multiple_choice(), data())
    record = Record("x", ("q", "one", "two"), 0)
    found = task.prediction(record, {"scores": np.array([0.0, math.log(3.0)])})
    assert found == {"option": 1, "text": "two", "score": pytest.approx(0.75), "scores": pytest.approx([0.25, 0.75])}
    scores = task.metrics([record, Record("y", ("q", "one", "two"), 1)], [found, found])
    assert scores == pytest.approx({"loss": -(math.log(0.25) + math.log(0.75)) / 2, "accuracy": 0.5})


def test_options_are_a_list_or_columns(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"q": "x", "o": ["one", " two "], "l": 1})
    reader = MultipleChoiceReader(multiple_choice(question="q", options="o", label="l"), data())
    assert reader.read(path, labelled=True) == [Record(f"{path}:1", ("x", "one", "two"), 1)]
    assert reader.read(path, labelled=False)[0].target is None
    (tmp_path / "a.tsv").write_text("q\to1\to2\tl\nx\tone\ttwo\t0\n")
    reader = MultipleChoiceReader(multiple_choice(question="q", options=["o1", "o2"], label="l"), data())
    assert reader.read(tmp_path / "a.tsv", labelled=True)[0] == Record(f"{tmp_path}/a.tsv:2", ("x", "one", "two"), 0)
    assert reader.from_line("x\tone\ttwo", where="w:1") == Record("w:1", ("x", "one", "two"))
    with pytest.raises(UserError, match=r"w:2: the line must be a question and two options or more"):
        reader.from_line("x\tone", where="w:2")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"options": ["a", "b"], "label": 2},
            r"a\.jsonl:1: column 'label' is 2, and the 2 options are numbered from 0",
        ),
        ({"options": ["a", "b"], "label": -1}, r"column 'label' is -1, and the 2 options"),
        ({"options": ["a", "b"], "label": True}, r"column 'label' is True, and the 2 options"),
        ({"options": ["a", "b"], "label": None}, r"column 'label' is None, and the 2 options"),
        ({"options": ["a"], "label": 0}, r"column 'options' must be a list of 2 texts or more"),
        ({"options": "ab", "label": 0}, r"column 'options' must be a list of 2 texts or more"),
        ({"options": ["a", " "], "label": 0}, r"column 'options' holds no text in place 1 \(from 0\)"),
        ({"label": 0}, r"no column 'options'; the columns are 'question', 'label'"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "x", **record})
    with pytest.raises(UserError, match=message):
        MultipleChoiceReader(multiple_choice(), data()).read(path, labelled=True)


def test_others_are_drawn_without_repetition_and_all_of_them_if_wanted() -> None:
    assert sorted(draw_others(7, own=2, count=4, total=5)) == [0, 1, 3, 4]
    draws = [tuple(draw_others(key, own=3, count=2, total=50)) for key in range(200)]
    assert all(3 not in drawn and len(set(drawn)) == 2 for drawn in draws)
    assert len(set(draws)) > 150
    counts = np.bincount([number for drawn in draws for number in drawn], minlength=50)
    assert counts.max() < 25


QUERIES = [Record(f"t:{n}", (letter, 2 * letter), 0) for n, letter in enumerate("abcdefg")]


def test_a_querys_negatives_follow_seed_epoch_and_row_and_nothing_else() -> None:
    task = Ranking(ranking(), data())
    rows = task.training_rows(QUERIES, LetterTokenizer(), seed=1)
    again = task.training_rows(QUERIES, LetterTokenizer(), seed=1)
    other = task.training_rows(QUERIES, LetterTokenizer(), seed=2)

    def ids(of: Any, number: int, epoch: int) -> list[int]:
        return list(of.example(number, epoch=epoch).input_ids.tolist())

    assert ids(rows, 3, 0)[:6] == [2, 13, 3, 13, 13, 3]
    assert len(rows.example(3, epoch=0).sequences or ()) == 3
    grid = [(number, epoch) for number in range(7) for epoch in range(3)]
    assert [ids(rows, *place) for place in grid] == [ids(again, *place) for place in reversed(grid)][::-1]
    assert [ids(rows, *place) for place in grid] != [ids(other, *place) for place in grid]
    assert len({tuple(ids(rows, 0, epoch)) for epoch in range(5)}) > 1
    more = Ranking(ranking(negatives=3), data()).training_rows(QUERIES, LetterTokenizer(), seed=1)
    assert len(more.example(0, epoch=0).sequences or ()) == 4
    assert rows.fingerprint() == again.fingerprint() != more.fingerprint()


@pytest.mark.parametrize("dp_world_size", [1, 2, 4])
def test_every_layout_trains_on_the_same_groups(dp_world_size: int) -> None:
    rows = Ranking(ranking(), data()).training_rows(QUERIES, LetterTokenizer(), seed=1)

    def batches(world: int) -> list[list[tuple[int, ...]]]:
        loaders = [
            ExampleLoader(
                rows, term="ranking", seed=1, global_batch_size=4, micro_batch_size=1, dp_rank=rank, dp_world_size=world
            )
            for rank in range(world)
        ]
        return [
            sorted(tuple(batch.input_ids[0].tolist()) for loader in loaders for batch in next(loader)) for _ in range(4)
        ]

    assert batches(dp_world_size) == batches(1)


def test_labelled_queries_have_fixed_candidates_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("query\tdocument\n" + "".join(f"{letter}\t{letter * 2}\n" for letter in "abcde"))
    records = RankingReader(ranking(), data()).read(path, labelled=True)
    assert [record.inputs[:2] for record in records] == [(letter, letter * 2) for letter in "abcde"]
    assert all(len(set(record.inputs[1:])) == 3 and record.target == 0 for record in records)
    assert records == RankingReader(ranking(), data()).read(path, labelled=True)
    with pytest.raises(UserError, match=r"a\.tsv: 5 different documents, and task\.candidates=6 needs as many"):
        RankingReader(ranking(candidates=6), data()).read(path, labelled=True)
    with pytest.raises(
        UserError, match=r"^train\.tsv: 5 different documents, of which task\.negatives=5 others cannot"
    ):
        Ranking(ranking(negatives=5), data()).training_rows(records, LetterTokenizer(), seed=1)


def test_documents_to_be_ranked_come_as_a_list_or_between_tabs(tmp_path: Path) -> None:
    reader = RankingReader(ranking(), data())
    path = lines(tmp_path / "a.jsonl", {"query": "x", "documents": ["one", "two"]}, {"query": "x", "documents": []})
    assert reader.read(lines(tmp_path / "b.jsonl", {"query": "x", "documents": ["one"]}), labelled=False) == [
        Record(f"{tmp_path}/b.jsonl:1", ("x", "one"))
    ]
    with pytest.raises(UserError, match=r"a\.jsonl:2: column 'documents' must be a list of 1 texts or more"):
        reader.read(path, labelled=False)
    assert reader.from_line("x\tone\ttwo", where="w:1").inputs == ("x", "one", "two")
    with pytest.raises(UserError, match=r"w:2: the line must be a query and one document or more"):
        reader.from_line("x\t ", where="w:2")
    named = RankingReader(ranking(query="q", document="d", documents="all", candidates=2), data())
    path = lines(
        tmp_path / "d.jsonl", {"q": "x", "d": "one", "all": ["two"]}, {"q": "y", "d": "three", "all": ["four"]}
    )
    assert [record.inputs for record in named.read(path, labelled=True)] == [
        ("x", "one", "three"),
        ("y", "three", "one"),
    ]
    assert [record.inputs for record in named.read(path, labelled=False)] == [("x", "two"), ("y", "four")]
    (tmp_path / "c.tsv").write_text("query\tdocument\nx\t \n")
    with pytest.raises(UserError, match=r"c\.tsv:2: column 'document' is empty"):
        reader.read(tmp_path / "c.tsv", labelled=True)


def test_a_ranking_is_told_best_first_and_scored_by_reciprocal_rank_and_recall() -> None:
    task = Ranking(ranking(candidates=12, recall_at=[1, 2]), data())
    record = Record("x", ("q", *(f"d{n}" for n in range(12))), 0)
    scores = [np.zeros(12), np.arange(12.0), np.arange(12.0)]
    scores[0][0] = 1.0  # first
    scores[1][0] = 10.5  # second
    found = [task.prediction(record, {"scores": of_query}) for of_query in scores]
    assert [entry["document"] for entry in found[1]["ranking"][:3]] == ["d11", "d0", "d10"]
    assert found[2]["ranking"][-1]["candidate"] == 0
    assert sum(entry["score"] for entry in found[1]["ranking"]) == pytest.approx(1.0)
    # A rank of 12 counts as nothing, and where all are equal the right one is taken to be the last.
    equal = task.prediction(record, {"scores": np.zeros(12)})
    metrics = task.metrics([record] * 4, [*found, equal])
    assert metrics["mrr_at_10"] == pytest.approx((1 + 1 / 2) / 4)
    assert (metrics["recall_at_1"], metrics["recall_at_2"]) == (0.25, 0.5)
    assert set(metrics) == {"loss", *task.metric_names}


def test_a_recall_that_is_always_one_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, task="  {name: ranking, candidates: 5}")
    with pytest.raises(UserError, match=r"task\.recall_at=5 is always 1 among task\.candidates=5"):
        load_finetune_recipe(str(recipe))


TASKS = {
    "ranking": "  {name: ranking, negatives: 3, candidates: 4, recall_at: [1], dropout: 0.0}",
    "multiple_choice": "  {name: multiple_choice, dropout: 0.0}",
}
OPTIONS = {"ranking": 4, "multiple_choice": 3}


@pytest.mark.parametrize("kind", TASKS)
def test_it_learns_and_every_layout_gives_the_same_curve(kind: str, runtime: Runtime, tmp_path: Path) -> None:
    write_matches(tmp_path)
    recipe = write_recipe(tmp_path, task=TASKS[kind], suffix="jsonl", pieces=38)
    curves = []
    for number, settings in enumerate((["train.epochs=16"], ["train.epochs=1", "train.micro_batch_size=8"])):
        folder = tmp_path / str(number)
        layout = ["engine.ds_config=zero3"] if number else []
        learning = ["optimizer.learning_rate=1e-2", "evaluation.every_steps=24", "schedule={name: constant}"]
        config = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *learning, *settings, *layout])
        train_and_score(config, runtime=runtime, resume="never", report=lambda text: None)
        records = read_records(folder / "tiny/metrics.jsonl")
        curves.append([record["train/loss"] for record in records if "train/loss" in record][:6])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    scores = json.loads((tmp_path / "0/tiny/scores.json").read_text())["parts"]["test"]
    assert scores["loss"] < 0.9 * math.log(OPTIONS[kind]), scores  # of chance
    source = tmp_path / "in.txt"
    source.write_text("fine\tmusic dull\tmusic fine\nawful\tawful night\tgrim\tdull film\n")
    assert write_predictions(tmp_path / "0/tiny", which="auto", source=str(source), out=tmp_path / "out.jsonl") == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    if kind == "ranking":
        assert [len(prediction["ranking"]) for prediction in found] == [2, 3]
        assert {entry["document"] for entry in found[1]["ranking"]} == {"awful night", "grim", "dull film"}
    else:
        assert [len(prediction["scores"]) for prediction in found] == [2, 3]
        assert found[1]["text"] in ("awful night", "grim", "dull film")
