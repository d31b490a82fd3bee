"""Loss spikes and NaNs in a run: skipped, rolled back, stopped, and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Commands
from torch import Tensor

from data_pipeline.batch import Batch
from trainer.checkpoint_files import CheckpointReader
from trainer.errors import UserError
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter, read_records
from trainer.pretraining_run import PretrainingRun
from trainer.progress import ProgressReporter
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import set_up
from trainer.step import DataParallelStep
from trainer.step_sums import StepSums

SETTINGS = ["train.steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "evaluation=null"]
GUARD = ["stability.window=2", "stability.threshold=9.0"]


class Spiking:
    """A real engine that reports a hundredfold loss at some steps (counted from 1), and is cut off at another."""

    def __init__(self, engine: DataParallelStep, *, at: Sequence[int], cut_at: int | None) -> None:
        self._engine, self._at, self._cut_at = engine, at, cut_at

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def train_step(
        self, batches: Sequence[Batch], *, step: int, accept: Callable[[StepSums], bool] | None, **settings: Any
    ) -> StepSums:
        if step + 1 == self._cut_at:
            raise KeyboardInterrupt

        def told(sums: StepSums) -> StepSums:
            factor = 100.0 if step + 1 in self._at else 1.0
            return {name: term._replace(loss=term.loss * factor) for name, term in sums.items()}

        asked = None if accept is None else lambda sums: accept(told(sums))
        return told(self._engine.train_step(batches, step=step, accept=asked, **settings))


def train(
    recipe: Path,
    shards: Path,
    runtime: Runtime,
    folder: Path,
    *settings: str,
    spikes: Sequence[int] = (),
    cut_at: int | None = None,
) -> PretrainingRun:
    config = load_recipe(str(recipe), overrides=[f"runs_dir={folder}", *SETTINGS, *settings])
    run = set_up(config, shards=[shards], runtime=runtime, resume="auto", report=print)
    engine = run.engine
    run = replace(run, engine=Spiking(engine, at=spikes, cut_at=cut_at))  # type: ignore[arg-type]
    progress = ProgressReporter(config.train.steps, start_step=run.state.step, is_main=False)
    with MetricsWriter(config.run_dir, is_main=True, resume_step=run.state.step) as metrics:
        try:
            Trainer(run, metrics=metrics, progress=progress).train()
        finally:
            run.loader.close()
            engine.close()
    return run


def figures(folder: Path, key: str) -> list[float]:
    return [record[key] for record in read_records(folder / "tiny/metrics.jsonl") if key in record]


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    reader = CheckpointReader(folder / f"tiny/checkpoints/step-{step:08d}")
    return {
        f"{kind} {name}": reader.read(kind, name, start=0, numel=weight.numel())
        for name, weight in reader.weights().items()
        for kind in ("weight", *reader.optimizer_keys(name))
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_skipped_step_consumes_its_rows_and_changes_neither_weights_nor_optimizer(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path, zero_stage: int
) -> None:
    layout = [f"engine.ds_config=zero{zero_stage}", "checkpoint.every_steps=1", "stability.on_spike=skip"]
    run = train(tiny_recipe, shards, runtime, tmp_path, *GUARD, *layout, spikes=[5])
    assert (run.state.step, run.state.applied_steps) == (8, 7)
    assert equal(tensors(tmp_path, 5), tensors(tmp_path, 4))
    assert not equal(tensors(tmp_path, 6), tensors(tmp_path, 5))
    assert figures(tmp_path, "stability/spikes") == [0.0] * 4 + [1.0] * 4
    rates = figures(tmp_path, "train/learning_rate")
    assert rates[5] == rates[4]
    cursor = CheckpointReader(tmp_path / "tiny/checkpoints/step-00000005").state["cursor"]
    assert cursor["next_row"] == 5 * 12


def test_a_roll_back_goes_on_from_the_checkpoints_weights_at_the_present_row(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    # The checkpoint is of step 4, so that rolling back at step 5 is the same as skipping it.
    skipped = train(tiny_recipe, shards, runtime, tmp_path / "skip", *GUARD, "stability.on_spike=skip", spikes=[5])
    rolled = train(tiny_recipe, shards, runtime, tmp_path / "roll", *GUARD, "stability.on_spike=rollback", spikes=[5])
    assert equal(tensors(tmp_path / "roll", 8), tensors(tmp_path / "skip", 8))
    assert rolled.state.state_dict() == skipped.state.state_dict()
    assert rolled.loader.state_dict() == skipped.loader.state_dict()


def test_a_roll_back_drops_all_updates_since_the_checkpoint_and_looks_on_logging_steps(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = [*GUARD, "stability.on_spike=rollback", "checkpoint.every_steps=4", "train.log_every_steps=7"]
    run = train(tiny_recipe, shards, runtime, tmp_path, *settings, spikes=[6])
    # Found at step 7, the first one logged after it: the updates of steps 5 to 7 are gone.
    assert (run.state.step, run.state.applied_steps) == (8, 5)


def test_a_run_cut_off_behind_a_roll_back_is_as_if_it_had_not_been(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = [*GUARD, "stability.on_spike=rollback", "checkpoint.every_steps=4"]
    train(tiny_recipe, shards, runtime, tmp_path / "whole", *settings, spikes=[6])
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, shards, runtime, tmp_path / "cut", *settings, spikes=[6], cut_at=7)
    resumed = train(tiny_recipe, shards, runtime, tmp_path / "cut", *settings, spikes=[6])
    assert resumed.state.applied_steps == 6
    assert equal(tensors(tmp_path / "cut", 8), tensors(tmp_path / "whole", 8))
    assert figures(tmp_path / "cut", "stability/spikes") == figures(tmp_path / "whole", "stability/spikes")


def test_without_a_spike_the_guard_changes_nothing(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    train(tiny_recipe, shards, runtime, tmp_path / "plain")
    for answer in ("skip", "rollback", "stop"):
        train(tiny_recipe, shards, runtime, tmp_path / answer, *GUARD, f"stability.on_spike={answer}")
        assert equal(tensors(tmp_path / answer, 8), tensors(tmp_path / "plain", 8))


def test_a_spike_can_end_the_run(tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"spiked at step 5 and stability.on_spike=stop; nothing was saved since step 4\. Lower"
    ):
        train(tiny_recipe, shards, runtime, tmp_path, *GUARD, "stability.on_spike=stop", spikes=[5])


def test_a_spike_before_the_first_checkpoint_cannot_be_rolled_back(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = [*GUARD, "stability.on_spike=rollback", "checkpoint.every_steps=8"]
    with pytest.raises(UserError, match=r"spiked at step 3 and there is no checkpoint to go back to"):
        train(tiny_recipe, shards, runtime, tmp_path, *settings, spikes=[3])


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_nan_in_a_layer_ends_the_run_and_names_step_rank_and_layer(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path, zero_stage: int
) -> None:
    settings = [f"runs_dir={tmp_path}", *SETTINGS, "train.log_every_steps=8", f"engine.ds_config=zero{zero_stage}"]
    config = load_recipe(str(tiny_recipe), overrides=[*settings, "checkpoint.every_steps=4"])
    run = set_up(config, shards=[shards], runtime=runtime, resume="auto", report=print)
    calls = 0

    def spoil(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output * torch.nan if calls > 5 * len(batches_of_a_step) else output

    batches_of_a_step = range(6)  # 12 rows in micro-batches of 2
    run.engine._engine.module.encoder.layers[0].feed_forward.register_forward_hook(spoil)
    progress = ProgressReporter(8, start_step=0, is_main=False)
    with MetricsWriter(config.run_dir, is_main=True, resume_step=0) as metrics:
        try:
            with pytest.raises(
                UserError,
                match=r"the loss of step 8 is nan, first seen at step 6 on rank 0 in the output of encoder.layers.0: "
                r"training diverged; nothing was saved since step 4",
            ):
                Trainer(run, metrics=metrics, progress=progress).train()
        finally:
            run.loader.close()
            run.engine.close()
    assert run.checkpoints.steps() == [4]
    assert all(value.isfinite().all() for value in tensors(tmp_path, 4).values())


# Stands in for a device that computes wrong: from the third step on, one rank's feed-forward gives NaNs.
SPOILED = """\
import os, runpy, sys
from trainer.model.encoder import FeedForward

plain, calls = FeedForward.forward, 0

def forward(self, hidden):
    global calls
    calls += self.training
    wrong = self.training and os.environ["RANK"] == "1" and calls > 2 * 3
    return plain(self, hidden) * (float("nan") if wrong else 1.0)

FeedForward.forward = forward
sys.argv[0] = "trainer"
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


def test_a_nan_on_one_rank_stops_all_and_that_rank_is_named(
    commands: Commands, tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "spoiled.py").write_text(SPOILED)
    ended = commands.run_ranks("pretrain", tiny_recipe, cwd=tmp_path, ranks=2, program=tmp_path / "spoiled.py")
    assert [done.code for done in ended] == [2, 2]
    assert "".join(done.err for done in ended).count("\n") == 1
    assert (
        "the loss of step 3 is nan, first seen at step 3 on rank 1 in the output of encoder.layers.0: training "
        "diverged; nothing was saved since step 2"
    ) in "".join(done.err for done in ended)
    saved = tensors(tmp_path / "runs", 2)
    assert all(value.isfinite().all() for value in saved.values())
