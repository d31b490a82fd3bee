"""What several test files need: a tiny corpus as shards, and a recipe that trains on it in a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import LAUNCHER_VARIABLES, Commands
from small_corpus import made_up_documents, made_up_sentences, small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import train_tokenizer
from trainer.topology import topology_from_env

if TYPE_CHECKING:
    from trainer.runtime import Runtime

TINY_RECIPE = """\
name: tiny
seed: 5
data:
  shards: {shards}
  max_seq_len: 32
  lanes: 12
model:
  hidden_size: 16
  num_layers: 1
  num_heads: 2
  intermediate_size: 32
  max_positions: 32
optimizer:
  learning_rate: 2e-3
schedule:
  warmup_steps: 2
train:
  steps: 4
  global_batch_size: 12
  micro_batch_size: 2
  log_every_steps: 1
engine:
  ds_config: zero1
  precision: fp32
evaluation:
  every_steps: 2
  max_rows: 10
checkpoint:
  every_steps: 2
export: false
"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 400 made-up documents, one in ten held out, in blocks of 512 tokens; nobody may change them."""
    folder = tmp_path_factory.mktemp("corpus")
    text = write_lines(folder / "text.txt", made_up_documents(400))
    build_shards(
        [text],
        tokenizer=small_tokenizer(),
        out=folder / "shards",
        workers=1,
        block_tokens=512,
        shard_tokens=2048,
        validation_fraction=0.1,
        progress=False,
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def sentence_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 400 documents of several sentences each, one in ten held out; nobody may change them."""
    folder = tmp_path_factory.mktemp("sentences")
    text = write_lines(folder / "text.txt", made_up_sentences(400))
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=300, progress=False)
    build_shards(
        [text],
        tokenizer=folder / "tokenizer",
        out=folder / "shards",
        workers=1,
        block_tokens=512,
        shard_tokens=2048,
        validation_fraction=0.1,
        progress=False,
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny_recipe(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file: four steps of a one-layer encoder on `shards`."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE.format(shards=shards), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def _process_group() -> Iterator[Runtime]:
    # One for all tests, because DeepSpeed keeps what it knows of the first one.
    from trainer.runtime import started

    with pytest.MonkeyPatch.context() as environment, ExitStack() as group:
        for name in LAUNCHER_VARIABLES:
            environment.setenv(name, "")
            environment.delenv(name)
        alone = group.enter_context(started(topology_from_env({}), deterministic=False))
        # Processes that tests start must see nothing of it.
        environment.undo()
        yield alone


@pytest.fixture(scope="module")
def runtime(_process_group: Runtime) -> Iterator[Runtime]:
    """A process group of this process alone."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it whenever an engine is made
        yield _process_group


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """The trainer's command line."""
    with Commands() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_run(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tiny_recipe` trained to its end in one process; nobody may change it."""
    folder = tmp_path_factory.mktemp("run")
    done = commands.run("pretrain", tiny_recipe, cwd=folder)
    assert (done.code, done.err) == (0, ""), done
    return folder / "runs" / "tiny"
