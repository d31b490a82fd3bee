"""How much memory a process uses, and has used at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
GIB = 1 << 30


def peak_memory_gib(device: torch.device) -> float:
    """This rank's peak so far, in GiB: what torch allocated on a CUDA device, elsewhere the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return _resident_bytes("VmHWM") / GIB


def present_memory_bytes() -> int:
    """The resident memory of this process now; its peak where the system does not tell."""
    return _resident_bytes("VmRSS")


def _resident_bytes(field: str) -> int:
    # Not from getrusage where there is a choice: its peak includes that of the process that started this one.
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
