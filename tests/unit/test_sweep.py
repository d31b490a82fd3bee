"""Sweeps: which runs there are, what is left out when it goes on, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands
from small_task import write_recipe, write_sentiment

from trainer.__main__ import main
from trainer.errors import UserError
from trainer.finetune import finished_scores, train_one
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.sweep import best_first, check_comparable, markdown, plan_cells, run_cell

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sentiment(folder)
    return write_recipe(folder)


def load(recipe: Path, *settings: str) -> FineTuneConfig:
    return load_finetune_recipe(str(recipe), overrides=[*settings])


def test_every_combination_is_a_run_of_its_own_and_the_largest_batches_come_first(recipe: Path) -> None:
    cells = plan_cells(load(recipe), rates=[1e-5, 2e-5], batch_sizes=[4, 16], seeds=[1, 2], dp_world_size=2)
    assert [(cell.global_batch_size, cell.learning_rate) for cell in cells] == [
        (16, 1e-5),
        (16, 2e-5),
        (4, 1e-5),
        (4, 2e-5),
    ]
    runs = [run for cell in cells for run in cell.runs]
    assert len({run.run_dir for run in runs}) == 8
    assert str(runs[0].run_dir) == "runs/tiny/sweep/rate-1e-05_batch-16_seed-1"
    last = runs[-1]
    assert (last.seed, last.optimizer.learning_rate, last.train.global_batch_size) == (2, 2e-5, 4)
    # The recipe's 4 rows at once where a rank has as many, else what it has.
    assert [cell.runs[0].train.micro_batch_size for cell in cells] == [4, 4, 2, 2]


def test_what_is_not_named_is_the_recipes(recipe: Path) -> None:
    (cell,) = plan_cells(load(recipe, "seeds=[4, 5]"), rates=[], batch_sizes=[], seeds=[], dp_world_size=1)
    assert (cell.learning_rate, cell.global_batch_size, [run.seed for run in cell.runs]) == (5e-3, 8, [4, 5])
    (cell,) = plan_cells(load(recipe), rates=[], batch_sizes=[], seeds=[], dp_world_size=1)
    assert [run.seed for run in cell.runs] == [3]


def test_a_batch_that_cannot_be_dealt_out_is_refused_before_anything_is_trained(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"^a batch of 9 cannot be dealt to 2 processes; use a multiple of them$"):
        plan_cells(load(recipe), rates=[], batch_sizes=[16, 9], seeds=[], dp_world_size=2)


def test_recipes_that_one_table_cannot_compare_are_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"two of the recipes are called 'tiny'; give one another name"):
        check_comparable([load(recipe), load(recipe)])
    with pytest.raises(UserError, match=r"one table needs one task, one data\.validation and one evaluation\.metric"):
        check_comparable([load(recipe), load(recipe, "name=other", "data.validation=other.tsv")])


def test_a_finished_run_is_left_out_and_another_recipes_is_not(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    config = load(recipe, f"runs_dir={tmp_path}", "train.epochs=1")
    plan: dict[str, Any] = {"rates": [1e-3], "batch_sizes": [], "seeds": [1], "dp_world_size": 1}
    (cell,) = plan_cells(config, **plan)
    row = run_cell(cell, runtime=runtime, report=lambda text: None)
    scores = cell.runs[0].run_dir / "scores.json"
    changed = json.loads(scores.read_text())
    changed["parts"]["test"]["accuracy"] = 0.125
    scores.write_text(json.dumps(changed))
    assert row["parts"]["test"]["accuracy"]["mean"] != 0.125
    again = run_cell(cell, runtime=runtime, report=lambda text: None)
    assert again["parts"]["test"]["accuracy"] == {"mean": 0.125, "deviation": None}
    (longer,) = plan_cells(config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2.0})}), **plan)
    assert run_cell(longer, runtime=runtime, report=lambda text: None)["parts"]["test"]["accuracy"]["mean"] != 0.125


def test_scores_of_a_former_recipe_do_not_make_an_interrupted_run_a_finished_one(
    recipe: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (load(recipe, f"runs_dir={tmp_path}", f"train.epochs={epochs}") for epochs in (1, 2))
    train_one(short, runtime=runtime, resume="auto", report=lambda text: None)
    assert finished_scores(short) is not None

    def interrupted(run: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.finetune._train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_one(long, runtime=runtime, resume="auto", report=lambda text: None)
    assert finished_scores(long) is None


def row(rate: float, mean: float, *, lower: bool = False, deviation: float | None = 0.01) -> dict[str, Any]:
    metrics = {"accuracy": {"mean": mean, "deviation": deviation}, "loss": {"mean": 1.0, "deviation": 0.0}}
    return {
        "recipe": "tiny",
        "learning_rate": rate,
        "global_batch_size": 8,
        "metric": "accuracy",
        "lower_is_better": lower,
        "tokens_per_sec": 1234.4,
        "seeds": [1, 2],
        "parts": {"validation": metrics, "test": metrics},
    }


def test_the_best_row_comes_first() -> None:
    assert [of["learning_rate"] for of in best_first([row(1.0, 0.5), row(2.0, 0.7), row(3.0, 0.6)])] == [2.0, 3.0, 1.0]
    errors = [row(1.0, 0.5, lower=True), row(2.0, 0.7, lower=True)]
    assert [of["learning_rate"] for of in best_first(errors)] == [1.0, 2.0]


def test_the_table_shows_means_deviations_and_speed() -> None:
    assert markdown([row(1e-5, 0.75), row(2e-5, 0.5, deviation=None)]) == (
        "| recipe | rate | batch | seeds | validation accuracy | test accuracy | training tokens/s |\n"
        "|---|---|---|---|---|---|---|\n"
        "| tiny | 1e-05 | 8 | 2 | 0.7500 ± 0.0100 | 0.7500 ± 0.0100 | 1,234 |\n"
        "| tiny | 2e-05 | 8 | 2 | 0.5000 | 0.5000 | 1,234 |\n"
    )


def test_the_command_ends_with_a_table(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    grid = ["--rates", "1e-3,5e-3", "--set", "train.epochs=1"]
    done = commands.run("sweep", recipe, *grid, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    rows = json.loads((tmp_path / "runs/tiny/sweep/sweep.json").read_text())
    assert sorted(of["learning_rate"] for of in rows) == [1e-3, 5e-3]
    assert (tmp_path / "runs/tiny/sweep/sweep.md").read_text() == markdown(rows)
    assert markdown(rows) in done.out
    again = commands.run("sweep", recipe, *grid, cwd=tmp_path)
    assert "training records" not in again.out
    assert markdown(rows) in again.out


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("--rates", "1e-5,0", "'1e-5,0' must be numbers above 0"),
        ("--rates", "inf", "'inf' must be numbers above 0"),
        ("--batch-sizes", "16,x", "'16,x' is no list of numbers with commas between"),
        ("--seeds", "1,1", "'1,1' names a value twice"),
        ("--seeds", "-1", "'-1' must be numbers from 0 on"),
    ],
)
def test_a_list_that_is_none_is_refused(
    option: str, values: str, message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(recipe), f"{option}={values}"])
    assert message in capsys.readouterr().err
