from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.inputs import expand_inputs
from data_pipeline.records import CHUNK_BYTES
from data_pipeline.text import TextOptions, iter_documents, read_chunks
from trainer.errors import UserError


def _documents(path: Path, **options: Any) -> list[str]:
    return list(iter_documents(expand_inputs([path]), options=TextOptions(**options)))


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (bertline[parquet])")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)
    return path


def test_a_tar_gives_the_text_of_each_sample_and_leaves_other_members(tmp_path: Path) -> None:
    members = {
        "a/1.jpg": b"\xff\xd8",
        "a/1.txt": "one 水".encode(),
        "a/1.json": b"{}",
        "a/2.json": b'{"text": "two"}\n',
        "b/2.txt": b"three",
        "b/3.cls": b"4",
    }
    assert _documents(_tar(tmp_path / "a.tar", members)) == ["one 水", "two", "three"]


def test_records_come_in_chunks_of_about_a_megabyte(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", {f"{number}.txt": b"x" * (CHUNK_BYTES // 2) for number in range(5)})
    (file,) = expand_inputs([path])
    chunks = list(read_chunks(file, options=TextOptions()))
    assert [len(chunk.records) for chunk in chunks] == [2, 2, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("removed", [10_240, 9_000, 8_192, 12_000])
def test_a_cut_tar_is_refused_even_when_cut_between_members(tmp_path: Path, removed: int) -> None:
    # Two members of 1,024 bytes with their headers and the end mark, padded to 10,240.
    path = _tar(tmp_path / "a.tar", {f"{number}.txt": b"x" * 1024 for number in range(8)})
    whole = path.read_bytes()
    assert len(whole) == 20_480
    path.write_bytes(whole[:-removed])
    with pytest.raises(UserError, match="is not a whole tar"):
        _documents(path)


def test_a_tar_without_text_and_a_file_that_is_no_tar_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt or \.json member"):
        _documents(_tar(tmp_path / "a.tar", {"1.jpg": b"x"}))
    (tmp_path / "b.tar").write_bytes(b"no tar" + b"\0" * 2048)
    with pytest.raises(UserError, match="is not a whole tar"):
        _documents(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("content", "message"), [(b"ab\xff", "member 1.txt: invalid UTF-8 at byte 2"), (b"x" * 11, "11 bytes is over")]
)
def test_a_bad_member_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _documents(_tar(tmp_path / "a.tar", {"1.txt": content}), max_document_bytes=10)


def test_a_json_member_without_the_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tar: member 1\.json: no field 'text'"):
        _documents(_tar(tmp_path / "a.tar", {"1.json": b'{"body": "x"}'}))


def test_parquet_rows_are_documents_over_row_groups_and_dictionaries(tmp_path: Path) -> None:
    texts = [f"text {number % 7} 水" for number in range(2500)]
    path = _parquet(tmp_path / "a.parquet", {"body": texts, "n": list(range(2500))}, row_group_size=1100)
    assert _documents(path, text_field="body") == texts
    import pyarrow as pa

    path = _parquet(tmp_path / "b.parquet", {"text": pa.array(texts).dictionary_encode()})
    assert _documents(path) == texts


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, "no column 'text'; the columns are 'body'"),
        ({"text": [1]}, "the column 'text' holds int64, not strings"),
        ({"text": ["a", None]}, "row 2: the column 'text' is null"),
        ({"text": ["a", "x" * 11]}, "row 2: one document of 11 bytes"),
    ],
)
def test_a_bad_column_or_row_is_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _documents(_parquet(tmp_path / "a.parquet", columns), max_document_bytes=10)


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"text": ["a"] * 100})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole parquet file"):
        _documents(path)


def test_a_missing_pyarrow_is_one_line_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'bertline\[parquet\]'"):
        _documents(tmp_path / "a.parquet")
