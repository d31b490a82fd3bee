"""The same run under each launcher, and what a mistake looks like there."""

import json

import pytest
from launching import losses, run, trainer_command


@pytest.mark.parametrize("launcher", ["deepspeed", "alone"])
def test_every_launcher_gives_the_curve_of_torchrun(recipe, whole_run, tmp_path, launcher):
    settings = ["--set", "model.hidden_dropout=0.0", "--set", "model.attention_dropout=0.0", "--set", "train.steps=8"]
    short = [*settings, "--set", "evaluation.every_steps=8"]
    reference = trainer_command("pretrain", str(recipe), *short, processes=2)
    run(reference, cwd=_made(tmp_path / "reference"))
    processes = 2 if launcher == "deepspeed" else 1
    run(trainer_command("pretrain", str(recipe), *short, processes=processes, launcher=launcher), cwd=tmp_path)
    expected = losses(tmp_path / "reference" / "runs" / "run" / "metrics.jsonl")
    found = losses(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert all(abs(found[step] / expected[step] - 1) < 1e-5 for step in range(1, 9))


def _made(folder):
    folder.mkdir()
    return folder


def test_the_run_folder_holds_what_the_design_says_and_no_environment(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    expected = {"config.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert expected <= names
    assert {path.name for path in (whole_run / "checkpoints").iterdir()} >= {"latest", "best", "step-00000024"}
    assert json.loads((whole_run / "ds_config.json").read_text())["train_batch_size"] == 8
    environment = (whole_run / "environment.json").read_text()
    assert "HOME" not in environment
    assert json.loads(environment)["packages"]["deepspeed"]


def test_checkpoints_rotate_and_the_best_is_kept(whole_run):
    folder = whole_run / "checkpoints"
    steps = sorted(path.name for path in folder.glob("step-*"))
    best = (folder / "best").read_text().strip()
    assert (folder / "latest").read_text().strip() == "step-00000024"
    assert set(steps) == {"step-00000020", "step-00000024", best}


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "alone"])
def test_a_mistake_is_one_line_printed_once(recipe, tmp_path, launcher):
    wrong = ["--set", "train.global_batch_size=9"]
    command = trainer_command("pretrain", str(recipe), *wrong, processes=2, launcher=launcher)
    # torchrun ends with 1 whatever its processes end with.
    output = run(command, cwd=tmp_path, expect=1 if launcher == "torchrun" else 2)
    assert output.count("error: global_batch_size=9 is not divisible by micro_batch_size=2") == 1
    if launcher != "torchrun":
        assert "Traceback" not in output
