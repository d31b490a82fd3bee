"""`verify` and `inspect` of shards that lie behind HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, cut_body, hang_up, serving, status

from data_pipeline import remote_shards, verify_remote
from data_pipeline.__main__ import main
from data_pipeline.retry import RetryPolicy

QUICK = RetryPolicy(total_s=1.0, first_wait_s=0.01, longest_wait_s=0.02)


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_shards, "OPENING", QUICK)
    monkeypatch.setattr(remote_shards, "READING", QUICK)
    monkeypatch.setattr(verify_remote, "READING", QUICK)
    with serving(shutil.copytree(shards, tmp_path / "served")) as files:
        yield files


def test_whole_shards_are_verified_through_a_bad_connection(
    server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [status(503), hang_up, cut_body]
    assert main(["verify", server.url]) == 0
    assert capsys.readouterr().out.startswith(f"{server.url}: all well; 5 shards, 400 documents, ")
    assert server.faults == []


def test_damage_and_missing_files_are_named_by_their_urls(
    server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = server.folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    (server.folder / "train-000001.tar").unlink()
    (server.folder / "train-000002.index.npz").unlink()
    (server.folder / "tokenizer" / "spiece.model").unlink()
    assert main(["verify", server.url]) == 1
    tokenizer, sha256, behind, no_tar, no_index, last = capsys.readouterr().out.splitlines()
    assert tokenizer.startswith(f"{server.url}/tokenizer is no finished tokenizer: it has no spiece.model")
    assert sha256.startswith(f"{server.url}/train-000000.tar: the sha256 is ")
    assert behind == f"{server.url}/train-000000.tar: something lies behind the tar's last member"
    assert no_tar == f"{server.url}/train-000001.tar: the file is missing"
    assert no_index == f"{server.url}/train-000002.index.npz: the file is missing, where present is expected"
    assert last.startswith(f"{server.url}: 5 damaged; ")


def test_inspect_reads_them_too(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", server.url, "--examples", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{server.url}\n")
    assert "documents   400 read" in out
    assert "block 0, its first document" in out


@pytest.mark.parametrize("command", ["verify", "inspect"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pipe:cat x", "error: pipe:cat x has the scheme 'pipe', which is not read"),
        ("http://127.0.0.1:9/x", "error: http://127.0.0.1:9/x/manifest.json could not be read: "),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_place_that_cannot_be_read_is_one_line(
    command: str, place: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, place]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1
