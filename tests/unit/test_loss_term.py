from __future__ import annotations

import math

import pytest
import torch

from trainer.config import ModelConfig
from trainer.model.create import create_model
from trainer.model.loss_term import classification_term

# Softmax denominators of 4 and 8: the log-sum-exp is ln 4 and ln 8.
LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(2.0), math.log(6.0)]])
TARGETS = torch.tensor([1, 0])


def test_the_plain_loss_is_the_summed_cross_entropy() -> None:
    term = classification_term(LOGITS, TARGETS, count_correct=True)
    assert float(term.loss) == pytest.approx(-math.log(0.75) - math.log(0.25))
    assert (int(term.predictions), int(term.correct)) == (2, 1)


def test_label_smoothing_mixes_an_even_distribution_into_the_targets() -> None:
    term = classification_term(LOGITS, TARGETS, count_correct=False, label_smoothing=0.2)
    right, wrong = -math.log(0.75), -math.log(0.25)
    assert float(term.loss) == pytest.approx((0.9 * right + 0.1 * wrong) + (0.9 * wrong + 0.1 * right))


def test_z_loss_adds_the_weighted_squares_of_the_log_sum_exp() -> None:
    plain = classification_term(LOGITS, TARGETS, count_correct=False)
    term = classification_term(LOGITS, TARGETS, count_correct=False, z_loss=0.5)
    assert float(term.loss - plain.loss) == pytest.approx(0.5 * (math.log(4.0) ** 2 + math.log(8.0) ** 2))


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_both_are_part_of_the_loss_in_training_and_not_in_evaluation(settings: dict[str, float]) -> None:
    config = ModelConfig(
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=4,
        vocab_size=11,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "position_ids": torch.arange(4)[None], "document_ids": torch.ones_like(ids)}
    losses = {}
    for name, model in (
        ("plain", create_model(config, seed=0)),
        ("regularised", create_model(config, seed=0, **settings)),
    ):
        for training in (True, False):
            term = model.train(training)(**batch, labels=ids)["mlm"]
            losses[name, training] = float(term.loss.detach())
    assert losses["regularised", True] > losses["plain", True] + 1e-3
    assert losses["regularised", False] == losses["plain", False] == pytest.approx(losses["plain", True], rel=1e-6)
