from __future__ import annotations

import itertools

import pytest

from trainer.config import ModelConfig
from trainer.model.pipeline_balance import balanced_bounds, unit_costs


def dearest(costs: list[float], bounds: list[int]) -> float:
    return max(sum(costs[first:last]) for first, last in itertools.pairwise(bounds))


@pytest.mark.parametrize("costs", [[1, 1, 1, 1, 1, 1], [0.1, 3, 3, 1, 5], [9, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 9]])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_no_cut_has_a_cheaper_dearest_stage_and_none_is_empty(costs: list[float], num_stages: int) -> None:
    bounds = balanced_bounds(costs, num_stages=num_stages)
    assert len(set(bounds)) == num_stages + 1
    every = [[0, *cuts, len(costs)] for cuts in itertools.combinations(range(1, len(costs)), num_stages - 1)]
    assert dearest(costs, bounds) == min(dearest(costs, cut) for cut in every)


def test_of_equal_cuts_the_first_stages_are_the_shorter_ones() -> None:
    assert balanced_bounds([1.0, 1.0, 1.0], num_stages=2) == [0, 1, 3]


def test_fewer_units_than_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="3 units cannot fill 4 stages"):
        balanced_bounds([1.0, 1.0, 1.0], num_stages=4)


def test_the_vocabulary_moves_the_cut() -> None:
    def bounds(vocab_size: int) -> list[int]:
        config = ModelConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, vocab_size=vocab_size)
        return balanced_bounds(unit_costs(config, tokens=4096, predicted_tokens=600), num_stages=2)

    assert (bounds(1000), bounds(60000)) == ([0, 3, 6], [0, 5, 6])


def test_costs_count_each_unit_and_what_the_last_layer_leaves_out() -> None:
    config = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, intermediate_size=32, vocab_size=100)
    embeddings, first, last, head = unit_costs(config, tokens=10, predicted_tokens=2)
    assert first == 10 * (8 * 64 + 4 * 8 * 32)
    assert last == 10 * 6 * 64 + 2 * (2 * 64 + 4 * 8 * 32)
    assert (embeddings, head) == (0.04 * first, 1.15 * 2 * (2 * 64 + 2 * 8 * 100))
