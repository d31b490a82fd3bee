from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.report import summary, write_report
from cluster.report_ranks import rank_table
from trainer.errors import UserError
from trainer.events import append_event, read_events

EVENTS = [
    {"time_s": 1000.0, "event": "start", "hosts": ["a:1"]},
    {"time_s": 1001.0, "event": "train", "step": 0},
    {"time_s": 1005.0, "event": "save", "step": 5},
    {"time_s": 1006.0, "event": "fault", "why": "rank <1> was killed"},
    {"time_s": 1009.0, "event": "train", "step": 5},
]
METRICS = [
    {"time_s": 1000.0 + step, "step": step, "train/loss": 1.0, "throughput/tokens_per_sec": 100.0 * step}
    for step in (2, 4, 6)
]


def write(folder: Path) -> None:
    folder.mkdir()
    for name, items in (("events.jsonl", EVENTS), ("metrics.jsonl", METRICS)):
        (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items) + '{"torn')


def test_a_page_tells_every_event_and_shows_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a&b")
    assert main(["report", str(tmp_path / "a&b")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/a&b/report.html\n"
    page = (tmp_path / "a&b/report.html").read_text()
    assert "<h1>a&amp;b</h1>" in page
    assert page.count("<tr><td>1970-01-01 00:16:4") == 5
    assert "<td>6.0 s</td><td>fault</td><td>why rank &lt;1&gt; was killed</td>" in page
    assert 'src="data:image/png;base64,iVBORw0KGgo' in page
    assert "rank <1>" not in page


def rank_record(time_s: float, *forward_s: float, slowest: int) -> dict[str, Any]:
    rest = {"ranks/step_s": [0.5] * len(forward_s), "ranks/data_wait_s": [0.001] * len(forward_s)}
    return {"time_s": time_s, "step": 1, "ranks/forward_s": list(forward_s), "ranks/slowest": float(slowest), **rest}


def test_the_slowest_rank_of_the_last_start_is_named_with_its_host() -> None:
    starts = [{"time_s": 1.0, "event": "train", "step": 0, "hosts": ["x", "y", "z"]}]
    starts += [{"time_s": 5.0, "event": "train", "step": 3, "hosts": ["a", "<b>"]}]
    records = [rank_record(2.0, 0.9, 0.1, 0.1, slowest=0), rank_record(6.0, 0.1, 0.2, slowest=1)]
    records += [rank_record(7.0, 0.1, 0.3, slowest=1), rank_record(8.0, 0.5, 0.4, slowest=0)]
    table = rank_table(starts, records)
    assert table.startswith("<p>The slowest rank since the last start is rank 1 on &lt;b&gt;.</p>")
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.splitlines()[2:]]
    assert cells == [
        ["1", "&lt;b&gt;", "500.0", "300.0", "1.0", "2 of 3"],
        ["0", "a", "500.0", "100.0", "1.0", "1 of 3"],
    ]
    assert "is rank 29 on ?; 10 more ranks are not shown.</p>" in rank_table(
        [], [rank_record(1.0, *([0.1] * 30), slowest=29)]
    )
    assert rank_table(starts, METRICS) == ""


def test_one_line_sums_up() -> None:
    expected = "step 6 after 9.0 s: 2 start(s) of training, 1 save(s), 1 fault(s), median 400 tokens/s"
    assert summary(EVENTS, METRICS) == expected
    assert summary(EVENTS, []).startswith("step 0 after 9.0 s")


def test_a_run_without_events_has_a_page_and_a_folder_without_a_run_has_none(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "run/events.jsonl").unlink()
    assert write_report(tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"holds neither events\.jsonl nor metrics\.jsonl"):
        write_report(tmp_path)


def test_events_are_read_as_written_without_a_torn_line(tmp_path: Path) -> None:
    append_event(tmp_path / "run", "save", step=3)
    with (tmp_path / "run/events.jsonl").open("a") as file:
        file.write('{"event": "sa')
    (event,) = read_events(tmp_path / "run")
    assert (event["event"], event["step"]) == ("save", 3)
    assert event["time_s"] > 1.7e9
    assert read_events(tmp_path) == []
