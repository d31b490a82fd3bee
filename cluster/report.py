"""A page that tells a run's story: starts, saves, faults and restarts over time, and how fast it went between them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cluster.report_ranks import rank_table
from trainer.errors import UserError
from trainer.events import read_events, read_json_lines

REPORT_FILE = "report.html"
_THROUGHPUT = "throughput/tokens_per_sec"
_MARKS = {"train": ("green", "o"), "save": ("tab:blue", "|"), "fault": ("red", "x"), "stopped": ("orange", "s")}
_MARKS |= {"give up": ("black", "X"), "finished": ("green", "*")}

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 15px sans-serif; margin: 2em; max-width: 70em }} td, th {{ padding: 2px 12px; text-align: left }}
tr:nth-child(even) {{ background: #f4f4f4 }} img {{ max-width: 100% }}</style></head>
<body><h1>{title}</h1><p>{summary}</p>
{ranks}
<img alt="steps and tokens/s over time, with events" src="data:image/png;base64,{image}">
<table><tr><th>time (UTC)</th><th>after</th><th>event</th><th></th></tr>
{rows}
</table></body></html>
"""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html and give its path; UserError where the folder holds no run."""
    events = read_events(run_dir)
    metrics = [record for record in read_json_lines(run_dir / "metrics.jsonl") if {"step", "time_s"} <= record.keys()]
    if not events and not metrics:
        raise UserError(f"{run_dir} holds neither events.jsonl nor metrics.jsonl: no run has begun there")
    path = run_dir / REPORT_FILE
    path.write_text(report_page(run_dir.resolve().name, events=events, metrics=metrics), encoding="utf-8")
    return path


def report_page(title: str, *, events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page as text, pictures included."""
    first_s = min(item["time_s"] for item in (*events, *metrics))
    rows = "\n".join(_row(event, first_s=first_s) for event in events)
    return _PAGE.format(
        title=html.escape(title),
        summary=html.escape(summary(events, metrics)),
        ranks=rank_table(events, metrics),
        image=base64.b64encode(_picture(events, metrics, first_s=first_s)).decode(),
        rows=rows,
    )


def summary(events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> str:
    """One line: how far, how long, how many of what, and the median speed."""
    times = [item["time_s"] for item in (*events, *metrics)]
    counts = {name: sum(event["event"] == name for event in events) for name in ("train", "save", "fault")}
    speeds = sorted(record[_THROUGHPUT] for record in metrics if _THROUGHPUT in record)
    speed = f", median {speeds[len(speeds) // 2]:,.0f} tokens/s" if speeds else ""
    step = max((record["step"] for record in metrics), default=0)
    return (
        f"step {step} after {_duration(max(times) - min(times))}: {counts['train']} start(s) of training, "
        f"{counts['save']} save(s), {counts['fault']} fault(s){speed}"
    )


def _row(event: Mapping[str, Any], *, first_s: float) -> str:
    # A start of training names the host of every rank, for the table of ranks.
    left_out = ("time_s", "event", *(["hosts"] if event["event"] == "train" else []))
    told = ", ".join(f"{key} {value}" for key, value in event.items() if key not in left_out)
    when = datetime.fromtimestamp(event["time_s"], tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    cells = (when, _duration(event["time_s"] - first_s), event["event"], told)
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds:.1f} s"


def _picture(events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], *, first_s: float) -> bytes:
    """A PNG: steps and tokens/s over minutes, with the events where they happened."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the report needs matplotlib; pip install 'bertline[plots]'") from None
    figure = Figure(figsize=(11, 5), layout="constrained")
    steps, speed = figure.subplots(2, 1, sharex=True)

    def minutes(items: Sequence[Mapping[str, Any]]) -> list[float]:
        return [(item["time_s"] - first_s) / 60 for item in items]

    trained = [record for record in metrics if "train/loss" in record]
    steps.plot(minutes(trained), [record["step"] for record in trained], ".", markersize=2, color="gray")
    for name, (color, marker) in _MARKS.items():
        found = [event for event in events if event["event"] == name]
        heights = [_step_at(event, trained) for event in found]
        if found:
            steps.scatter(minutes(found), heights, color=color, marker=marker, label=f"{name} ({len(found)})", zorder=3)
    if steps.get_legend_handles_labels()[0]:
        steps.legend(loc="upper left")
    timed = [record for record in trained if _THROUGHPUT in record]
    speed.plot(minutes(timed), [record[_THROUGHPUT] for record in timed], linewidth=1)
    steps.set_ylabel("step")
    speed.set_ylabel("tokens/s")
    speed.set_xlabel("minutes since the first start")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _step_at(event: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]) -> int:
    """The step an event names, else the last one measured before it."""
    before = [record["step"] for record in trained if record["time_s"] <= event["time_s"]]
    return int(event.get("step", before[-1] if before else 0))
