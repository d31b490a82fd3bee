"""The matmul rate that a device can reach at most: from a table, or measured."""

from __future__ import annotations

import re
import time

import torch

# Dense matmul rates in TFLOP/s from the makers' data sheets, without sparsity and, on GeForce, with
# fp32 accumulation: (name, fp32 without TF32, bf16, fp16). The first pattern that is found counts.
_DEVICE_TFLOPS: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    (r"\bGB200\b", 80.0, 2500.0, 2500.0),
    (r"\bB200\b", 75.0, 2250.0, 2250.0),
    (r"\bGH200\b", 67.0, 989.4, 989.4),
    (r"\bH200 NVL\b", 60.0, 835.5, 835.5),
    (r"\bH200\b", 67.0, 989.4, 989.4),
    (r"\bH100 PCIe\b", 51.2, 756.0, 756.0),
    (r"\bH100 NVL\b", 60.0, 835.5, 835.5),
    (r"\bH100\b", 66.9, 989.4, 989.4),
    (r"\bA100\b", 19.5, 312.0, 312.0),
    (r"\bA40\b", 37.4, 149.7, 149.7),
    (r"\bA30\b", 10.3, 165.0, 165.0),
    (r"\bA10\b", 31.2, 125.0, 125.0),
    (r"\bL40S\b", 91.6, 362.05, 362.05),
    (r"\bL40\b", 90.5, 181.05, 181.05),
    (r"\bL4\b", 30.3, 121.0, 121.0),
    (r"\bV100-PCIE\b", 14.0, None, 112.0),
    (r"\bV100\b", 15.7, None, 125.0),
    (r"\bT4\b", 8.1, None, 65.0),
    (r"\bRTX 4090\b(?! (?:D|Laptop))", 82.6, 165.2, 165.2),
    (r"\bRTX 3090\b(?! Ti)", 35.6, 71.0, 71.0),
    (r"\bMI300X\b", 163.4, 1307.4, 1307.4),
)
_COLUMNS = {"fp32": 1, "bf16": 2, "fp16": 3}


def device_peak_flops(device_name: str, precision: str) -> float | None:
    """A known accelerator's dense matmul peak in FLOP/s by torch's name for it, else None: then measure it.

    `precision` is fp32 (without TF32), bf16 or fp16; None too where the device has no such unit, and
    for a slice of a device (MIG).
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    for row in _DEVICE_TFLOPS:
        if re.search(row[0], device_name, flags=re.IGNORECASE):
            tflops = row[_COLUMNS[precision]]
            return None if tflops is None else float(tflops) * 1e12
    return None


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float) -> float:
    """The best rate, in FLOP/s, that square matmuls reached on this device within about `seconds`.

    It waits for the device. Processes that share cores must all measure at the same time: each then
    sees its own share, and the job's peak is the sum over ranks.
    """
    size = 1024 if device.type == "cpu" else 8192
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
