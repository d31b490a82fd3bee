"""What `trainer check` finds out about a recipe, and what it refuses as the run itself would."""

import os
import re
import shutil

import pytest

from trainer.check import check_recipe
from trainer.check_text import describe
from trainer.config import Config
from trainer.errors import UserError
from trainer.recipe import RECIPES_DIR, load_any_recipe, load_recipe
from trainer.setup import plan_layout

RECIPES = [
    name
    for name in sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    if isinstance(load_any_recipe(name), Config)  # the others fine-tune
]
TEXT = ("data.shards=null", "data.text=[nowhere.txt]")


@pytest.fixture
def check(tiny_recipe):
    def run(*settings, world_size=1, device_type="cpu", recipe=tiny_recipe):
        config = load_recipe(str(recipe), overrides=list(settings))
        return check_recipe(config, world_size=world_size, device_type=device_type, program_bytes=1000)

    return run


def line(lines, name):
    return next(each.removeprefix(name).strip() for each in lines if each.startswith(name))


def test_every_finding_has_a_line(check):
    found = check(world_size=2)
    lines = describe(found, world_size=2)
    assert line(lines, "batch") == "12 rows = 2 a micro-batch x 3 micro-batches x 2 replicas"
    assert line(lines, "step") == "384 token positions; 4 steps"
    assert line(lines, "lanes") == "12: 6 a replica"
    assert line(lines, "engine") == "ZeRO stage 1, fp32"
    epochs = 48 / found.rows[0].rows_an_epoch
    assert line(lines, "rows") == f"{found.rows[0].rows_an_epoch} an epoch; the run is {epochs:.2f} epochs"
    assert line(lines, "weights") == f"{found.weights.parameters:,}"
    # The last two, the best, and the one that is being written.
    assert f"up to 4 at once: {4 * found.checkpoint_bytes / 2**30:.4f} GiB of disk" in line(lines, "checkpoint")
    assert found.checkpoint_bytes == 12 * found.weights.parameters
    assert found.config.model.vocab_size == 300
    assert found.memory.peak_bytes == sum(vars(found.memory).values())
    assert found.memory.program_bytes == 1000


def test_the_documents_of_a_micro_batch_are_as_long_as_those_of_the_shards(check):
    packed = check("train.micro_batch_size=12").rows[0].documents
    assert abs(sum(packed) - 12 * 32) <= 32
    assert 3 <= min(packed) < max(packed) == 32
    padded = check("train.micro_batch_size=12", "data.packing=padded").rows[0].documents
    assert len(padded) == 12


def test_sources_give_documents_by_their_weights(check, shards):
    sources = f"[{{name: a, weight: 3, shards: {shards}}}, {{name: b, weight: 1, shards: {shards}}}]"
    found = check("data.shards=null", f"data.sources={sources}", "train.micro_batch_size=12")
    assert abs(sum(found.rows[0].documents) - 12 * 32) <= 64
    assert found.rows[0].rows_an_epoch < check().rows[0].rows_an_epoch * 2


def test_phases_have_lines_of_their_own_and_the_fullest_one_s_memory(check):
    phases = (
        "phases=[{steps: 2, max_seq_len: 16, global_batch_size: 24, micro_batch_size: 4,"
        " batch_warmup: [{until_step: 1, global_batch_size: 12}]}, {steps: 2}]"
    )
    found = check(phases)
    lines = describe(found, world_size=1)
    assert [each for each in lines if each.startswith(("phase", "batch", "step"))] == [
        "phase 0        steps 0 to 2",
        "batch          12 rows = 4 a micro-batch x 3 micro-batches x 1 replicas, from step 0",
        "batch          24 rows = 4 a micro-batch x 6 micro-batches x 1 replicas, from step 1",
        "step           384 token positions; 2 steps",
        "phase 1        steps 2 to 4",
        "batch          12 rows = 2 a micro-batch x 6 micro-batches x 1 replicas",
        "step           384 token positions; 2 steps",
    ]
    assert f"the phase is {36 / found.rows[0].rows_an_epoch:.2f} epochs" in line(lines, "rows")
    assert len(found.rows) == 2


def test_stages_have_their_layers_and_weights_said(check):
    found = check("model.num_layers=3", "parallel.num_stages=2", world_size=4)
    assert found.batch_plan.dp_world_size == 2
    assert [stage.layers for stage in found.stages] == [1, 2]
    # Both ends hold the word embeddings.
    assert sum(stage.weights.parameters for stage in found.stages) - found.weights.parameters == 300 * 16
    stages = line(describe(found, world_size=4), "stages")
    first, last = (f"{stage.weights.parameters:,} weights, micro-batches at a time" for stage in found.stages)
    assert stages == f"1 layer: {first} 2 | 2 layers and the head: {last} 1"


def test_a_recipe_whose_shards_are_still_to_be_made_is_checked_for_full_rows(check):
    found = check(*TEXT, "tokenizer.vocab_size=777")
    assert found.config.model.vocab_size == 777
    assert found.rows == ()
    assert "known once the shards are built" in line(describe(found, world_size=1), "rows")


def test_what_is_kept_beside_weights_shows_in_memory_and_on_disk(check):
    plain = check()
    average = check("optimizer.ema_decay=0.9")
    weights = plain.weights.parameters
    assert average.memory.average_bytes == 4 * weights
    assert average.checkpoint_bytes - plain.checkpoint_bytes == 4 * weights
    momentum = check("optimizer={name: sgd}")
    assert plain.memory.optimizer_bytes - momentum.memory.optimizer_bytes == 4 * weights
    assert check("checkpoint.weights_only=true").checkpoint_bytes == 4 * weights
    assert check("checkpoint.keep_last=5", "evaluation=null").checkpoints_kept == 6


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("optimizer={name: lamb}",), "optimizer.name='lamb' needs the norms of each whole parameter and its update"),
        (("optimizer={name: muon}", "engine.precision=bf16"), "optimizer.name='muon' needs whole matrices"),
        (("data.shards=nowhere",), "nowhere"),
        (("model.vocab_size=10",), "model.vocab_size=10 is smaller than the shards' tokenizer, which has 300 pieces"),
        (("train.micro_batch_size=5",), "global_batch_size=12 is not divisible by micro_batch_size=5"),
        (("data.on_exhausted=stop", "train.steps=90000", "schedule.warmup_steps=80000"), "the warm-up for 80000"),
    ],
)
def test_what_would_stop_the_run_at_its_start_is_refused(check, settings, line):
    with pytest.raises(UserError) as refused:
        check(*settings)
    assert line in str(refused.value)


def test_a_shard_that_is_cut_short_is_refused_unless_its_damage_is_skipped(check, shards, tmp_path):
    copied = shutil.copytree(shards, tmp_path / "copied")
    shard = sorted(copied.glob("train-*.tar"))[-1]
    whole = shard.stat().st_size
    os.truncate(shard, whole - 512)
    wrong = f"{shard}: size in bytes is {whole - 512}, where {whole} is expected"
    with pytest.raises(UserError, match=f"^{re.escape(wrong)}"):
        check(f"data.shards={copied}")
    assert check(f"data.shards={copied}", "data.on_damage=skip").rows


def test_a_pair_is_refused_with_the_line_of_the_run_itself(check, tiny_recipe, runtime):
    config = load_recipe(str(tiny_recipe), overrides=["optimizer={name: lamb}"])
    with pytest.raises(UserError) as of_run:
        plan_layout(config, runtime=runtime)
    with pytest.raises(UserError) as of_check:
        check("optimizer={name: lamb}")
    assert str(of_check.value) == str(of_run.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_the_layout_it_names(name):
    config = load_recipe(name)
    command = (RECIPES_DIR / f"{name}.yaml").read_text().splitlines()[0]
    world_size = 8 if "--num_gpus 8" in command else 2
    device_type = "cuda" if world_size == 8 else "cpu"
    if name == "parity":
        world_size = 1
    found = check_recipe(config, world_size=world_size, device_type=device_type, program_bytes=0)
    assert found.batch_plan.dp_world_size == world_size
    assert 0 < found.memory.peak_bytes < 40 * 2**30
