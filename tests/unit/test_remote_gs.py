"""Shards and raw text in a Google Cloud Storage bucket, read through gcsfs from an emulator of its API on loopback."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline import remote_shards, remote_text
from data_pipeline.damage import BlockDamage
from data_pipeline.inputs import expand_inputs
from data_pipeline.manifest import load_manifest
from data_pipeline.remote_shards import CacheSettings, open_shards
from data_pipeline.retry import RetryPolicy
from data_pipeline.shards import BlockStore
from data_pipeline.text import TextOptions, iter_documents
from trainer.errors import UserError

QUICK = RetryPolicy(total_s=1.0, first_wait_s=0.01, longest_wait_s=0.05)
TEXTS = {
    "text/a.txt": b"one\ntwo\n",
    "text/deep/b.jsonl": b'{"text": "three"}\n',
    "text/README.md": b"no text of ours\n",
    "text2/e.txt": b"elsewhere\n",
}
Upload = Callable[[str, bytes], object]


@pytest.fixture(scope="module")
def upload(shards: Path) -> Iterator[Upload]:
    """Puts an object into the bucket, which holds the shards under corpus/shards, and the texts."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'bertline[dev]'")
    reason = "gcp-storage-emulator is not installed: pip install 'bertline[dev]'"
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=reason)
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    endpoint = f"http://127.0.0.1:{server._api._httpd.server_address[1]}"

    def put(name: str, content: bytes) -> None:
        place = f"{endpoint}/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            urllib.request.Request(place, data=content, headers={"Content-Type": "application/octet-stream"})
        ).close()

    for path in sorted(shards.rglob("*")):
        if path.is_file() and not path.name.startswith(("rows-", "build.")):
            put(f"corpus/shards/{path.relative_to(shards)}", path.read_bytes())
    for name, content in TEXTS.items():
        put(name, content)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", endpoint)
        yield put
    server.stop()


@pytest.fixture(autouse=True)
def _alone(upload: Upload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # No credentials of this machine, and no search for any.
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module in (remote_shards, remote_text):
        monkeypatch.setattr(module, "OPENING", QUICK)
        monkeypatch.setattr(module, "READING", QUICK)


def opened(cache: Path) -> BlockStore:
    folder = open_shards("gs://bucket/corpus/shards", cache=CacheSettings(cache, 1 << 30))
    return BlockStore(folder, manifest=load_manifest(folder), split="train")


def test_blocks_in_a_bucket_are_those_on_disk(shards: Path, tmp_path: Path) -> None:
    local = BlockStore(shards, manifest=load_manifest(shards), split="train")
    store = opened(tmp_path / "cache")
    assert store.is_remote
    for block in range(store.num_blocks):
        assert store.read_block(block).tokens.tobytes() == local.read_block(block).tokens.tobytes()


def test_a_tar_that_was_cut_in_the_bucket_is_damage(upload: Upload, shards: Path, tmp_path: Path) -> None:
    store = opened(tmp_path / "cache")
    start = int(store.read_index(0).offset["lengths"][0])
    whole = (shards / "train-000000.tar").read_bytes()
    try:
        upload("corpus/shards/train-000000.tar", whole[: start + 4])
        with pytest.raises(BlockDamage, match=r"^gs://bucket/corpus/shards/train-000000\.tar: the size of .* is 4, wh"):
            store.read_block(0)
    finally:
        upload("corpus/shards/train-000000.tar", whole)


@pytest.mark.parametrize(
    ("place", "documents"),
    [
        ("gs://bucket/text/a.txt", ["one", "two"]),
        ("gs://bucket/text", ["one", "two", "three"]),
        ("gs://bucket/text/**/*.jsonl", ["three"]),
        ("gs://bucket/text*/*.txt", ["one", "two", "elsewhere"]),
    ],
)
def test_text_in_a_bucket_is_a_file_a_folder_or_a_glob(place: str, documents: list[str]) -> None:
    assert list(iter_documents(expand_inputs([place]), options=TextOptions())) == documents


@pytest.mark.parametrize("place", ["gs://no-such-bucket/a.txt", "gs://bucket/text/z.txt"])
def test_a_bucket_or_an_object_that_is_not_there_is_named(place: str) -> None:
    with pytest.raises(UserError, match=rf"^{place} does not exist; check the address"):
        expand_inputs([place])


def test_text_that_is_written_to_while_it_is_read_is_refused(upload: Upload) -> None:
    (file,) = expand_inputs(["gs://bucket/text2/e.txt"])
    upload("text2/e.txt", b"elsewhen.\n")
    with file.open() as handle, pytest.raises(UserError, match="was written to while it was read"):
        handle.read()
    upload("text2/e.txt", TEXTS["text2/e.txt"])
