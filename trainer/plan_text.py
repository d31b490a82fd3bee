"""The layouts of `trainer plan` as a table, and beside measured steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.errors import UserError
from trainer.layout_plan import LayoutPlan, PlannedLayout

_GIB = 1 << 30


def describe_plan(plan: LayoutPlan, *, tokens: float | None, price: float | None) -> list[str]:
    """The table, line by line: hours to so many tokens, the recipe's own where None; costs at a price an hour and
    device, if one is given."""
    device, config = plan.hardware.device, plan.config
    run_tokens = plan.tokens * config.train.steps if tokens is None else tokens
    peak = device.peak_flops[plan.precision]
    lines = [
        f"{plan.hardware.count} x {device.name}: {plan.precision}, matmul peak {peak / 1e12:.4g} TFLOP/s, of which "
        f"forward and backward reach {plan.hardware.efficiency:.2f}; {device.memory_bytes / _GIB:.0f} GiB, of which "
        f"{plan.usable_bytes / _GIB:.1f} are counted on",
        f"{device.devices_a_machine} a machine; one way {device.link_rate / 1e9:.4g} GB/s inside it, "
        f"{plan.hardware.network_rate / 1e9:.4g} GB/s a device outside",
        f"{config.train.global_batch_size} rows = {plan.tokens:,.0f} tokens a step; {run_tokens:.4g} tokens",
        "",
    ]
    if plan.layouts:
        lines.append(
            "ZeRO  stages  micro-batch  accumulation  GiB    step s  compute  bubble   sending  update   tokens/s"
            "       MFU    hours" + ("" if price is None else "      cost")
        )
        lines += [_row(layout, plan=plan, tokens=run_tokens, price=price) for layout in plan.layouts]
    else:
        lines.append(f"no layout fits: the smallest takes {plan.least_bytes / _GIB:.1f} GiB of a device")
    lines.append("")
    if plan.too_large:
        lines.append(f"{plan.too_large} layouts take more than {plan.usable_bytes / _GIB:.1f} GiB")
    return [*lines, *(f"{count} layouts refused: {reason}" for reason, count in plan.refused.most_common())]


def _row(layout: PlannedLayout, *, plan: LayoutPlan, tokens: float, price: float | None) -> str:
    time, batch = layout.time, layout.batch_plan
    hours = tokens / layout.tokens_per_s / 3600
    cost = "" if price is None else f"  {hours * plan.hardware.count * price:>8,.0f}"
    return (
        f"{layout.zero_stage:<4}  {layout.num_stages:<6}  {batch.micro_batch_size:<11}  {batch.grad_accum_steps:<12}  "
        f"{layout.memory.peak_bytes / _GIB:<5.1f}  {time.step_s:<6.4g}  {time.compute_s:<7.4g}  {time.bubble_s:<7.3g}  "
        f"{time.communication_s:<7.3g}  {time.update_s:<7.3g}  {layout.tokens_per_s:<13,.0f}  {layout.mfu:<5.3f}  "
        f"{hours:<7.4g}{cost}"
    )


def compare(plan: LayoutPlan, figures: Mapping[str, Any], *, source: str) -> str:
    """A line that sets what is foretold beside what `trainer profile` measured (its figures.json, from `source`).

    UserError where it measured another job than the plan is for.
    """
    layout = _measured_layout(plan, figures)
    if layout is None:
        raise UserError(
            f"{source} is of {figures['world_size']} process(es), ZeRO stage {figures['zero_stage']}, "
            f"{figures['num_stages']} stage(s), {figures['micro_batches']} micro-batch(es) in {figures['precision']}, "
            f"which is no layout of this plan for {plan.hardware.count} in {plan.precision}; plan the recipe that was "
            "profiled, for as many devices"
        )
    measured = figures["speed"]["throughput/tokens_per_sec"]
    error = layout.tokens_per_s / measured - 1
    return (
        f"measured in {source}: ZeRO stage {layout.zero_stage}, {layout.num_stages} stage(s), "
        f"{layout.batch_plan.grad_accum_steps} micro-batch(es): {measured:,.0f} tokens/s; foretold "
        f"{layout.tokens_per_s:,.0f}, {error:+.1%}"
    )


def _measured_layout(plan: LayoutPlan, figures: Mapping[str, Any]) -> PlannedLayout | None:
    if (figures["world_size"], figures["precision"]) != (plan.hardware.count, plan.precision):
        return None
    place = (figures["zero_stage"], figures["num_stages"], figures["micro_batches"])
    return next(
        (one for one in plan.layouts if (one.zero_stage, one.num_stages, one.batch_plan.grad_accum_steps) == place),
        None,
    )
