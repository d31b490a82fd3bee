"""Shards in a bucket, read from a real S3 server on the loopback interface."""

from __future__ import annotations

import gzip
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import remote_shards, remote_text
from data_pipeline.damage import BlockDamage
from data_pipeline.inputs import expand_inputs
from data_pipeline.manifest import load_manifest
from data_pipeline.remote_shards import CacheSettings, open_shards
from data_pipeline.retry import RetryPolicy, SourceAway
from data_pipeline.shards import BlockStore
from data_pipeline.text import TextOptions, iter_documents
from trainer.errors import UserError

QUICK = RetryPolicy(total_s=1.0, first_wait_s=0.01, longest_wait_s=0.05)
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bertline[dev]'")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'bertline[dev]'")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def _aws(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_shards, "OPENING", QUICK)
    monkeypatch.setattr(remote_shards, "READING", QUICK)


@pytest.fixture(scope="module")
def bucket(endpoint: str, shards: Path) -> Iterator[Any]:
    """A client, with the shards in bucket/corpus/shards."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, **{name.lower(): value for name, value in _client_keys().items()}
    )
    client.create_bucket(Bucket="bucket")
    for path in sorted(shards.rglob("*")):
        if path.is_file():
            client.put_object(Bucket="bucket", Key=f"corpus/shards/{path.relative_to(shards)}", Body=path.read_bytes())
    yield client
    client.close()


def _client_keys() -> dict[str, str]:
    return {
        "aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
        "region_name": KEYS["AWS_DEFAULT_REGION"],
    }


TEXTS = {
    "text/a.txt": b"one\ntwo\n",
    "text/deep/b.jsonl.gz": gzip.compress(b'{"text": "three"}\n'),
    "text/deep/er/c.txt": b"four\n",
    "text/.hidden/d.txt": b"hidden\n",
    "text/README.md": b"no text of ours\n",
    "text2/e.txt": b"elsewhere\n",
}


@pytest.fixture
def texts(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client, with texts in the bucket."""
    monkeypatch.setattr(remote_text, "OPENING", QUICK)
    monkeypatch.setattr(remote_text, "READING", QUICK)
    for name, content in TEXTS.items():
        bucket.put_object(Bucket="bucket", Key=name, Body=content)
    return bucket


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize(
    ("place", "documents"),
    [
        ("s3://bucket/text/a.txt", ["one", "two"]),
        ("S3://bucket/text/a.txt", ["one", "two"]),
        ("s3://bucket/text", ["one", "two", "three", "four"]),
        ("s3://bucket/text/", ["one", "two", "three", "four"]),
        ("s3://bucket/text/*.txt", ["one", "two"]),
        ("s3://bucket/text/*/*.gz", ["three"]),
        ("s3://bucket/text/**/*.txt", ["one", "two", "four"]),
        ("s3://bucket/*/[ab].*", ["one", "two"]),
        ("s3://bucket/text*/d*", ["three", "four"]),
        ("s3://bucket/t*2", ["elsewhere"]),
    ],
)
def test_text_in_a_bucket_is_a_file_a_folder_or_a_glob(place: str, documents: list[str]) -> None:
    assert list(iter_documents(expand_inputs([place]), options=TextOptions())) == documents


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/text/z.txt", r"text/z\.txt does not exist; check the address"),
        ("s3://bucket/nothing/", r"s3://bucket/nothing/ names no text; it needs files ending in \.txt"),
        ("s3://bucket/text/*.zip", "names no text"),
        ("s3://bucket/text/*.md", r"README\.md has an unknown suffix"),
        ("s3://no-such-bucket/text/", "no-such-bucket/text does not exist"),
        ("s3://bucket/text s3://bucket/text/a.txt", r"a\.txt is named twice in the input, by s3://bucket/text and by"),
    ],
)
def test_text_that_is_not_in_a_bucket_is_named(place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand_inputs(place.split())


def test_text_that_is_written_to_in_the_bucket_while_it_is_read_is_refused(texts: Any) -> None:
    (file,) = expand_inputs(["s3://bucket/text/a.txt"])
    texts.put_object(Bucket="bucket", Key="text/a.txt", Body=b"two\none\n")
    with file.open() as handle, pytest.raises(UserError, match="was written to while it was read"):
        handle.read()


def opened(cache: Path) -> BlockStore:
    folder = open_shards("s3://bucket/corpus/shards", cache=CacheSettings(cache, 1 << 30))
    return BlockStore(folder, manifest=load_manifest(folder), split="train")


@pytest.mark.usefixtures("bucket")
def test_blocks_in_a_bucket_are_those_on_disk(shards: Path, tmp_path: Path) -> None:
    local = BlockStore(shards, manifest=load_manifest(shards), split="train")
    store = opened(tmp_path)
    assert store.is_remote
    assert all(store.fetch_ahead(block) for block in range(3))
    for block in range(store.num_blocks):
        assert store.read_block(block).tokens.tobytes() == local.read_block(block).tokens.tobytes()
        assert store.block_lengths(block).tolist() == local.block_lengths(block).tolist()


def test_a_tar_that_was_cut_in_the_bucket_is_damage(bucket: Any, shards: Path, tmp_path: Path) -> None:
    store = opened(tmp_path)
    start = int(store.read_index(2).offset["lengths"][0])
    whole = (shards / "train-000002.tar").read_bytes()
    block = store._first_block[2]
    try:
        bucket.put_object(Bucket="bucket", Key="corpus/shards/train-000002.tar", Body=whole[: start + 4])
        with pytest.raises(
            BlockDamage, match=r"^s3://bucket/corpus/shards/train-000002\.tar: the size of .* is 4, where"
        ):
            store.read_block(block)
        bucket.put_object(Bucket="bucket", Key="corpus/shards/train-000002.tar", Body=whole[:start])
        with pytest.raises(BlockDamage, match=r"the size of .* is 0, where"):
            store.read_block(block)
    finally:
        bucket.put_object(Bucket="bucket", Key="corpus/shards/train-000002.tar", Body=whole)


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("place", ["s3://no-such-bucket/shards", "s3://bucket/elsewhere"])
def test_a_bucket_or_folder_that_is_not_there_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{place}/manifest\.json does not exist; check the address"):
        open_shards(place, cache=CacheSettings(tmp_path, 1 << 30))


def test_a_name_that_can_be_no_buckets_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^s3://Not_A_Bucket!/manifest\.json (cannot be read|does not exist)"):
        open_shards("s3://Not_A_Bucket!", cache=CacheSettings(tmp_path, 1 << 30))


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"access was refused \(.*credentials.*\); credentials are taken from the AWS"):
        open_shards("s3://bucket/corpus/shards", cache=CacheSettings(tmp_path, 1 << 30))


@pytest.mark.usefixtures("bucket")
def test_wrong_credentials_are_named(endpoint: str, tmp_path: Path) -> None:
    def check_after(requests: int) -> None:
        ask = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=str(requests).encode(), method="POST")
        ask.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(ask).close()

    check_after(0)
    try:
        with pytest.raises(UserError, match=r"/manifest\.json: access was refused"):
            open_shards("s3://bucket/corpus/shards", cache=CacheSettings(tmp_path, 1 << 30))
    finally:
        check_after(1 << 30)


def test_an_endpoint_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        SourceAway, match=r"^s3://bucket/x/manifest\.json could not be read: .*Could not connect|Cannot"
    ):
        open_shards("s3://bucket/x", cache=CacheSettings(tmp_path, 1 << 30))
