"""`finetune`, `evaluate` and `predict` as a user meets them: processes, exit codes, files and one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Commands
from small_task import write_recipe, write_sentiment

from trainer.metrics import read_records

pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a few sentences whose label hangs on one word."""
    folder = tmp_path_factory.mktemp("sentiment")
    write_sentiment(folder)
    # Dropout is a function of the rank; without it the number of ranks changes nothing.
    return write_recipe(folder, task="  name: classification\n  dropout: 0.0")


@pytest.fixture(scope="module")
def finetuned(commands: Commands, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the recipe, trained in one process; nobody may change it."""
    folder = tmp_path_factory.mktemp("finetuned")
    done = commands.run("finetune", recipe, cwd=folder)
    assert (done.code, done.err) == (0, ""), done
    assert "test: loss " in done.out
    return folder / "runs/tiny"


def test_a_run_folder_holds_recipe_tokenizer_scores_and_checkpoints(finetuned: Path) -> None:
    there = {path.name for path in finetuned.iterdir()}
    assert there >= {"config.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "tokenizer", "scores.json"}
    assert {path.name for path in (finetuned / "checkpoints").iterdir()} >= {"latest", "best", "step-00000012"}


def test_two_processes_train_the_same_curve(commands: Commands, recipe: Path, finetuned: Path, tmp_path: Path) -> None:
    ended = commands.run_ranks("finetune", recipe, "--set", "engine.ds_config=zero3", cwd=tmp_path, ranks=2)
    assert [done.code for done in ended] == [0, 0], ended
    assert [done.err for done in ended] == ["", ""]
    one, two = (read_records(folder / "metrics.jsonl") for folder in (finetuned, tmp_path / "runs/tiny"))
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for key in ("train/loss", "validation/loss", "validation/accuracy"):
        values = [[record[key] for record in records if key in record] for records in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-5), key


def test_evaluate_gives_the_scores_of_a_run(commands: Commands, finetuned: Path, recipe: Path, tmp_path: Path) -> None:
    done = commands.run("evaluate", finetuned, "--json", cwd=tmp_path)
    assert json.loads(done.out)["parts"] == json.loads((finetuned / "scores.json").read_text())["parts"]
    other = recipe.parent / "dev.tsv"
    lines = commands.run("evaluate", finetuned, "--file", other, cwd=tmp_path).out.splitlines()
    assert lines[0].split() == ["checkpoint", json.loads(done.out)["checkpoint"]]
    assert f"{other}" in lines[1]
    assert [line.split()[-2] for line in lines[1:]] == ["loss", "accuracy", "f1_macro", "matthews"]


def test_predict_writes_a_line_for_each_line(commands: Commands, finetuned: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a fine film\nthe story was dull\n")
    done = commands.run("predict", finetuned, "--input", "in.txt", cwd=tmp_path)
    assert [set(json.loads(line)) for line in done.out.splitlines()] == [{"label", "score", "scores"}] * 2
    saved = commands.run("predict", finetuned, "--input", "in.txt", "--out", "out.jsonl", cwd=tmp_path)
    assert (saved.code, saved.out, saved.err) == (0, "", "2 predictions in out.jsonl\n")
    assert (tmp_path / "out.jsonl").read_text() == done.out


def test_several_seeds_give_a_summary(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    settings = ["--set", "seeds=[1, 2]", "--set", "train.epochs=1"]
    done = commands.run("finetune", recipe, *settings, cwd=tmp_path)
    assert done.code == 0, done
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    values = [
        json.loads((tmp_path / f"runs/tiny/seed-{seed}/scores.json").read_text())["parts"]["test"]["accuracy"]
        for seed in (1, 2)
    ]
    assert summary["parts"]["test"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert "test, 2 seeds: " in done.out


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("dev", "neutral\ta film", "dev.tsv:26: the label 'neutral' is unknown; the training file has neg, pos:"),
        ("dev", "pos\t ", "dev.tsv:26: column 'text' is empty; fill it or remove the line"),
        ("train", "pos", "train.tsv:50: 1 columns, where there are 2 (label, text); mend the line"),
    ],
)
def test_a_bad_line_ends_the_command_with_its_number(
    commands: Commands, recipe: Path, tmp_path: Path, file: str, line: str, message: str
) -> None:
    for name in ("train", "dev", "test"):
        shutil.copy(recipe.parent / f"{name}.tsv", tmp_path)
    with (tmp_path / f"{file}.tsv").open("a") as bad:
        bad.write(line + "\n")
    own = write_recipe(tmp_path)
    assert commands.mistake("finetune", own, cwd=tmp_path).startswith(f"error: {tmp_path}/{message}")
    assert not (tmp_path / "runs/tiny/checkpoints").exists()


def test_each_command_refuses_the_other_kind_of_run(
    commands: Commands, recipe: Path, finetuned: Path, tiny_run: Path, tmp_path: Path
) -> None:
    refusals = {
        ("finetune", "demo"): "demo is a pretraining recipe (it has no task section); this needs a fine-tuning one",
        ("pretrain", recipe): f"{recipe} is a fine-tuning recipe (it has a task section); this needs a pretraining one",
        ("predict", tiny_run): f"{tiny_run} is a pretraining run; this needs one made by `finetune`",
        ("evaluate", finetuned, "--shards", "s"): f"{finetuned} is a fine-tuned run, which is scored on files: name",
        ("evaluate", tiny_run, "--file", "f"): f"{tiny_run} is a pretraining run, which is evaluated on shards: name",
        ("finetune", recipe, "--resume", "never", "--set", f"runs_dir={finetuned.parent}"): (
            f"{finetuned}/checkpoints already holds checkpoints and --resume is never"
        ),
    }
    for arguments, message in refusals.items():
        assert commands.mistake(*arguments, cwd=tmp_path).startswith(f"error: {message}"), arguments


def test_show_config_prints_a_fine_tuning_recipe(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    done = commands.run("show-config", recipe, cwd=tmp_path)
    assert done.code == 0
    assert "name: classification" in done.out
    assert '"train_batch_size": 8' in done.out
