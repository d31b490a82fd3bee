"""How much memory a process has used at most."""

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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / GIB


def present_memory_bytes() -> int:
    """The resident memory of this process now."""
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
