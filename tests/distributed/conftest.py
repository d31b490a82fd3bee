from pathlib import Path

import pytest
from launching import RECIPE, write_corpus

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    text = write_corpus(folder / "text.txt")
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=70, progress=False)
    build_shards(
        [text],
        tokenizer=folder / "tokenizer",
        out=folder / "shards",
        workers=1,
        block_tokens=1024,
        validation_fraction=0.05,
        progress=False,
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def recipe(shards, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.format(shards=shards), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole_run(recipe, tmp_path_factory) -> Path:
    """The run folder of an uninterrupted run of the recipe on two processes."""
    from launching import run, trainer_command

    folder = tmp_path_factory.mktemp("whole")
    run(trainer_command("pretrain", str(recipe), processes=2), cwd=folder)
    return folder / "runs" / "run"
