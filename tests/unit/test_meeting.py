from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from command_line import Commands, one_line_of

from trainer.errors import UserError
from trainer.meeting import meet
from trainer.topology import Topology

PROGRAM = """\
import os, sys
from trainer.errors import run_command
from trainer.runtime import started
from trainer.topology import topology_from_env

def main():
    with started(topology_from_env(os.environ), deterministic=False):
        return 0

sys.exit(run_command(main))
"""


def test_a_job_without_a_place_to_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    topology = Topology(rank=0, local_rank=0, world_size=2, local_world_size=2)
    with pytest.raises(UserError, match="RANK/WORLD_SIZE promised 2 processes and named no place to meet"):
        meet(topology, timeout=timedelta(seconds=1))


def test_an_mpi_library_that_sees_another_number_of_processes_is_refused(commands: Commands, tmp_path: Path) -> None:
    # What a rank finds when mpi4py loads another MPI than that of mpirun.
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    env = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "0202", strict=True)}
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = one_line_of(commands.wait(commands.start(cwd=tmp_path, program=program, env=env)))
    assert "mpirun started 2 processes, but the library that mpi4py loaded sees 1: it belongs to another MPI" in told


def test_the_error_of_a_launched_job_is_told_by_the_first_rank_of_a_host_only(
    commands: Commands, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # srun's variables, incomplete: every task finds the same before any has met another.
    for local_rank, lines in (("0", 1), ("1", 0)):
        env = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": local_rank, "SLURM_LOCALID": local_rank}
        done = commands.wait(commands.start(cwd=tmp_path, program=program, env=env))
        assert (done.code, done.err.count("\n")) == (2, lines)
