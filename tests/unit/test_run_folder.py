from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.manifest import load_manifest
from trainer.errors import UserError
from trainer.recipe import load_recipe
from trainer.run_folder import describe_run, environment, load_run
from trainer.runtime import Runtime
from trainer.setup import resolve
from trainer.show_config import deepspeed_plan_for


def test_a_described_run_is_read_back_equal(tiny_recipe: Path, shards: Path, runtime: Runtime, tmp_path: Path) -> None:
    overrides = [f"runs_dir={tmp_path}", "optimizer.learning_rate=1e-4"]
    config = resolve(load_recipe(str(tiny_recipe), overrides=overrides), load_manifest(shards))
    plan = deepspeed_plan_for(config, world_size=1)
    describe_run(config, plan=plan, runtime=runtime)
    assert load_run(tmp_path / "tiny") == config
    assert json.loads((tmp_path / "tiny" / "ds_config.json").read_text()) == plan.config
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == [
        "config.yaml",
        "ds_config.json",
        "environment.json",
    ]


def test_the_resolved_recipe_is_whole_or_the_former_one(
    tiny_recipe: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe(str(tiny_recipe), overrides=[f"runs_dir={tmp_path}"])
    plan = deepspeed_plan_for(config, world_size=1)
    describe_run(config, plan=plan, runtime=runtime)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"tiny/config\.yaml could not be written: No space left on device"):
        describe_run(config.model_copy(update={"seed": 6}), plan=plan, runtime=runtime)
    assert load_run(tmp_path / "tiny") == config


def test_the_environment_names_versions_and_no_variable(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    found = environment(runtime)
    assert "hunter2" not in json.dumps(found)
    assert found["packages"]["torch"]
    assert (found["world_size"], found["num_stages"], found["backend"]) == (1, 1, "gloo")


def test_what_is_no_run_folder_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml; name a folder made by"):
        load_run(tmp_path)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "config.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"run/config\.yaml: "):
        load_run(run)
