"""The manifest: what a folder of token shards holds, and the fingerprint by which everything refers to it.

It names no path and no time, so that equal shards have equal fingerprints wherever and whenever they were built. It
holds the SHA-256 of its own content, so that a changed one is refused rather than believed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.errors import UserError

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
_CONTENT_HASH = "content_sha256"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
FIELDS = ("lengths", "tokens")
# Shards whose word starts were found by a segmenter hold them too.
WORDS_FIELD = "words"
FIELDS_WITH_WORDS = (*FIELDS, WORDS_FIELD)
SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
LENGTH_DTYPE = np.dtype(np.uint32)


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, size and checksums, and what it holds."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    blocks: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order, with their sums."""

    shards: tuple[Shard, ...]
    blocks: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; `fingerprint` is the SHA-256, in hex, of that file's bytes."""

    dtype: np.dtype[Any]
    block_tokens: int
    vocab_size: int
    tokenizer_sha256: str
    special_token_ids: dict[str, int]
    splits: dict[str, Split]
    input_documents: int
    dropped_documents: int
    fingerprint: str
    fields: tuple[str, ...] = FIELDS
    duplicate_documents: int = 0


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every id: uint16 up to 65,536 pieces, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def index_name(shard_name: str) -> str:
    """The name of the index that lies beside a tar."""
    return f"{shard_name.removesuffix('.tar')}.index.npz"


def manifest_bytes(
    shards: dict[SplitName, Sequence[Shard]],
    *,
    block_tokens: int,
    vocab_size: int,
    tokenizer_sha256: str,
    special_token_ids: dict[str, int],
    input_documents: int,
    fields: Sequence[str] = FIELDS,
    duplicate_documents: int | None = None,
) -> bytes:
    """The manifest's canonical bytes; `duplicate_documents` is None where nobody looked for duplicates."""
    splits = {split: {**_sums(shards[split]), "shards": [asdict(shard) for shard in shards[split]]} for split in SPLITS}
    kept = sum(split["documents"] for split in splits.values())
    documents = {"input": input_documents, "without_tokens": input_documents - kept - (duplicate_documents or 0)}
    if duplicate_documents is not None:
        documents["duplicates"] = duplicate_documents
    content = {
        "schema_version": SCHEMA_VERSION,
        "dtype": token_dtype(vocab_size).name,
        "fields": list(fields),
        "block_tokens": block_tokens,
        "tokenizer": {
            "sha256": tokenizer_sha256,
            "vocab_size": vocab_size,
            "special_token_ids": special_token_ids,
        },
        "splits": splits,
        "documents": documents,
    }
    return seal(content)


def seal(content: dict[str, Any]) -> bytes:
    """A manifest's canonical bytes, with the SHA-256 of its own content in it."""
    sealed = {**content, _CONTENT_HASH: _content_sha256(content)}
    return (json.dumps(sealed, indent=2, sort_keys=True) + "\n").encode()


def _content_sha256(content: dict[str, Any]) -> str:
    others = {key: value for key, value in content.items() if key != _CONTENT_HASH}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: str | Path) -> Manifest:
    """Read `manifest.json` of a folder of shards; every rank may call it.

    Raises UserError when the folder or the manifest is missing, when it is damaged and when its schema is not ours.
    """
    path = Path(folder) / MANIFEST_FILE
    if path.parent.is_file():
        raise UserError(f"{folder} is a file; name a folder of shards, as `python -m data_pipeline build` makes them")
    if not path.parent.is_dir():
        raise UserError(f"the shard folder {folder} does not exist; make it by `python -m data_pipeline build`")
    if not path.is_file():
        raise UserError(
            f"{folder} holds no finished shards: {MANIFEST_FILE} is missing; "
            "run `python -m data_pipeline build` with the same settings to the end"
        )
    return parse_manifest(path.read_bytes(), where=str(path))


def parse_manifest(raw: bytes, *, where: str) -> Manifest:
    """A manifest from its file's bytes; raises UserError, naming `where`, when it is damaged or of another schema."""
    try:
        content = json.loads(raw)
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, error) from error
    if version != SCHEMA_VERSION:
        age = "older" if isinstance(version, int) and version < SCHEMA_VERSION else "newer"
        raise UserError(
            f"{where} has schema_version {version}, {age} than this program's {SCHEMA_VERSION}; "
            "build the shards again, or use the Bertline that built them"
        )
    try:
        if content[_CONTENT_HASH] != _content_sha256(content):
            raise ValueError("its content is not what its own sha256 says")
        return _parse(content, fingerprint=hashlib.sha256(raw).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(where, error) from error


def _parse(content: dict[str, Any], *, fingerprint: str) -> Manifest:
    tokenizer = content["tokenizer"]
    manifest = Manifest(
        dtype=np.dtype(content["dtype"]),
        block_tokens=int(content["block_tokens"]),
        vocab_size=int(tokenizer["vocab_size"]),
        tokenizer_sha256=str(tokenizer["sha256"]),
        special_token_ids={str(name): int(token) for name, token in tokenizer["special_token_ids"].items()},
        splits={name: _parse_split(content["splits"][name]) for name in SPLITS},
        input_documents=int(content["documents"]["input"]),
        dropped_documents=int(content["documents"]["without_tokens"]),
        fingerprint=fingerprint,
        fields=tuple(content["fields"]),
        duplicate_documents=int(content["documents"].get("duplicates", 0)),
    )
    if manifest.fields not in (FIELDS, FIELDS_WITH_WORDS):
        raise ValueError(f"fields {list(manifest.fields)} are not those of a block")
    if manifest.dtype != token_dtype(manifest.vocab_size):
        raise ValueError(f"dtype {manifest.dtype} does not go with vocab_size {manifest.vocab_size}")
    return manifest


def _parse_split(content: dict[str, Any]) -> Split:
    shards = tuple(_parse_shard(shard) for shard in content["shards"])
    split = Split(shards, int(content["blocks"]), int(content["documents"]), int(content["tokens"]))
    if _sums(shards) != {"blocks": split.blocks, "documents": split.documents, "tokens": split.tokens}:
        raise ValueError("a split's counts are not the sums of its shards'")
    return split


def _parse_shard(content: dict[str, Any]) -> Shard:
    shard = Shard(**content)
    if not _SHARD_NAME.fullmatch(shard.name):
        raise ValueError(f"{shard.name!r} is no name of a shard")
    for name in ("sha256", "index_sha256"):
        if not isinstance(getattr(shard, name), str):
            raise TypeError(f"the {name} of {shard.name} is {getattr(shard, name)!r}")
    for name in ("bytes", "blocks", "documents", "tokens"):
        if type(getattr(shard, name)) is not int or getattr(shard, name) < 1:
            raise ValueError(f"the number of {name} of {shard.name} is {getattr(shard, name)!r}")
    return shard


def _sums(shards: Sequence[Shard]) -> dict[str, Any]:
    return {name: sum(getattr(shard, name) for shard in shards) for name in ("blocks", "documents", "tokens")}


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where} is damaged: {type(error).__name__}: {error}; copy the shards again, "
        "or remove it and build again with the same settings"
    )
