"""The model with a pair head: sums over pairs in the rows' order, one pass for both heads, any cut of the batch."""

from __future__ import annotations

import pytest
import torch
from test_model_bert import BATCH, INPUT_IDS, LABELS, TINY
from torch import Tensor

from trainer.model.create import create_model
from trainer.model.pretraining import BertForPreTraining

TYPES = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]])
# Labels of the documents of 3, of 2 and of 4 tokens, at their first tokens.
PAIR_LABELS = torch.tensor([[0, -100, -100, 1, -100, -100], [1, -100, -100, -100, -100, -100]])


def model(candidates: int = 1) -> BertForPreTraining:
    made = create_model(TINY, seed=0, candidates=candidates)
    assert isinstance(made, BertForPreTraining)
    return made.eval()


def test_the_pair_loss_is_the_sum_over_labelled_sequences() -> None:
    made = model()
    terms = made(*BATCH, LABELS, TYPES, pair_labels=PAIR_LABELS)
    logits = made.pair_logits(*BATCH, TYPES)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1]), reduction="sum")
    torch.testing.assert_close(terms["pairs"].loss, expected)
    assert terms["pairs"].predictions.item() == 3
    assert terms["pairs"].correct.item() == (logits.argmax(1) == torch.tensor([0, 1, 1])).sum()


def test_the_masked_loss_is_the_same_with_and_without_pairs() -> None:
    made, plain = model(), create_model(TINY, seed=0).eval()
    torch.testing.assert_close(
        made(*BATCH, LABELS, pair_labels=PAIR_LABELS)["mlm"].loss, plain(*BATCH, LABELS)["mlm"].loss
    )


def test_a_sequence_without_a_label_is_no_prediction() -> None:
    ignored = PAIR_LABELS.clone()
    ignored[0, 0] = -100
    made = model()
    term = made(*BATCH, LABELS, TYPES, pair_labels=ignored)["pairs"]
    logits = made.pair_logits(*BATCH, TYPES)[1:]
    torch.testing.assert_close(
        term.loss, torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1]), reduction="sum")
    )


def test_candidates_are_ranked_by_their_log_odds_in_the_order_of_the_row() -> None:
    made = model(candidates=3)
    documents = torch.tensor([[1, 1, 1, 2, 2, 3]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    # The true one is the second; the flat layout, shortest first, would make it the second of another order.
    labels = torch.tensor([[1, -100, -100, 0, -100, 1]])
    batch = (INPUT_IDS[1:], positions, documents)
    term = made(*batch, LABELS[:1], pair_labels=labels)["pairs"]
    logits = made.pair_logits(*batch)
    scores = (logits[:, 0] - logits[:, 1])[None]
    torch.testing.assert_close(term.loss, torch.nn.functional.cross_entropy(scores, torch.tensor([1])))
    assert term.predictions.item() == 1
    assert term.correct.item() == int(scores.argmax() == 1)


def test_sums_add_up_over_any_cut_of_the_batch() -> None:
    made = model()
    whole = made(*BATCH, LABELS, TYPES, pair_labels=PAIR_LABELS)
    parts = [
        made(
            *(part[row : row + 1] for part in (*BATCH, LABELS, TYPES)), pair_labels=PAIR_LABELS[row : row + 1]
        )
        for row in range(2)
    ]  # fmt: skip
    for name, term in whole.items():
        torch.testing.assert_close(sum(part[name].loss for part in parts), term.loss)
        assert sum(part[name].predictions for part in parts) == term.predictions


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_batch_without_a_pair_has_loss_zero_and_every_gradient(candidates: int) -> None:
    made = model(candidates)
    terms = made(*BATCH, LABELS, pair_labels=torch.full_like(PAIR_LABELS, -100))
    assert (terms["pairs"].loss.item(), terms["pairs"].predictions.item()) == (0.0, 0)
    (terms["mlm"].loss + terms["pairs"].loss).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_both_losses_reach_the_encoder_and_each_its_own_head() -> None:
    made = model()

    def gradients(term: str) -> dict[str, Tensor]:
        made.zero_grad()
        made(*BATCH, LABELS, TYPES, pair_labels=PAIR_LABELS)[term].loss.backward()
        return {
            name: parameter.grad for name, parameter in made.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }  # fmt: skip

    masked, pairs = gradients("mlm"), gradients("pairs")
    assert {"pooler.dense.weight", "pair_head.weight"} <= pairs.keys() - masked.keys()
    assert "head.dense.weight" in masked.keys() - pairs.keys()
    assert "encoder.layers.0.attention.query.weight" in masked.keys() & pairs.keys()
