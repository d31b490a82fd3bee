"""How far a long command is: a rich bar on a terminal, a plain line now and then elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 30.0


class BuildProgress:
    """Shows the share of the input that is behind, with documents, tokens, MB/s and the time left."""

    def __init__(self, *, total_bytes: int, enabled: bool) -> None:
        console = Console(stderr=True)
        self._total_bytes = total_bytes
        self._started = self._said = time.monotonic()
        self._plain = console if enabled and not console.is_terminal else None
        self._bar = Progress(
            TextColumn("building shards"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total_bytes, counts="")

    def __enter__(self) -> BuildProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, *, done_bytes: int, documents: int, tokens: int) -> None:
        """Show the counts so far; `done_bytes` of the input files are behind."""
        now = time.monotonic()
        speed = done_bytes / 1e6 / max(now - self._started, 1e-9)
        counts = f"{documents:,} documents, {tokens:,} tokens, {speed:.1f} MB/s"
        self._bar.update(self._task, completed=done_bytes, counts=counts)
        if self._plain is not None and now - self._said >= PLAIN_LINE_EVERY_S:
            self._said = now
            left_s = (self._total_bytes - done_bytes) / 1e6 / max(speed, 1e-9)
            share = done_bytes / self._total_bytes
            self._plain.print(f"building shards: {share:.0%}, {counts}, {left_s:.0f} s left", highlight=False)


@contextmanager
def status(what: str, *, enabled: bool) -> Iterator[None]:
    """Say what is under way while a step without a measurable share runs."""
    console = Console(stderr=True)
    with console.status(what) if enabled and console.is_terminal else nullcontext():
        yield
