"""`trainer sweep`: fine-tuning over learning rates, batch sizes, seeds and recipes, and one table of it all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.checkpoint_files import write_json
from trainer.errors import UserError
from trainer.finetune import finished_scores, in_job, summarize, train_one
from trainer.finetune_config import FineTuneConfig
from trainer.metrics import read_records
from trainer.runtime import Runtime, on_main

SWEEP_DIR = "sweep"
_TOKENS_PER_SEC = "throughput/tokens_per_sec"


@dataclass(frozen=True)
class Cell:
    """One row of the table: a recipe with a rate and a batch size, and its runs, one a seed."""

    recipe: str
    learning_rate: float
    global_batch_size: int
    runs: tuple[FineTuneConfig, ...]


def sweep(
    configs: Sequence[FineTuneConfig], *, rates: Sequence[float], batch_sizes: Sequence[int], seeds: Sequence[int]
) -> bool:
    """Run every combination one after the other, finished ones left out; each process of a launcher calls it.

    An empty list takes the recipe's own value. False when the job was told to stop and has saved.
    """
    check_comparable(configs)
    folders = [config.run_dir / SWEEP_DIR for config in configs]

    def body(runtime: Runtime, report: Callable[[str], None]) -> None:
        world = runtime.topology.dp_world_size
        cells = [
            cell
            for config in configs
            for cell in plan_cells(config, rates=rates, batch_sizes=batch_sizes, seeds=seeds, dp_world_size=world)
        ]
        rows = [run_cell(cell, runtime=runtime, report=report) for cell in cells]
        if runtime.is_main:
            report(write_tables(rows, folder=folders[0]))

    return in_job(folders, deterministic=configs[0].deterministic, body=body)


def check_comparable(configs: Sequence[FineTuneConfig]) -> None:
    """UserError where recipes have one name, or are not scored on the same file."""
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise UserError(f"two of the recipes are called {max(names, key=names.count)!r}; give one another name")
    kinds = {(config.task.name, config.data.validation, config.evaluation.metric) for config in configs}
    if len(kinds) > 1:
        shown = " and ".join(f"{config.task.name} on {config.data.validation}" for config in configs[:3])
        raise UserError(f"one table needs one task, one data.validation and one evaluation.metric; these are {shown}")


def plan_cells(
    config: FineTuneConfig,
    *,
    rates: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    dp_world_size: int,
) -> list[Cell]:
    """Every combination for a recipe, the largest batches first; UserError where a batch cannot be dealt out.

    Large batches have the fewest steps, so that a warm-up too long for them is found before anything is trained.
    The micro-batch is the largest up to the recipe's that divides a rank's part: it changes no result.
    """
    cells = []
    for size in sorted(batch_sizes or [config.train.global_batch_size], reverse=True):
        part, rest = divmod(size, dp_world_size)
        if rest:
            raise UserError(f"a batch of {size} cannot be dealt to {dp_world_size} processes; use a multiple of them")
        micro = max(m for m in range(1, config.train.micro_batch_size + 1) if part % m == 0)
        train = config.train.model_copy(update={"global_batch_size": size, "micro_batch_size": micro})
        for rate in rates or [config.optimizer.learning_rate]:
            optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
            runs = tuple(
                config.model_copy(
                    update={
                        "name": f"rate-{rate:g}_batch-{size}_seed-{seed}",
                        "runs_dir": str(config.run_dir / SWEEP_DIR),
                        "seed": seed,
                        "seeds": None,
                        "train": train,
                        "optimizer": optimizer,
                    }
                )
                for seed in seeds or config.seeds or [config.seed]
            )
            cells.append(Cell(config.name, rate, size, runs))
    return cells


def run_cell(cell: Cell, *, runtime: Runtime, report: Callable[[str], None]) -> dict[str, Any]:
    """Train what is not finished of a cell, and give its row; collective."""
    scores = []
    for run in cell.runs:
        report(str(run.run_dir))
        found = on_main(runtime, partial(finished_scores, run))
        scores.append(found or train_one(run, runtime=runtime, resume="auto", report=report))
    speeds = [
        record[_TOKENS_PER_SEC]
        for run in cell.runs
        for record in read_records(run.run_dir / "metrics.jsonl")
        if _TOKENS_PER_SEC in record
    ]
    return {
        "recipe": cell.recipe,
        "learning_rate": cell.learning_rate,
        "global_batch_size": cell.global_batch_size,
        "metric": scores[0]["metric"],
        "lower_is_better": scores[0]["lower_is_better"],
        "tokens_per_sec": statistics.median(speeds),
        **summarize([run.seed for run in cell.runs], scores),
    }


def best_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows by the mean of the deciding metric on the validation file."""
    metric, sign = rows[0]["metric"], 1.0 if rows[0]["lower_is_better"] else -1.0
    return sorted(rows, key=lambda row: sign * float(row["parts"]["validation"][metric]["mean"]))


def write_tables(rows: Sequence[Mapping[str, Any]], *, folder: Path) -> str:
    """Write sweep.json and sweep.md, best row first; gives the latter's text."""
    ordered = best_first(rows)
    text = markdown(ordered)
    write_json(folder / "sweep.json", ordered)
    (folder / "sweep.md").write_text(text, encoding="utf-8")
    return text


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, in the order of the rows; mean ± sample standard deviation where there are several seeds."""
    metric, parts = rows[0]["metric"], sorted(rows[0]["parts"], key=lambda part: part != "validation")
    names = [f"{part} {metric}" for part in parts]
    lines = [
        f"| recipe | rate | batch | seeds | {' | '.join(names)} | training tokens/s |",
        f"|{'---|' * (5 + len(parts))}",
    ]
    for row in rows:
        scores = [_shown(row["parts"][part][metric]) for part in parts]
        lines.append(
            f"| {row['recipe']} | {row['learning_rate']:g} | {row['global_batch_size']} | {len(row['seeds'])} | "
            f"{' | '.join(scores)} | {row['tokens_per_sec']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def _shown(value: Mapping[str, float | None]) -> str:
    deviation = value["deviation"]
    return f"{value['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
