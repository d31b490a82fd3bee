from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.create import create_model
from trainer.model.loss_term import LossTerm
from trainer.model.pipeline_stage import STAGE_INPUTS, Stage

CUTS = [[0, 2, 5], [0, 1, 3, 5], [0, 1, 2, 3, 4, 5], [0, 4, 5]]


def model(**settings: object) -> BertForMaskedLanguageModel:
    shape = {"hidden_size": 8, "num_layers": 3, "num_heads": 2, "intermediate_size": 16, "max_positions": 8}
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "vocab_size": 40}
    return create_model(ModelConfig.model_validate({**shape, **quiet, **settings}), seed=3)


def batch() -> dict[str, Tensor]:
    """Two rows: documents of 3 and 4 tokens and one of padding; one of 6 and two of padding."""
    document_ids = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]], dtype=torch.int32)
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]], dtype=torch.int32)
    input_ids = torch.randint(5, 40, (2, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    labels = torch.full((2, 8), -100)
    labels[0, 1], labels[0, 5], labels[1, 4] = 7, 11, 39
    return {"input_ids": input_ids, "position_ids": position_ids, "document_ids": document_ids, "labels": labels}


def through(stages: list[Stage], inputs: dict[str, Tensor]) -> LossTerm:
    carried: tuple[Tensor, ...] = tuple(inputs.values())
    for stage in stages[:-1]:
        passed_on = stage(carried)
        assert passed_on[0].shape == (2, 8, 8)
        carried = passed_on
    term: LossTerm = stages[-1](carried)["mlm"]
    return term


def stages_of(whole: BertForMaskedLanguageModel, bounds: list[int]) -> list[Stage]:
    return [Stage(whole, first=first, last=last) for first, last in itertools.pairwise(bounds)]


def gradients(whole: BertForMaskedLanguageModel) -> dict[str, Tensor]:
    return {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("bounds", CUTS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "pre"}, {"positions": "sinusoidal"}, {"family": "modernbert", "local_window": 2}],
    ids=["post", "pre", "fixed", "modernbert"],
)
def test_stages_give_the_plain_models_loss_and_gradients(bounds: list[int], settings: dict[str, object]) -> None:
    plain, cut = model(**settings), model(**settings)
    expected = plain(**batch())["mlm"]
    expected.loss.backward()
    found = through(stages_of(cut, bounds), batch())
    found.loss.backward()
    assert (found.loss.item(), int(found.predictions)) == (expected.loss.item(), 3)
    reference, made = gradients(plain), gradients(cut)
    assert made.keys() == reference.keys() == {name for name, _ in plain.named_parameters()}
    assert all(torch.allclose(made[name], reference[name], rtol=1e-6, atol=1e-8) for name in reference)


def all_terms(stages: list[Stage], inputs: dict[str, Tensor]) -> dict[str, LossTerm]:
    carried: tuple[Tensor, ...] | dict[str, LossTerm] = tuple(inputs.values())
    for stage in stages:
        carried = stage(carried)
    assert isinstance(carried, dict)
    return carried


@pytest.mark.parametrize("bounds", CUTS)
@pytest.mark.parametrize("candidates", [1, 3])
def test_pairs_travel_with_the_rest_to_a_head_in_the_last_stage(bounds: list[int], candidates: int) -> None:
    pair_labels = torch.full((2, 8), -100)
    pair_labels[0, 0], pair_labels[0, 3], pair_labels[1, 0] = 1, 0, 1
    types = torch.tensor([[0, 0, 1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 0, 0]])
    shape = model().config
    plain, cut = (create_model(shape, seed=3, candidates=candidates) for _ in range(2))
    given = {**batch(), "token_type_ids": types, "pair_labels": pair_labels}
    ordered = {name: given[name] for name in (*STAGE_INPUTS, *plain.label_inputs)}
    expected, found = plain(**ordered), all_terms(stages_of(cut, bounds), ordered)
    for terms in (expected, found):
        (terms["mlm"].loss + 2 * terms["pairs"].loss).backward()
    assert list(found) == list(expected) == ["mlm", "pairs"]
    assert all(found[name].loss.item() == expected[name].loss.item() for name in expected)
    reference, made = gradients(plain), gradients(cut)
    assert made.keys() == reference.keys() == {name for name, _ in plain.named_parameters()}
    assert all(torch.allclose(made[name], reference[name], rtol=1e-6, atol=1e-8) for name in reference)


@pytest.mark.parametrize("bounds", CUTS)
def test_every_parameter_is_in_one_stage_but_for_the_word_embedding(bounds: list[int]) -> None:
    whole = model()
    names = {id(value): name for name, value in whole.named_parameters()}
    held = [names[id(value)] for stage in stages_of(whole, bounds) for value in stage.parameters()]
    assert sorted(held) == sorted([*names.values(), "encoder.embeddings.word.weight"])


def test_correct_predictions_are_counted_in_evaluation_only() -> None:
    stages = stages_of(model(), [0, 2, 5])
    assert int(through(stages, batch()).correct) == -1
    for stage in stages:
        stage.eval()
    assert 0 <= int(through(stages, batch()).correct) <= 3


@pytest.mark.parametrize("empty", ["labels", "document_ids"])
def test_a_batch_without_predictions_or_tokens_gives_zero_gradients(empty: str) -> None:
    whole, inputs = model(), batch()
    inputs[empty] = torch.full_like(inputs[empty], -100 if empty == "labels" else 0)
    found = through(stages_of(whole, [0, 2, 4, 5]), inputs)
    found.loss.backward()
    assert (found.loss.item(), int(found.predictions)) == (0.0, 0)
    assert not any(value.any() for value in gradients(whole).values())


@pytest.mark.parametrize("form", ["plain", "stages"])
def test_activation_checkpointing_computes_layers_again_to_the_same_gradients(form: str) -> None:
    results, calls = [], []
    for recompute in (False, True):
        whole = model(hidden_dropout=0.5, attention_dropout=0.5)
        whole.encoder.recompute = recompute
        count: list[int] = []
        whole.encoder.layers[1].register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(1)
        term = whole(**batch())["mlm"] if form == "plain" else through(stages_of(whole, [0, 2, 5]), batch())
        term.loss.backward()
        results.append((term.loss.item(), gradients(whole)))
        calls.append(len(count))
    assert calls == [1, 2]
    assert results[0][0] == results[1][0]
    assert all(value.equal(results[1][1][name]) for name, value in results[0][1].items())
