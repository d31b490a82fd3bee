"""Our side of the training benchmarks: the loader and the engine that `trainer pretrain` uses, one step at a time."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import mean

from data_pipeline.batch import Batch
from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.shards import load_manifest
from trainer.config import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL
from trainer.runtime import Runtime
from trainer.setup import make_engine, plan_layout, resolve

_COUNTED_BATCHES = 16


def bench_config(shards: Path, shape: ModelConfig, *, batch_rows: int, zero_stage: int) -> Config:
    """A recipe in fp32 for rows as long as the shape's positions, one micro-batch an update."""
    config = Config(
        name="bench",
        data=DataConfig(shards=str(shards), max_seq_len=shape.max_positions),
        model=shape,
        train=TrainConfig(steps=1, global_batch_size=batch_rows, micro_batch_size=batch_rows),
        engine=EngineConfig(ds_config=f"zero{zero_stage}", precision="fp32"),
    )
    return resolve(config, load_manifest(shards))


def mean_tokens(config: Config) -> float:
    """Tokens that are not padding in an average one of the run's first batches."""
    with closing(loader_for(config, open_folder(Path(str(config.data.shards))), dp_rank=0, dp_world_size=1)) as loader:
        return mean(batch.tokens for (batch,) in itertools.islice(loader, _COUNTED_BATCHES))


class OwnTraining:
    """A run of one process, without its metrics and checkpoints. Use as a context manager."""

    def __init__(self, config: Config, *, runtime: Runtime) -> None:
        self.config = config
        self._stack = ExitStack()
        corpus = open_folder(Path(str(config.data.shards)))
        self._loader = self._stack.enter_context(closing(loader_for(config, corpus, dp_rank=0, dp_world_size=1)))
        engine = make_engine(config, ds_plan=plan_layout(config, runtime=runtime), runtime=runtime, source=None)
        self._engine = self._stack.enter_context(closing(engine))
        self._steps = itertools.count()

    def __enter__(self) -> OwnTraining:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> Batch:
        """Load a batch and train on it, waiting for the loss."""
        (batch,) = next(self._loader)
        sums = self._engine.train_step([batch], step=next(self._steps), learning_rate=1e-4)
        float(sums[MASKED_LANGUAGE_MODEL].loss)
        return batch
