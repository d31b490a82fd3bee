"""Checking shards wherever they lie: those on the network are copied shard by shard and checked like local ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.manifest import (
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    index_name,
    load_manifest,
)
from data_pipeline.remote_shards import read_manifest
from data_pipeline.retry import READING
from data_pipeline.shards import BlockStore
from data_pipeline.storage import MissingFile, RemoteFolder
from data_pipeline.tokenizer import METADATA_FILE, MODEL_FILE
from data_pipeline.verify import find_damage, shard_damage, tokenizer_damage
from trainer.errors import UserError
from trainer.places import remote_scheme

_COPY_BYTES = 8 << 20


def is_remote(place: str) -> bool:
    """Whether a place is read over the network; raises UserError for a scheme that is not."""
    try:
        return remote_scheme(place) is not None
    except ValueError as error:
        raise UserError(str(error)) from error


def find_damage_anywhere(place: str) -> tuple[Manifest, Iterator[str]]:
    """The manifest of a place and what is not as it says, a line each; nothing read before is believed."""
    if not is_remote(place):
        manifest = load_manifest(place)
        return manifest, find_damage(Path(place), manifest=manifest)
    remote = RemoteFolder(place, policy=READING)
    _, manifest = read_manifest(remote)
    return manifest, _find_remote_damage(remote, manifest=manifest)


def _find_remote_damage(remote: RemoteFolder, *, manifest: Manifest) -> Iterator[str]:
    """The disk needs room for one shard at a time."""
    with tempfile.TemporaryDirectory(prefix="bertline-verify-") as name:
        folder = Path(name)

        def told(findings: Iterator[str]) -> Iterator[str]:
            return (line.replace(name, remote.url) for line in findings)

        for file in (METADATA_FILE, MODEL_FILE):
            _copy(remote, f"{TOKENIZER_FOLDER}/{file}", folder=folder)
        yield from told(tokenizer_damage(folder, manifest=manifest))
        for split in SPLITS:
            store = BlockStore(folder, manifest=manifest, split=split)
            first_block = 0
            for shard in manifest.splits[split].shards:
                files = (shard.name, index_name(shard.name))
                for file in files:
                    _copy(remote, file, folder=folder)
                yield from told(shard_damage(store, shard=shard, first_block=first_block))
                for file in files:
                    (folder / file).unlink(missing_ok=True)
                first_block += shard.blocks


def _copy(remote: RemoteFolder, name: str, *, folder: Path) -> None:
    """Copy a file piece by piece; one that the source has not is left out, to be found missing."""
    with suppress(MissingFile):
        size = remote.state(name).size
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("wb") as file:
            for start in range(0, size, _COPY_BYTES):
                file.write(remote.read_range(name, start=start, end=min(start + _COPY_BYTES, size), parse=bytes))
