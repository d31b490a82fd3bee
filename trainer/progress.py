"""What a person watching a run sees: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

PLAIN_LINE_EVERY_S = 10.0


class ProgressReporter:
    """Shows step, loss, learning rate, tokens/s and time left on the main rank; elsewhere it is silent.

    A context manager. On a terminal it keeps a bar; otherwise it prints one line at most every
    `PLAIN_LINE_EVERY_S` seconds, and always the first and the last, so that logs stay short.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int,
        is_main: bool,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._start = start_step
        self._clock = clock
        self._started = clock()
        self._printed: float | None = None
        self._is_main = is_main
        self._console = console or Console(highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressReporter:
        self._started = self._clock()
        if self._is_main and self._console.is_terminal and not self._console.is_dumb_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console, refresh_per_second=4)
            self._progress.start()
            self._task = self._progress.add_task("", total=self._total, completed=self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def advance(self, step: int) -> None:
        """Move the bar to `step`, without new figures; prints nothing where there is no bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def report(self, step: int, *, metrics: Mapping[str, float]) -> None:
        """Show what was measured up to `step`; `metrics` by the keys of metrics.jsonl, missing ones left out."""
        if not self._is_main:
            return
        now = self._clock()
        summary = " · ".join((*_figures(metrics), f"{format_duration(self._seconds_left(step, now))} left"))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, description=summary)
        elif self._printed is None or now - self._printed >= PLAIN_LINE_EVERY_S or step >= self._total:
            self._printed = now
            self.message(f"step {step}/{self._total} · {summary}")

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if self._is_main:
            self._console.print(text, markup=False, soft_wrap=True)

    def _seconds_left(self, step: int, now: float) -> float | None:
        done = step - self._start
        return (now - self._started) / done * (self._total - step) if done > 0 else None


def format_duration(seconds: float | None) -> str:
    """`1h02m`, `3m05s`, `12s`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _figures(metrics: Mapping[str, float]) -> list[str]:
    forms = {
        "train/loss": "loss {:.4f}",
        "train/learning_rate": "rate {:.2e}",
        "throughput/tokens_per_sec": "{:,.0f} tokens/s",
    }
    return [form.format(metrics[key]) for key, form in forms.items() if key in metrics]
