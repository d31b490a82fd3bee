from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.build_record import BuildRecord, begin_build
from trainer.errors import UserError

RECORD = BuildRecord((("/a.txt", 5, 1), ("/b.txt", 6, 1)), "ab", 100, 10, 0.1, "line", "text")


def _begin(folder: Path, record: BuildRecord = RECORD) -> bool:
    with begin_build(folder, record=record) as finished:
        return finished


def test_a_build_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "deep/shards"
    assert not _begin(folder)
    (folder / "train-000000.tar.tmp").touch()
    assert not _begin(folder)
    assert not (folder / "train-000000.tar.tmp").exists()
    (folder / "manifest.json").touch()
    assert _begin(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_sha256": "cd"}, "tokenizer_sha256 was ab, now cd"),
        ({"validation_fraction": 0.2}, "validation_fraction was 0.1, now 0.2"),
        (
            {"inputs": (("/a.txt", 5, 1), ("/b.txt", 7, 2))},
            r"input file 2 was /b.txt \(6 bytes\), now /b.txt \(7 bytes\)",
        ),
        ({"inputs": (("/a.txt", 5, 1), ("/b.txt", 6, 2))}, "input file 2, /b.txt, was written to since"),
        ({"inputs": (("/a.txt", 5, 1),)}, "the input was 2 files, now 1"),
    ],
)
def test_other_settings_are_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    _begin(tmp_path)
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(UserError, match=message):
        _begin(tmp_path, replace(RECORD, **change))  # type: ignore[arg-type]


def test_a_build_that_has_finished_no_shard_may_begin_anew_with_mended_text(tmp_path: Path) -> None:
    _begin(tmp_path)
    mended = replace(RECORD, inputs=(("/a.txt", 5, 1), ("/b.txt", 6, 2)))
    assert not _begin(tmp_path, mended)
    (tmp_path / "train-000000.tar").touch()
    assert not _begin(tmp_path, mended)
    with pytest.raises(UserError, match=r"input file 2, /b\.txt, was written to since"):
        _begin(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis\.doc\)"):
        _begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_two_builds_in_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    with begin_build(tmp_path, record=RECORD), pytest.raises(UserError, match="another process is building"):
        _begin(tmp_path)
    assert not _begin(tmp_path)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    _begin(tmp_path)
    (tmp_path / "train-000000.tar").touch()
    for content in (b"{", b"[]"):
        (tmp_path / "build.json").write_bytes(content)
        with pytest.raises(UserError, match=r"build\.json|other settings"):
            _begin(tmp_path)
