"""A clock that is told which part of a step is being computed, and adds up the time of each."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import record_function

DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER, OTHER = "data wait", "forward", "backward", "optimizer", "other"
COMMUNICATION, STAGE_WAIT, CHECKPOINT = "communication", "stage wait", "checkpoint"
# In the order in which a step's time is told; a checkpoint is no part of every step.
STEP_PARTS = (DATA_WAIT, FORWARD, BACKWARD, COMMUNICATION, STAGE_WAIT, OPTIMIZER, OTHER)


class PartClock:
    """Seconds by part. A part inside another one holds the outer one's clock: the parts add up to all of the time.

    `wait` is called at each change of part: on a device that computes asynchronously it must wait for it, or work
    would be counted where it is waited for, not where it is. A trace shows the parts by name.
    """

    def __init__(
        self, *, wait: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time spent inside, but for that of parts opened inside, as that of one part."""
        self._turn()
        self._open.append(name)
        try:
            with record_function(name):
                yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls counted as a part."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return call

    def _turn(self) -> None:
        self._wait()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
