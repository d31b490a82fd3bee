"""A run's sources as they lie on disk: which shards, in which proportions, checked to speak one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from data_pipeline.damage import ShardDamage, SkippedBlocks
from data_pipeline.manifest import Manifest, load_manifest
from data_pipeline.remote_shards import SOURCE_FILE
from trainer.config import fingerprint
from trainer.data_config import SourceConfig
from trainer.errors import UserError


@dataclass(frozen=True)
class Source:
    """One folder of shards; `weight` is its share of the tokens over the sum of all, exactly as the recipe says it."""

    name: str
    folder: Path
    manifest: Manifest
    weight: Fraction


@dataclass(frozen=True)
class Corpus:
    """The sources of a run, one or several, all tokenized alike.

    Damaged blocks are noted in `skipped` and left out; where it is None they stop.
    """

    sources: tuple[Source, ...]
    skipped: SkippedBlocks | None = None

    @property
    def manifest(self) -> Manifest:
        """The first source's manifest: its vocabulary is that of all."""
        return self.sources[0].manifest

    @property
    def fingerprint(self) -> str:
        """What all sources hold, in their order; that of the shards where there is one source."""
        prints = [source.manifest.fingerprint for source in self.sources]
        return prints[0] if len(prints) == 1 else fingerprint(prints)


def open_folder(folder: Path) -> Corpus:
    """One folder of shards by itself."""
    return open_corpus([SourceConfig(name="data", weight=1.0, shards=str(folder))], [folder])


def open_corpus(sources: Sequence[SourceConfig], folders: Sequence[Path]) -> Corpus:
    """The sources, with each one's folder of shards; UserError when one is missing or tokenized unlike the first."""
    opened = tuple(
        Source(source.name, folder, load_manifest(folder), Fraction(str(source.weight)))
        for source, folder in zip(sources, folders, strict=True)
    )
    first = opened[0]
    for source in opened[1:]:
        if source.manifest.tokenizer_sha256 != first.manifest.tokenizer_sha256:
            raise UserError(
                f"the sources {first.name!r} ({first.folder}) and {source.name!r} ({source.folder}) were built with "
                f"unlike tokenizers; build {source.name!r} again with --tokenizer {first.folder / 'tokenizer'}"
            )
    return Corpus(opened)


def check_sizes(corpus: Corpus) -> None:
    """Raise ShardDamage where a shard is missing or cut short: at the start, not when its first block is read.

    Shards on the network are checked as they are fetched.
    """
    for source in corpus.sources:
        if (source.folder / SOURCE_FILE).is_file():
            continue
        for split in source.manifest.splits.values():
            for shard in split.shards:
                path = source.folder / shard.name
                found = path.stat().st_size if path.is_file() else "missing"
                if found != shard.bytes:
                    raise ShardDamage.of(path, "size in bytes", expected=shard.bytes, found=found)
