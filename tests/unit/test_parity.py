from __future__ import annotations

import math

import pytest

from trainer.config import Config, PhaseConfig
from trainer.errors import UserError
from trainer.parity import (
    Cell,
    Verdict,
    all_cells,
    cell_config,
    judge,
    largest_difference,
    markdown_page,
    markdown_table,
)

REFERENCE = Cell(world_size=1, zero_stage=0, precision="fp32", grad_accum_steps=1)


def config(**model: float) -> Config:
    return Config.model_validate(
        {
            "name": "parity",
            "data": {"shards": "shards"},
            "model": {"hidden_dropout": 0.0, "attention_dropout": 0.0, **model},
            "train": {"steps": 50, "global_batch_size": 16, "micro_batch_size": 16},
        }
    )


def test_the_reference_comes_first_and_every_combination_once() -> None:
    cells = all_cells(world_sizes=[2, 1], zero_stages=[3, 0], precisions=["fp16", "fp32"], grad_accum_steps=[1])
    assert cells[0] == REFERENCE
    assert len(cells) == len(set(cells)) == 8


def test_there_is_a_reference_even_where_fp32_is_not_asked_for() -> None:
    cells = all_cells(world_sizes=[2], zero_stages=[1], precisions=["bf16"], grad_accum_steps=[2, 4])
    assert [str(cell) for cell in cells] == [
        "2 processes, ZeRO-1, fp32, 2 micro-batches",
        "2 processes, ZeRO-1, bf16, 2 micro-batches",
        "2 processes, ZeRO-1, bf16, 4 micro-batches",
    ]


@pytest.mark.parametrize(("world_sizes", "accumulations"), [([1, 0], [1]), ([1], [-2])])
def test_numbers_that_no_layout_has_are_refused(world_sizes: list[int], accumulations: list[int]) -> None:
    with pytest.raises(UserError, match=r"--(world-sizes 0|accumulations -2) is too small; it must be at least 1"):
        all_cells(world_sizes=world_sizes, zero_stages=[0], precisions=["fp32"], grad_accum_steps=accumulations)


def test_a_cell_splits_the_recipes_batch_and_changes_nothing_else() -> None:
    cell = Cell(world_size=2, zero_stage=3, precision="bf16", grad_accum_steps=4)
    made = cell_config(config(), cell, steps=5)
    assert (made.train.steps, made.train.global_batch_size, made.train.micro_batch_size) == (5, 16, 2)
    assert (made.engine.ds_config, made.engine.precision) == ("zero3", "bf16")
    assert made.model_copy(update={"train": config().train, "engine": config().engine}) == config()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match=r"=16 cannot be split over 3 processes, .*: it must be a multiple of 3"):
        cell_config(config(), Cell(3, 0, "fp32", 1), steps=5)
    with pytest.raises(UserError, match=r"sets model.hidden_dropout=0.0, model.attention_dropout=0.1; set both to 0"):
        cell_config(config(attention_dropout=0.1), REFERENCE, steps=5)
    growing = config().model_copy(update={"phases": [PhaseConfig(steps=1)]})
    with pytest.raises(UserError, match=r"changes its batches on the way; set phases=\[\] and train.batch_warmup=\[\]"):
        cell_config(growing, REFERENCE, steps=5)
    with pytest.raises(UserError, match="--steps 0 leaves nothing to compare"):
        cell_config(config(), REFERENCE, steps=0)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([2.0, 4.0], 0.0), ([2.0, 4.5], 0.125), ([1.0, 4.0], 0.5), ([2.0], math.inf), ([2.0, math.nan], math.inf)],
)
def test_the_largest_relative_difference_of_any_step_counts(curve: list[float], expected: float) -> None:
    assert largest_difference(curve, [2.0, 4.0]) == expected


def test_a_cell_is_judged_against_fp32_and_against_the_first_of_its_own_precision() -> None:
    half, other_half = Cell(1, 0, "fp16", 1), Cell(2, 0, "fp16", 1)
    far = Cell(2, 0, "fp32", 1)
    losses = {REFERENCE: [2.0], other_half: [2.0011], half: [2.001], far: [2.0001]}
    verdicts = {verdict.cell: verdict for verdict in judge(losses, reference=REFERENCE)}
    assert list(verdicts) == list(losses)
    assert verdicts[half].between_layouts == 0.0
    assert verdicts[half].to_fp32 == pytest.approx(5e-4)
    assert verdicts[other_half].between_layouts == pytest.approx(5e-5, rel=1e-2)
    assert {cell: verdict.within_bounds for cell, verdict in verdicts.items()} == {
        REFERENCE: True,
        half: True,
        other_half: True,
        far: False,
    }


@pytest.mark.parametrize(
    ("precision", "to_fp32", "between"), [("fp32", 1e-5, 1e-5), ("bf16", 2e-3, 5e-4), ("fp16", 1e-3, 5e-4)]
)
def test_the_bounds_are_the_promised_ones(precision: str, to_fp32: float, between: float) -> None:
    def verdict(loss: float, other: float) -> bool:
        first, second = Cell(1, 1, precision, 1), Cell(2, 1, precision, 1)
        losses = {REFERENCE: [1.0], first: [loss], second: [other]}
        return {v.cell: v.within_bounds for v in judge(losses, reference=REFERENCE)}[second]

    assert verdict(1 + 0.9 * to_fp32, 1 + 0.9 * to_fp32)
    assert not verdict(1 + 1.1 * to_fp32, 1 + 1.1 * to_fp32)
    assert verdict(1.0, 1 + 0.9 * between)
    assert not verdict(1.0, 1 + 1.1 * between)


def test_the_table_marks_what_is_off() -> None:
    verdicts = judge({REFERENCE: [2.0, 2.0], Cell(2, 0, "fp32", 1): [2.0, math.nan]}, reference=REFERENCE)
    assert markdown_table(verdicts, steps=2).splitlines() == [
        "| processes | ZeRO stage | precision | micro-batches | to fp32 | between layouts | 2 steps |",
        "|---:|---:|---|---:|---:|---:|---|",
        "| 1 | 0 | fp32 | 1 | 0.0e+00 | 0.0e+00 | ok |",
        "| 2 | 0 | fp32 | 1 | inf | inf | **off** |",
    ]


def test_the_page_says_the_worst_of_each_precision_it_holds() -> None:
    cells = [Cell(1, 0, "fp32", 1), Cell(2, 0, "fp32", 1), Cell(1, 1, "bf16", 1)]
    verdicts = [Verdict(cells[0], 0.0, 0.0), Verdict(cells[1], 2e-7, 2e-7), Verdict(cells[2], 1e-4, 0.0)]
    page = markdown_page(verdicts, steps=3)
    assert "- fp32: 2.0e-07 at most, bound 1e-05\n- bf16: 1.0e-04 at most, bound 2e-03\n\n| processes" in page
    assert "fp16:" not in page
