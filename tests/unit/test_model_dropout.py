"""Dropout: the rate, the mean, the gradient, and when it does nothing."""

from __future__ import annotations

import pytest
import torch

from trainer.model.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropped_share_is_the_rate_and_the_rest_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    values = dropout(torch.ones(300_001), rate=rate, training=True)
    assert (values == 0).double().mean().item() == pytest.approx(rate, abs=4e-3)
    assert values.max().item() == pytest.approx(1 / (1 - rate), rel=1e-3)
    assert values.double().mean().item() == pytest.approx(1.0, abs=3e-2)


def test_neighbours_are_dropped_independently() -> None:
    # Four neighbours share one random word; each must still have bits of its own.
    torch.manual_seed(0)
    kept = (dropout(torch.ones(100_000, 4), rate=0.5, training=True) > 0).double()
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max().item() < 0.02


def test_the_gradient_passes_where_the_value_passed() -> None:
    values = torch.ones(1000, requires_grad=True)
    result = dropout(values, rate=0.25, training=True)
    result.sum().backward()
    assert torch.equal(values.grad, result.detach())


def test_the_same_generator_state_gives_the_same_mask() -> None:
    state = torch.get_rng_state()
    first = dropout(torch.ones(77), rate=0.3, training=True)
    torch.set_rng_state(state)
    assert torch.equal(first, dropout(torch.ones(77), rate=0.3, training=True))


def test_half_precision_stays_half_precision() -> None:
    assert dropout(torch.ones(8, dtype=torch.bfloat16), rate=0.5, training=True).dtype == torch.bfloat16


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_without_a_rate_or_outside_training_values_pass_untouched(rate: float, training: bool) -> None:
    values = torch.ones(5)
    assert Dropout(rate).train(training)(values) is values
