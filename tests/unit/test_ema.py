"""The moving average of the weights in real DeepSpeed engines of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from command_line import Commands
from torch import Tensor

from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import load_manifest
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.evaluate import plain_eval_step
from trainer.evaluate_run import evaluate_run
from trainer.half_precision import half_precisions
from trainer.metrics import read_records
from trainer.model.create import create_model
from trainer.model.weights import load_weights
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import make_engine, plan_layout, resolve
from trainer.step import DataParallelStep
from trainer.step_sums import StepBatch


def config_of(recipe: Path, shards: Path, zero_stage: int, *more: str, precision: str = "fp32") -> Config:
    layout = ["train.micro_batch_size=12", f"engine.ds_config=zero{zero_stage}", f"engine.precision={precision}"]
    dropout = ["model.hidden_dropout=0.0", "model.attention_dropout=0.0"]
    return resolve(load_recipe(str(recipe), overrides=[*layout, *dropout, *more]), load_manifest(shards))


@pytest.fixture(scope="module")
def batches(tiny_recipe: Path, shards: Path, runtime: Runtime) -> list[list[StepBatch]]:
    config = config_of(tiny_recipe, shards, 0)
    with closing(loader_for(config, open_folder(shards), dp_rank=0, dp_world_size=1)) as loader:
        return [list(next(loader)) for _ in range(4)]


@contextmanager
def engine_of(config: Config, runtime: Runtime, source: CheckpointReader | None = None) -> Iterator[DataParallelStep]:
    engine = make_engine(config, ds_plan=plan_layout(config, runtime=runtime), runtime=runtime, source=source)
    try:
        yield engine
    finally:
        engine.close()


def saved(engine: DataParallelStep, folder: Path, runtime: Runtime) -> CheckpointReader:
    store = CheckpointStore(folder)
    store.save(1, engine.state(), state={}, topology=runtime.topology, keep_last=1, best_step=None)
    return CheckpointReader(store.path(1))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


NEEDS_BF16 = pytest.mark.skipif("bf16" not in half_precisions("cpu"), reason="this processor has no bf16 arithmetic")


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), pytest.param(1, "bf16", marks=NEEDS_BF16), (2, "fp32"), (3, "fp32")],
)
def test_the_average_follows_the_weights_and_evaluation_computes_with_it(
    tiny_recipe: Path,
    shards: Path,
    runtime: Runtime,
    batches: list[list[StepBatch]],
    tmp_path: Path,
    zero_stage: int,
    precision: str,
) -> None:
    config = config_of(tiny_recipe, shards, zero_stage, "optimizer.ema_decay=0.75", precision=precision)
    with engine_of(config, runtime) as engine:
        expected = saved(engine, tmp_path / "begin", runtime).weights()
        for step in range(3):
            engine.train_step(batches[step], step=step, learning_rate=0.05)
            weights = saved(engine, tmp_path / f"{step}", runtime).weights()
            expected = {name: torch.lerp(expected[name], weights[name], 0.25) for name in weights}
        reader = saved(engine, tmp_path / "end", runtime)
        assert equal(reader.evaluation_weights(), expected)
        before = engine.state().tensors
        plain = float(engine.eval_step(batches[3][0])["mlm"].loss)
        with engine.averaged_weights():
            averaged = float(engine.eval_step(batches[3][0])["mlm"].loss)
        assert float(engine.eval_step(batches[3][0])["mlm"].loss) == plain
        assert equal(engine.state().tensors, before)
    model = create_model(config.model, seed=1)
    load_weights(model, expected, source="the average")
    reference = float(plain_eval_step(model, device=torch.device("cpu"))(batches[3][0])["mlm"].loss)
    assert averaged == pytest.approx(reference, rel=1e-6 if precision == "fp32" else 2e-3)
    assert abs(averaged - plain) > 0.01


@pytest.mark.parametrize("stages", [(0, 0), (2, 3), (3, 1)])
def test_a_checkpoint_keeps_the_average_in_any_layout(
    tiny_recipe: Path,
    shards: Path,
    runtime: Runtime,
    batches: list[list[StepBatch]],
    tmp_path: Path,
    stages: tuple[int, int],
) -> None:
    first, second = (config_of(tiny_recipe, shards, stage, "optimizer.ema_decay=0.75") for stage in stages)
    with engine_of(first, runtime) as engine:
        engine.train_step(batches[0], step=0, learning_rate=0.05)
        middle = saved(engine, tmp_path / "middle", runtime)
        engine.train_step(batches[1], step=1, learning_rate=0.05)
        whole = saved(engine, tmp_path / "whole", runtime).evaluation_weights()
    with engine_of(second, runtime, source=middle) as engine:
        restored = saved(engine, tmp_path / "restored", runtime)
        assert equal(restored.evaluation_weights(), middle.evaluation_weights())
        engine.train_step(batches[1], step=1, learning_rate=0.05)
        resumed = saved(engine, tmp_path / "resumed", runtime).evaluation_weights()
    if stages[0] == stages[1]:
        assert equal(resumed, whole)
    else:
        for name in whole:
            torch.testing.assert_close(resumed[name], whole[name], rtol=1e-5, atol=1e-6)


def test_an_average_that_was_not_kept_begins_at_the_checkpoints_weights(
    tiny_recipe: Path, shards: Path, runtime: Runtime, batches: list[list[StepBatch]], tmp_path: Path
) -> None:
    with engine_of(config_of(tiny_recipe, shards, 1), runtime) as engine:
        engine.train_step(batches[0], step=0, learning_rate=0.05)
        without = saved(engine, tmp_path / "without", runtime)
    assert not without.has_average
    assert equal(without.evaluation_weights(), without.weights())
    with engine_of(config_of(tiny_recipe, shards, 1, "optimizer.ema_decay=0.75"), runtime, source=without) as engine:
        begun = saved(engine, tmp_path / "begun", runtime)
    assert begun.has_average
    assert equal(begun.evaluation_weights(), without.weights())


def test_two_ranks_that_share_the_average_validate_with_what_they_save(
    commands: Commands, tiny_recipe: Path, tmp_path: Path
) -> None:
    losses = []
    for layout in ("zero1", "zero3"):
        folder = tmp_path / layout
        folder.mkdir()
        chosen = ("--set", "optimizer.ema_decay=0.5", "--set", f"engine.ds_config={layout}")
        ended = commands.run_ranks("pretrain", tiny_recipe, *chosen, cwd=folder, ranks=2)
        assert [done.code for done in ended] == [0, 0], ended
        records = read_records(folder / "runs/tiny/metrics.jsonl")
        losses.append([record["validation/loss"] for record in records if "validation/loss" in record])
        # Put together from both ranks' parts, in one process without an engine.
        alone = evaluate_run(folder / "runs/tiny", which="step-00000004")
        assert losses[-1][-1] == pytest.approx(alone.result.loss, rel=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
