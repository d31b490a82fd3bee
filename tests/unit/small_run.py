"""Fine-tuned runs that are there in a second."""

from __future__ import annotations

from pathlib import Path

from trainer.finetune import train_and_score
from trainer.finetune_setup import FineTuneRun, set_up_finetuning
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter
from trainer.progress import ProgressReporter
from trainer.recipe import load_finetune_recipe
from trainer.run_folder import describe_run
from trainer.runtime import Runtime


def finetuned_run(recipe: Path, runtime: Runtime, folder: Path, *settings: str) -> Path:
    """Train a recipe to its end below `folder`; gives the run folder."""
    config = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *settings])
    train_and_score(config, runtime=runtime, resume="never", report=lambda text: None)
    return config.run_dir


def train_steps(recipe: Path, runtime: Runtime, folder: Path, *settings: str, until: int | None = None) -> FineTuneRun:
    """`train_on` at a constant rate, unless `settings` say otherwise."""
    return train_on(recipe, runtime, folder, "schedule={name: constant}", *settings, until=until)


def train_on(
    recipe: Path,
    runtime: Runtime,
    folder: Path,
    *settings: str,
    told: list[str] | None = None,
    until: int | None = None,
) -> FineTuneRun:
    """Train a recipe on below `folder`, to its end or to step `until`; what is reported is added to `told`."""
    config = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *settings])
    report = told.append if told is not None else lambda text: None
    run = set_up_finetuning(config, runtime=runtime, resume="auto", report=report)
    run.total_steps = until or run.total_steps
    describe_run(config, plan=run.ds_plan, runtime=runtime)
    progress = ProgressReporter(run.total_steps, start_step=run.state.step, is_main=False)
    try:
        with MetricsWriter(config.run_dir, is_main=True, resume_step=run.state.step) as metrics:
            Trainer(run, metrics=metrics, progress=progress).train()
    finally:
        run.engine.close()
    return run
