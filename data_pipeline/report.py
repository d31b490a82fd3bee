"""Printing what a folder of shards holds: rich tables on a terminal, plain ones elsewhere."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipeline.inspect import (
    count_lengths,
    count_unknown,
    example_documents,
    length_histogram,
    length_percentiles,
    load_shard_tokenizer,
)
from data_pipeline.manifest import SPLITS, Manifest, load_manifest
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer

_BAR_WIDTH = 40
_EXAMPLE_CHARACTERS = 300
_SMALLEST_PLAIN_WIDTH = 120


def print_report(folder: Path, *, examples: int) -> None:
    """Print splits, document lengths, the unknown-token rate and decoded examples; raises UserError for bad shards."""
    manifest = load_manifest(folder)
    tokenizer = load_shard_tokenizer(folder, manifest=manifest)
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=_SMALLEST_PLAIN_WIDTH, soft_wrap=True)
    stores = {split: BlockStore(folder, manifest=manifest, split=split) for split in SPLITS}
    _print_facts(console, folder, manifest=manifest)
    _print_splits(console, manifest=manifest)
    for split, store in stores.items():
        if store.num_blocks:
            _print_lengths(console, store, split=split)
            unknown = count_unknown(store, unk_id=tokenizer.unk_id)
            share = f"{unknown.unknown:,} of {unknown.sampled_tokens:,} sampled"
            console.print(f"unknown tokens, {split}: {unknown.rate:.4%} ({share})")
    _print_examples(console, stores["train"], tokenizer=tokenizer, examples=examples)


def _print_facts(console: Console, folder: Path, *, manifest: Manifest) -> None:
    console.print(f"[bold]{escape(str(folder))}[/bold]")
    console.print(f"fingerprint {manifest.fingerprint}")
    console.print(f"tokenizer   {manifest.tokenizer_sha256}, {manifest.vocab_size:,} pieces")
    console.print(f"tokens      {manifest.dtype}, blocks of {manifest.block_tokens:,}")
    console.print(f"documents   {manifest.input_documents:,} read, {manifest.dropped_documents:,} without a token")


def _print_splits(console: Console, *, manifest: Manifest) -> None:
    table = _table(console, "split", "shards", "blocks", "documents", "tokens", "bytes")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        counts = (len(split.shards), split.blocks, split.documents, split.tokens, size)
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)


def _print_lengths(console: Console, store: BlockStore, *, split: str) -> None:
    counts = count_lengths(store)
    percentiles = length_percentiles(counts)
    table = _table(console, f"{split}: tokens a document", *(f"{percent} %" for percent in percentiles))
    table.add_row("at most", *(f"{length:,}" for length in percentiles.values()))
    console.print(table)
    bins = length_histogram(counts)
    most = max(entry.documents for entry in bins)
    for entry in bins:
        bar = "#" * round(_BAR_WIDTH * entry.documents / most)
        console.print(f"  {entry.first:>9,} - {entry.last:<9,} {entry.documents:>12,} {bar}", highlight=False)


def _print_examples(console: Console, store: BlockStore, *, tokenizer: Tokenizer, examples: int) -> None:
    for block, length, text in example_documents(store, tokenizer=tokenizer, wanted=examples):
        shown = text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}…"
        console.print(f"\n[bold]block {block}, its first document, {length:,} tokens[/bold]")
        console.print(escape(shown), highlight=False)


def _table(console: Console, first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
