"""What happened to a run and when: `events.jsonl` in the run folder, written by training and supervisor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"


def append_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append `{"time_s", "event", **facts}`; one process of the job calls it. time_s: seconds since 1970."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time_s": time.time(), "event": event, **facts}) + "\n")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events in order; empty where there are none."""
    return [event for event in read_json_lines(run_dir / EVENTS_FILE) if {"event", "time_s"} <= event.keys()]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that a crash may have torn: what is no whole line is left out. Empty without a file."""
    if not path.is_file():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            objects.append(found)
    return objects
