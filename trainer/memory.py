"""How much memory a process has used at most."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 1 << 30


def peak_memory_gib(device: torch.device) -> float:
    """This rank's peak so far, in GiB: what torch allocated on a CUDA device, elsewhere the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / GIB
