"""Being told to stop: all ranks agree at which step, so that they save together and end in order."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from trainer.runtime import Runtime

# What schedulers send before they end a job. Not USR1, which NCCL may take.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StoppedEarly(Exception):
    """Raised on every rank at the same poll, once any of them was told to stop."""


class Preemption:
    """Notes the signals that ask for an end instead of dying of them; a context manager of the main thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._told = False
        # Host memory over gloo: asking at every step must not wait for the device.
        self._group = dist.new_group(backend="gloo") if runtime.backend == "nccl" else None
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._held: set[int] = set()

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        # What came while the run was being set up is answered now.
        self._held = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First, so that none kills a run that is done and only takes its leave.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> None:
        """Raise StoppedEarly if any rank was told to stop; collective, and the ranks wait for each other."""
        told = torch.tensor(self._told, dtype=torch.uint8)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        if told:
            raise StoppedEarly

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True
