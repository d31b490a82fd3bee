"""Options that name hosts, and the look at them before anything starts."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from cluster.channel import Connect, over_srun, over_ssh
from cluster.hostfile import Host, check_names, read_hostfile
from cluster.job import JobSpec
from cluster.launchers import refuse_slurm_settings
from cluster.preflight import preflight
from cluster.ssh import check_hosts
from trainer.errors import UserError
from trainer.ranks import expand_hostlist


def add_hostfile(parser: argparse.ArgumentParser) -> None:
    """--hostfile."""
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="a line NAME slots=N for each")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """--hostfile, or --slurm with --procs."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="a line NAME slots=N for each, reached by ssh")
    where.add_argument("--slurm", action="store_true", help="the nodes of the SLURM job that this runs in")
    parser.add_argument("--procs", type=int, metavar="N", help="with --slurm: processes a node")


def add_preflight(parser: argparse.ArgumentParser) -> None:
    """--preflight and --no-preflight."""
    parser.add_argument(
        "--preflight",
        action=argparse.BooleanOptionalAction,
        help="look at all hosts first: code, packages, data, disk, clocks, network [with two hosts or more]",
    )


def hosts_of(options: argparse.Namespace) -> tuple[Host, ...]:
    """The hosts of the file or of the SLURM job; UserError where there are none."""
    if not options.slurm:
        if options.procs is not None:
            raise UserError("--procs belongs to --slurm; with --hostfile the file's slots say it")
        return read_hostfile(options.hostfile)
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise UserError("--slurm, but SLURM_JOB_NODELIST is not set: this is no SLURM job; use `cluster slurm`")
    if options.procs is None or options.procs < 1:
        raise UserError("--slurm needs --procs N, at least 1: how many processes a node takes")
    return tuple(Host(node, options.procs) for node in expand_hostlist(nodes))


def connection(options: argparse.Namespace, spec: JobSpec, *, module: str) -> Connect:
    """How a module of ours is started on one of `hosts_of`; UserError for settings that ssh would ignore."""
    if options.slurm:
        return over_srun(spec, module=module)
    refuse_slurm_settings(spec, launcher=f"{options.command} --hostfile", apptainer=True)
    return over_ssh(spec, module=module)


def check_ssh(options: argparse.Namespace, spec: JobSpec, *, hosts: Sequence[Host]) -> None:
    """Check the names of a hostfile's hosts, and that they accept ssh and see what they need."""
    check_names(hosts, source=options.hostfile)
    check_hosts(spec, hosts=[host.name for host in hosts])


def look_at_hosts(options: argparse.Namespace, spec: JobSpec, *, hosts: Sequence[Host]) -> None:
    """Do the preflight over ssh unless it is not wanted."""
    if wants_preflight(options, hosts=len(hosts)):
        look, agents = over_ssh(spec, module="cluster.look"), over_ssh(spec, module="cluster.agent")
        preflight(spec, hosts, look=look, agents=agents, report=functools.partial(print, flush=True))


def wants_preflight(options: argparse.Namespace, *, hosts: int) -> bool:
    """Whether a preflight is asked for, or, unsaid, there is more than one host."""
    return bool(hosts > 1 if options.preflight is None else options.preflight)
