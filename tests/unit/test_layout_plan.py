"""`trainer plan`: which layouts there are, in which order, and what it says of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands

from trainer.check import check_recipe
from trainer.device_figures import device_figures
from trainer.errors import UserError
from trainer.layout_plan import LayoutPlan, longest_phase, plan_layouts
from trainer.plan_text import compare, describe_plan
from trainer.recipe import load_recipe
from trainer.time_model import Hardware

H100 = device_figures("h100")


def plan(recipe: Path, *settings: str, count: int = 4, precision: str = "fp32", **changes: Any) -> LayoutPlan:
    hardware = Hardware(replace(H100, **changes), count, network_rate=50e9, efficiency=0.5)
    return plan_layouts(load_recipe(str(recipe), overrides=settings), hardware=hardware, precision=precision)


@pytest.fixture(scope="module")
def four(tiny_recipe: Path) -> LayoutPlan:
    return plan(tiny_recipe)


def test_every_layout_that_the_rules_allow_is_there_once(four: LayoutPlan) -> None:
    found = sorted(
        (one.num_stages, one.zero_stage, one.batch_plan.micro_batch_size, one.batch_plan.grad_accum_steps)
        for one in four.layouts
    )
    # 12 rows over 4, 2 or 1 replicas; a layer has no four stages, and stages go with ZeRO 0 and 1 alone.
    divided = {1: 3, 2: 6}
    expected = [
        (stages, zero, size, rows // size)
        for stages, rows in divided.items()
        for zero in range(4 if stages == 1 else 2)
        for size in range(1, rows + 1)
        if rows % size == 0
    ]
    assert found == sorted(expected)


def test_refused_layouts_are_counted_by_their_reason(four: LayoutPlan) -> None:
    assert sum(four.refused.values()) == 2 * 4 + 4 * 6
    (empty, of_empty), (zero, of_zero) = four.refused.most_common()
    assert (of_empty, of_zero) == (24, 8)
    assert empty.startswith("parallel.num_stages=N leaves a stage empty")
    assert zero.startswith("zero_optimization.stage=N cannot be joined with parallel.num_stages=N")
    lines = describe_plan(four, tokens=None, price=None)
    assert lines[-2:] == [f"24 layouts refused: {empty}", f"8 layouts refused: {zero}"]


def test_a_batch_that_cannot_be_dealt_is_refused_in_every_layout_of_its_replicas(tiny_recipe: Path) -> None:
    found = plan(tiny_recipe, "train.global_batch_size=10", count=3)
    assert [one.num_stages for one in found.layouts] == [3] * len(found.layouts) != []
    assert any(reason.startswith("global_batch_size=N is not divisible by") for reason in found.refused)


def test_the_fastest_comes_first_and_its_figures_agree(four: LayoutPlan) -> None:
    times = [(float(f"{one.time.step_s:.4g}"), one.batch_plan.grad_accum_steps) for one in four.layouts]
    assert times == sorted(times)
    assert len({seconds for seconds, _ in times}) < len(times)  # there are equal ones
    for one in four.layouts:
        assert one.tokens_per_s == pytest.approx(four.tokens / one.time.step_s)
        assert one.mfu < 0.5


def test_memory_is_what_check_foretells(tiny_recipe: Path) -> None:
    config = load_recipe(str(tiny_recipe), overrides=["engine.ds_config=zero2"])
    checked = check_recipe(config, world_size=2, device_type="cuda", program_bytes=0)
    layouts = {
        (one.zero_stage, one.num_stages, one.batch_plan.micro_batch_size): one.memory
        for one in plan(tiny_recipe, count=2).layouts
    }
    # Of the recipe's own micro-batch; of three times as many rows activations and logits are three times as large.
    assert layouts[2, 1, 2] == checked.memory
    assert layouts[2, 1, 6].activations_bytes == pytest.approx(3 * checked.memory.activations_bytes, abs=3)
    assert layouts[2, 1, 6].logits_bytes == 3 * checked.memory.logits_bytes


def test_a_stage_holds_no_more_micro_batches_than_there_are(tiny_recipe: Path) -> None:
    found = plan(tiny_recipe, "model.hidden_size=64", "model.num_layers=6", count=2).layouts
    staged = {one.batch_plan.grad_accum_steps: one.memory for one in found if one.num_stages == 2}
    # One micro-batch of 12 rows, or two of 6 at a time.
    assert staged[1].activations_bytes == pytest.approx(staged[2].activations_bytes, rel=0.3)
    assert staged[12].activations_bytes < 0.3 * staged[2].activations_bytes


def test_what_does_not_fit_is_counted_and_not_listed(tiny_recipe: Path, four: LayoutPlan) -> None:
    sizes = sorted(one.memory.peak_bytes for one in four.layouts)
    some = plan(tiny_recipe, memory_bytes=int(sizes[len(sizes) // 2] / 0.9) + 1)
    assert 0 < len(some.layouts) < len(sizes)
    assert some.too_large == len(sizes) - len(some.layouts)
    assert f"{some.too_large} layouts take more than 0.0 GiB" in describe_plan(some, tokens=None, price=None)
    none = plan(tiny_recipe, memory_bytes=1000)
    assert (none.layouts, none.least_bytes) == ([], sizes[0])
    assert any(line.startswith("no layout fits: the smallest takes") for line in describe_plan(none, tokens=1, price=1))


def test_half_precision_has_no_stage_0_of_its_own(tiny_recipe: Path) -> None:
    found = plan(tiny_recipe, count=1, precision="bf16")
    assert {one.zero_stage for one in found.layouts} == {1, 2, 3}
    assert any(reason.startswith("ZeRO stage N in bf16 runs as stage N") for reason in found.refused)


def test_layers_computed_again_take_time_and_spare_memory(tiny_recipe: Path, four: LayoutPlan) -> None:
    again = plan(tiny_recipe, "parallel.activation_checkpointing=true").layouts
    one, other = (next(one for one in found if one.zero_stage == 1) for found in (again, four.layouts))
    assert one.time.compute_s > other.time.compute_s
    assert one.mfu < other.mfu


def test_hours_and_cost_follow_from_tokens_and_price(four: LayoutPlan) -> None:
    best = four.layouts[0]
    hours = 1e15 / best.tokens_per_s / 3600
    row = next(line for line in describe_plan(four, tokens=1e15, price=2.5) if line.startswith(str(best.zero_stage)))
    assert row.split()[-2:] == [f"{hours:.4g}", f"{hours * 4 * 2.5:,.0f}"]
    own = describe_plan(four, tokens=None, price=None)
    assert f"12 rows = {four.tokens:,.0f} tokens a step; {4 * four.tokens:.4g} tokens" in own


def test_the_phase_with_most_tokens_is_planned(tiny_recipe: Path) -> None:
    phases = "phases=[{steps: 3, max_seq_len: 16}, {steps: 1, max_seq_len: 32}]"
    assert longest_phase(load_recipe(str(tiny_recipe), overrides=[phases])).data.max_seq_len == 16
    phases = "phases=[{steps: 2, max_seq_len: 16}, {steps: 2, max_seq_len: 32}]"
    assert longest_phase(load_recipe(str(tiny_recipe), overrides=[phases])).data.max_seq_len == 32
    whole = load_recipe(str(tiny_recipe))
    assert longest_phase(whole) == whole


def test_a_measured_job_stands_beside_what_is_foretold(four: LayoutPlan) -> None:
    layout = next(one for one in four.layouts if (one.zero_stage, one.num_stages) == (1, 2))
    figures = {
        "world_size": 4,
        "precision": "fp32",
        "zero_stage": 1,
        "num_stages": 2,
        "micro_batches": layout.batch_plan.grad_accum_steps,
        "speed": {"throughput/tokens_per_sec": layout.tokens_per_s / 1.25},
    }
    line = compare(four, figures, source="there")
    assert line.startswith("measured in there: ZeRO stage 1, 2 stage(s)")
    assert line.endswith(f"foretold {layout.tokens_per_s:,.0f}, +25.0%")
    with pytest.raises(UserError, match=r"there is of 2 process\(es\), .* which is no layout of this plan for 4"):
        compare(four, {**figures, "world_size": 2}, source="there")


def test_the_command_prints_the_table_and_the_error(commands: Commands, tiny_recipe: Path, tmp_path: Path) -> None:
    figures = {"world_size": 1, "precision": "fp32", "zero_stage": 1, "num_stages": 1, "micro_batches": 6}
    (tmp_path / "profile").mkdir()
    measured = {**figures, "speed": {"throughput/tokens_per_sec": 1.0}}
    (tmp_path / "profile" / "figures.json").write_text(json.dumps(measured))
    done = commands.run(
        *("plan", tiny_recipe, "--gpus", "cpu:1", "--tokens", "2M", "--price", "0.5", "--measured", "profile"),
        cwd=tmp_path,
    )
    assert (done.code, done.err) == (0, ""), done
    assert "1 x cpu: fp32, matmul peak" in done.out
    assert "2e+06 tokens" in done.out
    assert done.out.count("\n0     1 ") == 6
    assert done.out.splitlines()[-1].startswith(
        "measured in profile: ZeRO stage 1, 1 stage(s), 6 micro-batch(es): 1 to"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "h100"], "--gpus h100: not of the form NAME:COUNT, as in --gpus h100:64"),
        (["--gpus", "h100:0"], "--gpus h100:0: not of the form"),
        (["--gpus", "h1000:8"], "did you mean h100?"),
        (["--gpus", "h100:8", "--tokens", "many"], "--tokens many: not a number of tokens, as in --tokens 100B"),
        (["--gpus", "h100:8", "--tokens", "0B"], "--tokens 0B: not a number"),
        (["--gpus", "h100:8", "--network", "0"], "--network 0: must be above 0"),
        (["--gpus", "h100:8", "--price", "-1"], "--price -1: must not be below 0"),
        (["--gpus", "h100:8", "--efficiency", "1.5"], "--efficiency 1.5: must be above 0 and at most 1"),
        (["--gpus", "h100:8", "--measured", "none"], "--measured none: there is no figures.json"),
        (["--gpus", "t4:8", "--set", "engine.precision=bf16"], "engine.precision=bf16: t4 has none; use fp32 or fp16"),
    ],
)
def test_a_mistake_is_one_line(
    commands: Commands, tiny_recipe: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in commands.mistake("plan", tiny_recipe, *options, cwd=tmp_path)
