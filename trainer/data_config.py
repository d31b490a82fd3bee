"""The recipe's data section: where rows come from, in which proportions, and what shape they have."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.augmentation_config import AugmentationConfig
from trainer.places import remote_scheme
from trainer.strict_model import PositiveInt, StrictModel

# Highly composite on purpose: the number of data-parallel ranks must divide the number of lanes.
DEFAULT_LANES = 960
MIN_SEQ_LEN = 4
# Before the path of text inside an installed Python package.
PACKAGE_SCHEME = "package:"


def _text_paths(text: object) -> object:
    """One path as a list of one; refuses a scheme that is not read."""
    paths = [text] if isinstance(text, str) else text
    for path in paths if isinstance(paths, list) else []:
        if isinstance(path, str) and not path.startswith(PACKAGE_SCHEME):
            remote_scheme(path)
    return paths


class SourceConfig(StrictModel):
    """One source of a mixture; `weight` is its share of the tokens, over the sum of all weights."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    weight: Annotated[float, Field(gt=0.0)]
    shards: str | None = None
    text: list[str] | None = None

    @field_validator("text", mode="before")
    @classmethod
    def _paths(cls, text: object) -> object:
        return _text_paths(text)

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if (self.shards is None) == (self.text is None):
            raise ValueError(f"set exactly one of shards and text for the source {self.name!r}")
        if self.shards is not None:
            remote_scheme(self.shards)  # refuses what is not read
        return self


class CacheConfig(StrictModel):
    """Where blocks from the network are kept, on a disk of each host or on one of all; null is the run folder."""

    folder: str | None = None
    max_gib: Annotated[float, Field(ge=0.1)] = 10.0


class DataConfig(StrictModel):
    """Where rows come from and what shape they have; exactly one of `shards`, `text` and `sources` is set.

    `on_exhausted`: when a source has given all its documents, it begins again in a new order (`repeat`), or the run
    ends with the last whole batch before (`stop`). `on_damage`: a block that is not what its index says stops the
    run, or its rows are empty and counted (`skip`).
    """

    shards: str | None = None
    text: list[str] | None = None
    sources: list[SourceConfig] = Field(default_factory=list)
    on_exhausted: Literal["repeat", "stop"] = "repeat"
    text_field: str = "text"
    document: Literal["line", "blank-line"] = "line"
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    word_starts: Literal["vocabulary", "jieba"] = "vocabulary"
    deduplicate: bool = False
    prepared: str | None = None
    max_seq_len: PositiveInt = 512
    packing: Literal["packed", "padded"] = "packed"
    lanes: PositiveInt = DEFAULT_LANES
    prefetch_batches: PositiveInt = 4
    augmentation: AugmentationConfig | None = None
    cache: CacheConfig | None = None
    on_damage: Literal["stop", "skip"] = "stop"

    @field_validator("text", mode="before")
    @classmethod
    def _paths(cls, text: object) -> object:
        return _text_paths(text)

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if [self.shards is None, self.text is None, not self.sources].count(False) != 1:
            raise ValueError(
                "set exactly one of data.shards (a folder made by `data_pipeline build`), data.text (raw text) and "
                "data.sources (several of them, mixed)"
            )
        if self.shards is not None:
            remote_scheme(self.shards)  # refuses what is not read
        if self.cache is not None and not self.has_remote_shards:
            raise ValueError("data.cache belongs to shards on the network; remove it")
        if not self.has_text and self.prepared is not None:
            raise ValueError("data.prepared belongs to data.text; with data.shards remove it")
        if not self.has_text and (self.word_starts != "vocabulary" or self.deduplicate):
            raise ValueError(
                "data.word_starts and data.deduplicate belong to data.text, and shards were built with or without; "
                "with data.shards remove them"
            )
        twice = [name for name, count in Counter(source.name for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"data.sources names {twice[0]!r} twice; give each source a name of its own")
        if self.max_seq_len < MIN_SEQ_LEN:
            raise ValueError(f"data.max_seq_len must be at least {MIN_SEQ_LEN}: [CLS], [SEP] and two tokens")
        return self

    @property
    def all_sources(self) -> list[SourceConfig]:
        """The mixture's sources; `shards` or `text` alone are one of weight 1."""
        return self.sources or [SourceConfig(name="data", weight=1.0, shards=self.shards, text=self.text)]

    @property
    def has_text(self) -> bool:
        """Whether shards have to be made from raw text first."""
        return any(source.text is not None for source in self.all_sources)

    @property
    def has_shards(self) -> bool:
        """Whether shards, and with them a tokenizer, are there already."""
        return any(source.shards is not None for source in self.all_sources)

    @property
    def has_remote_shards(self) -> bool:
        """Whether any of the shards lie on the network."""
        places = [source.shards for source in self.all_sources if source.shards is not None]
        return any(remote_scheme(place) is not None for place in places)
