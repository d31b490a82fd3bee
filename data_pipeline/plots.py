"""The pictures of the page on shards, as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from data_pipeline.example_rows import PACKINGS, RowFill
from data_pipeline.facts import SplitFacts
from trainer.errors import UserError

_COLOURS = ("#2f6f8f", "#d98032")
_WIDTH_IN, _HEIGHT_IN = 6.4, 3.2
_MOST_SCRIPTS = 8


def length_plot(splits: Iterable[SplitFacts]) -> bytes:
    """The share of each split's documents by length, in bins that double."""
    figure, axes = _axes("Document lengths", "tokens a document", "share of documents")
    for split, colour in zip(splits, _COLOURS, strict=False):
        total = sum(entry.documents for entry in split.bins)
        edges = [split.bins[0].first, *(entry.last + 1 for entry in split.bins)]
        axes.stairs([entry.documents / total for entry in split.bins], edges, label=split.name, color=colour, lw=1.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    return _svg(figure)


def fill_plot(fill: Iterable[RowFill]) -> bytes:
    """How full rows are at each length, packed and padded."""
    figure, axes = _axes("Row fill", "row length in tokens", "places that hold a token")
    entries = list(fill)
    for packing, colour in zip(PACKINGS, _COLOURS, strict=True):
        points = [entry for entry in entries if entry.packing == packing]
        lengths = [entry.max_seq_len for entry in points]
        axes.plot(lengths, [entry.fill for entry in points], "o-", label=packing, color=colour, lw=1.8)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0.0, 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    return _svg(figure)


def script_plot(split: SplitFacts) -> bytes:
    """The share of letters and of documents of the commonest scripts."""
    figure, axes = _axes(f"Scripts, {split.name}", "share", "")
    shown = split.scripts[:_MOST_SCRIPTS]
    for number, (what, colour) in enumerate(zip(("letters", "documents"), _COLOURS, strict=True)):
        total = max(1, sum(getattr(share, what) for share in split.scripts))
        places = [place + 0.38 * number for place in range(len(shown))]
        axes.barh(places, [getattr(share, what) / total for share in shown], 0.36, label=what, color=colour)
    axes.set_yticks([place + 0.19 for place in range(len(shown))], [share.script for share in shown])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    return _svg(figure)


def _axes(title: str, across: str, up: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--html needs matplotlib, which is missing: pip install 'bertline[plots]'") from error
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
