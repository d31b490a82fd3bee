"""The part of a run's report that tells how each rank fares."""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = {"ranks/step_s": "step", "ranks/forward_s": "forward pass", "ranks/data_wait_s": "wait for data"}
_FORWARD, _SLOWEST = "ranks/forward_s", "ranks/slowest"
# Enough to find a pattern in; in a thousand rows nobody does.
_SHOWN = 20


def rank_table(events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> str:
    """HTML: the last start's ranks, the slowest first, medians over logged steps; empty where none were measured."""
    starts = [event for event in events if event["event"] == "train"]
    since_s = starts[-1]["time_s"] if starts else 0.0
    records = [record for record in metrics if _SLOWEST in record and record["time_s"] >= since_s]
    if not records:
        return ""
    medians = {figure: _medians(records, figure) for figure in _FIGURES}
    times = Counter(int(record[_SLOWEST]) for record in records)
    ranks = range(len(medians[_FORWARD]))
    hosts = dict(enumerate(starts[-1].get("hosts", []) if starts else []))
    order = sorted(ranks, key=lambda rank: (-times[rank], -medians[_FORWARD][rank]))
    told = f"The slowest rank since the last start is rank {order[0]} on {hosts.get(order[0], '?')}"
    told += f"; {len(order) - _SHOWN} more ranks are not shown." if len(order) > _SHOWN else "."
    head = ["rank", "host", *(f"{name}, ms" for name in _FIGURES.values()), "slowest in logged steps"]
    lines = [_line("th", head)]
    for rank in order[:_SHOWN]:
        figures = [f"{1000 * medians[figure][rank]:.1f}" for figure in _FIGURES]
        lines.append(_line("td", [rank, hosts.get(rank, "?"), *figures, f"{times[rank]} of {len(records)}"]))
    return f"<p>{html.escape(told)}</p>\n<table>" + "\n".join(lines) + "</table>"


def _medians(records: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    """A rank's median over the records, for each rank."""
    return [statistics.median(of_rank) for of_rank in zip(*(record[figure] for record in records), strict=True)]


def _line(cell: str, values: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(str(value))}</{cell}>" for value in values) + "</tr>"
