"""Which half precisions a device can train in."""

from __future__ import annotations

import torch


def half_precisions(device_type: str) -> frozenset[str]:
    """Of bf16 and fp16, those that DeepSpeed trains in on this machine's devices of that type ("cpu", "cuda").

    Every processor computes bf16; fp16 takes instructions (AVX512-FP16, or Arm's) that many do not have. GPUs are
    taken to have both where this machine, a login node perhaps, has no GPU.
    """
    if device_type == "cuda" and not torch.cuda.is_available():
        return frozenset({"bf16", "fp16"})
    if device_type == "cuda":
        return frozenset({"bf16", "fp16"} if torch.cuda.is_bf16_supported() else {"fp16"})
    fp16 = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return frozenset({"bf16", "fp16"} if fp16 else {"bf16"})
