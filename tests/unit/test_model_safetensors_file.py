from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer.model.safetensors_file import write_safetensors


def test_a_file_of_weights_is_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"weight": torch.tensor([1.0, 2.0])})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    assert load_file(tmp_path / "a.safetensors")["weight"].tolist() == [1.0, 2.0]


def test_a_full_disk_is_named_as_the_system_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trainer.model.safetensors_file.save_file", refuse)
    with pytest.raises(OSError, match="No space left on device") as refused:
        write_safetensors(tmp_path / "a.safetensors", {"weight": torch.ones(1)})
    assert (refused.value.errno, refused.value.filename) == (28, str(tmp_path / "a.safetensors"))
