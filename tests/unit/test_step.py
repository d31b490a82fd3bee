"""The step on a real DeepSpeed engine of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import load_manifest
from trainer.config import Config
from trainer.half_precision import half_precisions
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import make_engine, plan_layout, resolve
from trainer.step import DataParallelStep


def config_of(recipe: Path, *more: str, micro: int = 12, zero_stage: int = 1, precision: str = "fp32") -> Config:
    layout = [f"train.micro_batch_size={micro}", f"engine.ds_config=zero{zero_stage}", f"engine.precision={precision}"]
    dropout = ["model.hidden_dropout=0.0", "model.attention_dropout=0.0"]
    return load_recipe(str(recipe), overrides=[*layout, *dropout, *more])


def steps_of(config: Config, shards: Path) -> list[list[Batch]]:
    """The batches of a run's first four steps."""
    with closing(loader_for(config, open_folder(shards), dp_rank=0, dp_world_size=1)) as loader:
        return [next(loader) for _ in range(4)]


@contextmanager
def engine_of(config: Config, shards: Path, runtime: Runtime) -> Iterator[tuple[DataParallelStep, list[list[Batch]]]]:
    """A new engine and the batches of its first four steps."""
    manifest = load_manifest(shards)
    config = resolve(config, manifest)
    steps = steps_of(config, shards)
    engine = make_engine(config, ds_plan=plan_layout(config, runtime=runtime), runtime=runtime, source=None)
    try:
        yield engine, steps
    finally:
        engine.close()


def curve(config: Config, shards: Path, runtime: Runtime) -> list[tuple[float, float]]:
    """Loss and gradient norm of four steps."""
    with engine_of(config, shards, runtime) as (engine, steps):
        found = []
        for step, batches in enumerate(steps):
            sums = engine.train_step(batches, step=step, learning_rate=1e-3)
            found.append((float(sums["mlm"].loss / sums["mlm"].predictions), engine.gradient_norm))
    return found


@pytest.fixture(scope="module")
def reference(tiny_recipe: Path, shards: Path, runtime: Runtime) -> list[tuple[float, float]]:
    return curve(config_of(tiny_recipe), shards, runtime)


@pytest.mark.parametrize(("zero_stage", "micro"), [(0, 3), (1, 6), (2, 3)])
def test_a_step_gives_the_same_loss_and_gradient_however_it_is_split(
    tiny_recipe: Path,
    shards: Path,
    runtime: Runtime,
    reference: list[tuple[float, float]],
    micro: int,
    zero_stage: int,
) -> None:
    found = curve(config_of(tiny_recipe, micro=micro, zero_stage=zero_stage), shards, runtime)
    assert np.allclose(found, reference, rtol=2e-6, atol=0)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_every_zero_stage_gives_the_same_curve(
    tiny_recipe: Path, shards: Path, runtime: Runtime, reference: list[tuple[float, float]], zero_stage: int
) -> None:
    assert np.allclose(
        curve(config_of(tiny_recipe, zero_stage=zero_stage), shards, runtime), reference, rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_family_modernbert_gives_its_own_curve_at_every_zero_stage(
    tiny_recipe: Path, shards: Path, runtime: Runtime, reference: list[tuple[float, float]], zero_stage: int
) -> None:
    family = ("model.family=modernbert", "model.num_layers=2", "model.local_window=4")
    found, plain = (
        curve(config_of(tiny_recipe, *family, micro=micro, zero_stage=stage), shards, runtime)
        for micro, stage in ((6, zero_stage), (12, 0))
    )
    assert np.allclose(found, plain, rtol=2e-6, atol=0)
    assert not np.allclose(found, reference, rtol=1e-3, atol=0)


def test_the_loss_is_the_mean_over_predicted_tokens_of_the_whole_batch(
    tiny_recipe: Path, shards: Path, runtime: Runtime
) -> None:
    with engine_of(config_of(tiny_recipe, micro=3), shards, runtime) as (engine, steps):
        parts = [engine.eval_step(batch) for batch in steps[0]]
        sums = engine.train_step(steps[0], step=0, learning_rate=1e-3)
    predicted = [batch.predicted_tokens for batch in steps[0]]
    assert [int(part["mlm"].predictions) for part in parts] == predicted
    # The micro-batches predict unlike many tokens, so that a mean of their means would be another number.
    assert len(set(predicted)) > 1
    assert float(sums["mlm"].predictions) == sum(predicted)
    assert float(sums["mlm"].loss) == pytest.approx(sum(float(part["mlm"].loss) for part in parts), rel=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_size_and_number_of_micro_batches_may_change_from_step_to_step(
    tiny_recipe: Path, shards: Path, runtime: Runtime, reference: list[tuple[float, float]], zero_stage: int
) -> None:
    steps = {micro: steps_of(config_of(tiny_recipe, micro=micro), shards) for micro in (2, 4, 12)}
    found, sizes = [], []
    with engine_of(config_of(tiny_recipe, micro=2, zero_stage=zero_stage), shards, runtime) as (engine, _):
        for step, micro in enumerate((2, 12, 4, 12)):
            sums = engine.train_step(steps[micro][step], step=step, learning_rate=1e-3)
            assert engine.was_applied
            found.append((float(sums["mlm"].loss / sums["mlm"].predictions), engine.gradient_norm))
            ds = engine._engine
            sizes.append((ds.train_batch_size(), ds.train_micro_batch_size_per_gpu(), ds.gradient_accumulation_steps()))
    assert np.allclose(found, reference, rtol=2e-6, atol=0)
    assert sizes == [(12, 2, 6), (12, 12, 1), (12, 4, 3), (12, 12, 1)]


def test_gradients_are_clipped_to_the_recipes_norm(tiny_recipe: Path, shards: Path, runtime: Runtime) -> None:
    norms = {}
    for limit in (1e-6, 1.0):
        config = config_of(tiny_recipe, f"optimizer.max_grad_norm={limit}", "optimizer.eps=1.0")
        with engine_of(config, shards, runtime) as (engine, steps):
            before = engine.state().tensors
            engine.train_step(steps[0], step=0, learning_rate=1.0)
            after = engine.state().tensors
            moved = [after[key] - before[key] for key in before if key.startswith("weight|head.dense.bias")]
            norms[limit] = (float(torch.cat(moved).norm()), engine.gradient_norm)
    # With eps=1 Adam moves about as far as the gradient is long; the norm told is that before clipping.
    assert norms[1e-6][0] < 1e-4 * norms[1.0][0]
    assert norms[1e-6][1] == pytest.approx(norms[1.0][1], rel=1e-6)


def test_a_batch_without_predicted_tokens_changes_no_weight_by_its_loss(
    tiny_recipe: Path, shards: Path, runtime: Runtime
) -> None:
    config = config_of(tiny_recipe, "optimizer.weight_decay=0.0")
    with engine_of(config, shards, runtime) as (engine, steps):
        batch = steps[0][0]
        empty = Batch(**{**vars(batch), "labels": np.full_like(batch.labels, -100), "predicted_tokens": 0})
        before = engine.state().tensors
        sums = engine.train_step([empty], step=0, learning_rate=1e-3)
        after = engine.state().tensors
    assert (float(sums["mlm"].loss), float(sums["mlm"].predictions)) == (0.0, 0.0)
    assert all(after[key].equal(before[key]) for key in before)


def test_dropout_is_a_function_of_seed_and_step(tiny_recipe: Path, shards: Path, runtime: Runtime) -> None:
    config = config_of(tiny_recipe, "model.hidden_dropout=0.5")
    with engine_of(config, shards, runtime) as (engine, steps):
        losses = [float(engine.train_step(steps[0], step=step, learning_rate=1e-30)["mlm"].loss) for step in (3, 3, 4)]
        rng = torch.get_rng_state()
        quiet = [float(engine.eval_step(steps[0][0])["mlm"].loss) for _ in range(2)]
    assert losses[0] == losses[1] != losses[2]
    assert quiet[0] == quiet[1]
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.skipif("fp16" not in half_precisions("cpu"), reason="this processor has no fp16 arithmetic")
def test_an_fp16_step_that_overflows_is_not_applied_and_lowers_the_scale(
    tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "high.json").write_text(
        '{"zero_optimization": {"stage": 1}, "fp16": {"initial_scale_power": 24, "hysteresis": 1}}'
    )
    config = config_of(tiny_recipe, f"engine.ds_config={tmp_path}/high.json", precision="fp16")
    with engine_of(config, shards, runtime) as (engine, steps):
        assert engine.loss_scale == 2.0**24
        before = engine.state().tensors
        engine.train_step(steps[0], step=0, learning_rate=1e-3)
        assert not engine.was_applied
        assert engine.loss_scale == 2.0**23
        after = engine.state().tensors
        assert all(after[key].equal(before[key]) for key in before if key.startswith("weight|"))
        while not engine.was_applied:
            engine.train_step(steps[1], step=1, learning_rate=1e-3)
        assert engine.loss_scale < 2.0**23
