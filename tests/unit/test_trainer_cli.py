"""Mistakes as a user meets them: one line that says what is wrong and where, exit code 2, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, Commands, one_line_of
from small_corpus import made_up_documents, write_lines

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import train_tokenizer


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_mistake_in_a_fresh_process_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "pretrain", "recipe.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe.yaml: no such file; a recipe is a YAML file\n"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", [], "recipe.yaml: the recipe is empty; it needs at least name, data and train"),
        ("name: [\n", [], "recipe.yaml:2: "),
        ("just words\n", [], "recipe.yaml: a recipe is a mapping of keys to values, found a str"),
        (
            "name: a\ndata: {shards: s}\ntrian: {steps: 1}\n",
            [],
            "recipe.yaml:3: trian is not a known key; did you mean train?",
        ),
        (
            "name: a\ndata: {shards: s}\ntrain: {steps: many, global_batch_size: 1, micro_batch_size: 1}\n",
            [],
            "recipe.yaml:3: train.steps='many' is text and must be a whole number",
        ),
        (
            "name: a\ndata: {shards: s, text: [t.txt]}\ntrain: {steps: 1, global_batch_size: 1, micro_batch_size: 1}\n",
            [],
            "recipe.yaml:2: data: set exactly one of data.shards (a folder made by `data_pipeline build`), data.text",
        ),
        (
            "name: a\ndata: {shards: s}\ntrain: {steps: 1, global_batch_size: 1, micro_batch_size: 1}\n",
            ["--set", "optimizer.learning_rat=1"],
            "--set optimizer.learning_rat=1: optimizer.learning_rat is not a known key; did you mean learning_rate?",
        ),
    ],
    ids=["empty", "not YAML", "no mapping", "unknown key", "wrong type", "two sources", "unknown --set"],
)
def test_a_wrong_recipe_names_file_line_and_key(
    commands: Commands, tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    write_recipe(tmp_path, text)
    line = commands.mistake("pretrain", "recipe.yaml", *overrides, cwd=tmp_path)
    assert line.startswith(f"error: {message}")
    assert files_in(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.vocab_size=299", "model.vocab_size=299 is smaller than the shards' tokenizer, which has 300 pieces;"),
        (
            "train.global_batch_size=9",
            "global_batch_size=9 is not divisible by micro_batch_size=2 × dp_world_size=1 (=2); use "
            "global_batch_size=10 or micro_batch_size=3",
        ),
        ("engine.ds_config=mine.json", "mine.json: train_batch_size does not belong in a DeepSpeed file: the recipe's"),
    ],
    ids=["vocabulary", "batch", "DeepSpeed file"],
)
def test_settings_that_contradict_each_other_are_refused(
    commands: Commands, tiny_recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 1}, "train_batch_size": 12}')
    assert commands.mistake("pretrain", tiny_recipe, "--set", setting, cwd=tmp_path).startswith(f"error: {message}")


def test_a_mistake_that_every_rank_meets_is_printed_by_one(
    commands: Commands, tiny_recipe: Path, tmp_path: Path
) -> None:
    ended = commands.run_ranks("pretrain", tiny_recipe, "--set", "data.lanes=5", cwd=tmp_path, ranks=2)
    assert [done.code for done in ended] == [2, 2]
    told = "".join(done.err for done in ended)
    assert told == "error: dp_world_size=2 does not divide data.lanes=5; use dp_world_size=1 or 5\n"


def test_a_run_folder_in_use_is_refused_to_every_rank(commands: Commands, tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = commands.run_ranks("pretrain", tiny_recipe, cwd=tmp_path, ranks=2)
    assert one_line_of(ended[0]).startswith("error: runs/tiny is in use by another running job; wait for it,")
    assert (ended[1].code, ended[1].err) == (2, "")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_what_is_no_run_or_has_no_such_checkpoint_is_named(
    commands: Commands, tiny_run: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "other").mkdir()
    assert commands.mistake(command, "other", cwd=tmp_path).startswith(
        "error: other is not a run folder: it has no config.yaml; name a folder made by `pretrain`"
    )
    assert commands.mistake(command, tiny_run, "--checkpoint", "step-00000099", cwd=tmp_path) == (
        f"error: {tiny_run}/checkpoints: no checkpoint 'step-00000099'; there are: step-00000002, step-00000004\n"
    )
    shutil.copytree(tiny_run, tmp_path / "young", ignore=shutil.ignore_patterns("checkpoints"))
    line = commands.mistake(command, "young", cwd=tmp_path)
    assert line == "error: young/checkpoints holds no checkpoint yet; train first\n"
    assert files_in(tmp_path / "other") == []


def test_shards_of_another_tokenizer_cannot_be_evaluated_on(commands: Commands, tiny_run: Path, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(300, seed=3))
    train_tokenizer([text], out=tmp_path / "tok", vocab_size=300, progress=False)
    out = tmp_path / "out"
    build_shards([text], tokenizer=tmp_path / "tok", out=out, workers=1, validation_fraction=0.2, progress=False)
    line = commands.mistake("evaluate", tiny_run, "--shards", out, cwd=tmp_path)
    assert line.startswith(f"error: {out} was built with another tokenizer (sha256 ")
    assert f"build the text with --tokenizer {tiny_run}/tokenizer" in line


def test_evaluate_prints_one_json_object_even_beside_a_damaged_checkpoint(
    commands: Commands, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "checkpoints/best").unlink()
    (run / "checkpoints/step-00000004/state.json").write_text("{}")
    done = commands.run("evaluate", run, "--json", cwd=tmp_path)
    assert done.code == 0
    assert "step-00000004 is damaged: state.json has 2 bytes" in done.err
    figures = json.loads(done.out)
    assert figures["checkpoint"].endswith("step-00000002")
    assert 0 < figures["unigram_entropy"] < figures["loss"]


def test_export_to_a_folder_that_holds_something_else_is_refused(
    commands: Commands, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("notes")
    line = commands.mistake("export", tiny_run, "--out", "mine", cwd=tmp_path)
    assert line == "error: mine exists and is no former export; name another folder or remove it\n"
    assert files_in(tmp_path) == ["mine/notes.txt"]


def test_import_of_what_is_no_model_is_refused(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    line = commands.mistake("import", "hf", "--out", "mine", cwd=tmp_path)
    assert line == "error: hf/config.json does not exist; name a folder that holds a Hugging Face model\n"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 0], "--steps 0 leaves nothing to compare; it must be at least 1"),
        (["--world-sizes", 0], "--world-sizes 0 is too small; it must be at least 1"),
        (["--accumulations", 0], "--accumulations 0 is too small; it must be at least 1"),
        (["--world-sizes", 5], "train.global_batch_size=16 cannot be split over 5 processes, zero0, fp32,"),
    ],
)
def test_impossible_parity_cells_are_refused(
    commands: Commands, tmp_path: Path, arguments: list[object], message: str
) -> None:
    assert commands.mistake("parity", *arguments, cwd=tmp_path).startswith(f"error: {message}")
