from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.plugins.hparams import metadata

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


def train(
    recipe: Path, shards: Path | list[Path], runtime: Runtime, folder: Path, *settings: str, diverge_at: int = -1
) -> PretrainingRun:
    config = load_recipe(str(recipe), overrides=[f"runs_dir={folder}", *settings])
    folders = [shards] if isinstance(shards, Path) else shards
    run = set_up(config, shards=folders, runtime=runtime, resume="auto", report=print)
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
    assert (run.state.best_step, run.state.best_score) == best
    saved = run.checkpoints.steps()
    assert {5, 7} <= set(saved) <= {3, 5, 6, 7}
    assert run.checkpoints.best_step() == best[0]
    assert (run.state.step, run.state.applied_steps) == (7, 7)
    assert records(tmp_path, "train/tokens")[7] == run.state.tokens > 0


def test_a_logging_step_sums_over_ranks_twice_and_other_steps_never_for_their_figures(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[str] = []
    all_reduce = torch.distributed.all_reduce

    def noted(*arguments: Any, **settings: Any) -> Any:
        callers.append(sys._getframe(1).f_code.co_name)
        return all_reduce(*arguments, **settings)

    monkeypatch.setattr(torch.distributed, "all_reduce", noted)
    settings = ["train.steps=5", "train.log_every_steps=2", "evaluation=null", "checkpoint.every_steps=5"]
    train(tiny_recipe, shards, runtime, tmp_path, *settings)
    # Steps 2, 4 and 5; tokens are summed up once more where the run is saved.
    assert (callers.count("_log"), callers.count("_collect_tokens")) == (3, 4)
    assert records(tmp_path, "ranks/restarts") == {2: 0.0, 4: 0.0, 5: 0.0}


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


PHASES = (
    "train.steps=7",
    "phases=[{steps: 4, max_seq_len: 16, global_batch_size: 24, micro_batch_size: 6, mask_rate: 0.3,"
    " batch_warmup: [{until_step: 2, global_batch_size: 12}]}, {steps: 3, micro_batch_size: 4, learning_rate: 1e-3}]",
    "checkpoint.every_steps=1",
    "evaluation.every_steps=7",
)


@pytest.fixture(scope="module")
def two_phases(tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of two phases: rows of 16 in batches of 12 and 24, then rows of 32."""
    folder = tmp_path_factory.mktemp("phases")
    train(tiny_recipe, shards, runtime, folder, *PHASES)
    return folder


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_run_stopped_in_a_phase_or_at_its_border_goes_on_with_bit_equal_losses(
    tiny_recipe: Path, shards: Path, runtime: Runtime, two_phases: Path, tmp_path: Path, stop: int
) -> None:
    with pytest.raises(UserError, match=f"the loss of step {stop + 1} is nan"):
        train(tiny_recipe, shards, runtime, tmp_path, *PHASES, diverge_at=stop)
    run = train(tiny_recipe, shards, runtime, tmp_path, *PHASES)
    for key in ("train/loss", "train/tokens", "train/learning_rate", "train/grad_norm", "validation/loss"):
        assert records(tmp_path, key) == records(two_phases, key)
    assert sorted(records(tmp_path, "train/loss")) == [1, 2, 3, 4, 5, 6, 7]
    assert run.loader.state_dict()["phase"] == 1
    assert run.loader.state_dict()["next_row"] == 3 * 12


def test_each_phase_has_rows_and_batches_of_its_own(two_phases: Path) -> None:
    tokens = [records(two_phases, "train/tokens")[step] for step in range(1, 8)]
    consumed = [later - earlier for earlier, later in pairwise([0.0, *tokens])]
    rows = [12 * 16, 12 * 16, 24 * 16, 24 * 16, 12 * 32, 12 * 32, 12 * 32]
    assert all(0.8 * most < found <= most for found, most in zip(consumed, rows, strict=True))


def test_the_schedule_spans_the_phases_with_the_peak_of_each(two_phases: Path) -> None:
    # Two steps of warm-up, then down to 0 at step 7; the second phase's peak is half the first's.
    rates = [1e-3, 2e-3, 1.6e-3, 1.2e-3, 0.4e-3, 0.2e-3, 0.0]
    assert list(records(two_phases, "train/learning_rate").values()) == pytest.approx(rates)


def test_a_schedule_of_each_phase_begins_anew_with_it(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    phases = "phases=[{steps: 2, schedule: {warmup_steps: 1}}, {steps: 2, learning_rate: 1e-3, schedule: {}}]"
    train(tiny_recipe, shards, runtime, tmp_path, "evaluation=null", "schedule.warmup_steps=0", phases)
    assert list(records(tmp_path, "train/learning_rate").values()) == [2e-3, 0.0, 5e-4, 0.0]


def test_a_border_that_moved_behind_the_checkpoint_is_refused(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = ("evaluation=null", "checkpoint.every_steps=3")
    with pytest.raises(UserError, match="training diverged"):
        train(tiny_recipe, shards, runtime, tmp_path, "phases=[{steps: 2}, {steps: 2}]", *settings, diverge_at=3)
    with pytest.raises(UserError, match=r"another phase \(the phase\): 1, now 0; .* restore the steps of the recipe's"):
        train(tiny_recipe, shards, runtime, tmp_path, "train.steps=5", "phases=[{steps: 4}, {steps: 1}]", *settings)


def mixture(shards: Path, *, on_exhausted: str = "repeat") -> list[str]:
    sources = ", ".join(
        f"{{name: {name}, weight: {weight}, shards: {shards}}}" for name, weight in (("a", 3), ("b", 1))
    )
    return ["data.shards=null", f"data.sources=[{sources}]", f"data.on_exhausted={on_exhausted}"]


def test_tokens_of_each_source_are_counted_through_a_stop(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = (*mixture(shards), "train.global_batch_size=96", "train.micro_batch_size=24", "evaluation.every_steps=4")
    train(tiny_recipe, [shards, shards], runtime, tmp_path / "whole", *settings)
    with pytest.raises(UserError, match="training diverged"):
        train(tiny_recipe, [shards, shards], runtime, tmp_path / "cut", *settings, diverge_at=3)
    train(tiny_recipe, [shards, shards], runtime, tmp_path / "cut", *settings)
    for key in ("train/loss", "data/tokens/a", "data/tokens/b", "validation/loss"):
        assert records(tmp_path / "cut", key) == records(tmp_path / "whole", key)
    a, b, both = (records(tmp_path / "whole", key)[4] for key in ("data/tokens/a", "data/tokens/b", "train/tokens"))
    assert a + b == both
    assert a / both == pytest.approx(0.75, abs=0.02)


def test_a_run_ends_when_its_data_does(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.on_exhausted=stop", "train.steps=90", "train.micro_batch_size=12", "evaluation=null")
    run = train(tiny_recipe, shards, runtime, tmp_path, *settings, "train.global_batch_size=48")
    assert 2 < run.state.step == run.config.train.steps < 90
    assert f"the data lasts for {run.state.step} of train.steps=90: the run ends there" in capsys.readouterr().out
    # Rows of one epoch, less what is no whole batch.
    assert 0 <= run.loader._loaders[0]._reader.rows_before_repeat - run.state.step * 48 < 48
    assert records(tmp_path, "train/learning_rate")[run.state.step] == 0.0
    for longer in ("schedule.warmup_steps=80", "train.batch_warmup=[{until_step: 80, global_batch_size: 12}]"):
        with pytest.raises(
            UserError, match=r"lasts for \d+ of train.steps=90, the warm-up for 80; shorten the warm-up"
        ):
            train(tiny_recipe, shards, runtime, tmp_path / "new", *settings, "train.global_batch_size=48", longer)


def shown(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tiny/tensorboard"), size_guidance={TENSORS: 0})
    events.Reload()
    return events


def test_a_new_best_is_shown_by_its_fills_and_the_end_by_settings_and_scores(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    run = train(tiny_recipe, shards, runtime, tmp_path)
    fills = shown(tmp_path).Tensors("examples/text_summary")
    assert fills[-1].step == run.state.best_step
    text = fills[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("**Row 0.** ")
    assert "| place | given | written | predicted |" in text
    content = shown(tmp_path).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    scores = {each.name.tag for each in metadata.parse_experiment_plugin_data(content).metric_infos}
    assert scores == {"train/loss", "validation/loss", "validation/accuracy"}


@pytest.mark.parametrize(("zero", "optimizer"), [("zero0", "adamw"), ("zero3", "sgd")])
def test_layer_norms_are_those_of_the_weights_when_they_are_asked_for(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path, zero: str, optimizer: str
) -> None:
    settings = ["evaluation=null", f"engine.ds_config={zero}", f"optimizer.name={optimizer}"]
    run = train(tiny_recipe, shards, runtime, tmp_path, *settings, "train.log_layer_norms=true")
    saved = CheckpointReader(run.checkpoints.path(4)).weights()
    squares = sum(float(weight.double().square().sum()) for name, weight in saved.items() if ".layers.0." in name)
    assert records(tmp_path, "layers/weight_norm/layer_00")[4] == pytest.approx(squares**0.5, rel=1e-6)
    assert all(norm > 0 for norm in records(tmp_path, "layers/moment_norm/embeddings").values())


def test_nothing_is_said_of_layers_when_nobody_asks(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    train(tiny_recipe, shards, runtime, tmp_path, "evaluation=null")
    assert not any(key.startswith("layers/") for key in read_records(tmp_path / "tiny/metrics.jsonl")[-1])
