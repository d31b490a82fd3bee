from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer.checkpoint_files import CheckpointReader
from trainer.errors import UserError
from trainer.export import export_checkpoint
from trainer.imported import import_to, load_imported


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(tiny_run, which="latest", out=tmp_path_factory.mktemp("export") / "hf")


def test_what_was_exported_is_imported_bit_for_bit(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    imported = import_to(exported, out=tmp_path / "mine")
    stored = load_imported(tmp_path / "mine")
    expected = CheckpointReader(tiny_run / "checkpoints" / "step-00000004").weights()
    assert stored.config == imported.config
    assert stored.weights.keys() == expected.keys()
    assert all(stored.weights[name].equal(expected[name]) for name in expected)


def test_an_imported_model_is_exported_again(exported: Path, tmp_path: Path) -> None:
    import_to(exported, out=tmp_path / "mine")
    out = export_checkpoint(tmp_path / "mine", which="auto")
    assert out == tmp_path / "mine" / "export"
    before, after = (load_file(folder / "model.safetensors") for folder in (exported, out))
    assert before.keys() == after.keys()
    assert all(after[name].equal(before[name]) for name in before)
    assert (out / "tokenizer.json").exists()
    with pytest.raises(UserError, match="is an imported model, which has no checkpoint 'best'"):
        export_checkpoint(tmp_path / "mine", which="best")


def test_an_existing_folder_is_not_touched(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine exists; name a folder that does not, or remove it"):
        import_to(exported, out=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_full_disk_is_the_systems_refusal_and_leaves_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("trainer.model.safetensors_file.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        import_to(exported, out=tmp_path / "mine")
    assert refused.value.filename == str(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("keep", [None, 20])
def test_a_damaged_import_is_refused(exported: Path, tmp_path: Path, name: str, keep: int | None) -> None:
    import_to(exported, out=tmp_path / "mine")
    path = tmp_path / "mine" / name
    whole = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"mine is no whole imported model \(.*\); import it again"):
        load_imported(tmp_path / "mine")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name a folder that holds a Hugging Face model"):
        import_to(tmp_path, out=tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
