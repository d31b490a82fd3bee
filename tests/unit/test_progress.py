import io
import re

import pytest
from rich.console import Console

from trainer.progress import ProgressReporter, format_duration

METRICS = {"train/loss": 7.12345, "train/learning_rate": 1.5e-4, "throughput/tokens_per_sec": 12345.6, "other": 1.0}


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


def reporter(stream, clock, *, terminal=False, is_main=True, start_step=0):
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None, highlight=False, _environ={})
    return ProgressReporter(100, start_step=start_step, is_main=is_main, console=console, clock=clock)


def visible(stream):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_without_a_terminal_a_line_tells_all_figures(clock):
    stream = io.StringIO()
    with reporter(stream, clock) as progress:
        clock.now = 10.0
        progress.report(25, metrics=METRICS)
    assert stream.getvalue() == "step 25/100 · loss 7.1235 · rate 1.50e-04 · 12,346 tokens/s · 30s left\n"


def test_plain_lines_are_far_apart_but_the_last_step_is_always_told(clock):
    stream = io.StringIO()
    with reporter(stream, clock) as progress:
        for step in range(10, 101, 10):
            clock.now += 3.0
            progress.report(step, metrics={})
    assert re.findall(r"step (\d+)/100", stream.getvalue()) == ["10", "50", "90", "100"]


def test_time_left_counts_only_the_steps_of_this_start(clock):
    stream = io.StringIO()
    with reporter(stream, clock, start_step=50) as progress:
        clock.now = 10.0
        progress.report(60, metrics={})
    assert stream.getvalue() == "step 60/100 · 40s left\n"


def test_before_the_first_step_the_time_left_is_unknown(clock):
    stream = io.StringIO()
    with reporter(stream, clock, start_step=50) as progress:
        progress.report(50, metrics={})
    assert stream.getvalue() == "step 50/100 · ? left\n"


def test_on_a_terminal_a_bar_shows_the_step_and_the_figures(clock):
    stream = io.StringIO()
    with reporter(stream, clock, terminal=True, start_step=20) as progress:
        clock.now = 10.0
        progress.report(30, metrics=METRICS)
        progress.advance(35)
    last = visible(stream).split("\r")[-1]
    assert re.search(r"step\s+35/100 .*loss 7.1235 · rate 1.50e-04 · 12,346 tokens/s · 1m10s left", last)


def test_the_bar_of_a_resumed_run_begins_where_the_run_was(clock):
    stream = io.StringIO()
    with reporter(stream, clock, terminal=True, start_step=20):
        pass
    assert "step  20/100" in visible(stream)


def test_messages_stand_on_lines_of_their_own_with_brackets_intact(clock):
    for terminal in (False, True):
        stream = io.StringIO()
        with reporter(stream, clock, terminal=terminal) as progress:
            progress.message("saved [best] at step 7")
        assert re.search(r"(^|[\r\n])saved \[best\] at step 7\n", visible(stream))


def test_other_ranks_are_silent(clock):
    stream = io.StringIO()
    with reporter(stream, clock, terminal=True, is_main=False) as progress:
        progress.advance(5)
        progress.report(10, metrics=METRICS)
        progress.message("hello")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3599.9, "1h00m"), (7380, "2h03m")],
)
def test_durations_are_short(seconds, text):
    assert format_duration(seconds) == text
