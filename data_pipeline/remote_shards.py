"""Shards on the network: a local folder mirrors the small files, blocks come by byte range through a cache."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_pipeline.block_cache import BlockCache, write_shared
from data_pipeline.damage import BlockDamage, ShardDamage
from data_pipeline.manifest import MANIFEST_FILE, TOKENIZER_FOLDER, Manifest, Shard, index_name, parse_manifest
from data_pipeline.retry import OPENING, READING
from data_pipeline.storage import MissingFile, RemoteFolder
from data_pipeline.tokenizer import METADATA_FILE, MODEL_FILE
from trainer.errors import UserError
from trainer.places import remote_scheme

Parsed = TypeVar("Parsed")

# In a mirror: where its blocks come from, and how much of them is kept.
SOURCE_FILE = "remote.json"
_BLOCKS_FOLDER = "blocks"
_FETCHES_AHEAD = 8


@dataclass(frozen=True)
class CacheSettings:
    """Where what comes from the network is kept, and how many bytes of blocks at most."""

    folder: Path
    max_bytes: int


def open_shards(place: str | Path, *, cache: CacheSettings) -> Path:
    """The local folder by which shards are read: `place` itself, or the mirror of a place on the network.

    Every rank may call it at once. A mirror has its content's fingerprint in its name and holds manifest and
    tokenizer; indexes are added when they are needed, and row counts are kept there. Raises UserError.
    """
    try:
        if remote_scheme(str(place)) is None:
            return Path(place)
    except ValueError as error:
        raise UserError(str(error)) from error
    remote = RemoteFolder(str(place), policy=OPENING)
    raw, manifest = read_manifest(remote)
    folder = cache.folder.absolute() / f"shards-{manifest.fingerprint[:16]}"
    _mirror_tokenizer(remote, folder=folder, manifest=manifest)
    source = json.dumps({"url": remote.url, "cache_bytes": cache.max_bytes}).encode()
    for name, content in ((SOURCE_FILE, source), (MANIFEST_FILE, raw)):
        if not _holds(folder / name, hashlib.sha256(content).hexdigest()):
            write_shared(folder / name, content)
    return folder


def read_manifest(remote: RemoteFolder) -> tuple[bytes, Manifest]:
    """The manifest's bytes and what they say; raises UserError."""
    where = remote.url_of(MANIFEST_FILE)
    return remote.read(MANIFEST_FILE, parse=lambda raw: (raw, parse_manifest(raw, where=where)))


def _mirror_tokenizer(remote: RemoteFolder, *, folder: Path, manifest: Manifest) -> None:
    local = folder / TOKENIZER_FOLDER
    if _holds(local / MODEL_FILE, manifest.tokenizer_sha256) and (local / METADATA_FILE).is_file():
        return

    def parse(model: bytes) -> bytes:
        if hashlib.sha256(model).hexdigest() != manifest.tokenizer_sha256:
            raise UserError(
                f"{remote.url_of(TOKENIZER_FOLDER)} is not the tokenizer that these shards were built with (another "
                "sha256); copy the shards there again"
            )
        return model

    write_shared(local / MODEL_FILE, remote.read(f"{TOKENIZER_FOLDER}/{MODEL_FILE}", parse=parse))
    write_shared(local / METADATA_FILE, remote.read(f"{TOKENIZER_FOLDER}/{METADATA_FILE}", parse=bytes))


def _holds(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


class RemoteShards:
    """Reads blocks of the shards that a mirror stands for; any thread may call it."""

    def __init__(self, folder: Path) -> None:
        source = json.loads((folder / SOURCE_FILE).read_bytes())
        self._folder = folder
        self._remote = RemoteFolder(source["url"], policy=READING)
        self._cache = BlockCache(folder.parent / _BLOCKS_FOLDER, max_bytes=source["cache_bytes"])
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], Future[None]] = {}

    def url_of(self, name: str) -> str:
        """The URL of a shard or an index."""
        return self._remote.url_of(name)

    def read_index(self, shard: Shard) -> bytes:
        """The bytes of a shard's index, which the mirror then holds; raises ShardDamage when they are others."""
        name = index_name(shard.name)
        path = self._folder / name
        if _holds(path, shard.index_sha256):
            return path.read_bytes()

        def parse(raw: bytes) -> bytes:
            digest = hashlib.sha256(raw).hexdigest()
            if digest != shard.index_sha256:
                raise ShardDamage.of(
                    self.url_of(name), "the sha256", expected=shard.index_sha256[:16], found=digest[:16]
                )
            return raw

        try:
            raw = self._remote.read(name, parse=parse)
        except MissingFile as error:
            raise ShardDamage.of(self.url_of(name), "the file", expected="present", found="missing") from error
        write_shared(path, raw)
        return raw

    def read(self, shard: Shard, *, start: int, end: int, parse: Callable[[bytes], Parsed]) -> Parsed:
        """A range of a tar as `parse` gives it back; waits for a fetch of it that is under way.

        `parse` raises BlockDamage for wrong bytes. Kept bytes that are wrong are fetched again, and fetched ones are
        damaged only when two fetches agree on them: what a network does to a body is never taken for damage.
        """
        with self._lock:
            running = self._running.get((shard.sha256, start))
        if running is not None:
            running.result()
        return self._read(shard, start=start, end=end, parse=parse)

    def fetch_ahead(self, shard: Shard, *, start: int, end: int, parse: Callable[[bytes], object]) -> bool:
        """Begin to fetch a range into the cache; False where eight fetches are under way. A failure is its reader's."""
        if self._cache.holds(shard.sha256, start=start, end=end):
            return True
        key = (shard.sha256, start)
        done: Future[None] = Future()
        with self._lock:
            if key in self._running:
                return True
            if len(self._running) >= _FETCHES_AHEAD:
                return False
            self._running[key] = done

        def fetch() -> None:
            try:
                self._read(shard, start=start, end=end, parse=parse)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            finally:
                with self._lock:
                    del self._running[key]

        threading.Thread(target=fetch, name="bertline-fetch", daemon=True).start()
        return True

    def _read(self, shard: Shard, *, start: int, end: int, parse: Callable[[bytes], Parsed]) -> Parsed:
        kept = self._cache.get(shard.sha256, start=start, end=end)
        if kept is not None:
            try:
                return parse(kept)
            except BlockDamage:
                self._cache.discard(shard.sha256, start=start, end=end)

        def parse_fetched(content: bytes) -> Parsed:
            parsed = parse(content)
            self._cache.put(shard.sha256, content, start=start, end=end)
            return parsed

        try:
            return self._remote.read_range(shard.name, start=start, end=end, parse=parse_fetched)
        except MissingFile as error:
            raise ShardDamage.of(self.url_of(shard.name), "the file", expected="present", found="missing") from error
