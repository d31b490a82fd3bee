"""The figures of this machine's processor as a job's processes share it, measured; and how well a model uses it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.activation_memory import LABEL_EVERY, sample_lengths, training_step
from trainer.config import ModelConfig
from trainer.device_figures import DeviceFigures
from trainer.device_peak import measure_matmul_peak
from trainer.flops import model_flops, recomputed_flops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# gloo over the loopback device: all-reduces of 8 to 200 MB between two processes sent 0.8 to 1.1 GB/s each, measured on
# two cores.
_LOOPBACK_RATE = 1.0e9
_MEASUREMENT_S = 1.0
_COPIED_BYTES = 1 << 28
_EFFICIENCY_TOKENS = 4096
_EFFICIENCY_ROUNDS = 3


def processor_figures(processes: int, *, precision: str) -> DeviceFigures:
    """One of `processes` equal shares of this machine, each seen as a device; takes seconds and all cores.

    The peak is that of all cores together over the number of processes, as when all of them compute.
    """
    cpu = torch.device("cpu")
    with _threads(processes * process_threads(processes)):
        peak = measure_matmul_peak(cpu, DTYPES[precision], seconds=_MEASUREMENT_S)
        memory_rate = _copy_rate()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceFigures(
        name="cpu",
        peak_flops={precision: peak / processes},
        memory_bytes=memory // processes,
        memory_rate=memory_rate / processes,
        link_rate=_LOOPBACK_RATE,
        devices_a_machine=processes,
    )


def measure_efficiency(
    model: ModelConfig, *, documents: tuple[int, ...], precision: str, recompute: bool, processes: int
) -> float:
    """Share of the matmul peak that forward and backward passes of this model reach on a process's share of cores.

    Passes and matmuls take turns, for a processor's rate moves. `vocab_size` is set.
    """
    lengths = sample_lengths(documents, tokens=min(sum(documents), _EFFICIENCY_TOKENS))
    tokens = sum(lengths)
    sizes = {
        "tokens": tokens,
        "sum_squared_document_lengths": sum(length**2 for length in lengths),
        "predicted_tokens": -(-tokens // LABEL_EVERY),
    }
    flops = model_flops(model, **sizes)
    if recompute:
        flops += recomputed_flops(model, **sizes, paired_sequences=0)
    with _threads(process_threads(processes)):
        step = training_step(model, lengths=lengths, precision=precision, recompute=recompute)
        torch.autograd.backward(step(0))
        shares = []
        for _ in range(_EFFICIENCY_ROUNDS):
            peak = measure_matmul_peak(torch.device("cpu"), DTYPES[precision], seconds=_MEASUREMENT_S / 3)
            started = time.perf_counter()
            torch.autograd.backward(step(0))
            shares.append(flops / (time.perf_counter() - started) / peak)
    return sorted(shares)[len(shares) // 2]


def process_threads(processes: int) -> int:
    """Threads that each of so many processes will get on this machine (`trainer.runtime`)."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _copy_rate() -> float:
    """Bytes a second that all cores read and write when they copy."""
    source = torch.ones(_COPIED_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2 * _COPIED_BYTES / best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
