"""A run with an averaged, weights-only checkpoint: evaluated and exported, never resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Commands
from safetensors.torch import load_file

from trainer.checkpoint_files import CheckpointReader
from trainer.evaluate_run import evaluate_run
from trainer.export import export_checkpoint
from trainer.metrics import read_records

SETTINGS = ("--set", "checkpoint.weights_only=true", "--set", "optimizer.ema_decay=0.5")


@pytest.fixture(scope="module")
def light_run(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    done = commands.run("pretrain", tiny_recipe, *SETTINGS, cwd=folder)
    assert (done.code, done.err) == (0, ""), done
    assert "checkpoint.weights_only=true: checkpoints can be evaluated and exported, this run cannot be resumed" in (
        done.out
    )
    return folder / "runs" / "tiny"


def test_it_holds_weights_and_their_average_and_no_optimizer(light_run: Path, tiny_run: Path) -> None:
    light, whole = (CheckpointReader(run / "checkpoints/step-00000004") for run in (light_run, tiny_run))
    assert light.has_average
    assert {key for name in light.weights() for key in light.optimizer_keys(name)} == set()
    # The average is taken beside the training, which it does not change.
    assert all(light.weights()[name].equal(weight) for name, weight in whole.weights().items())


def test_validation_evaluation_and_export_use_the_average(light_run: Path, tmp_path: Path) -> None:
    measured = {r["step"]: r for r in read_records(light_run / "metrics.jsonl") if "validation/loss" in r}
    found = evaluate_run(light_run, which="step-00000004")
    assert found.result.loss == pytest.approx(measured[4]["validation/loss"], rel=1e-6)
    out = export_checkpoint(light_run, which="step-00000004", out=tmp_path / "out")
    exported = load_file(out / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    reader = CheckpointReader(light_run / "checkpoints/step-00000004")
    name = "encoder.embeddings.word.weight"
    assert exported.equal(reader.evaluation_weights()[name])
    assert not exported.equal(reader.weights()[name])


def test_no_run_goes_on_from_it(commands: Commands, light_run: Path, tiny_recipe: Path) -> None:
    found = commands.mistake("pretrain", tiny_recipe, cwd=light_run.parent.parent)
    assert "step-00000004 holds weights only (checkpoint.weights_only=true), so no run can go on from it" in found
