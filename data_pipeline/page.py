"""One self-contained page of HTML on a folder of shards: plots, the same facts as text, and rows with their masks."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from data_pipeline.atomic import write_atomically
from data_pipeline.example_rows import PACKINGS, ROW_LENGTHS, ExampleRow, RowToken
from data_pipeline.facts import EXAMPLE_ROW_LENGTH, ShardFacts, SplitFacts
from data_pipeline.plots import fill_plot, length_plot, script_plot

_MOST_SOURCES = 50
_EXAMPLE_CHARACTERS = 600
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2428; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; } caption { text-align: left; color: #56646b; }
th, td { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid #e3e8ea; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots img { width: 33rem; max-width: 100%; }
.text { background: #f6f8f9; padding: .6rem .9rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.text b { font-weight: 600; border-radius: 3px; padding: 0 .15em; }
.special { color: #8b989e; font-weight: 400 !important; } .unknown { background: #c62828; color: #fff; }
.mask { background: #2f6f8f; color: #fff; } .random { background: #f4c58a; } .kept { background: #cfe8c6; }
b i { background: #ffffffd0; color: #1c2428; font-style: normal; padding: 0 .15em; margin-left: .2em; }
.identity td { text-align: left; } .note { color: #56646b; }
"""
_KINDS = (
    ("mask", "[MASK]", "to be predicted, hidden behind [MASK]; what was there stands behind it"),
    ("random", "random", "to be predicted, another token drawn in its place; what was there stands behind it"),
    ("kept", "kept", "to be predicted, left as it is"),
    ("unknown", "[UNK]", "not in the vocabulary"),
    ("special", "[CLS] [SEP]", "around each document of the row"),
)


def write_page(file: Path, facts: ShardFacts) -> None:
    """Write the page; it loads nothing from anywhere. Raises UserError when it cannot be written."""
    parts = [
        f"<h1>{escape(facts.place)}</h1>",
        _identity(facts),
        "<h2>Splits</h2>",
        _splits(facts),
        "<h2>Sources</h2>",
        _sources(facts.sources),
        "<h2>Documents</h2>",
        _pictures([length_plot(facts.splits), *(script_plot(split) for split in facts.splits)]),
        *(part for split in facts.splits for part in (_lengths(split), _scripts(split))),
        "<h2>Rows</h2>",
        _pictures([fill_plot(facts.splits[0].fill)]),
        _fill(facts.splits[0]),
        f"<h2>Rows of {EXAMPLE_ROW_LENGTH} as a model sees them</h2>",
        _legend(),
        *(_row(row) for row in facts.rows),
        "<h2>Documents as stored</h2>",
        *(_document(*document) for document in facts.documents),
    ]
    title = escape(facts.place.rstrip("/").rpartition("/")[2])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"
    write_atomically(file, page.encode())


def _identity(facts: ShardFacts) -> str:
    manifest = facts.manifest
    dropped = f"{manifest.duplicate_documents:,} duplicates, {manifest.dropped_documents:,} without a token"
    rows = [
        ("fingerprint", manifest.fingerprint),
        ("tokenizer", f"{manifest.tokenizer_sha256}, {manifest.vocab_size:,} pieces"),
        ("tokens", f"{manifest.dtype}, blocks of {manifest.block_tokens:,}, members {', '.join(manifest.fields)}"),
        ("documents", f"{manifest.input_documents:,} read; left out: {dropped}"),
    ]
    cells = "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="identity">{cells}</table>'


def _splits(facts: ShardFacts) -> str:
    rates = {split.name: f"{split.unknown.rate:.4%}" for split in facts.splits}
    rows = [
        (name, len(split.shards), split.blocks, split.documents, split.tokens, rates.get(name, "-"))
        for name, split in facts.manifest.splits.items()
    ]
    return _table(("split", "shards", "blocks", "documents", "tokens", "unknown tokens"), rows)


def _sources(sources: Sequence[tuple[str, int]]) -> str:
    if not sources:
        return '<p class="note">No build.json lies beside the shards, which would name the text they come from.</p>'
    more = len(sources) - _MOST_SOURCES
    note = f'<p class="note">and {more:,} more files</p>' if more > 0 else ""
    return _table(("file", "bytes"), sources[:_MOST_SOURCES]) + note


def _lengths(split: SplitFacts) -> str:
    names = (f"{split.name}: tokens a document", *(f"{percent} %" for percent in split.percentiles))
    return _table(names, [("at most", *split.percentiles.values())])


def _scripts(split: SplitFacts) -> str:
    letters = max(1, sum(share.letters for share in split.scripts))
    documents = max(1, sum(share.documents for share in split.scripts))
    rows = [
        (share.script, f"{share.letters / letters:.2%}", f"{share.documents / documents:.2%}")
        for share in split.scripts
    ]
    return _table((f"{split.name}: script", "of letters", "of documents, by most letters"), rows)


def _fill(split: SplitFacts) -> str:
    rows = [
        (packing, *(f"{entry.fill:.2%}" for entry in split.fill if entry.packing == packing)) for packing in PACKINGS
    ]
    return _table((f"{split.name}: rows", *(f"{length:,}" for length in ROW_LENGTHS)), rows)


def _legend() -> str:
    marks = "<br>".join(f'<b class="{kind}">{escape(mark)}</b> {escape(meaning)}' for kind, mark, meaning in _KINDS)
    return f'<p class="text">{marks}</p>'


def _row(row: ExampleRow) -> str:
    return (
        f'<p class="note">block {row.block:,}, its first row, {len(row.tokens):,} tokens</p>'
        f'<p class="text">{"".join(map(_marked, row.tokens))}</p>'
    )


def _marked(token: RowToken) -> str:
    """One token; where something else is given than was in the text, both are shown."""
    blank = " " if token.original.startswith("▁") else ""
    given, original = (escape(piece.removeprefix("▁")) for piece in (token.given, token.original))
    if token.kind == "plain":
        return blank + original
    if token.kind in ("mask", "random"):
        return f'{blank}<b class="{token.kind}">{given}<i>{original}</i></b>'
    space = " " if token.kind == "special" else blank
    return f'{space}<b class="{token.kind}">{given}</b>'


def _document(block: int, length: int, text: str) -> str:
    shown = text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}…"
    return f'<p class="note">block {block:,}, {length:,} tokens</p><p class="text">{escape(shown)}</p>'


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _pictures(pictures: Iterable[bytes]) -> str:
    # As data, so that the names within one drawing cannot meet those of another.
    images = (f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">' for svg in pictures)
    return f'<div class="plots">{"".join(images)}</div>'
