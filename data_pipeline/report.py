"""Printing what a folder of shards holds: rich tables on a terminal, plain ones elsewhere."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_pipeline.example_rows import PACKINGS, ROW_LENGTHS, ExampleRow, TokenKind
from data_pipeline.facts import EXAMPLE_ROW_LENGTH, ShardFacts, SplitFacts

_BAR_WIDTH = 40
_EXAMPLE_CHARACTERS = 300
_SMALLEST_PLAIN_WIDTH = 120
_STYLES: dict[TokenKind, str] = {
    "plain": "",
    "special": "dim",
    "unknown": "white on red",
    "mask": "white on blue",
    "random": "black on yellow",
    "kept": "black on green",
}


def print_report(facts: ShardFacts) -> None:
    """Print splits, document lengths, scripts, row fill, the unknown-token rate, example documents and rows."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=_SMALLEST_PLAIN_WIDTH, soft_wrap=True)
    _print_identity(console, facts)
    _print_splits(console, facts)
    for split in facts.splits:
        _print_lengths(console, split)
        share = f"{split.unknown.unknown:,} of {split.unknown.sampled_tokens:,} sampled"
        console.print(f"unknown tokens, {split.name}: {split.unknown.rate:.4%} ({share})")
        _print_scripts(console, split)
        _print_fill(console, split)
    for block, length, text in facts.documents:
        shown = text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}…"
        console.print(f"\n[bold]block {block}, its first document, {length:,} tokens[/bold]")
        console.print(escape(shown), highlight=False)
    for row in facts.rows:
        console.print(f"\n[bold]block {row.block}, its first row of {EXAMPLE_ROW_LENGTH}, masked[/bold]")
        console.print(_row_text(row), highlight=False)


def _print_identity(console: Console, facts: ShardFacts) -> None:
    manifest = facts.manifest
    left_out = [f"{manifest.dropped_documents:,} without a token"]
    if manifest.duplicate_documents:
        left_out.append(f"{manifest.duplicate_documents:,} duplicates")
    console.print(f"[bold]{escape(facts.place)}[/bold]")
    console.print(f"fingerprint {manifest.fingerprint}")
    console.print(f"tokenizer   {manifest.tokenizer_sha256}, {manifest.vocab_size:,} pieces")
    console.print(f"tokens      {manifest.dtype}, blocks of {manifest.block_tokens:,}")
    console.print(f"documents   {manifest.input_documents:,} read, {', '.join(left_out)}")
    if facts.sources:
        size = sum(size for _, size in facts.sources)
        console.print(f"text        {len(facts.sources):,} files, {size:,} bytes", highlight=False)


def _print_splits(console: Console, facts: ShardFacts) -> None:
    table = _table(console, "split", "shards", "blocks", "documents", "tokens", "bytes")
    for name, split in facts.manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        counts = (len(split.shards), split.blocks, split.documents, split.tokens, size)
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)


def _print_lengths(console: Console, split: SplitFacts) -> None:
    table = _table(console, f"{split.name}: tokens a document", *(f"{percent} %" for percent in split.percentiles))
    table.add_row("at most", *(f"{length:,}" for length in split.percentiles.values()))
    console.print(table)
    most = max(entry.documents for entry in split.bins)
    for entry in split.bins:
        bar = "#" * round(_BAR_WIDTH * entry.documents / most)
        console.print(f"  {entry.first:>9,} - {entry.last:<9,} {entry.documents:>12,} {bar}", highlight=False)


def _print_scripts(console: Console, split: SplitFacts) -> None:
    letters = max(1, sum(share.letters for share in split.scripts))
    documents = max(1, sum(share.documents for share in split.scripts))
    table = _table(console, f"{split.name}: script", "of letters", "of documents")
    for share in split.scripts:
        table.add_row(share.script, f"{share.letters / letters:.2%}", f"{share.documents / documents:.2%}")
    console.print(table)


def _print_fill(console: Console, split: SplitFacts) -> None:
    table = _table(console, f"{split.name}: places filled in rows of", *(f"{length:,}" for length in ROW_LENGTHS))
    for packing in PACKINGS:
        table.add_row(packing, *(f"{entry.fill:.2%}" for entry in split.fill if entry.packing == packing))
    console.print(table)


def _row_text(row: ExampleRow) -> Text:
    """A row's tokens: what is to be predicted is in braces, behind what the model is given instead."""
    text = Text()
    for token in row.tokens:
        given, original = (piece.removeprefix("▁") for piece in (token.given, token.original))
        if token.original.startswith("▁") or token.kind == "special":
            text.append(" ")
        shown = {"mask": f"{given}{{{original}}}", "random": f"{given}{{{original}}}", "kept": f"{{{original}}}"}
        text.append(shown.get(token.kind, given), style=_STYLES[token.kind])
    return text


def _table(console: Console, first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
