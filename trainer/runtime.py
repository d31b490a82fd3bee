"""Start-up and end of one process of a run: device, threads, process group, determinism."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.errors import UserError
from trainer.topology import Topology

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Runtime:
    """What this process computes on and with whom; `threads` is the number of CPU threads of one operator."""

    topology: Topology
    device: torch.device
    backend: str
    threads: int

    @property
    def is_main(self) -> bool:
        return self.topology.is_main

    @property
    def device_name(self) -> str:
        """The device as its maker calls it, `cpu` for processors."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def bf16_supported(self) -> bool:
        """Whether bf16 is fast here: on CUDA as the device says; processors run it, but no faster than fp32."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextlib.contextmanager
def started(topology: Topology, *, deterministic: bool) -> Iterator[Runtime]:
    """Join the process group for the body and leave it afterwards; all ranks must call it.

    Raises UserError when fewer processes meet than the launcher promised, or a GPU is missing.
    """
    use_cuda = torch.cuda.is_available()
    if use_cuda and topology.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {topology.rank} is process {topology.local_rank} on its host, which shows "
            f"{torch.cuda.device_count()} GPUs; start at most one process a GPU"
        )
    device = torch.device("cuda", topology.local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    threads = _set_threads(topology)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    backend = "nccl" if use_cuda else "gloo"
    _join(topology, device=device, backend=backend)
    try:
        yield Runtime(topology=topology, device=device, backend=backend, threads=threads)
    finally:
        dist.destroy_process_group()


def _set_threads(topology: Topology) -> int:
    """Give each process its share of the host's cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // topology.local_world_size))
    return torch.get_num_threads()


def _join(topology: Topology, *, device: torch.device, backend: str) -> None:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls names that newer PyTorch renamed; every call would warn.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    # Imported here because it looks at DS_ACCELERATOR when it is.
    import deepspeed
    import deepspeed.ops

    # Its logger tells of every start; a run's own lines say what matters.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Compiled at first use, this extension leaves a lock behind when a rank is killed meanwhile, and every later
    # start waits for that lock. Gloo alone serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "MASTER_ADDR" not in os.environ:
        _meet_alone()
    dist.init_process_group(
        backend,
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if backend == "nccl" else None,
    )
    deepspeed.init_distributed(backend, dist_init_required=False, verbose=False)


def _meet_alone() -> None:
    """A process that no launcher started meets itself on a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"
    )


def claim_report() -> bool:
    """True on the first rank that asks: the one that prints an error which several ranks may meet at once."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add("bertline/error-reports", 1)) == 1
    except Exception:
        # The store lives with rank 0; without it, an error printed twice is better than one never printed.
        return True
