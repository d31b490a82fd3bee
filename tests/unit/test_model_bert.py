"""The masked language model: sums over predicted tokens, however the batch is cut, and at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.bert import BertForMaskedLanguageModel, BertWithPooler
from trainer.model.create import create_model
from trainer.model.loss_term import NOT_COUNTED

TINY = ModelConfig(
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    max_positions=6,
    vocab_size=19,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.5,
)
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9, 0], [5, 9, 9, 6, 0, 0]])
POSITION_IDS = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
DOCUMENT_IDS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
LABELS = torch.tensor([[-100, 11, -100, 12, -100, -100], [13, -100, -100, 14, -100, -100]])
BATCH = (INPUT_IDS, POSITION_IDS, DOCUMENT_IDS)


@pytest.fixture
def model() -> BertForMaskedLanguageModel:
    return create_model(TINY, seed=0).eval()


def test_the_loss_is_the_sum_of_cross_entropy_over_labelled_positions(model: BertForMaskedLanguageModel) -> None:
    output = model(*BATCH, LABELS)["mlm"]
    log_probabilities = model.logits(*BATCH).log_softmax(-1)
    chosen = LABELS != -100
    expected = -log_probabilities[chosen].gather(1, LABELS[chosen][:, None]).sum()
    torch.testing.assert_close(output.loss, expected)
    assert output.loss.dtype == torch.float32
    assert output.predictions.dtype == torch.int64
    assert output.predictions.item() == 4


def test_correct_tokens_are_argmax_hits(model: BertForMaskedLanguageModel) -> None:
    best = model.logits(*BATCH).argmax(-1)
    labels = torch.where(LABELS != -100, best, -100)
    labels[1, 3] = (labels[1, 3] + 1) % 19
    assert model(*BATCH, labels)["mlm"].correct.item() == 3


def test_correct_tokens_are_counted_outside_training_or_on_request(model: BertForMaskedLanguageModel) -> None:
    model.train()
    assert model(*BATCH, LABELS)["mlm"].correct.item() == NOT_COUNTED
    assert model(*BATCH, LABELS, count_correct=True)["mlm"].correct.item() >= 0
    model.eval()
    assert model(*BATCH, LABELS, count_correct=False)["mlm"].correct.item() == NOT_COUNTED


def test_sums_add_up_over_any_cut_of_the_batch(model: BertForMaskedLanguageModel) -> None:
    whole = model(*BATCH, LABELS)["mlm"]
    parts = [model(*(part[row : row + 1] for part in (*BATCH, LABELS)))["mlm"] for row in range(2)]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    assert sum(part.predictions for part in parts) == whole.predictions


def test_logits_at_padding_are_zero(model: BertForMaskedLanguageModel) -> None:
    logits = model.logits(*BATCH)
    assert logits.shape == (2, 6, 19)
    assert logits[DOCUMENT_IDS == 0].abs().max() == 0
    assert (logits[DOCUMENT_IDS != 0].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("empty", ["no label", "no token"])
def test_a_batch_that_predicts_nothing_has_loss_zero_and_zero_gradients(norm: str, rate: float, empty: str) -> None:
    config = TINY.model_copy(update={"norm": norm, "hidden_dropout": rate, "attention_dropout": rate})
    model = create_model(config, seed=0)
    documents = DOCUMENT_IDS if empty == "no label" else torch.zeros_like(DOCUMENT_IDS)
    output = model(INPUT_IDS, POSITION_IDS, documents, torch.full_like(LABELS, -100))["mlm"]
    assert output.loss.item() == 0.0
    assert output.predictions.item() == 0
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name


def test_a_row_of_padding_changes_nothing(model: BertForMaskedLanguageModel) -> None:
    def padded(part: Tensor, fill: int) -> Tensor:
        return torch.cat([part, torch.full((1, 6), fill)])

    output = model(*(padded(part, 0) for part in BATCH), padded(LABELS, -100))["mlm"]
    torch.testing.assert_close(output.loss, model(*BATCH, LABELS)["mlm"].loss)


def test_the_decoder_is_the_word_embedding_and_stays_so(model: BertForMaskedLanguageModel) -> None:
    for changed in (model, model.half(), model.float()):
        assert changed.head.decoder.weight is changed.encoder.embeddings.word.weight
    assert "head.decoder.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_half_precision_models_keep_the_loss_in_fp32(
    model: BertForMaskedLanguageModel, dtype: torch.dtype, positions: str
) -> None:
    config = TINY.model_copy(update={"positions": positions, "hidden_dropout": 0.1, "attention_dropout": 0.1})
    half = create_model(config, seed=0).to(dtype)
    output = half(*BATCH, LABELS)["mlm"]
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in half.parameters())


def test_half_precision_is_close_to_fp32(model: BertForMaskedLanguageModel) -> None:
    full = model(*BATCH, LABELS)["mlm"].loss.item()
    assert model.to(torch.bfloat16)(*BATCH, LABELS)["mlm"].loss.item() == pytest.approx(full, rel=0.02)


def test_a_new_model_is_no_better_than_chance() -> None:
    fresh = create_model(TINY.model_copy(update={"initializer_range": 0.02}), seed=0)
    output = fresh(*BATCH, LABELS)["mlm"]
    assert output.loss.item() / 4 == pytest.approx(math.log(19), abs=0.2)


def test_the_pooler_sees_the_first_token_of_each_document_in_row_order() -> None:
    torch.manual_seed(0)
    model = BertWithPooler(TINY).eval()
    pooled = model(*BATCH)
    hidden = model.encoder(INPUT_IDS, position_ids=POSITION_IDS, document_ids=DOCUMENT_IDS)
    # Flat order is by length: the document of 2, of 3, of 4; in the rows they stand as 3, 2, 4.
    torch.testing.assert_close(pooled, model.pooler.dense(hidden[[2, 0, 5]]).tanh())
