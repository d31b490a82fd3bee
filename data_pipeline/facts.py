"""Everything that is told of a folder of shards, gathered once for the printed report and for the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.build_record import read_record
from data_pipeline.example_rows import ExampleRow, RowFill, example_rows, packing_fill
from data_pipeline.inspect import (
    LengthBin,
    UnknownTokens,
    count_lengths,
    count_unknown,
    example_documents,
    length_histogram,
    length_percentiles,
    load_shard_tokenizer,
)
from data_pipeline.manifest import SPLITS, Manifest, load_manifest
from data_pipeline.scripts import ScriptShare, script_shares
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer

EXAMPLE_ROW_LENGTH = 128


@dataclass(frozen=True)
class SplitFacts:
    """What one split holds; rates, scripts and fill are of samples of its blocks."""

    name: str
    percentiles: dict[int, int]
    bins: list[LengthBin]
    unknown: UnknownTokens
    scripts: list[ScriptShare]
    fill: list[RowFill]


@dataclass(frozen=True)
class ShardFacts:
    """What a folder of shards holds.

    `place` is where it lies, `sources` are (path, bytes) of the text, empty where nobody recorded it, `documents` are
    (block, tokens, decoded text), `rows` what training would make of the first split with text.
    """

    place: str
    manifest: Manifest
    sources: list[tuple[str, int]]
    splits: list[SplitFacts]
    documents: list[tuple[int, int, str]]
    rows: list[ExampleRow]


def gather_facts(folder: Path, *, examples: int) -> ShardFacts:
    """Read a folder of shards; raises UserError for bad shards."""
    manifest = load_manifest(folder)
    tokenizer = load_shard_tokenizer(folder, manifest=manifest)
    stores = [BlockStore(folder, manifest=manifest, split=split) for split in SPLITS]
    filled = [store for store in stores if store.num_blocks]
    record = read_record(folder)
    return ShardFacts(
        str(folder),
        manifest,
        [] if record is None else [(path, size) for path, size, _ in record.inputs],
        [_split_facts(store, tokenizer=tokenizer) for store in filled],
        list(example_documents(filled[0], tokenizer=tokenizer, wanted=examples)),
        list(example_rows(filled[0], tokenizer=tokenizer, wanted=examples, max_seq_len=EXAMPLE_ROW_LENGTH)),
    )


def _split_facts(store: BlockStore, *, tokenizer: Tokenizer) -> SplitFacts:
    counts: npt.NDArray[np.int64] = count_lengths(store)
    return SplitFacts(
        store.split,
        length_percentiles(counts),
        length_histogram(counts),
        count_unknown(store, unk_id=tokenizer.unk_id),
        script_shares(store, tokenizer=tokenizer),
        packing_fill(store),
    )
