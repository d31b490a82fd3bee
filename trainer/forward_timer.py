"""How long a rank's forward passes take: what it computes before it meets any other rank."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ForwardTimer:
    """Times the forward passes in which a module trains, without waiting for the device.

    On a GPU they are timed there, by events; those not yet reached when the timer is read count in the next reading.
    """

    def __init__(
        self, module: nn.Module, *, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._on_device = device.type == "cuda"
        self._began_s = 0.0
        self._seconds = 0.0
        self._passes = 0
        self._events: deque[tuple[Any, Any]] = deque()
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def read(self) -> float:
        """Mean seconds of a pass since the last reading, 0.0 where there was none; any rank may call it alone."""
        while self._events and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
            self._passes += 1
        mean = self._seconds / self._passes if self._passes else 0.0
        self._seconds, self._passes = 0.0, 0
        return mean

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if not module.training:
            return
        if self._on_device:
            began, ended = _event(), _event()
            began.record()
            self._events.append((began, ended))
        else:
            self._began_s = self._clock()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not module.training:
            return
        if self._on_device:
            self._events[-1][1].record()
        else:
            self._seconds += self._clock() - self._began_s
            self._passes += 1


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
