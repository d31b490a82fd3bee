"""What a folder of shards holds, as numbers: length percentiles, a histogram, the unknown-token rate, examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import TOKENIZER_FOLDER, Manifest
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)
SAMPLED_BLOCKS = 256


@dataclass(frozen=True)
class LengthBin:
    """Documents of `first` to `last` tokens."""

    first: int
    last: int
    documents: int


@dataclass(frozen=True)
class UnknownTokens:
    """How many of the tokens of an even sample of blocks are the unknown token."""

    sampled_tokens: int
    unknown: int

    @property
    def rate(self) -> float:
        """Unknown tokens a token."""
        return self.unknown / self.sampled_tokens


def load_shard_tokenizer(folder: Path, *, manifest: Manifest) -> Tokenizer:
    """The tokenizer that lies with the shards; raises UserError when it is not theirs."""
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{tokenizer.folder} is not the tokenizer of these shards: sha256 {tokenizer.sha256[:16]}, where "
            f"{manifest.tokenizer_sha256[:16]} is expected; copy the shards again"
        )
    return tokenizer


def count_lengths(store: BlockStore) -> npt.NDArray[np.int64]:
    """How many documents have each length, int64 [longest + 1], from the indexes alone."""
    counts = np.zeros(1, np.int64)
    for lengths in store.iter_lengths():
        more = np.bincount(lengths)
        if len(more) > len(counts):
            counts = np.pad(counts, (0, len(more) - len(counts)))
        counts[: len(more)] += more
    return counts


def length_percentiles(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    """The smallest length that at least p % of the documents do not exceed, for each p of PERCENTILES."""
    cumulative = np.cumsum(counts)
    ranks = [-(-int(cumulative[-1]) * percent // 100) for percent in PERCENTILES]
    return dict(zip(PERCENTILES, np.searchsorted(cumulative, ranks).tolist(), strict=True))


def length_histogram(counts: npt.NDArray[np.int64]) -> list[LengthBin]:
    """Documents by length in bins that double: 1, 2-3, 4-7, …; empty bins at both ends are left out."""
    edges = [1 << power for power in range(len(counts).bit_length() + 1)]
    bins = [LengthBin(first, end - 1, int(counts[first:end].sum())) for first, end in itertools.pairwise(edges)]
    filled = [number for number, entry in enumerate(bins) if entry.documents]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def count_unknown(store: BlockStore, *, unk_id: int) -> UnknownTokens:
    """Unknown tokens in up to 256 blocks spread evenly over the split."""
    sampled = unknown = 0
    for block in spread(store.num_blocks, wanted=SAMPLED_BLOCKS):
        tokens = store.read_member(block, field="tokens")
        sampled += len(tokens)
        unknown += int(np.count_nonzero(tokens == unk_id))
    return UnknownTokens(sampled, unknown)


def example_documents(store: BlockStore, *, tokenizer: Tokenizer, wanted: int) -> Iterator[tuple[int, int, str]]:
    """The first documents of blocks spread evenly over the split: (block, tokens, decoded text)."""
    for block in spread(store.num_blocks, wanted=wanted):
        content = store.read_block(block)
        length = int(content.lengths[0])
        yield block, length, tokenizer.decode(content.tokens[:length])


def spread(count: int, *, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, evenly apart."""
    return sorted({number * count // wanted for number in range(wanted)}) if count else []
