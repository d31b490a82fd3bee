from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.batch import Batch
from trainer.errors import UserError
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter, read_records
from trainer.progress import ProgressReporter
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import Run, set_up
from trainer.step import DataParallelStep
from trainer.step_sums import StepSums


def train(recipe: Path, shards: Path, runtime: Runtime, folder: Path, *settings: str, diverge_at: int = -1) -> Run:
    config = load_recipe(str(recipe), overrides=[f"runs_dir={folder}", *settings])
    run = set_up(config, shards=shards, runtime=runtime, resume="auto", report=print)
    if diverge_at >= 0:
        run = replace(run, engine=Diverging(run.engine, at=diverge_at))  # type: ignore[arg-type]
    progress = ProgressReporter(config.train.steps, start_step=run.state.step, is_main=False)
    with MetricsWriter(config.run_dir, is_main=True, resume_step=run.state.step) as metrics:
        try:
            Trainer(run, metrics=metrics, progress=progress).train()
        finally:
            run.loader.close()
            run.engine.close()
    return run


class Diverging:
    """A real engine whose loss is no number from one step on."""

    def __init__(self, engine: DataParallelStep, *, at: int) -> None:
        self._engine, self._at = engine, at

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def train_step(self, batches: Sequence[Batch], *, step: int, **settings: Any) -> StepSums:
        sums = self._engine.train_step(batches, step=step, **settings)
        diverged = sums["mlm"]._replace(loss=torch.tensor(math.nan, dtype=torch.float64))
        return {"mlm": diverged} if step >= self._at else sums


def records(folder: Path, key: str) -> dict[int, float]:
    return {record["step"]: record[key] for record in read_records(folder / "tiny/metrics.jsonl") if key in record}


def test_what_is_due_is_logged_evaluated_and_saved(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = ["train.steps=7", "train.log_every_steps=2", "evaluation.every_steps=3", "checkpoint.every_steps=5"]
    run = train(tiny_recipe, shards, runtime, tmp_path, *settings, "checkpoint.keep_last=9")
    # Step 5 is logged because it is saved, step 7 because it is the last.
    assert sorted(records(tmp_path, "train/loss")) == [2, 4, 5, 6, 7]
    assert sorted(records(tmp_path, "validation/loss")) == [3, 6, 7]
    best = min(records(tmp_path, "validation/loss").items(), key=lambda item: item[1])
    assert (run.state.best_step, run.state.best_validation_loss) == best
    saved = run.checkpoints.steps()
    assert {5, 7} <= set(saved) <= {3, 5, 6, 7}
    assert run.checkpoints.best_step() == best[0]
    assert (run.state.step, run.state.applied_steps) == (7, 7)
    assert records(tmp_path, "train/tokens")[7] == run.state.tokens > 0


def test_the_learning_rate_follows_the_schedule(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    train(tiny_recipe, shards, runtime, tmp_path, "evaluation=null")
    assert records(tmp_path, "train/learning_rate") == {1: 1e-3, 2: 2e-3, 3: 1e-3, 4: 0.0}


def test_stopped_and_started_again_it_is_as_if_it_had_never_stopped(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    train(tiny_recipe, shards, runtime, tmp_path / "whole", "evaluation=null")
    with pytest.raises(UserError):
        train(tiny_recipe, shards, runtime, tmp_path / "cut", "evaluation=null", diverge_at=3)
    train(tiny_recipe, shards, runtime, tmp_path / "cut", "evaluation=null")
    assert records(tmp_path / "cut", "train/loss") == records(tmp_path / "whole", "train/loss")
    assert records(tmp_path / "cut", "train/tokens") == records(tmp_path / "whole", "train/tokens")


def test_a_diverged_run_ends_before_it_replaces_a_good_checkpoint(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = ["train.steps=9", "train.log_every_steps=9", "checkpoint.keep_last=1", "evaluation=null"]
    with pytest.raises(
        UserError, match=r"the loss of step 4 is nan: training diverged; nothing was saved since step 2"
    ):
        train(tiny_recipe, shards, runtime, tmp_path, *settings, diverge_at=3)
    assert [path.name for path in (tmp_path / "tiny/checkpoints").glob("step-*")] == ["step-00000002"]


def test_a_finished_run_has_nothing_left_to_do(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    train(tiny_recipe, shards, runtime, tmp_path)
    before = (tmp_path / "tiny/metrics.jsonl").read_bytes()
    assert train(tiny_recipe, shards, runtime, tmp_path).state.step == 4
    assert (tmp_path / "tiny/metrics.jsonl").read_bytes() == before


def test_the_clock_makes_a_checkpoint_due(tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path) -> None:
    settings = ["evaluation=null", "checkpoint.every_steps=100", "checkpoint.keep_last=9"]
    run = train(tiny_recipe, shards, runtime, tmp_path / "slow", *settings)
    assert run.checkpoints.steps() == [4]
    run = train(tiny_recipe, shards, runtime, tmp_path / "fast", *settings, "checkpoint.every_minutes=1e-9")
    assert run.checkpoints.steps() == [1, 2, 3, 4]
