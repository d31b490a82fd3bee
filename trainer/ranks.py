"""Which rank a process is and where its job meets, read from the variables of whatever launched it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import UserError

# Below the ports that systems hand out by themselves, so that no outgoing connection holds one.
FIRST_PORT, PORTS = 20000, 12000

_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE = range(4)
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
# What only that launcher sets; a user's own RANK and WORLD_SIZE come without.
_TORCHRUN_MARK, _DEEPSPEED_MARK = "TORCHELASTIC_RUN_ID", "CROSS_SIZE"


@dataclass(frozen=True)
class Place:
    """One process among those of its job, as `launcher` numbered them.

    master_addr, master_port: where rank 0 listens; None where the launcher leaves it to the processes to agree.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str | None = None
    master_port: int | None = None


def find_place(env: Mapping[str, str]) -> Place:
    """The process's place by the variables of torchrun, deepspeed, Open MPI, MPICH or SLURM's srun; else alone.

    Launchers may stand inside each other (srun starts mpirun, which starts torchrun): the innermost counts. Raises
    UserError where variables are missing, are no numbers, or an outer launcher promised more processes than the
    inner one knows of: two worlds of one would train apart without a word.
    """
    found = [place for place in (_torch(env), _open_mpi(env), _mpich(env), _slurm(env)) if place is not None]
    for outer in found[1:]:
        _check_agreement(found[0], outer, env)
    if found:
        return found[0]
    if "SLURM_JOB_ID" in env and _integer("SLURM_NTASKS", env.get("SLURM_NTASKS", "1")) > 1:
        raise UserError(
            f"SLURM promised {env['SLURM_NTASKS']} tasks, but this process is none of them: the batch script runs it "
            "once; put srun before the command, start through `python -m cluster slurm`, or unset SLURM_NTASKS to "
            "train in this process alone"
        )
    return Place("alone", rank=0, world_size=1, local_rank=0, local_world_size=1)


def job_port(job_id: int) -> int:
    """The port on which a scheduler's job meets: the same on all of its hosts, another for the next job."""
    return FIRST_PORT + job_id % PORTS


def expand_hostlist(text: str) -> list[str]:
    """SLURM's short form as names: `a[1-2,07],b` → a1, a2, a07, b; UserError when it is none."""
    items = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not text or ",".join(items) != text:
        raise UserError(f"{text!r} is not a list of hosts as SLURM writes it, such as node[1-3,07],gpu1")
    return [host for item in items for host in _expand_item(item)]


def _expand_item(item: str) -> list[str]:
    match = re.match(r"([^\[]*)\[([^\]]+)\](.*)$", item)
    if match is None:
        return [item]
    numbers: list[str] = []
    for part in match[2].split(","):
        low, _, high = part.partition("-")
        high = high or low
        if not (low.isdecimal() and high.isdecimal()):
            raise UserError(f"{item!r} is not a list of hosts as SLURM writes it, such as node[1-3,07]")
        numbers += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return [match[1] + number + rest for number in numbers for rest in _expand_item(match[3])]


def _torch(env: Mapping[str, str]) -> Place | None:
    # The deepspeed launcher's name for the last.
    names = (*_TORCH[:3], "LOCAL_SIZE") if "LOCAL_WORLD_SIZE" not in env and "LOCAL_SIZE" in env else _TORCH
    launcher = "torchrun" if _TORCHRUN_MARK in env else "deepspeed" if _DEEPSPEED_MARK in env else "RANK/WORLD_SIZE"
    return _read(launcher, names, env) if any(name in env for name in (*_TORCH, "LOCAL_SIZE")) else None


def _open_mpi(env: Mapping[str, str]) -> Place | None:
    return _read("mpirun (Open MPI)", _OPEN_MPI, env) if _OPEN_MPI[_RANK] in env or _OPEN_MPI[_SIZE] in env else None


def _mpich(env: Mapping[str, str]) -> Place | None:
    if _MPICH[_RANK] not in env and _MPICH[_SIZE] not in env:
        return None
    # SLURM's own PMI numbers its tasks by these two names as well, and says the rest in its own.
    if "SLURM_STEP_NUM_TASKS" in env and _MPICH[_LOCAL_RANK] not in env:
        return None
    return _read("mpiexec (MPICH)", _MPICH, env)


def _slurm(env: Mapping[str, str]) -> Place | None:
    # A batch script has SLURM_PROCID=0 too; only a step started by srun has this one.
    if _SLURM[_SIZE] not in env:
        return None
    tasks = _tasks_of_node(env)
    place = _read("srun", _SLURM, {**env, _SLURM[_LOCAL_SIZE]: str(tasks)})
    hosts, job = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST"), env.get("SLURM_JOB_ID")
    addr = place.master_addr or (expand_hostlist(hosts)[0] if hosts else None)
    port = place.master_port or (job_port(_integer("SLURM_JOB_ID", job)) if job else None)
    return Place(place.launcher, place.rank, place.world_size, place.local_rank, place.local_world_size, addr, port)


def _tasks_of_node(env: Mapping[str, str]) -> int:
    """How many tasks SLURM_STEP_TASKS_PER_NODE, `2(x3),1` say, gives the node of SLURM_NODEID."""
    for name in (_SLURM[_LOCAL_SIZE], "SLURM_NODEID"):
        if name not in env:
            raise UserError(f"srun set SLURM_STEP_NUM_TASKS but not {name}; start the job through srun itself")
    text, counts = env[_SLURM[_LOCAL_SIZE]], []
    for part in text.split(","):
        match = re.match(r"(\d+)(?:\(x(\d+)\))?$", part)
        if match is None:
            raise UserError(f"the environment's {_SLURM[_LOCAL_SIZE]}={text!r} is not of SLURM's form, 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer("SLURM_NODEID", env["SLURM_NODEID"])
    if not 0 <= node < len(counts):
        raise UserError(f"SLURM_NODEID={node} is not in {_SLURM[_LOCAL_SIZE]}={text!r}; start the job through srun")
    return counts[node]


def _read(launcher: str, names: tuple[str, ...], env: Mapping[str, str]) -> Place:
    missing = [name for name in names if name not in env]
    if missing:
        present = [name for name in names if name in env]
        raise UserError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; a launcher sets all of "
            f"{', '.join(names)}: start through one (python -m cluster), or unset them all"
        )
    rank, size, local_rank, local_size = (_integer(name, env[name]) for name in names)
    port = env.get("MASTER_PORT")
    addr = env.get("MASTER_ADDR") or None
    return Place(launcher, rank, size, local_rank, local_size, addr, _integer("MASTER_PORT", port) if port else None)


def _check_agreement(inner: Place, outer: Place, env: Mapping[str, str]) -> None:
    """Refuse a world smaller than an outer launcher promised, and ranks set by hand that differ from a launcher's."""
    nested = _TORCHRUN_MARK in env or _DEEPSPEED_MARK in env or inner.launcher.startswith("mp")
    if nested and inner.world_size >= outer.world_size:
        return
    if (inner.rank, inner.world_size) == (outer.rank, outer.world_size):
        return
    raise UserError(
        f"{outer.launcher} says rank {outer.rank} of {outer.world_size}, but {inner.launcher} says rank {inner.rank} "
        f"of {inner.world_size}; the job would fall apart into several: use one launcher, or unset the variables "
        "(RANK, WORLD_SIZE, ...) of the one that does not count"
    )


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"the environment's {name}={text!r} is not a whole number; start through a launcher") from None
