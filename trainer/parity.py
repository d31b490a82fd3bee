"""Parity: the same recipe in many layouts must give the same losses; cells, bounds and the verdict (no torch)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import Config
from trainer.errors import UserError

# Largest relative difference of any step's loss: to fp32 in the reference layout, and between layouts of one precision.
BOUND_TO_FP32 = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 1e-3}
BOUND_BETWEEN_LAYOUTS = {"fp32": 1e-5, "bf16": 5e-4, "fp16": 5e-4}


@dataclass(frozen=True, order=True)
class Cell:
    """One layout: processes, ZeRO stage, precision, micro-batches a step."""

    world_size: int
    zero_stage: int
    precision: str
    grad_accum_steps: int

    def __str__(self) -> str:
        return (
            f"{self.world_size} process{'es' if self.world_size > 1 else ''}, ZeRO-{self.zero_stage}, "
            f"{self.precision}, {self.grad_accum_steps} micro-batch{'es' if self.grad_accum_steps > 1 else ''}"
        )


@dataclass(frozen=True)
class Verdict:
    """A cell's largest relative differences over its steps, and whether both are within their bounds."""

    cell: Cell
    to_fp32: float
    between_layouts: float

    @property
    def within_bounds(self) -> bool:
        """False too where a loss is not a number."""
        precision = self.cell.precision
        return self.to_fp32 <= BOUND_TO_FP32[precision] and self.between_layouts <= BOUND_BETWEEN_LAYOUTS[precision]


def all_cells(
    *,
    world_sizes: Sequence[int],
    zero_stages: Sequence[int],
    precisions: Sequence[str],
    grad_accum_steps: Sequence[int],
) -> list[Cell]:
    """Every combination, the reference (fp32, fewest processes, lowest stage, fewest micro-batches) first.

    UserError for a number that no layout has.
    """
    for name, numbers in (("world-sizes", world_sizes), ("accumulations", grad_accum_steps)):
        if min(numbers) < 1:
            raise UserError(f"--{name} {min(numbers)} is too small; it must be at least 1")
    cells = {
        Cell(world_size=world, zero_stage=stage, precision=precision, grad_accum_steps=accumulation)
        for world, stage, precision, accumulation in itertools.product(
            world_sizes, zero_stages, precisions, grad_accum_steps
        )
    }
    # Without a reference there is nothing to compare with.
    reference = Cell(min(world_sizes), min(zero_stages), "fp32", min(grad_accum_steps))
    return [reference, *sorted(cells - {reference})]


def cell_config(config: Config, cell: Cell, *, steps: int) -> Config:
    """The recipe in one cell's layout, deterministic parts only; UserError where the batch cannot be split so."""
    if steps < 1:
        raise UserError(f"--steps {steps} leaves nothing to compare; it must be at least 1")
    rows_at_once = cell.world_size * cell.grad_accum_steps
    if config.train.global_batch_size % rows_at_once:
        raise UserError(
            f"train.global_batch_size={config.train.global_batch_size} cannot be split over {cell}: it must be a "
            f"multiple of {rows_at_once}"
        )
    if config.model.hidden_dropout or config.model.attention_dropout:
        raise UserError(
            f"parity compares losses without dropout, but recipe {config.name!r} sets model.hidden_dropout="
            f"{config.model.hidden_dropout}, model.attention_dropout={config.model.attention_dropout}; set both to 0"
        )
    if config.phases or config.train.batch_warmup:
        raise UserError(
            f"parity compares layouts of one batch, but recipe {config.name!r} changes its batches on the way; set "
            "phases=[] and train.batch_warmup=[]"
        )
    train = config.train.model_copy(
        update={"steps": steps, "micro_batch_size": config.train.global_batch_size // rows_at_once}
    )
    engine = config.engine.model_copy(update={"ds_config": f"zero{cell.zero_stage}", "precision": cell.precision})
    return config.model_copy(update={"train": train, "engine": engine})


def judge(losses: dict[Cell, list[float]], *, reference: Cell) -> list[Verdict]:
    """Compare every cell with the reference, and with the first cell of its own precision."""
    first_of: dict[str, Cell] = {reference.precision: reference}
    for cell in sorted(losses):
        first_of.setdefault(cell.precision, cell)
    return [
        Verdict(
            cell=cell,
            to_fp32=largest_difference(curve, losses[reference]),
            between_layouts=largest_difference(curve, losses[first_of[cell.precision]]),
        )
        for cell, curve in losses.items()
    ]


def largest_difference(curve: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference of any step; infinite where the curves differ in length or hold a NaN."""
    if len(curve) != len(reference):
        return float("inf")
    differences = [abs(value / expected - 1.0) for value, expected in zip(curve, reference, strict=True)]
    return max((float("inf") if difference != difference else difference) for difference in differences)


def markdown_table(verdicts: Sequence[Verdict], *, steps: int) -> str:
    """The verdicts as a table for the docs."""
    lines = [
        f"| processes | ZeRO stage | precision | micro-batches | to fp32 | between layouts | {steps} steps |",
        "|---:|---:|---|---:|---:|---:|---|",
    ]
    for verdict in verdicts:
        cell = verdict.cell
        lines.append(
            f"| {cell.world_size} | {cell.zero_stage} | {cell.precision} | {cell.grad_accum_steps} | "
            f"{verdict.to_fp32:.1e} | {verdict.between_layouts:.1e} | {'ok' if verdict.within_bounds else '**off**'} |"
        )
    return "\n".join(lines) + "\n"


def markdown_page(verdicts: Sequence[Verdict], *, steps: int) -> str:
    """The table with what it means, as `--table` writes it."""
    worst = {
        precision: max(verdict.to_fp32 for verdict in verdicts if verdict.cell.precision == precision)
        for precision in BOUND_TO_FP32
        if any(verdict.cell.precision == precision for verdict in verdicts)
    }
    lines = [f"- {name}: {worst[name]:.1e} at most, bound {BOUND_TO_FP32[name]:.0e}" for name in worst]
    return (
        "# The same curve in every layout\n\n"
        f"The pinned recipe `parity`, {steps} steps on real text, in each layout; written by `make parity`. "
        '"To fp32" is the largest relative\ndifference of any step\'s loss to fp32 in the first layout, "between '
        'layouts" that to the first layout of the same precision.\nHalf precision at ZeRO stage 0 runs as stage 1.\n\n'
        + "\n".join(lines)
        + "\n\n"
        + markdown_table(verdicts, steps=steps)
    )
