"""Start-up and end of one process of a run: device, threads, process group, and one end for all ranks."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from trainer.errors import LostRankError, ReportedError, UserError, print_error
from trainer.meeting import meet
from trainer.memory import present_memory_bytes
from trainer.ranks import find_place
from trainer.topology import Topology

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_FIRST_POLL_S, _POLL_S = 0.01, 0.5
_PR_SET_PDEATHSIG = 1
_LAST_WORDS_S = 5.0
_STARTED_BYTES = 180 << 20
_FAILURES, _EXIT_CODE, _HEARD = "bertline/failures", "bertline/exit-code", "bertline/heard"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Runtime:
    """What this process computes on and with whom.

    threads: CPU threads of one operator. store: the key-value store by which the ranks met. turns: counts what
    rank 0 decided for all, so that all ranks use the same keys.
    """

    topology: Topology
    device: torch.device
    backend: str
    threads: int
    store: Store
    turns: Iterator[int]

    @property
    def is_main(self) -> bool:
        return self.topology.is_main

    @property
    def device_name(self) -> str:
        """The device as its maker calls it, `cpu` for processors."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


@contextlib.contextmanager
def started(topology: Topology, *, deterministic: bool) -> Iterator[Runtime]:
    """Join the process group for the body and leave it afterwards; all ranks must call it.

    A failure of one rank's body is printed once and ends all ranks, whatever they are waiting for. Raises UserError
    when fewer processes meet than the launcher promised, or a GPU is missing.
    """
    if find_place(os.environ).launcher != "alone":
        _end_with_launcher()
    use_cuda = torch.cuda.is_available()
    # Asked on every rank alike: the first of the host prints it, and none waits for those that are gone.
    if use_cuda and topology.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{topology.local_world_size} processes were started on a host that shows {torch.cuda.device_count()} "
            "GPU(s); start one process a GPU (deepspeed --num_gpus, torchrun --nproc-per-node)"
        )
    device = torch.device("cuda", topology.local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    threads = _set_threads(topology)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    backend = "nccl" if use_cuda else "gloo"
    store = meet(topology, timeout=COLLECTIVE_TIMEOUT)
    in_order = topology.world_size == 1
    try:
        with _ending_together(store, topology=topology):
            _join(store, topology=topology, device=device, backend=backend)
            yield Runtime(topology, device, backend, threads, store, itertools.count())
            dist.barrier()
            in_order = True
    finally:
        # After a failure, leaving the group could mean waiting for ranks that are gone; the process ends anyway.
        if in_order and dist.is_initialized():
            dist.destroy_process_group()


def on_main(runtime: Runtime, decide: Callable[[], Value]) -> Value:
    """A value that rank 0 makes and all ranks get; every rank calls it.

    It may take rank 0 hours: the others wait without a collective, which would time out, and end with rank 0 if it
    fails.
    """
    if runtime.topology.world_size == 1:
        return decide()
    key = f"bertline/decision-{next(runtime.turns)}"
    if runtime.is_main:
        value = decide()
        runtime.store.set(key, pickle.dumps(value))  # type: ignore[arg-type]  # bytes are taken too
        return value
    # What is there at once, as in most of a start, is not waited for long.
    pause_s = _FIRST_POLL_S
    while not runtime.store.check([key]):
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_S)
    received: Value = pickle.loads(runtime.store.get(key))
    return received


def started_process_bytes() -> int:
    """What a process on a CPU takes once it has started and before it has a model: this one's memory, with the same
    modules loaded, and what the process group, oneDNN and the loader added where it was measured (0.42 GiB in all)."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no other
    import deepspeed  # noqa: F401
    import webdataset  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401

    return present_memory_bytes() + _STARTED_BYTES


@contextlib.contextmanager
def _ending_together(store: Store, *, topology: Topology) -> Iterator[None]:
    """Let the first failure of any rank's body be printed once and end every rank, even one deep in a collective."""
    if topology.world_size == 1:
        yield
        return
    over = threading.Event()
    # A clone, because one that waits holds up every other use of it.
    own_store: Store = store.clone()  # type: ignore[attr-defined]
    listener = threading.Thread(target=_end_with_others, args=(own_store, over), daemon=True)
    listener.start()
    try:
        yield
    except Exception as error:
        over.set()
        shown = _lost_rank(error) or error
        raise ReportedError(_report(shown, store=store, topology=topology)) from error
    finally:
        over.set()
        listener.join()


def _lost_rank(error: Exception) -> LostRankError | None:
    """The line for a collective that broke because another process of the job is gone; None for other errors."""
    text = str(error)
    broken = isinstance(error, RuntimeError) and any(word in text for word in ("onnection", "NCCL", "gloo"))
    if not (broken or isinstance(error, dist.DistError)):
        return None
    return LostRankError(
        "another process of this job ended without a word, killed or out of memory (the system's log may tell); all "
        f"have been stopped: start again to resume. The network said: {' '.join(text.split())[:160]}"
    )


def _report(error: Exception, *, store: Store, topology: Topology) -> int:
    """Print a failure if no other rank has, and tell the others; gives the exit code for all of them."""
    try:
        if store.add(_FAILURES, 1) == 1:
            store.set(_EXIT_CODE, str(print_error(error)))
        exit_code = int(store.get(_EXIT_CODE))
        heard = store.add(_HEARD, 1)
        deadline = time.monotonic() + _LAST_WORDS_S
        # The store lives and dies with rank 0.
        while topology.is_main and heard < topology.world_size and time.monotonic() < deadline:
            time.sleep(_POLL_S / 10)
            heard = store.add(_HEARD, 0)
    except dist.DistError:
        # Rank 0 is gone without a word; an error printed twice is better than one never printed.
        return print_error(error)
    return exit_code


def _end_with_others(store: Store, over: threading.Event) -> None:
    """Leave the process when another rank has failed: the main thread may wait for that rank for ever."""
    while not over.wait(_POLL_S):
        try:
            if store.check([_EXIT_CODE]):
                exit_code = int(store.get(_EXIT_CODE))
                store.add(_HEARD, 1)
                os._exit(exit_code)
        except dist.DistError:
            return


def _end_with_launcher() -> None:
    """Have the system end this process with the one that started it: nobody else would, on this host."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _set_threads(topology: Topology) -> int:
    """Give each process its share of the host's cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // topology.local_world_size))
    return torch.get_num_threads()


def _join(store: Store, *, topology: Topology, device: torch.device, backend: str) -> None:
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
    dist.init_process_group(
        backend,
        store=store,
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if backend == "nccl" else None,
    )
    deepspeed.init_distributed(backend, dist_init_required=False, verbose=False)
