"""A small all-reduce between hosts, with its bandwidth, and a look at each device: run before a long job."""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time

import torch
import torch.distributed as dist

from trainer.errors import UserError, run_command
from trainer.runtime import Runtime, started
from trainer.topology import topology_from_env

_BYTES = 8 * 2**20
_ROUNDS = 5


def bus_bandwidth(runtime: Runtime) -> float:
    """Median GB/s that the slowest link of a ring carries in an all-reduce of 8 MiB; collective.

    An all-reduce of n ranks moves 2 (n - 1) / n times the data over every link (Patarasuk and Yuan 2009).
    """
    data = torch.ones(_BYTES // 4, device=runtime.device)
    ranks = runtime.topology.world_size
    times = []
    for _ in range(_ROUNDS):
        data.fill_(1.0)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(data)
        total = float(data.sum())
        times.append(time.perf_counter() - start)
        if total != ranks * data.numel():
            raise UserError(f"{socket.gethostname()}: an all-reduce of {ranks} ranks gave {total}; check its network")
    return 2 * (ranks - 1) / ranks * _BYTES / statistics.median(times) / 1e9


def check_devices(*, processes: int) -> None:
    """Raise UserError where this host shows too few GPUs, or one computes wrongly; hosts without CUDA pass."""
    if not torch.cuda.is_available():
        return
    if torch.cuda.device_count() < processes:
        raise UserError(f"{socket.gethostname()} shows {torch.cuda.device_count()} GPU(s), {processes} are asked for")
    ones = torch.ones(256, 256)
    for number in range(processes):
        product = (ones.cuda(number) @ ones.cuda(number)).cpu()
        if not bool((product == 256).all()):
            raise UserError(f"{socket.gethostname()}: GPU {number} computes a product of ones wrongly; replace it")


def main(processes: int) -> int:
    """One rank a host: check its devices, then the network between all; rank 0 prints the bandwidth."""
    with started(topology_from_env(os.environ), deterministic=False) as runtime:
        check_devices(processes=processes)
        bandwidth = bus_bandwidth(runtime)
        if runtime.is_main:
            print(f"all-reduce between {runtime.topology.world_size} hosts: {bandwidth:.2f} GB/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(int(sys.argv[1]))))
