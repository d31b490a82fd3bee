from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec.registry  # noqa: F401
import numpy as np
import pytest
from file_server import Fault, FileServer, cut_body, flipped_bit, hang_up, serving, short_body, status

from data_pipeline import remote_shards
from data_pipeline.damage import BlockDamage, ShardDamage
from data_pipeline.manifest import load_manifest
from data_pipeline.reader import RowReader
from data_pipeline.remote_shards import CacheSettings, open_shards
from data_pipeline.retry import RetryPolicy, SourceAway
from data_pipeline.row_counts import count_blocks
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer
from trainer.config import Config, DataConfig, TrainConfig
from trainer.data_config import CacheConfig
from trainer.errors import UserError
from trainer.prepare import local_shards

QUICK = RetryPolicy(total_s=5.0, first_wait_s=0.01, longest_wait_s=0.02)
SHORT = RetryPolicy(total_s=0.2, first_wait_s=0.02, longest_wait_s=0.05)
MANY = 1 << 30


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_shards, "OPENING", QUICK)
    monkeypatch.setattr(remote_shards, "READING", QUICK)


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[FileServer]:
    """The shards over HTTP, in a copy that may be changed, without row counts."""
    folder = shutil.copytree(shards, tmp_path / "served", ignore=shutil.ignore_patterns("rows-*"))
    with serving(folder) as files:
        yield files


def opened(server: FileServer, cache: Path, *, max_bytes: int = MANY) -> BlockStore:
    folder = open_shards(server.url, cache=CacheSettings(cache, max_bytes))
    return BlockStore(folder, manifest=load_manifest(folder), split="train")


def tokens_of(store: BlockStore) -> list[bytes]:
    return [store.read_block(block).tokens.tobytes() for block in range(store.num_blocks)]


@pytest.fixture
def truth(shards: Path) -> list[bytes]:
    return tokens_of(BlockStore(shards, manifest=load_manifest(shards), split="train"))


def test_a_local_place_is_its_own_folder(shards: Path, tmp_path: Path) -> None:
    assert open_shards(shards, cache=CacheSettings(tmp_path, MANY)) == shards
    assert list(tmp_path.iterdir()) == []


def test_blocks_over_http_are_those_on_disk_and_come_once(
    server: FileServer, shards: Path, tmp_path: Path, truth: list[bytes]
) -> None:
    store = opened(server, tmp_path / "cache")
    assert store.manifest.fingerprint == load_manifest(shards).fingerprint
    assert tokens_of(store) == truth
    assert server.asked(".tar") == store.num_blocks
    assert all(asked is not None for path, asked in server.requests if path.endswith(".tar"))
    again = opened(server, tmp_path / "cache")
    assert tokens_of(again) == truth
    assert again.read_member(0, field="tokens").tobytes() == truth[0]
    assert server.asked(".tar") == store.num_blocks
    assert server.asked("index") == len(store.manifest.splits["train"].shards)


def test_the_mirror_is_a_folder_of_shards_for_everything_but_blocks(server: FileServer, tmp_path: Path) -> None:
    store = opened(server, tmp_path / "cache")
    assert Tokenizer.load(store.folder / "tokenizer").sha256 == store.manifest.tokenizer_sha256
    counts = count_blocks(store, max_seq_len=32, packing="packed")
    asked = len(server.requests)
    fresh = BlockStore(store.folder, manifest=store.manifest, split="train")
    assert np.array_equal(count_blocks(fresh, max_seq_len=32, packing="packed").rows, counts.rows)
    assert len(server.requests) == asked


PASSING_FAULTS = {
    "503": [status(503)] * 3,
    "500": [status(500)],
    "429": [status(429)],
    "connection dropped": [hang_up] * 3,
    "body cut off": [cut_body] * 3,
    "short body sent as whole": [short_body] * 3,
    "one bit": [flipped_bit(200)],
    # Two equal wrong answers are damage; three unlike ones are a bad connection.
    "other bits each time": [flipped_bit(200), flipped_bit(201), flipped_bit(202)],
    "one after the other": [status(503), hang_up, cut_body, flipped_bit(9), short_body],
}


@pytest.mark.parametrize("faults", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
def test_a_fault_that_passes_changes_no_token(
    server: FileServer, tmp_path: Path, truth: list[bytes], faults: list[Fault]
) -> None:
    server.only, server.faults = ".tar", list(faults)
    store = opened(server, tmp_path / "cache")
    assert store.read_block(0).tokens.tobytes() == truth[0]
    assert server.faults == []
    assert server.asked(".tar") == len(faults) + 1


def _one_bit(name: str) -> list[Fault]:
    # Nothing says what the tokenizer's description must be, but for the model's checksum in it.
    return [flipped_bit(70)] if name != "bertline_tokenizer.json" else []


@pytest.mark.parametrize("name", ["manifest.json", "spiece.model", "bertline_tokenizer.json", "index.npz"])
def test_the_small_files_are_asked_for_again_too(
    server: FileServer, tmp_path: Path, truth: list[bytes], name: str
) -> None:
    server.only, server.faults = name, [status(503), hang_up, cut_body, *_one_bit(name)]
    assert opened(server, tmp_path / "cache").read_block(0).tokens.tobytes() == truth[0]
    assert server.faults == []


def test_a_source_that_stays_away_is_named_with_its_url_and_the_last_error(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shards, "OPENING", SHORT)
    server.only, server.faults = "manifest", [status(503)] * 100
    with pytest.raises(SourceAway, match=rf"^{server.url}/manifest\.json could not be read: \d+ tries in \d+ s, .*503"):
        open_shards(server.url, cache=CacheSettings(tmp_path / "cache", MANY))


def test_a_host_that_no_one_knows_and_a_port_that_no_one_holds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shards, "OPENING", SHORT)
    for url in ("http://127.0.0.1:9", "http://no-such-host.invalid/x"):
        with pytest.raises(SourceAway, match=r"manifest\.json could not be read: \d+ tries .*Cannot connect to host"):
            open_shards(url, cache=CacheSettings(tmp_path, MANY))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, r"access was refused \(HTTP status 401\)"),
        (403, r"access was refused \(HTTP status 403\)"),
        (404, r"manifest\.json does not exist; check the address"),
        (400, r"cannot be read: HTTP status 400; check the address"),
    ],
)
def test_an_answer_that_no_waiting_mends_stops_at_once(
    server: FileServer, tmp_path: Path, code: int, message: str
) -> None:
    server.only, server.faults = "manifest", [status(code)] * 100
    with pytest.raises(UserError, match=message):
        open_shards(server.url, cache=CacheSettings(tmp_path / "cache", MANY))
    assert len(server.faults) == 99


def test_a_server_that_ignores_ranges_is_named(server: FileServer, tmp_path: Path) -> None:
    store = opened(server, tmp_path / "cache")
    server.honours_ranges = False
    with pytest.raises(UserError, match=r"train-000000\.tar: the server sent \d+ bytes .* ignores byte ranges"):
        store.read_block(0)


@pytest.mark.parametrize(
    "change", [lambda content: content[:-1], lambda content: b"", lambda content: bytes(len(content))]
)
def test_a_damaged_cache_entry_is_fetched_again(
    server: FileServer, tmp_path: Path, truth: list[bytes], change: Callable[[bytes], bytes]
) -> None:
    store = opened(server, tmp_path / "cache")
    store.read_block(0)
    (entry,) = (tmp_path / "cache" / "blocks").glob("*.range")
    whole = entry.read_bytes()
    entry.write_bytes(change(whole))
    assert store.read_block(0).tokens.tobytes() == truth[0]
    assert entry.read_bytes() == whole
    assert server.asked(".tar") == 2


def test_a_damaged_mirror_is_mended(server: FileServer, tmp_path: Path, truth: list[bytes]) -> None:
    store = opened(server, tmp_path / "cache")
    store.read_block(0)
    for name in ("manifest.json", "train-000000.index.npz", "tokenizer/spiece.model", "remote.json"):
        (store.folder / name).write_bytes(b"{")
    assert opened(server, tmp_path / "cache").read_block(0).tokens.tobytes() == truth[0]


def test_two_shards_of_one_name_do_not_meet_in_the_cache(
    server: FileServer, shards: Path, tmp_path: Path, truth: list[bytes]
) -> None:
    other = shutil.copytree(shards, tmp_path / "other", ignore=shutil.ignore_patterns("rows-*"))
    first, second = "train-000000", "train-000001"
    manifest = load_manifest(shards)
    assert manifest.splits["train"].shards[0].sha256 != manifest.splits["train"].shards[1].sha256
    for ending in (".tar", ".index.npz"):
        shutil.copyfile(shards / (second + ending), other / (first + ending))
    store = opened(server, tmp_path / "cache")
    assert store.read_block(0).tokens.tobytes() == truth[0]
    with serving(other) as files:
        files_store = opened(files, tmp_path / "cache2")
        with pytest.raises(ShardDamage, match=rf"{files.url}/train-000000\.index\.npz: the sha256 is"):
            files_store.read_block(0)


def test_damage_at_the_source_is_told_from_a_bad_connection_and_named_by_url(
    server: FileServer, tmp_path: Path
) -> None:
    tar = server.folder / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    store = opened(server, tmp_path / "cache")
    start = int(store.read_index(0).offset["tokens"][0])
    content[start + 140] ^= 1
    tar.write_bytes(content)
    with pytest.raises(
        BlockDamage, match=rf"^{tar.name and server.url}/train-000000\.tar: the crc32 of 000000\.tokens"
    ):
        store.read_block(0)
    assert server.asked(".tar") == 2
    assert not list((tmp_path / "cache").glob("blocks/*.range"))


def test_a_tar_that_was_cut_at_the_source_is_damage(server: FileServer, tmp_path: Path) -> None:
    store = opened(server, tmp_path / "cache")
    tar = server.folder / "train-000000.tar"
    index = store.read_index(0)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: int(index.offset["tokens"][1]) + 10])
    with pytest.raises(BlockDamage, match=r"the size of 000001\.tokens\.npy is 10, where \d+ is expected"):
        store.read_block(1)
    tar.write_bytes(whole[: int(index.offset["lengths"][1]) - 512])
    with pytest.raises(BlockDamage, match=r"the size of 000001\.lengths\.npy is 0, where \d+ is expected"):
        store.read_block(1)


def test_a_file_that_is_gone_is_named(server: FileServer, tmp_path: Path) -> None:
    store = opened(server, tmp_path / "cache")
    (server.folder / "train-000000.tar").unlink()
    with pytest.raises(ShardDamage, match=r"train-000000\.tar: the file is missing") as refused:
        store.read_block(0)
    assert not isinstance(refused.value, BlockDamage)
    (server.folder / "train-000001.index.npz").unlink()
    with pytest.raises(ShardDamage, match=r"train-000001\.index\.npz: the file is missing"):
        store.read_index(1)


def test_a_tokenizer_of_other_shards_is_refused(server: FileServer, tmp_path: Path) -> None:
    model = server.folder / "tokenizer" / "spiece.model"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"/tokenizer is not the tokenizer that these shards were built with"):
        opened(server, tmp_path / "cache")


def test_blocks_fetched_ahead_are_not_fetched_again(server: FileServer, tmp_path: Path, truth: list[bytes]) -> None:
    store = opened(server, tmp_path / "cache")
    assert all(store.fetch_ahead(block) for block in range(5))
    assert [store.read_block(block).tokens.tobytes() for block in range(5)] == truth[:5]
    assert server.asked(".tar") == 5


def test_a_failure_ahead_of_need_is_raised_to_the_reader(server: FileServer, tmp_path: Path) -> None:
    store = opened(server, tmp_path / "cache")
    store.read_index(0)
    server.only, server.faults = ".tar", [status(403)] * 2
    assert store.fetch_ahead(0)
    with pytest.raises(UserError, match="access was refused"):
        store.read_block(0)


def test_at_most_eight_blocks_are_fetched_at_once(server: FileServer, tmp_path: Path, truth: list[bytes]) -> None:
    store = opened(server, tmp_path / "cache")
    server.only, server.delay_s = ".tar", 0.5
    for block in range(12):
        store.block_lengths(block)
    begun = [store.fetch_ahead(block) for block in range(12)]
    assert begun == [True] * 8 + [False] * 4
    server.delay_s = 0.0
    assert tokens_of(store) == truth
    assert server.asked(".tar") == store.num_blocks


def test_a_cache_too_small_for_a_block_still_reads_right(
    server: FileServer, tmp_path: Path, truth: list[bytes]
) -> None:
    assert tokens_of(opened(server, tmp_path / "cache", max_bytes=5000)) == truth


@pytest.mark.parametrize("world", [1, 2])
def test_rows_over_http_are_the_local_ones_and_each_block_is_fetched_once(
    server: FileServer, shards: Path, tmp_path: Path, world: int
) -> None:
    disk = BlockStore(shards, manifest=load_manifest(shards), split="train")
    local = RowReader(disk, max_seq_len=32, packing="packed", lanes=4, seed=1)
    numbers = np.arange(local.order.rows_per_epoch)
    for rank in range(world):
        store = opened(server, tmp_path / "cache")
        remote = RowReader(store, max_seq_len=32, packing="packed", lanes=4, seed=1, dp_world_size=world)
        for first in range(rank, len(numbers), 16 * world):
            rows = numbers[first::world][:16]
            assert np.array_equal(remote.read(rows).input_ids, local.read(rows).input_ids)
    # An epoch's last rows look into the next one, whose blocks are the same.
    assert server.asked(".tar") == disk.num_blocks


def test_the_cache_is_where_and_as_large_as_the_recipe_says(server: FileServer, tmp_path: Path) -> None:
    def recipe(cache: CacheConfig | None) -> Config:
        return Config(
            name="x",
            runs_dir=str(tmp_path / "runs"),
            data=DataConfig(shards=server.url, cache=cache),
            train=TrainConfig(steps=1, global_batch_size=1, micro_batch_size=1),
        )

    by_default = local_shards(server.url, recipe(None))
    chosen = local_shards(server.url, recipe(CacheConfig(folder=str(tmp_path / "scratch"), max_gib=0.5)))
    assert by_default.parent == tmp_path / "runs/x/data"
    assert json.loads((by_default / "remote.json").read_bytes()) == {"url": server.url, "cache_bytes": 10 << 30}
    assert chosen.parent == tmp_path / "scratch"
    assert json.loads((chosen / "remote.json").read_bytes()) == {"url": server.url, "cache_bytes": 1 << 29}
    assert by_default.name == chosen.name


@pytest.mark.parametrize(("url", "package"), [("http://h/x", "aiohttp"), ("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs")])
def test_a_missing_extra_is_named(url: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)
    scheme = url.partition(":")[0]
    # fsspec remembers what it has imported.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(UserError, match=rf"^{scheme}:// needs a package .*; run pip install 'bertline\[{scheme}\]'$"):
        open_shards(url, cache=CacheSettings(tmp_path, MANY))


def test_everything_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the scheme 'pipe', which is not read"):
        open_shards("pipe:cat x", cache=CacheSettings(tmp_path, MANY))
