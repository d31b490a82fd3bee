"""A run that was cut off goes on as if nothing had happened."""

import random
import shutil

import pytest
from launching import kill_at_step, losses, run, trainer_command

from trainer.checkpoint_files import CheckpointReader
from trainer.metrics import read_records


def weights(run_dir, step):
    return CheckpointReader(run_dir / "checkpoints" / f"step-{step:08d}").weights()


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_killed_at_random_steps_and_started_again_every_loss_and_weight_is_bit_equal(recipe, whole_run, tmp_path):
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    command = trainer_command("pretrain", str(recipe), processes=2, launcher="deepspeed")
    generator = random.Random()
    first, second = sorted(generator.sample(range(2, 23), 2))
    print(f"killing at steps {first} and {second}")
    kill_at_step(command, cwd=tmp_path, metrics=metrics, step=first)
    kill_at_step(command, cwd=tmp_path, metrics=metrics, step=second)
    run(command, cwd=tmp_path)
    assert losses(metrics) == losses(whole_run / "metrics.jsonl")
    assert sorted(losses(metrics)) == list(range(1, 25))
    assert_equal_weights(weights(tmp_path / "runs" / "run", 24), weights(whole_run, 24))


def test_dropout_is_on_in_these_runs(whole_run, recipe):
    # Bit-equality would be weaker evidence without it.
    assert "dropout" not in recipe.read_text()
    assert "hidden_dropout: 0.1" in (whole_run / "config.yaml").read_text()


def test_every_rank_s_times_are_measured_and_the_slowest_is_named(whole_run):
    records = [record for record in read_records(whole_run / "metrics.jsonl") if "train/loss" in record]
    assert len(records) == 24
    for record in records:
        forward, step, wait = (record[f"ranks/{name}_s"] for name in ("forward", "step", "data_wait"))
        assert all(0 < one < whole for one, whole in zip(forward, step, strict=True))
        assert (len(forward), len(wait), record["ranks/restarts"]) == (2, 2, 0)
        assert forward[int(record["ranks/slowest"])] == max(forward)
        assert sum(step) / 2 == pytest.approx(record["time/step_s"], abs=1e-6)


# Dropout is drawn by rank, so another layout can only be compared without it.
NO_DROPOUT = ["--set", "model.hidden_dropout=0.0", "--set", "model.attention_dropout=0.0"]


def copy_of(whole_run, tmp_path, *, until):
    """A copy of the whole run as it was after `until` steps."""
    target = tmp_path / "runs" / "run"
    shutil.copytree(whole_run, target)
    for folder in (target / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > until:
            shutil.rmtree(folder)
    return target


@pytest.fixture(scope="module")
def continued(recipe, whole_run, tmp_path_factory):
    """Losses of the whole run's first 20 steps and of four more without dropout, in its own layout."""
    folder = tmp_path_factory.mktemp("own")
    target = copy_of(whole_run, folder, until=20)
    run(trainer_command("pretrain", str(recipe), *NO_DROPOUT, processes=2), cwd=folder)
    return losses(target / "metrics.jsonl")


@pytest.mark.parametrize(
    ("processes", "num_stages", "ds_config", "micro_batch_size"),
    [
        (1, 1, "zero0", 8),
        (1, 1, "zero3", 4),
        (2, 1, "zero3_offload", 2),
        (2, 1, "zero1", 4),
        (4, 2, "zero1", 1),
    ],
)
def test_a_checkpoint_goes_on_in_another_layout(
    recipe, whole_run, continued, tmp_path, processes, num_stages, ds_config, micro_batch_size
):
    target = copy_of(whole_run, tmp_path, until=20)
    layout = [f"engine.ds_config={ds_config}", f"train.micro_batch_size={micro_batch_size}"]
    layout = [part for value in (*layout, f"parallel.num_stages={num_stages}") for part in ("--set", value)]
    command = trainer_command("pretrain", str(recipe), *NO_DROPOUT, *layout, processes=processes)
    output = run(command, cwd=tmp_path)
    assert "resuming from" in output
    found = losses(target / "metrics.jsonl")
    assert sorted(found) == sorted(continued) == list(range(1, 25))
    assert all(abs(found[step] / continued[step] - 1) < 1e-5 for step in continued)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(recipe, whole_run, tmp_path):
    target = copy_of(whole_run, tmp_path, until=24)
    partition = next((target / "checkpoints" / "step-00000024").glob("partition-00001-*"))
    partition.write_bytes(partition.read_bytes()[:-100])
    output = run(trainer_command("pretrain", str(recipe), processes=2), cwd=tmp_path)
    assert "step-00000024 is damaged: partition-00001-of-00002.safetensors has" in output
    assert "resuming from runs/run/checkpoints/step-00000020 at step 20" in output
    assert losses(target / "metrics.jsonl") == losses(whole_run / "metrics.jsonl")


def test_a_run_is_refused_when_every_checkpoint_is_damaged(recipe, whole_run, tmp_path):
    target = copy_of(whole_run, tmp_path, until=24)
    for state in (target / "checkpoints").glob("step-*/state.json"):
        state.write_text("{}")
    output = run(trainer_command("pretrain", str(recipe), processes=1, launcher="alone"), cwd=tmp_path, expect=2)
    assert "none of the" in output
    assert "Traceback" not in output


def test_other_rows_under_an_old_checkpoint_are_refused(recipe, whole_run, tmp_path):
    copy_of(whole_run, tmp_path, until=24)
    command = trainer_command("pretrain", str(recipe), "--set", "seed=6", processes=1, launcher="alone")
    output = run(command, cwd=tmp_path, expect=2)
    assert "the checkpoint was made with another seed" in output
    assert "Traceback" not in output
