"""Each optimiser in a real DeepSpeed engine of one process: equal to a bare loop, and to itself behind a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import load_manifest
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.model.create import create_model, parameter_groups
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL
from trainer.optim import create_optimizer
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import make_engine, plan_layout, resolve
from trainer.step import DataParallelStep
from trainer.step_sums import StepBatch

OPTIMIZERS = ("adamw", "adam", "sgd", "lamb", "stable_adamw", "muon")
STEPS = 4


@pytest.fixture(scope="module")
def batches(tiny_recipe: Path, shards: Path, runtime: Runtime) -> list[list[StepBatch]]:
    config = config_of(tiny_recipe, shards, "adamw", 0)
    with closing(loader_for(config, open_folder(shards), dp_rank=0, dp_world_size=1)) as loader:
        return [list(next(loader)) for _ in range(STEPS)]


def config_of(recipe: Path, shards: Path, optimizer: str, zero_stage: int, *more: str) -> Config:
    settings = ["model.hidden_dropout=0.0", "model.attention_dropout=0.0", "train.micro_batch_size=12"]
    chosen = [f"optimizer.name={optimizer}", "optimizer.max_grad_norm=0.0", f"engine.ds_config=zero{zero_stage}"]
    config = load_recipe(str(recipe), overrides=[*settings, *chosen, *more])
    return resolve(config, load_manifest(shards))


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


def all_tensors(engine: DataParallelStep, folder: Path, runtime: Runtime) -> dict[tuple[str, str], Tensor]:
    """Weights and optimiser state of every parameter, put together from the fragments."""
    reader = saved(engine, folder, runtime)
    return {
        (kind, name): reader.read(kind, name, start=0, numel=weight.numel())
        for name, weight in reader.weights().items()
        for kind in ("weight", *reader.optimizer_keys(name))
    }


def train(engine: DataParallelStep, batches: list[list[StepBatch]], steps: range) -> None:
    for step in steps:
        engine.train_step(batches[step], step=step, learning_rate=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_engine_trains_as_a_bare_loop_does_to_the_last_bit(
    tiny_recipe: Path, shards: Path, runtime: Runtime, batches: list[list[StepBatch]], optimizer: str
) -> None:
    config = config_of(tiny_recipe, shards, optimizer, 0)
    with engine_of(config, runtime) as engine:
        train(engine, batches, range(STEPS))
        found = {name: value.detach().clone() for name, value in engine._engine.module.named_parameters()}
    model = create_model(config.model, seed=config.seed)
    bare = create_optimizer(
        config.optimizer.model_copy(update={"learning_rate": 0.01}),
        parameter_groups=parameter_groups(model, weight_decay=config.optimizer.weight_decay, muon=optimizer == "muon"),
        device_type="cpu",
    )
    for (batch,) in batches:
        inputs = {name: torch.from_numpy(array) for name, array in batch.model_inputs().items()}
        count = batch.term_counts()[MASKED_LANGUAGE_MODEL]
        bare.zero_grad()
        (
            model(**inputs)[MASKED_LANGUAGE_MODEL].loss * torch.tensor(1.0 / count, dtype=torch.float64).float()
        ).backward()
        bare.step()
    assert all(found[name].equal(value) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("optimizer", "stages"),
    [*((optimizer, (0, 0)) for optimizer in OPTIMIZERS), ("sgd", (0, 2)), ("sgd", (3, 1)), ("adam", (2, 3))],
)
def test_a_checkpoint_keeps_all_of_an_optimizers_state_in_any_layout(
    tiny_recipe: Path,
    shards: Path,
    runtime: Runtime,
    batches: list[list[StepBatch]],
    tmp_path: Path,
    optimizer: str,
    stages: tuple[int, int],
) -> None:
    first, second = (config_of(tiny_recipe, shards, optimizer, stage) for stage in stages)
    with engine_of(first, runtime) as engine:
        train(engine, batches, range(2))
        middle = saved(engine, tmp_path / "middle", runtime)
        train(engine, batches, range(2, STEPS))
        whole = all_tensors(engine, tmp_path / "whole", runtime)
        scalars = engine.state().shared["optimizer_scalars"]
    with engine_of(second, runtime, source=middle) as engine:
        assert all_tensors(engine, tmp_path / "again", runtime).keys() == whole.keys()
        train(engine, batches, range(2, STEPS))
        resumed = all_tensors(engine, tmp_path / "resumed", runtime)
        assert engine.state().shared["optimizer_scalars"] == scalars
    assert scalars == ({} if optimizer == "sgd" else {"step": float(STEPS)})
    assert resumed.keys() == whole.keys()
    if stages[0] == stages[1]:
        assert all(resumed[key].equal(whole[key]) for key in whole)
    else:
        for key in whole:
            torch.testing.assert_close(resumed[key], whole[key], rtol=1e-5, atol=1e-7)
