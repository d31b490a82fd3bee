"""`trainer finetune`: one process of a fine-tuning run, from the recipe to the scores of its best checkpoint."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainer.checkpoint_files import write_json
from trainer.finetune_config import FineTuneConfig
from trainer.finetune_setup import FineTuneRun, set_up_finetuning
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter
from trainer.preemption import Preemption, StoppedEarly
from trainer.progress import ProgressReporter
from trainer.rank_health import note_start
from trainer.recipe import dump_config
from trainer.resume import Resume
from trainer.run_folder import CONFIG_FILE, describe_run, sole_owner
from trainer.runtime import Runtime, on_main, started
from trainer.stall import StallWatch
from trainer.task_predict import score_run
from trainer.topology import topology_from_env

SCORES_FILE = "scores.json"
SUMMARY_FILE = "summary.json"


def finetune(config: FineTuneConfig, *, resume: Resume) -> bool:
    """Train as the recipe says; every process that a launcher started calls it with the same arguments.

    False when the job was told to stop (trainer.preemption) and has saved before its end.
    """

    def body(runtime: Runtime, report: Callable[[str], None]) -> None:
        train_and_score(config, runtime=runtime, resume=resume, report=report)

    return in_job([config.run_dir], deterministic=config.deterministic, body=body)


def in_job(
    folders: Sequence[Path], *, deterministic: bool, body: Callable[[Runtime, Callable[[str], None]], None]
) -> bool:
    """Call `body` with this process's place among those of the launcher, the folders being held for this job alone.

    False when `body` raised StoppedEarly.
    """
    topology = topology_from_env(os.environ)
    report = ProgressReporter(1, start_step=0, is_main=topology.is_main).message
    with ExitStack() as held, started(topology, deterministic=deterministic) as runtime:

        def own() -> None:
            for folder in folders:
                held.enter_context(sole_owner(folder))

        on_main(runtime, own)
        try:
            body(runtime, report)
        except StoppedEarly:
            report("told to stop, and saved; start again to go on")
            return False
    return True


def train_and_score(config: FineTuneConfig, *, runtime: Runtime, resume: Resume, report: Callable[[str], None]) -> None:
    """Train once for each of the recipe's seeds, score the best checkpoints and sum them up; collective.

    Raises StoppedEarly on every rank when the job was told to stop, the run being saved.
    """
    if config.seeds is None:
        train_one(config, runtime=runtime, resume=resume, report=report)
        return
    scores = []
    for one in of_seeds(config):
        report(f"seed {one.seed}: {one.run_dir}")
        scores.append(train_one(one, runtime=runtime, resume=resume, report=report))
    summary = summarize(config.seeds, scores)
    if runtime.is_main:
        write_json(config.run_dir / SUMMARY_FILE, summary)
    for line in describe_summary(summary):
        report(line)


def of_seeds(config: FineTuneConfig) -> list[FineTuneConfig]:
    """The recipe as one recipe for each of its seeds, their run folders below its own."""
    return [
        config.model_copy(update={"seeds": None, "seed": seed, "name": f"seed-{seed}", "runs_dir": str(config.run_dir)})
        for seed in config.seeds or ()
    ]


def train_one(
    config: FineTuneConfig, *, runtime: Runtime, resume: Resume, report: Callable[[str], None]
) -> dict[str, Any]:
    """Train a recipe of one seed and give the scores of its best checkpoint, which are in its folder too; collective.

    Raises StoppedEarly as `train_and_score` does.
    """
    run = set_up_finetuning(config, runtime=runtime, resume=resume, report=report)
    if runtime.is_main:
        # Scores beside a recipe are that recipe's: those of a former one go before it does.
        (config.run_dir / SCORES_FILE).unlink(missing_ok=True)
        describe_run(config, plan=run.ds_plan, runtime=runtime)
    note_start(config.run_dir, step=run.state.step, topology=runtime.topology)
    try:
        _train(run)
    finally:
        run.engine.close()

    def score() -> dict[str, Any]:
        scores = score_run(config.run_dir, which="auto")
        write_json(config.run_dir / SCORES_FILE, scores)
        return scores

    scores = on_main(runtime, score)
    for part, values in scores["parts"].items():
        report(f"{part}: {' · '.join(f'{name} {value:.4f}' for name, value in values.items())}")
    return scores


def finished_scores(config: FineTuneConfig) -> dict[str, Any] | None:
    """The scores of a run that has ended, None where there is none of just this recipe."""
    try:
        if (config.run_dir / CONFIG_FILE).read_text(encoding="utf-8") != dump_config(config):
            return None
        scores: dict[str, Any] = json.loads((config.run_dir / SCORES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return scores


def _train(run: FineTuneRun) -> None:
    is_main, rank = run.runtime.is_main, run.runtime.topology.rank
    begun_s = time.monotonic()
    with (
        StallWatch(run.config.run_dir, rank=rank, minutes=run.config.train.stall_minutes) as watch,
        Preemption(run.runtime) as preemption,
        ProgressReporter(run.total_steps, start_step=run.state.step, is_main=is_main) as progress,
        MetricsWriter(run.config.run_dir, is_main=is_main, resume_step=run.state.step) as metrics,
    ):

        def poll() -> None:
            watch.beat()
            preemption.poll()

        Trainer(run, metrics=metrics, progress=progress, poll=poll).train()
        progress.message(
            f"{run.state.step} steps, {time.monotonic() - begun_s:.0f} s; best at step {run.state.best_step}"
        )


def summarize(seeds: Sequence[int], scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of every score of every part; no deviation of one seed."""
    parts: dict[str, dict[str, dict[str, float | None]]] = {}
    for part, names in scores[0]["parts"].items():
        values = {name: [of_seed["parts"][part][name] for of_seed in scores] for name in names}
        parts[part] = {
            name: {
                "mean": statistics.fmean(of_seeds),
                "deviation": statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
            }
            for name, of_seeds in values.items()
        }
    return {"seeds": list(seeds), "parts": parts}


def describe_summary(summary: Mapping[str, Any]) -> list[str]:
    """`test, 3 seeds: accuracy 0.8102 ± 0.0040 · ...`, a line for each part."""
    return [
        f"{part}, {len(summary['seeds'])} seeds: "
        + " · ".join(f"{name} {value['mean']:.4f} ± {value['deviation']:.4f}" for name, value in values.items())
        for part, values in summary["parts"].items()
    ]
