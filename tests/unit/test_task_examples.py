"""From records to what a model reads: layout, cutting, splitting, order, and what goes to which rank."""

from __future__ import annotations

import numpy as np
import pytest
from letter_tokenizer import LetterTokenizer

from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, SegmentationConfig, TaggingConfig, TaskDataConfig
from trainer.task_evaluate import length_batches
from trainer.tasks.classification import Classification
from trainer.tasks.examples import Example, Record, join_outputs, make_batch, split_outputs
from trainer.tasks.framing import cut
from trainer.tasks.loader import ExampleLoader, ExampleOrder, deal
from trainer.tasks.rows import TrainingRows
from trainer.tasks.segmentation import Segmentation
from trainer.tasks.tag_schemes import bmes_of_words, find_break, words_of_bmes
from trainer.tasks.tagging import Tagging


def data(**settings: object) -> TaskDataConfig:
    return TaskDataConfig.model_validate({"train": "t", "validation": "v", "max_length": 8, **settings})


def classification(**settings: object) -> Classification:
    config = ClassificationConfig.model_validate({"name": "classification", **settings})
    return Classification(config, data(), labels=("no", "yes"))


def test_a_pair_is_framed_and_its_second_text_has_type_1() -> None:
    (example,) = classification(pair="b").examples([Record("x", ("ab", "c"), "yes")], LetterTokenizer())
    assert example.input_ids.tolist() == [2, 10, 11, 3, 12, 3]
    assert example.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert (example.rows.tolist(), example.predictions, example.cut_tokens) == ([0], 1, 0)
    assert example.targets is not None
    assert example.targets.tolist() == [1]


def test_pooling_by_mean_reads_every_token() -> None:
    (example,) = classification(pooling="mean").examples([Record("x", ("ab",))], LetterTokenizer())
    assert (example.rows.tolist(), example.predictions, example.targets) == ([0, 1, 2, 3], 1, None)


def test_a_long_text_is_cut_at_its_end_and_counted() -> None:
    (example,) = classification().examples([Record("x", ("abcdefghij",))], LetterTokenizer())
    assert example.input_ids.tolist() == [2, 10, 11, 12, 13, 14, 15, 3]
    assert example.cut_tokens == 4


@pytest.mark.parametrize(("lengths", "kept"), [((9, 2), (3, 2)), ((2, 9), (2, 3)), ((9, 8), (3, 2)), ((3, 9), (2, 3))])
def test_of_a_pair_the_longer_text_is_cut_first(lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    parts = [np.arange(length, dtype=np.int32) for length in lengths]
    assert tuple(len(part) for part in cut(parts, 5)) == kept


def test_a_long_text_is_refused_where_the_recipe_says_so() -> None:
    config = ClassificationConfig(name="classification")
    task = Classification(config, data(overlong="refuse"), labels=("no", "yes"))
    with pytest.raises(UserError, match=r"x:7: 12 tokens, longer than data\.max_length=8; raise it, shorten the text"):
        task.examples([Record("x:7", ("abcdefghij",))], LetterTokenizer())


def tagging(**settings: object) -> Tagging:
    return Tagging(TaggingConfig(name="tagging"), data(**settings), labels=("B-X", "I-X", "O"))


def test_a_word_is_predicted_from_its_first_piece() -> None:
    (example,) = tagging().examples([Record("x", ("ab", "c", "de"), ("B-X", "I-X", "O"))], LetterTokenizer())
    assert example.input_ids.tolist() == [2, 10, 11, 12, 13, 14, 3]
    assert example.rows.tolist() == [1, 3, 4]
    assert example.targets is not None
    assert example.targets.tolist() == [0, 1, 2]


def test_a_long_sentence_is_split_between_words_and_joined_again() -> None:
    record = Record("x", ("ab", "cde", "fg", "h"), ("O", "B-X", "I-X", "O"))
    examples = tagging().examples([record, Record("y", ("a",), ("O",))], LetterTokenizer())
    assert [example.input_ids.tolist()[1:-1] for example in examples] == [[10, 11, 12, 13, 14], [15, 16, 17], [10]]
    outputs = [{"tags": example.targets} for example in examples if example.targets is not None]
    joined = join_outputs(outputs, examples)
    assert [output["tags"].tolist() for output in joined] == [[2, 0, 1, 2], [2]]
    with pytest.raises(UserError, match=r"x: 10 tokens, longer than data\.max_length=8"):
        tagging(overlong="refuse").examples([record], LetterTokenizer())
    with pytest.raises(UserError, match=r"z: a word of 7 pieces is longer than data\.max_length=8 allows"):
        tagging().examples([Record("z", ("abcdefg",))], LetterTokenizer())


def test_a_batch_lays_examples_side_by_side_without_padding() -> None:
    records = [Record("x", ("ab", "c"), ("O", "B-X")), Record("y", ("d",), ("O",))]
    batch = make_batch(tagging().examples(records, LetterTokenizer()), term="tagging")
    assert batch.input_ids.tolist() == [[2, 10, 11, 12, 3, 2, 13, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.document_ids.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]
    assert (batch.rows.tolist(), batch.row_counts.tolist()) == ([1, 3, 6], [2, 1])
    assert batch.term_counts() == {"tagging": 3}
    assert (batch.tokens, batch.predicted_tokens, batch.sum_squared_lengths) == (8, 3, 25 + 9)
    assert "targets" in batch.model_inputs()


def test_outputs_are_cut_by_example() -> None:
    examples = tagging().examples([Record("x", ("a", "b")), Record("y", ("c",))], LetterTokenizer())
    parts = split_outputs({"tags": np.array([5, 6, 7])}, examples)
    assert [part["tags"].tolist() for part in parts] == [[5, 6], [7]]
    assert "targets" not in make_batch(examples, term="tagging").model_inputs()


def test_row_n_depends_on_seed_and_n_alone_and_each_epoch_holds_every_example_once() -> None:
    order = ExampleOrder(5, seed=1)
    rows = order.examples(0, 10).tolist()
    assert sorted(rows[:5]) == sorted(rows[5:]) == [0, 1, 2, 3, 4]
    assert rows[:5] != rows[5:]
    assert ExampleOrder(5, seed=1).examples(3, 4).tolist() == rows[3:7]
    assert ExampleOrder(5, seed=2).examples(0, 10).tolist() != rows


@pytest.mark.parametrize("dp_world_size", [1, 2, 4])
def test_every_rank_gets_its_part_of_the_same_global_batch(dp_world_size: int) -> None:
    lengths = np.array([5, 3, 8, 1, 2, 9, 4, 7])
    dealt = [
        deal(lengths, micro_batch_size=2, dp_rank=rank, dp_world_size=dp_world_size) for rank in range(dp_world_size)
    ]
    assert {len(of_rank) for of_rank in dealt} == {4 // dp_world_size}
    assert sorted(int(place) for of_rank in dealt for micro in of_rank for place in micro) == list(range(8))
    if dp_world_size == 1:
        assert [lengths[micro].tolist() for micro in dealt[0]] == [[1, 2], [3, 4], [5, 7], [8, 9]]


def loader(examples: list[Example], *, seed: int = 1) -> ExampleLoader:
    return ExampleLoader(
        TrainingRows(examples),
        term="tagging",
        seed=seed,
        global_batch_size=4,
        micro_batch_size=2,
        dp_rank=0,
        dp_world_size=1,
    )


def test_a_loader_goes_on_exactly_where_it_was_and_refuses_other_examples() -> None:
    examples = tagging().examples([Record("x", (c,), ("O",)) for c in "abcdefg"], LetterTokenizer())
    whole = loader(examples)
    steps = [[batch.input_ids.tolist() for batch in next(whole)] for _ in range(5)]
    first = loader(examples)
    for _ in range(3):
        next(first)
    second = loader(examples)
    second.load_state_dict(first.state_dict())
    assert [[batch.input_ids.tolist() for batch in next(second)] for _ in range(2)] == steps[3:]
    with pytest.raises(UserError, match=r"made with another seed \(the seed\): 1, now 2; its rows cannot be continued"):
        loader(examples, seed=2).load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=r"made with another fingerprint \(the training file, the vocabulary"):
        loader(examples[:-1]).load_state_dict(first.state_dict())


def test_prediction_batches_hold_like_lengths_and_so_many_tokens() -> None:
    assert length_batches([3, 9, 4, 2], batch_tokens=8) == [[1], [2, 0], [3]]


def test_bmes_tags_and_words_are_each_others_inverse() -> None:
    words = ["迈", "充满", "新世纪", "一九九八年"]
    assert "".join(bmes_of_words(words)) == "SBEBMEBMMME"
    assert words_of_bmes("".join(words), bmes_of_words(words)) == words
    # What no segmentation gives is still read: after an end whatever comes starts a word.
    assert words_of_bmes("abcde", list("MEEBB")) == ["ab", "c", "d", "e"]


@pytest.mark.parametrize(
    ("tags", "scheme", "word"),
    [
        ("B-X I-X O B-X", "bio", None),
        ("B-X B-X I-X", "bio", None),
        ("O I-X", "bio", 1),
        ("S-X B-X I-X E-X O", "bioes", None),
        ("B-X E-X E-X", "bioes", 2),
        ("S-X I-X", "bioes", 1),
        ("B-X B-X", "bioes", 1),
        ("O B-X", "bioes", 1),
    ],
)
def test_the_first_break_of_a_scheme_is_found(tags: str, scheme: str, word: int | None) -> None:
    broken = find_break(tags.split(), scheme=scheme)
    assert (None if broken is None else broken[0]) == word


def test_a_segmentations_score_counts_words_with_both_ends_right() -> None:
    task = Segmentation(SegmentationConfig(name="segmentation"), data())
    record = Record("x", tuple("abcde"), tuple("BESBE"))
    prediction = task.prediction(record, {"tags": np.array([0, 2, 3, 3, 3]), "scores": np.array([0.9, 0.5, 1, 1, 1])})
    assert prediction == {"words": ["ab", "c", "d", "e"], "score": 0.5}
    scores = task.metrics([record], [prediction])
    assert scores == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})
