"""Heads and scores on inputs small enough to work out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from trainer.config import ModelConfig
from trainer.finetune_config import ClassificationConfig, TaggingConfig, TagHeadConfig, TaskDataConfig
from trainer.model.create import initialize_weights
from trainer.tasks.classification import Classification, ClassificationHead
from trainer.tasks.crf import ConditionalRandomField
from trainer.tasks.examples import Example, Record, make_batch
from trainer.tasks.model import Predicted, TaskModel
from trainer.tasks.rates import task_parameter_groups
from trainer.tasks.tag_head import TagHead
from trainer.tasks.tagging import Tagging

SHAPE = ModelConfig(hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, max_positions=16, vocab_size=30)
DATA = TaskDataConfig(train="t", validation="v")


def example(ids: list[int], *, rows: list[int], target: int | None = None) -> Example:
    return Example(
        record=0,
        input_ids=np.array(ids, dtype=np.int32),
        token_type_ids=np.zeros(len(ids), dtype=np.int32),
        rows=np.array(rows, dtype=np.int64),
        predictions=1,
        targets=None if target is None else np.array([target]),
    )


def model_for(**settings: object) -> TaskModel:
    config = ClassificationConfig.model_validate({"name": "classification", **settings})
    model = Classification(config, DATA, labels=("a", "b", "c")).create_model(SHAPE)
    initialize_weights(model, std=0.5, seed=1)
    return model.eval()


def predicted(model: TaskModel, examples: list[Example]) -> Predicted:
    batch = make_batch(examples, term=model.term)
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(value) for name, value in batch.model_inputs().items()}, predict=True)
    assert isinstance(result, Predicted)
    return result


@pytest.mark.parametrize("pooling", ["first", "mean", "pooler"])
def test_a_document_is_predicted_alike_alone_and_in_company(pooling: str) -> None:
    model = model_for(pooling=pooling)
    long, short = [2, 9, 8, 7, 6, 3], [2, 9, 3]
    every = [list(range(len(ids))) if pooling == "mean" else [0] for ids in (long, short)]
    together = predicted(model, [example(long, rows=every[0], target=1), example(short, rows=every[1], target=2)])
    alone = [
        predicted(model, [example(ids, rows=rows, target=target)])
        for ids, rows, target in ((long, every[0], 1), (short, every[1], 2))
    ]
    expected = torch.cat([single.outputs["scores"] for single in alone])
    torch.testing.assert_close(together.outputs["scores"], expected)
    losses = [single.terms["classification"].loss for single in alone]
    torch.testing.assert_close(together.terms["classification"].loss, torch.stack(losses).sum())
    torch.testing.assert_close(losses[0], -expected[0, 1].log())
    assert int(together.terms["classification"].predictions) == 2


def head(output: str, *, class_weights: tuple[float, ...] = (1.0, 1.0)) -> ClassificationHead:
    config = ClassificationConfig.model_validate({"name": "classification", "output": output, "dropout": 0.0})
    return ClassificationHead(config, SHAPE, class_weights=class_weights)


def test_each_output_has_its_loss() -> None:
    hidden, counts = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), torch.ones(3, dtype=torch.int64)
    weighted = head("label", class_weights=(0.5, 2.0))
    scores = weighted.project(hidden).log_softmax(1)
    loss, number = weighted.loss(hidden, counts, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(loss, -(0.5 * scores[0, 0] + 2.0 * scores[1, 1] + 2.0 * scores[2, 1]))
    several = head("labels")
    hot = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    probability = several.outputs(hidden, counts)["scores"]
    expected = -(hot * probability.log() + (1 - hot) * (1 - probability).log()).mean(1).sum()
    torch.testing.assert_close(several.loss(hidden, counts, hot)[0], expected)
    number_head = head("number", class_weights=())
    values = number_head.outputs(hidden, counts)["scores"][:, 0]
    targets = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(number_head.loss(hidden, counts, targets)[0], (values - targets).square().sum())
    assert int(number) == 3


def test_a_crf_agrees_with_adding_up_all_paths() -> None:
    generator = torch.Generator().manual_seed(3)
    crf = ConditionalRandomField(3)
    with torch.no_grad():
        crf.transitions.copy_(torch.randn(3, 3, generator=generator))
        crf.ends.copy_(torch.randn(2, 3, generator=generator))
    scores = torch.randn(2, 4, 3, generator=generator)
    lengths, tags = [4, 2], torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0]])
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]

    def path_score(sentence: int, path: tuple[int, ...]) -> torch.Tensor:
        total = crf.ends[0, path[0]] + crf.ends[1, path[-1]]
        total = total + sum(scores[sentence, word, tag] for word, tag in enumerate(path))
        return total + sum(crf.transitions[one, two] for one, two in itertools.pairwise(path))

    expected, best = torch.zeros(()), []
    for sentence, length in enumerate(lengths):
        paths = list(itertools.product(range(3), repeat=length))
        values = torch.stack([path_score(sentence, path) for path in paths])
        gold = tuple(tags[sentence, :length].tolist())
        expected = expected + values.logsumexp(0) - path_score(sentence, gold)
        best.append(list(paths[int(values.argmax())]))
    torch.testing.assert_close(crf(scores, mask, tags), expected)
    found = crf(scores, mask)
    assert [found[i, :length].tolist() for i, length in enumerate(lengths)] == best


@pytest.mark.parametrize("settings", [{}, {"crf": True}, {"bilstm_size": 4}, {"bilstm_size": 4, "crf": True}])
def test_a_sentence_is_tagged_alike_alone_and_in_company(settings: dict[str, object]) -> None:
    tag_head = TagHead(TagHeadConfig.model_validate(settings), hidden_size=8, num_tags=3).eval()
    initialize_weights(tag_head, std=0.7, seed=2)
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    targets, counts = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([3, 2])
    parts = [(hidden[:3], counts[:1], targets[:3]), (hidden[3:], counts[1:], targets[3:])]
    with torch.no_grad():
        loss, number = tag_head.loss(hidden, counts, targets)
        outputs = tag_head.outputs(hidden, counts)
        alone = [tag_head.outputs(states, count) for states, count, _ in parts]
        losses = [tag_head.loss(*part)[0] for part in parts]
    assert int(number) == 5
    torch.testing.assert_close(loss, torch.stack(losses).sum())
    assert outputs["tags"].tolist() == [*alone[0]["tags"].tolist(), *alone[1]["tags"].tolist()]
    torch.testing.assert_close(outputs["scores"], torch.cat([single["scores"] for single in alone]))


def test_rates_fall_from_layer_to_layer_and_frozen_layers_have_none() -> None:
    model = model_for()
    groups = task_parameter_groups(model, weight_decay=0.1, layer_decay=0.5, frozen_layers=None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: group["rate_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    assert scales["head.project.weight"] == 1.0
    assert scales["encoder.layers.1.attention.query.bias"] == 0.5
    assert scales["encoder.layers.0.attention.query.weight"] == 0.25
    assert scales["encoder.embeddings.word.weight"] == 0.125
    frozen = task_parameter_groups(model, weight_decay=0.1, layer_decay=1.0, frozen_layers=1)
    scales = {names[id(p)]: group["rate_scale"] for group in frozen for p in group["params"]}
    assert {name for name, scale in scales.items() if scale == 0.0} == {
        name for name in scales if name.startswith(("encoder.embeddings.", "encoder.layers.0."))
    }
    assert {group["weight_decay"] for group in frozen} == {0.1, 0.0}


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_no_gradient_flows_into_frozen_layers(layers: int) -> None:
    model = model_for()
    model.freeze_below(layers)
    batch = make_batch([example([2, 9, 3], rows=[0], target=1)], term=model.term)
    output = model(**{name: torch.from_numpy(value) for name, value in batch.model_inputs().items()})
    assert not isinstance(output, Predicted)
    output["classification"].loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    frozen = ("encoder.embeddings.", *(f"encoder.layers.{layer}." for layer in range(layers)))
    assert with_gradient == {name for name, _ in model.named_parameters() if not name.startswith(frozen)}


def tagging(**settings: object) -> Tagging:
    labels = ("B-LOC", "B-PER", "I-PER", "O")
    return Tagging(TaggingConfig.model_validate({"name": "tagging", **settings}), DATA, labels=labels)


def test_entities_are_told_with_text_type_and_least_score() -> None:
    record = Record("x", ("ann", "lee", "in", "rome"))
    outputs = {"tags": np.array([1, 2, 3, 0]), "scores": np.array([0.75, 0.5, 1.0, 0.25])}
    assert tagging().prediction(record, outputs)["entities"] == [
        {"text": "ann lee", "type": "PER", "start": 0, "end": 2, "score": 0.5},
        {"text": "rome", "type": "LOC", "start": 3, "end": 4, "score": 0.25},
    ]
    assert "entities" not in tagging(scheme="plain").prediction(record, outputs)
    assert tagging(unit="character").prediction(record, outputs)["entities"][0]["text"] == "annlee"


def test_entity_scores_are_over_all_and_by_type() -> None:
    pytest.importorskip("seqeval")
    records = [Record("x", ("a", "b", "c"), ("B-PER", "I-PER", "O")), Record("y", ("d",), ("B-LOC",))]
    found = [{"tags": ["B-PER", "O", "O"]}, {"tags": ["B-LOC"]}]
    scores = tagging().metrics(records, found)
    assert scores == pytest.approx(
        {"precision": 0.5, "recall": 0.5, "f1": 0.5, "f1_LOC": 1.0, "f1_PER": 0.0, "accuracy": 0.75}
    )
    assert tuple(scores) == tagging().metric_names
    nothing = tagging().metrics([Record("x", ("a",), ("O",))], [{"tags": ["O"]}])
    assert nothing["f1"] == 0.0
    plain = tagging(scheme="plain")
    assert plain.metrics(records, found) == pytest.approx({"accuracy": 0.75})
    assert (plain.metric, plain.metric_names) == ("accuracy", ("accuracy",))


@pytest.mark.parametrize(
    ("output", "targets", "found", "expected"),
    [
        (
            "label",
            ["a", "a", "b", "b"],
            [{"label": "a"}, {"label": "b"}, {"label": "b"}, {"label": "b"}],
            {"accuracy": 0.75, "f1_macro": (2 / 3 + 0.8) / 2, "matthews": 0.5773503},
        ),
        (
            "labels",
            [("a", "b"), ("b",)],
            [{"labels": ["a"]}, {"labels": ["b"]}],
            {"f1_micro": 0.8, "f1_macro": (1.0 + 2 / 3) / 2, "exact_match": 0.5},
        ),
        (
            "number",
            [1.0, 2.0, 3.0, 4.0],
            [{"value": 2.0}, {"value": 2.0}, {"value": 4.0}, {"value": 4.0}],
            {"spearman": 0.8944272, "pearson": 0.8944272, "mean_squared_error": 0.5},
        ),
    ],
)
def test_classification_scores(
    output: str, targets: list[object], found: list[dict[str, object]], expected: dict[str, float]
) -> None:
    pytest.importorskip("sklearn")
    config = ClassificationConfig.model_validate({"name": "classification", "output": output})
    task = Classification(config, DATA, labels=() if output == "number" else ("a", "b"))
    scores = task.metrics([Record("x", ("t",), target) for target in targets], found)
    assert scores == pytest.approx(expected)
    assert set(task.metric_names) == set(scores)
    assert task.metric == next(iter(expected))
