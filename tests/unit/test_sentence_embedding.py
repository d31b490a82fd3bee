"""Sentence embeddings: what a pair is held against, in every layout; vectors, scores and bad lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from letter_tokenizer import LetterTokenizer
from small_task import write_matches, write_recipe

from trainer.errors import UserError
from trainer.finetune import train_and_score
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import SentenceEmbeddingConfig
from trainer.metrics import read_records
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_evaluate import TaskResult
from trainer.task_predict import write_predictions
from trainer.tasks.embedding_records import EmbeddingReader
from trainer.tasks.examples import Record, make_batch
from trainer.tasks.loader import ExampleLoader, deal
from trainer.tasks.sentence_embedding import EmbeddingHead, SentenceEmbedding


def data(**settings: object) -> TaskDataConfig:
    return TaskDataConfig.model_validate({"train": "train.jsonl", "validation": "v", "max_length": 8, **settings})


def config(**settings: object) -> SentenceEmbeddingConfig:
    return SentenceEmbeddingConfig.model_validate({"name": "sentence_embedding", "group_size": 2, **settings})


PAIRS = [Record(f"t:{n}", (letter, 2 * letter)) for n, letter in enumerate("abcdefgh")]


def test_a_row_holds_both_texts_of_a_pair_and_all_their_tokens_are_read() -> None:
    rows = SentenceEmbedding(config(), data()).training_rows(PAIRS, LetterTokenizer(), seed=1)
    batch = make_batch(rows.examples[1:3], term="sentence_embedding")
    assert batch.input_ids.tolist() == [[2, 11, 3, 2, 11, 11, 3, 2, 12, 3, 2, 12, 12, 3]]
    assert batch.document_ids.tolist() == [[1] * 3 + [2] * 4 + [3] * 3 + [4] * 4]
    assert batch.rows.tolist() == list(range(14))
    assert batch.row_counts.tolist() == [3, 4, 3, 4]
    assert batch.targets is not None
    assert batch.targets.tolist() == [1, 2]
    assert batch.term_counts() == {"sentence_embedding": 2}


def test_the_loss_is_over_the_texts_of_the_group_alone() -> None:
    head = EmbeddingHead(group_size=2, temperature=0.5)
    hidden = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    counts, targets = torch.ones(8, dtype=torch.int64), torch.arange(4)
    loss, number = head.loss(hidden, counts, targets)
    unit = torch.nn.functional.normalize(hidden, dim=1)
    expected = torch.zeros(())
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        right, wrong = (unit[2 * one] @ unit[2 * pair + 1] / 0.5 for pair in (one, other))
        expected = expected - torch.stack([right, wrong]).log_softmax(0)[0]
    torch.testing.assert_close(loss, expected)
    assert int(number) == 4
    parts = [head.loss(hidden[part], counts[part], targets[:2])[0] for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(loss, torch.stack(parts).sum())
    colder = EmbeddingHead(group_size=2, temperature=0.1).loss(hidden, counts, targets)[0]
    assert float(colder) != pytest.approx(float(loss))


def test_a_text_that_stands_twice_in_a_group_is_not_held_against_itself() -> None:
    head = EmbeddingHead(group_size=2, temperature=0.5)
    hidden = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    loss, _ = head.loss(hidden, torch.ones(4, dtype=torch.int64), torch.tensor([5, 5]))
    assert float(loss) == pytest.approx(0.0)


def test_a_vector_is_the_mean_of_a_texts_tokens_and_of_length_one() -> None:
    hidden = torch.tensor([[2.0, 0.0], [4.0, 8.0], [0.0, -5.0]])
    vectors = EmbeddingHead(group_size=2, temperature=1.0).outputs(hidden, torch.tensor([2, 1]))["vectors"]
    torch.testing.assert_close(vectors, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_groups_are_dealt_whole() -> None:
    lengths = np.array([9, 1, 2, 2, 5, 1, 7, 7])
    dealt = [deal(lengths, micro_batch_size=2, dp_rank=rank, dp_world_size=2, group_size=2) for rank in (0, 1)]
    assert [[micro.tolist() for micro in of_rank] for of_rank in dealt] == [[[2, 3], [0, 1]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (1, 8), (2, 4), (4, 2)])
def test_every_layout_holds_a_pair_against_the_same_texts(world: int, micro: int) -> None:
    rows = SentenceEmbedding(config(), data()).training_rows(PAIRS, LetterTokenizer(), seed=1)

    def groups(world: int, micro: int) -> set[tuple[int, ...]]:
        found = set()
        for rank in range(world):
            loader = ExampleLoader(
                rows, term="x", seed=1, global_batch_size=8, micro_batch_size=micro, dp_rank=rank, dp_world_size=world
            )
            for batch in (batch for _ in range(2) for batch in next(loader)):
                assert batch.targets is not None
                found |= {tuple(group) for group in batch.targets.reshape(-1, 2).tolist()}
        return found

    assert groups(world, micro) == groups(1, 4)


def test_pairs_are_scored_by_finding_the_second_text() -> None:
    task = SentenceEmbedding(config(temperature=1.0), data())
    records = [Record("x", ("a", "b")), Record("x", ("c", "d")), Record("x", ("e", "b"))]
    vectors = np.array([[[1, 0], [1, 0]], [[0.6, 0.8], [0, 1]], [[0, 1], [1, 0]]], dtype=np.float64)
    found = [task.prediction(record, {"vectors": pair}) for record, pair in zip(records, vectors, strict=True)]
    assert [prediction["similarity"] for prediction in found] == pytest.approx([1.0, 0.8, 0.0])
    scores = task.metrics(records, found)
    # The second text of the third pair is that of the first: there are two to be found among.
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.6 - 0.8)), math.log(1 + math.exp(1))]
    expected = {"loss": sum(losses) / 3, "retrieval_accuracy": 2 / 3, "mrr_at_10": (1 + 1 + 1 / 2) / 3}
    assert scores == pytest.approx(expected, rel=1e-6)
    assert task.metric_names == ("retrieval_accuracy", "mrr_at_10")
    assert task.prediction(Record("x", ("a",)), {"vectors": np.array([[0.6, 0.8]])}) == {"embedding": [0.6, 0.8]}


def test_scored_pairs_are_scored_by_correlation_and_have_no_loss() -> None:
    task = SentenceEmbedding(config(score="s"), data())
    assert task.metric_names == ("spearman", "pearson")
    records = [Record("x", ("a", "b"), target) for target in (1.0, 2.0, 5.0)]
    scores = task.metrics(records, [{"similarity": value} for value in (0.1, 0.5, 0.4)])
    assert scores["spearman"] == pytest.approx(0.5)
    result = TaskResult(None, dict(scores), "spearman", False)
    assert set(result.metrics()) == {"validation/spearman", "validation/pearson"}
    assert result.summary() == "validation spearman 0.5000"


def test_scores_are_read_from_every_file_but_the_training_file(tmp_path: Path) -> None:
    path, train = tmp_path / "a.tsv", tmp_path / "t.tsv"
    path.write_text("first\tsecond\ts\none\ttwo\t4.5\n")
    train.write_text("first\tsecond\none\ttwo\n")
    reader = EmbeddingReader(config(score="s"), data(train=str(train)))
    assert reader.read(path, labelled=True) == [Record(f"{path}:2", ("one", "two"), 4.5)]
    assert reader.read(train, labelled=True) == [Record(f"{train}:2", ("one", "two"))]
    for line, message in {
        "one\ttwo\tnan": r"a\.tsv:2: column 's' is 'nan', where a finite number is needed",
        "one\t \t1": r"a\.tsv:2: column 'second' is empty",
    }.items():
        path.write_text(f"first\tsecond\ts\n{line}\n")
        with pytest.raises(UserError, match=message):
            reader.read(path, labelled=True)
    path.write_text("text\nthree\n")
    assert reader.read(path, labelled=False) == [Record(f"{path}:2", ("three",))]
    assert reader.from_line(" three\n", where="w:1") == Record("w:1", ("three",))
    with pytest.raises(UserError, match=r"w:2: the line must be a text that is not empty"):
        reader.from_line(" \n", where="w:2")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.global_batch_size=12", r"train\.global_batch_size=12 is not divisible by task\.group_size=8.*use 16"),
        ("train.micro_batch_size=4", r"train\.micro_batch_size=4 is not divisible by task\.group_size=8.*use 8"),
    ],
)
def test_a_batch_that_would_cut_a_group_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    recipe = write_recipe(tmp_path, task="  {name: sentence_embedding, group_size: 8}")
    with pytest.raises(UserError, match=message):
        load_finetune_recipe(str(recipe), overrides=["train.micro_batch_size=8", setting])


def test_it_learns_and_every_layout_gives_the_same_curve(runtime: Runtime, tmp_path: Path) -> None:
    write_matches(tmp_path)
    recipe = write_recipe(
        tmp_path,
        task="  {name: sentence_embedding, first: target, second: source, group_size: 4}",
        suffix="jsonl",
        pieces=38,
    )
    curves = []
    for number, settings in enumerate(
        (["train.epochs=12"], ["train.epochs=1", "train.micro_batch_size=8", "engine.ds_config=zero3"])
    ):
        folder = tmp_path / str(number)
        learning = ["optimizer.learning_rate=1e-2", "evaluation.every_steps=24", "schedule={name: constant}"]
        loaded = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *learning, *settings])
        train_and_score(loaded, runtime=runtime, resume="never", report=lambda text: None)
        records = read_records(folder / "tiny/metrics.jsonl")
        curves.append([record["train/loss"] for record in records if "train/loss" in record][:6])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    scores = json.loads((tmp_path / "0/tiny/scores.json").read_text())["parts"]["test"]
    assert scores["mrr_at_10"] > 0.4, scores  # each word stands in several of the texts
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("fine\nmusic fine night\nfilm dull a\n")
    assert write_predictions(tmp_path / "0/tiny", which="auto", source=str(source), out=out) == 3
    query, right, wrong = np.array([json.loads(line)["embedding"] for line in out.read_text().splitlines()])
    assert query @ right > query @ wrong
    assert np.linalg.norm(query) == pytest.approx(1.0, abs=1e-5)
