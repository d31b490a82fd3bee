"""How fast training goes: tokens a second, time a step, time waiting for data, model FLOPs utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ThroughputMeter:
    """Sums up steps between two readings, on any rank, without waiting for the device.

    Time spent inside `paused` (evaluation, saving) does not count. Where the device runs
    asynchronously, read it right after something that waited for it, such as fetching the loss.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin_window()

    def _begin_window(self) -> None:
        self._started = self._clock()
        self._paused_s = 0.0
        self._data_wait_s = 0.0
        self._steps = 0
        self._tokens = 0
        self._positions = 0
        self._flops = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent inside out of the window."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - started

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time spent inside as waiting for data, which is part of the step's time."""
        started = self._clock()
        try:
            yield
        finally:
            self._data_wait_s += self._clock() - started

    def add_step(self, *, tokens: int, positions: int, flops: int) -> None:
        """Count one global step: its real tokens, its token positions with padding, its model FLOPs.

        The three are the whole global batch's or this rank's alone; the rates are then of the same.
        """
        self._steps += 1
        self._tokens += tokens
        self._positions += positions
        self._flops += flops

    def read(self, *, peak_flops: float | None) -> dict[str, float]:
        """The window's metrics, and begin the next window; empty when no step was counted.

        `peak_flops` is the matmul peak, in FLOP/s, of all devices that did the counted work; without
        it there is no throughput/mfu (Chowdhery et al. 2022, appendix B).
        """
        seconds = self._clock() - self._started - self._paused_s
        if self._steps == 0:
            metrics = {}
        else:
            metrics = {
                "throughput/tokens_per_sec": self._tokens / seconds,
                "data/padding_share": 1.0 - self._tokens / self._positions,
                "time/step_s": seconds / self._steps,
                "time/data_wait_s": self._data_wait_s / self._steps,
            }
            if peak_flops is not None:
                metrics["throughput/mfu"] = self._flops / seconds / peak_flops
        self._begin_window()
        return metrics
