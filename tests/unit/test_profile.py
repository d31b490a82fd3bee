"""`trainer profile` alone, on two replicas and on two stages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands

STEPS = ("--steps", "2", "--set", "train.steps=8", "--set", "schedule.warmup_steps=1")
MIB = 1 << 20


def profile(
    commands: Commands, recipe: Path, folder: Path, *settings: str, ranks: int = 1
) -> tuple[str, dict[str, Any]]:
    """The table, and the figures beside it."""
    given = [part for setting in settings for part in ("--set", setting)]
    done = commands.run_ranks("profile", recipe, *STEPS, *given, cwd=folder, ranks=ranks)
    assert [(one.code, one.err) for one in done] == [(0, "")] * ranks, done
    assert all(one.out == "" for one in done[1:])
    out = folder / "runs" / "tiny" / "profile"
    assert (out / "table.txt").read_text() in done[0].out
    return done[0].out, json.loads((out / "figures.json").read_text())


@pytest.fixture(scope="module")
def alone(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return (folder, *profile(commands, tiny_recipe, folder, "parallel.activation_checkpointing=true"))


@pytest.fixture(scope="module")
def replicas(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    folder = tmp_path_factory.mktemp("replicas")
    return (folder, *profile(commands, tiny_recipe, folder, "engine.ds_config=zero0", ranks=2))


@pytest.fixture(scope="module")
def stages(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    folder = tmp_path_factory.mktemp("stages")
    return (folder, *profile(commands, tiny_recipe, folder, "parallel.num_stages=2", ranks=2))


def test_the_parts_make_up_a_step(alone: tuple[Path, str, Any]) -> None:
    _, table, figures = alone
    parts = {part: seconds for part, (seconds,) in figures["parts"].items()}
    assert all(parts[part] > 0 for part in ("data wait", "forward", "backward", "optimizer", "other"))
    assert parts["stage wait"] == 0
    assert "stage wait" not in table
    assert sum(parts.values()) == pytest.approx(figures["speed"]["time/step_s"], rel=0.6)
    assert f"{parts['backward']:.4f}" in table


def test_layers_computed_again_count_for_the_hardware_only(
    alone: tuple[Path, str, Any], replicas: tuple[Path, str, Any]
) -> None:
    again, once = alone[2]["speed"], replicas[2]["speed"]
    assert 1 < again["throughput/hfu"] / again["throughput/mfu"] < 4 / 3
    assert once["throughput/hfu"] == once["throughput/mfu"]


def test_a_process_alone_sends_nothing(alone: tuple[Path, str, Any]) -> None:
    _, table, figures = alone
    assert sum(figures["sent"].values()) == figures["expected_bytes"] == 0
    assert "nothing to send" in table
    assert "bubble" not in table


def test_nothing_but_the_profile_is_saved(alone: tuple[Path, str, Any]) -> None:
    run_dir = alone[0] / "runs" / "tiny"
    found = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    assert found == [".lock", "profile/figures.json", "profile/table.txt", "profile/trace-rank0000.json.gz"]


def test_checkpoints_that_are_there_are_left_alone(
    commands: Commands, tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    def saved() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in (tiny_run / "checkpoints").rglob("*"))

    before = saved()
    done = commands.run("profile", tiny_recipe, *STEPS, "--out", tmp_path / "here", cwd=tiny_run.parents[1])
    assert (done.code, done.err) == (0, "")
    assert saved() == before != []
    assert (tmp_path / "here" / "trace-rank0000.json.gz").exists()


def test_two_replicas_without_zero_send_two_elements_a_weight(replicas: tuple[Path, str, Any]) -> None:
    _, table, figures = replicas
    assert figures["sent"]["all-reduce"] == pytest.approx(figures["expected_bytes"], rel=0.01)
    assert f"{sum(figures['sent'].values()) / MIB:>10.3f}" in table


def test_each_rank_traces_its_steps_with_their_parts_by_name(replicas: tuple[Path, str, Any]) -> None:
    for rank in (0, 1):
        path = replicas[0] / "runs" / "tiny" / "profile" / f"trace-rank000{rank}.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            names = [event.get("name") for event in json.load(file)["traceEvents"]]
        # Two steps of three micro-batches.
        assert [names.count(part) for part in ("data wait", "forward", "backward")] == [2, 6, 6]


def test_stages_show_a_bubble_measured_and_in_theory(stages: tuple[Path, str, Any]) -> None:
    _, table, figures = stages
    assert 0 < figures["bubble"] < 1
    assert figures["micro_batches"] == 6
    assert figures["expected_bubble"] == 1 / 7
    assert "bubble" in table
    for part in ("forward", "backward", "stage wait", "optimizer"):
        assert all(seconds > 0 for seconds in figures["parts"][part]), part


def test_stages_send_what_the_border_takes(stages: tuple[Path, str, Any]) -> None:
    figures = stages[2]
    assert figures["sent"]["send"] == figures["expected"]["border"] == 6 * 64 * (2 * 16 * 4 + 4 + 8) / 2
    assert figures["sent"]["all-reduce"] == pytest.approx(figures["expected"]["tied"], rel=0.01)


@pytest.mark.parametrize("steps", [0, 3])
def test_more_steps_than_the_recipe_has_or_none_are_refused(
    commands: Commands, tiny_recipe: Path, tmp_path: Path, steps: int
) -> None:
    line = commands.mistake("profile", tiny_recipe, "--steps", steps, "--set", "train.steps=9", cwd=tmp_path)
    assert line == (
        f"error: --steps {steps} takes {2 * steps + 4} steps: 2 to warm up, {steps} without clocks, {steps} with, 2 "
        "traced; it must be 1 or more, and train.steps=9 at least as many\n"
    )
    assert not (tmp_path / "runs").exists()
