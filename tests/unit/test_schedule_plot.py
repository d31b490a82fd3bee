from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import Commands

from trainer.config import Config
from trainer.errors import UserError
from trainer.schedule_plot import plot_schedule, schedule_points, sketch_schedule


def config(*, steps: int = 8, **schedule: object) -> Config:
    return Config.model_validate(
        {
            "name": "shown",
            "data": {"shards": "shards"},
            "optimizer": {"learning_rate": 0.5},
            "schedule": {"warmup_steps": 4, **schedule},
            "train": {"steps": steps, "global_batch_size": 8, "micro_batch_size": 8},
        }
    )


def test_points_are_the_schedules_own_from_the_first_step_to_the_last() -> None:
    assert [rate for _, rate in schedule_points(config(), points=99)] == [
        0.125,
        0.25,
        0.375,
        0.5,
        0.375,
        0.25,
        0.125,
        0,
    ]
    steps = [step for step, _ in schedule_points(config(steps=100_001), points=5)]
    assert steps == [1, 25001, 50001, 75001, 100001]
    assert schedule_points(config(steps=1, warmup_steps=1), points=5) == [(1, 0.5)]


def test_the_sketch_shows_the_curve() -> None:
    assert sketch_schedule(config()).splitlines() == [
        "linear schedule of the learning rate",
        "0.5 │   █",
        "    │   █",
        "    │  ███",
        "    │  ███",
        "    │ █████",
        "    │ █████",
        "    │███████",
        "  0 │███████",
        "     step 1 step 8",
    ]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    plot_schedule(config(), out=tmp_path / "rate.png")
    plot_schedule(config(name="cosine"), out=tmp_path / "other.png")
    first, other = (tmp_path / "rate.png").read_bytes(), (tmp_path / "other.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first != other


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"rate\.pdf: the picture is a PNG file; name it .*rate\.png"):
        plot_schedule(config(), out=tmp_path / "rate.pdf")
    with pytest.raises(UserError, match=r"No such file or directory; name a file in a folder that is there"):
        plot_schedule(config(), out=tmp_path / "missing" / "rate.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"needs the package matplotlib; pip install 'bertline\[plots\]'"):
        plot_schedule(config(), out=tmp_path / "rate.png")


def test_the_command_draws_and_sketches(commands: Commands, tiny_recipe: Path, tmp_path: Path) -> None:
    done = commands.run("show-config", tiny_recipe, "--plot", "rate.png", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "linear schedule of the learning rate\n0.002 │" in done.out
    assert done.out.endswith("# drawn to rate.png\n")
    assert (tmp_path / "rate.png").stat().st_size > 1000
    assert "--plot rate.jpg: the picture is a PNG file" in commands.mistake(
        "show-config", tiny_recipe, "--plot", "rate.jpg", cwd=tmp_path
    )
