from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.corpus import Corpus, open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import load_manifest
from data_pipeline.objective import masker_for
from trainer.config import Config
from trainer.errors import UserError
from trainer.pretraining_run import PretrainingRun
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import resolve, set_up, validation_for


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path) -> Path:
    """A folder that holds a copy of the tiny run, trained to step 4."""
    shutil.copytree(tiny_run, tmp_path / "tiny")
    return tmp_path


def ready(
    recipe: Path, shards: Path, runtime: Runtime, *settings: str, resume: str = "auto"
) -> tuple[PretrainingRun, list[str]]:
    told: list[str] = []
    config = load_recipe(str(recipe), overrides=settings)
    run = set_up(config, shards=[shards], runtime=runtime, resume=resume, report=told.append)  # type: ignore[arg-type]
    run.loader.close()
    run.engine.close()
    return run, told


def test_the_vocabulary_is_the_tokenizers_or_a_larger_one(tiny_recipe: Path, shards: Path) -> None:
    config, manifest = load_recipe(str(tiny_recipe)), load_manifest(shards)
    assert resolve(config, manifest).model.vocab_size == 300

    def asking(size: int) -> Config:
        return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})

    assert resolve(asking(320), manifest).model.vocab_size == 320
    with pytest.raises(UserError, match=r"vocab_size=299 is smaller than the shards' tokenizer, which has 300 pieces"):
        resolve(asking(299), manifest)


def test_training_and_validation_are_masked_by_seeds_of_their_own(tiny_recipe: Path, shards: Path) -> None:
    config = resolve(load_recipe(str(tiny_recipe)), load_manifest(shards))
    first = []
    for seed in (5, 6):
        loader = loader_for(config.model_copy(update={"seed": seed}), open_folder(shards), dp_rank=0, dp_world_size=1)
        first.append(next(loader)[0])
        loader.close()
    assert not np.array_equal(first[0].input_ids, first[1].input_ids)
    plain = first[0]
    masks = [masker_for(config, open_folder(shards), seed=seed).apply(plain).labels for seed in (0, 1)]
    assert not np.array_equal(masks[0], masks[1])
    validation = validation_for(config, open_folder(shards))
    other_seed = validation_for(config.model_copy(update={"seed": 6}), open_folder(shards))
    assert validation is not None
    assert other_seed is not None
    assert validation.unigram_baseline(vocab_size=300) == other_seed.unigram_baseline(vocab_size=300)


def test_the_objective_of_the_recipe_is_the_maskers(tiny_recipe: Path, shards: Path) -> None:
    manifest = load_manifest(shards)
    rates = {}
    for rate in (0.15, 0.6):
        settings = ["train.global_batch_size=120", "train.micro_batch_size=120", f"objective.mask_rate={rate}"]
        config = resolve(load_recipe(str(tiny_recipe), overrides=settings), manifest)
        loader = loader_for(config, open_folder(shards), dp_rank=0, dp_world_size=1)
        batch = next(loader)[0]
        loader.close()
        rates[rate] = batch.predicted_tokens / batch.tokens
    assert rates[0.15] == pytest.approx(0.14, abs=0.02)
    assert rates[0.6] == pytest.approx(0.55, abs=0.05)


def test_a_new_run_begins_at_row_0(tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path) -> None:
    run, told = ready(tiny_recipe, shards, runtime, f"runs_dir={tmp_path}")
    assert (run.state.step, run.loader.state_dict()["next_row"], told) == (0, 0, [])


def test_a_run_goes_on_from_its_newest_checkpoint(
    tiny_recipe: Path, shards: Path, runtime: Runtime, runs: Path
) -> None:
    run, told = ready(tiny_recipe, shards, runtime, f"runs_dir={runs}", "train.steps=9")
    assert (run.state.step, run.state.applied_steps, run.loader.state_dict()["next_row"]) == (4, 4, 48)
    assert told == [
        f"resuming from {runs}/tiny/checkpoints/step-00000004 at step 4",
        "changed since step 4: train.steps 4 → 9",
    ]


def test_with_resume_never_a_run_that_has_checkpoints_is_refused(
    tiny_recipe: Path, shards: Path, runtime: Runtime, runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"already holds checkpoints and --resume is never; give the run another name"):
        ready(tiny_recipe, shards, runtime, f"runs_dir={runs}", resume="never")
    run, _ = ready(tiny_recipe, shards, runtime, f"runs_dir={tmp_path}/new", resume="never")
    assert run.state.step == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.num_layers=2", r"was made with another model \(model.num_layers 1 → 2\); restore the recipe"),
        ("seed=6", "another seed"),
        ("data.max_seq_len=16", "another data_config_hash"),
        ("data.lanes=24", "another data_config_hash"),
        ("objective.mask_rate=0.2", "another data_config_hash"),
    ],
)
def test_a_recipe_that_the_checkpoint_does_not_fit_is_refused(
    tiny_recipe: Path, shards: Path, runtime: Runtime, runs: Path, setting: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ready(tiny_recipe, shards, runtime, f"runs_dir={runs}", setting)


@pytest.mark.parametrize("setting", ["model.hidden_dropout=0.0", "train.micro_batch_size=4", "engine.ds_config=zero3"])
def test_dropout_and_layout_may_change_on_the_way(
    tiny_recipe: Path, shards: Path, runtime: Runtime, runs: Path, setting: str
) -> None:
    run, _ = ready(tiny_recipe, shards, runtime, f"runs_dir={runs}", setting)
    assert run.state.step == 4


def test_shards_without_held_out_documents_go_with_evaluation_null_alone(tiny_recipe: Path, shards: Path) -> None:
    config, manifest = load_recipe(str(tiny_recipe)), load_manifest(shards)
    hollow = manifest.splits["validation"].__class__(shards=(), blocks=0, documents=0, tokens=0)
    without = manifest.__class__(**{**vars(manifest), "splits": {**manifest.splits, "validation": hollow}})
    (source,) = open_folder(shards).sources
    corpus = Corpus((replace(source, manifest=without),))
    with pytest.raises(UserError, match=r"holds no validation documents; build with --validation-fraction 0\.01"):
        validation_for(config, corpus)
    assert validation_for(config.model_copy(update={"evaluation": None}), corpus) is None
