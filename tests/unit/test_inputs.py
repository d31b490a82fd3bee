from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.inputs import InputFile, expand_inputs
from trainer.errors import UserError


def _files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_arguments_keep_their_order_and_folders_are_sorted_to_their_full_depth(tmp_path: Path) -> None:
    _files(tmp_path, "z.txt", "a/c.jsonl", "a/b/d.txt.gz", "a/README.md")
    found = expand_inputs([tmp_path / "z.txt", tmp_path / "a"])
    assert found == [
        InputFile(tmp_path / "z.txt", "text", "none", 1),
        InputFile(tmp_path / "a/b/d.txt.gz", "text", "gzip", 1),
        InputFile(tmp_path / "a/c.jsonl", "json", "none", 1),
    ]


def test_a_glob_is_sorted_and_reaches_into_folders(tmp_path: Path) -> None:
    _files(tmp_path, "b.parquet", "a.tar", "deep/er/c.jsonl.zst")
    assert [file.path.name for file in expand_inputs([f"{tmp_path}/**/*.*"])] == ["a.tar", "b.parquet", "c.jsonl.zst"]


def test_a_file_whose_name_holds_glob_characters_is_itself(tmp_path: Path) -> None:
    _files(tmp_path, "part[1].txt")
    assert [file.path.name for file in expand_inputs([tmp_path / "part[1].txt"])] == ["part[1].txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.txt", "missing.txt does not exist"),
        ("*.jsonl", "matches no file"),
        ("notes.md", "unknown suffix"),
        ("empty.txt", "is empty"),
        ("hollow", "holds no text"),
        ("real.txt ./real.txt", "named twice"),
        ("real.txt link.txt", "named twice"),
        ("", "no input"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, given: str, message: str) -> None:
    _files(tmp_path, "notes.md", "real.txt", "hollow/notes.md")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with pytest.raises(UserError, match=message) as refused:
        expand_inputs([tmp_path / name for name in given.split()])
    assert "\n" not in str(refused.value)


def test_linked_folders_are_read_hidden_files_are_not_and_circles_are_refused(tmp_path: Path) -> None:
    _files(tmp_path, "in/a.txt", "in/._a.txt", "in/.ipynb_checkpoints/a.txt", "elsewhere/b.txt")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    assert [file.path for file in expand_inputs([tmp_path / "in"])] == [
        tmp_path / "in/a.txt",
        tmp_path / "in/link/b.txt",
    ]
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="circle links to a folder that it lies in"):
        expand_inputs([tmp_path / "in"])
