from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_corpus import made_up_documents, write_lines

from data_pipeline.build import build_shards
from trainer.checkpoint_files import record_file, seal, write_json
from trainer.errors import UserError
from trainer.evaluate_run import evaluate_run
from trainer.metrics import read_records
from trainer.recipe import dump_config, load_any_recipe


def test_it_is_what_training_measured_at_that_step(tiny_run: Path) -> None:
    measured = {r["step"]: r for r in read_records(tiny_run / "metrics.jsonl") if "validation/loss" in r}
    for which, step in (("step-00000002", 2), ("latest", 4)):
        found = evaluate_run(tiny_run, which=which)
        assert found.result.loss == pytest.approx(measured[step]["validation/loss"], rel=1e-6)
        assert found.result.masked.accuracy == pytest.approx(measured[step]["validation/accuracy"])
        assert found.checkpoint == tiny_run / "checkpoints" / f"step-{step:08d}"
    best = json.loads((tiny_run / "checkpoints" / "step-00000004" / "state.json").read_text())["best_step"]
    assert evaluate_run(tiny_run, which="auto").checkpoint.name == f"step-{best:08d}"


def test_other_shards_of_the_same_tokenizer_can_be_evaluated_on(tiny_run: Path, shards: Path, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(100, seed=8))
    tokenizer, out = shards / "tokenizer", tmp_path / "out"
    build_shards([text], tokenizer=tokenizer, out=out, workers=1, validation_fraction=0.3, progress=False)
    own, other = evaluate_run(tiny_run, which="latest"), evaluate_run(tiny_run, which="latest", shards=out)
    assert own.result.loss != other.result.loss


def test_other_shards_at_the_old_place_are_refused(tiny_run: Path, tmp_path: Path, shards: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    text = write_lines(tmp_path / "text.txt", made_up_documents(100, seed=8))
    tokenizer, out = shards / "tokenizer", tmp_path / "out"
    build_shards([text], tokenizer=tokenizer, out=out, workers=1, validation_fraction=0.3, progress=False)
    reseal_with(run / "checkpoints" / "step-00000004", shards=[str(out)])
    with pytest.raises(UserError, match=r"out is not what the run was trained on \(another fingerprint\); .* --shards"):
        evaluate_run(run, which="latest")


def test_shards_made_from_text_are_found_where_the_run_was_moved(tiny_run: Path, tmp_path: Path, shards: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "moved")
    reseal_with(run / "checkpoints" / "step-00000004", shards=[str(tmp_path / "run/data/0a1b/shards")])
    with pytest.raises(UserError, match=r"run/data/0a1b/shards, .*, is gone; name where they lie by --shards DIR"):
        evaluate_run(run, which="latest")
    shutil.copytree(shards, run / "data/0a1b/shards")
    found, own = evaluate_run(run, which="latest"), evaluate_run(tiny_run, which="latest")
    assert found.result.loss == own.result.loss


def reseal_with(checkpoint: Path, **changed: object) -> None:
    """Change entries of a checkpoint's state, checksums too."""
    state = json.loads((checkpoint / "state.json").read_text())
    write_json(checkpoint / "state.json", {**state, **changed})
    (checkpoint / "checksums.json").unlink()
    seal(checkpoint, [record_file(path) for path in sorted(checkpoint.iterdir())])


def test_a_recipe_without_evaluation_has_nothing_to_evaluate(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    recipe = load_any_recipe(str(run / "config.yaml"), overrides=["evaluation=null"])
    (run / "config.yaml").write_text(dump_config(recipe))
    with pytest.raises(UserError, match="its recipe sets evaluation: null, so there are no held-out rows to evaluate"):
        evaluate_run(run, which="latest")
