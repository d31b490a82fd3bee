from __future__ import annotations

import re
from typing import Any

import pytest

from trainer.errors import UserError
from trainer.ranks import Place, expand_hostlist, find_place, job_port
from trainer.topology import topology_from_env

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
    **MEETING,
}
DEEPSPEED = {
    "RANK": "3",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "3",
    **MEETING,
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "6", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "6",
}
# What srun sets for one task on each node: the agents of another launcher.
SRUN_AGENT = {**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0"}
SRUN_AGENT |= {"SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_NTASKS": "3"}


def place(launcher: str, addr: str | None = None, port: int | None = None, **changed: int) -> Place:
    numbers = {"rank": 3, "world_size": 6, "local_rank": 1, "local_world_size": 2, **changed}
    return Place(launcher, **numbers, master_addr=addr, master_port=port)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({"PATH": "/bin"}, Place("alone", 0, 1, 0, 1), id="no launcher"),
        pytest.param(TORCHRUN, place("torchrun", "node1", 29500), id="torchrun"),
        pytest.param(DEEPSPEED, place("deepspeed", "node1", 29500), id="deepspeed"),
        pytest.param(OPEN_MPI, place("mpirun (Open MPI)"), id="Open MPI"),
        pytest.param({**OPEN_MPI, **MEETING}, place("mpirun (Open MPI)", "node1", 29500), id="deepspeed over Open MPI"),
        pytest.param(MPICH, place("mpiexec (MPICH)"), id="MPICH"),
        pytest.param(SRUN, place("srun", "node07", 20345), id="srun"),
        pytest.param({**SRUN, **MEETING}, place("srun", "node1", 29500), id="srun, told where to meet"),
        pytest.param({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "6"}, place("srun", "node07", 20345), id="srun --mpi=pmi2"),
        pytest.param(
            {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,3,1"},
            place("srun", "node07", 20345, local_world_size=3),
            id="srun with uneven nodes",
        ),
        pytest.param({**SRUN_AGENT, **TORCHRUN}, place("torchrun", "node1", 29500), id="torchrun in srun"),
        pytest.param({**SRUN_AGENT, **DEEPSPEED}, place("deepspeed", "node1", 29500), id="deepspeed in srun"),
        pytest.param({**SRUN_AGENT, **OPEN_MPI}, place("mpirun (Open MPI)"), id="mpirun, whose daemons srun started"),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
            Place("alone", 0, 1, 0, 1),
            id="sbatch of 1",
        ),
        pytest.param(
            {"RANK": "3", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **SRUN},
            place("RANK/WORLD_SIZE", None, None),
            id="srun, mapped by hand",
        ),
    ],
)
def test_every_launchers_variables_give_the_place(env: dict[str, str], expected: Place) -> None:
    assert find_place(env) == expected
    topology = topology_from_env(env)
    assert (topology.rank, topology.world_size) == (expected.rank, expected.world_size)
    assert (topology.local_rank, topology.local_world_size) == (expected.local_rank, expected.local_world_size)


BY_HAND = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        pytest.param(
            {**OPEN_MPI, **BY_HAND},
            "mpirun (Open MPI) says rank 3 of 6, but RANK/WORLD_SIZE says rank 0 of 1",
            id="a world of one left over in the shell",
        ),
        pytest.param(
            {**SRUN, **TORCHRUN, "WORLD_SIZE": "2", "RANK": "1"},
            "srun says rank 3 of 6, but torchrun says rank 1 of 2",
            id="torchrun --standalone in every task",
        ),
        pytest.param(
            {**SRUN_AGENT, **OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "srun says rank 1 of 3, but mpirun (Open MPI) says rank 1 of 2",
            id="mpirun in every task",
        ),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
            "SLURM promised 4 tasks, but this process is none of them",
            id="a batch script without srun",
        ),
        pytest.param(
            {"OMPI_COMM_WORLD_SIZE": "4"}, "but not OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_LOCAL_RANK", id="half"
        ),
        pytest.param({"PMI_RANK": "0", "PMI_SIZE": "4"}, "but not MPI_LOCALRANKID, MPI_LOCALNRANKS", id="PMI alone"),
        pytest.param({"SLURM_STEP_NUM_TASKS": "4"}, "but not SLURM_STEP_TASKS_PER_NODE", id="half of srun's"),
        pytest.param({**SRUN, "SLURM_NODEID": "3"}, "SLURM_NODEID=3 is not in", id="a node too many"),
        pytest.param(
            {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2x3"}, "='2x3' is not of SLURM's form", id="garbled counts"
        ),
        pytest.param({**SRUN, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID='x' is not a whole number", id="no job number"),
        pytest.param({**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT='x' is not a whole number", id="no port"),
    ],
)
def test_what_contradicts_or_is_missing_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_place(env)


@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED, OPEN_MPI, MPICH, SRUN])
def test_no_launcher_whose_variables_are_incomplete_gives_a_world_of_one(launcher: dict[str, str]) -> None:
    optional = {*MEETING, "TORCHELASTIC_RUN_ID", "CROSS_RANK", "CROSS_SIZE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"}
    for left_out in set(launcher) - optional - {"SLURM_NTASKS"}:
        env: dict[str, Any] = {name: value for name, value in launcher.items() if name != left_out}
        with pytest.raises(UserError):
            find_place(env)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[1-3,07],gpu", ["node1", "node2", "node3", "node07", "gpu"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_slurms_short_lists_of_hosts_are_expanded(text: str, hosts: list[str]) -> None:
    assert expand_hostlist(text) == hosts


@pytest.mark.parametrize("text", ["", "node[1-3", "node[a-b]", "node[1-]]", ",a"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a list of hosts as SLURM writes it"):
        expand_hostlist(text)


def test_ports_of_jobs_lie_below_those_that_systems_hand_out() -> None:
    ports = {job_port(job) for job in range(50_000)}
    assert (min(ports), max(ports)) == (20_000, 31_999)
    assert job_port(7) != job_port(8)
