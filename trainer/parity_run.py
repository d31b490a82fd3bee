"""Runs parity cells: one launch a world size, all its cells inside, the losses of every step brought back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.corpus import open_corpus
from data_pipeline.from_recipe import loader_for
from trainer.config import Config
from trainer.errors import UserError, run_command
from trainer.half_precision import half_precisions
from trainer.parity import BOUND_TO_FP32, Cell, cell_config
from trainer.prepare import pin_shards, shard_folders
from trainer.recipe import dump_config, load_recipe
from trainer.runtime import Runtime, started
from trainer.schedule import learning_rate
from trainer.setup import make_engine, plan_layout, resolve
from trainer.step_sums import stacked
from trainer.topology import topology_from_env


def run_parity(
    config: Config, cells: Sequence[Cell], *, steps: int, report: Callable[[str], None]
) -> dict[Cell, list[float]]:
    """Losses of `steps` steps of every cell; called in one process, which launches the others and waits for them."""
    for cell in cells:
        cell_config(config, cell, steps=steps)
    trainable = trainable_precisions()
    for precision in {cell.precision for cell in cells} - {*trainable}:
        raise UserError(f"--precisions {precision}: this machine's devices have {', '.join(trainable)} arithmetic only")
    if left_out := [name for name in BOUND_TO_FP32 if name not in trainable]:
        report(f"parity: without {', '.join(left_out)}, which this machine's devices have no arithmetic for")
    pinned = pin_shards(config, shard_folders(config, report=report))
    losses: dict[Cell, list[float]] = {}
    for world_size in sorted({cell.world_size for cell in cells}):
        mine = [cell for cell in cells if cell.world_size == world_size]
        report(f"parity: {len(mine)} cells on {world_size} process(es), {steps} steps each")
        losses.update(_launch(pinned, mine, world_size=world_size, steps=steps))
    return {cell: losses[cell] for cell in cells}


def trainable_precisions() -> list[str]:
    """The precisions whose cells can run on this machine's devices, fp32 first."""
    half = half_precisions("cuda" if torch.cuda.is_available() else "cpu")
    return [name for name in BOUND_TO_FP32 if name == "fp32" or name in half]


def _launch(config: Config, cells: Sequence[Cell], *, world_size: int, steps: int) -> dict[Cell, list[float]]:
    with tempfile.TemporaryDirectory(prefix="bertline-parity-") as folder:
        recipe, wanted, result = (Path(folder) / name for name in ("recipe.yaml", "cells.json", "losses.json"))
        recipe.write_text(dump_config(config), encoding="utf-8")
        wanted.write_text(json.dumps([asdict(cell) for cell in cells]), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // world_size)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)),
            *("-m", "trainer.parity_run", str(recipe), str(wanted), str(result), str(steps)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            lines = done.stderr.strip().splitlines()
            # What a rank says of a mistake stands above what the launcher says of its end.
            said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-5:]
            raise UserError(
                f"the launch of {world_size} processes ended with exit code {done.returncode}: {' | '.join(said)}"
            )
        curves: list[list[float]] = json.loads(result.read_text(encoding="utf-8"))
    return dict(zip(cells, curves, strict=True))


def cell_losses(config: Config, cell: Cell, *, shards: Sequence[Path], runtime: Runtime, steps: int) -> list[float]:
    """Loss of each of the first `steps` steps in one cell; collective."""
    corpus = open_corpus(config.data.all_sources, shards)
    config = resolve(cell_config(config, cell, steps=steps), corpus.manifest)
    topology = runtime.topology
    ds_plan = plan_layout(config, runtime=runtime)
    engine = make_engine(config, ds_plan=ds_plan, runtime=runtime, source=None)
    loader = loader_for(config, corpus, dp_rank=topology.dp_rank, dp_world_size=topology.dp_world_size)
    curve = []
    applied_steps = 0
    for step in range(steps):
        rate = learning_rate(
            config.schedule, peak=config.optimizer.learning_rate, applied_steps=applied_steps, total_steps=steps
        )
        sums = engine.train_step(next(loader), step=step, learning_rate=rate)
        applied_steps += engine.was_applied
        totals = stacked(sums)
        dist.all_reduce(totals)
        loss, count, _ = totals[0].tolist()
        curve.append(loss / count)
    loader.close()
    engine.close()
    return curve


def _work(*, recipe: Path, wanted: Path, result: Path, steps: int) -> int:
    """One process of a launch: all cells, one after the other, in one process group."""
    config = load_recipe(str(recipe))
    cells = [Cell(**cell) for cell in json.loads(wanted.read_text(encoding="utf-8"))]
    shards = shard_folders(config, report=print)
    with started(topology_from_env(os.environ), deterministic=config.deterministic) as runtime:
        curves = [cell_losses(config, cell, shards=shards, runtime=runtime, steps=steps) for cell in cells]
        if runtime.is_main:
            result.write_text(json.dumps(curves), encoding="utf-8")
    return 0


if __name__ == "__main__":
    _recipe, _wanted, _result = map(Path, sys.argv[1:4])
    sys.exit(run_command(lambda: _work(recipe=_recipe, wanted=_wanted, result=_result, steps=int(sys.argv[4]))))
