from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer.checkpoint_files import CheckpointReader
from trainer.errors import UserError
from trainer.export import export_checkpoint, open_checkpoint, require_export


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


def word_embedding(folder: Path) -> object:
    return load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"].tolist()


@pytest.mark.parametrize(("which", "step"), [("step-00000002", 2), ("latest", 4)])
def test_the_export_holds_the_chosen_checkpoints_weights(run: Path, tmp_path: Path, which: str, step: int) -> None:
    out = export_checkpoint(run, which=which, out=tmp_path / "out")
    weights = CheckpointReader(run / "checkpoints" / f"step-{step:08d}").weights()
    assert word_embedding(out) == next(value.tolist() for name, value in weights.items() if "word" in name)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 300


def test_by_default_the_best_one_goes_to_the_run_folders_export(run: Path, tmp_path: Path) -> None:
    best = "step-00000002"
    (run / "checkpoints" / "best").write_text(best)
    assert export_checkpoint(run, which="auto") == run / "export"
    assert word_embedding(run / "export") == word_embedding(export_checkpoint(run, which=best, out=tmp_path / "best"))
    (run / "checkpoints" / "best").unlink()
    assert open_checkpoint(run, which="auto")[1].folder.name == "step-00000004"


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"step-00000004 is damaged: state\.json has 2 bytes"):
        export_checkpoint(run, which="latest")
    assert not (run / "export").exists()


def test_a_run_that_could_not_be_exported_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    require_export()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package tokenizers; pip install 'bertline\[hf\]', or set"):
        require_export()


def test_a_damaged_best_checkpoint_is_named_and_the_newest_whole_one_taken(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints"
    best = (folder / "best").read_text().strip()
    (folder / best / "state.json").write_text("{}")
    _, taken = open_checkpoint(run, which="auto")
    whole = sorted(path.name for path in folder.glob("step-*") if path.name != best)
    assert taken.folder.name == whole[-1]
    assert f"{best}, is damaged: state.json has" in capsys.readouterr().err
