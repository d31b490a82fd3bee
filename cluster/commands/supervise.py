"""`cluster supervise`: train on hosts through faults."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
from pathlib import Path

from cluster.channel import over_srun, over_ssh
from cluster.commands.arguments import Commands, add_job, job_of
from cluster.hostfile import Host, check_names, read_hostfile
from cluster.launchers import refuse_slurm_settings
from cluster.ssh import check_hosts
from cluster.supervisor import Supervisor
from trainer.errors import UserError
from trainer.ranks import expand_hostlist


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("supervise", help="train over ssh or in a SLURM job, and start again after faults")
    add_job(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="a line NAME slots=N for each, reached by ssh")
    where.add_argument("--slurm", action="store_true", help="the nodes of the SLURM job that this runs in")
    parser.add_argument("--procs", type=int, metavar="N", help="with --slurm: processes a node")
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="K", help="give up when so many in a row brought no new step [3]"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.restarts < 0:
        raise UserError(f"--restarts {options.restarts} must be at least 0")
    hosts = _nodes_of_job(options.procs) if options.slurm else read_hostfile(options.hostfile)
    spec = job_of(options, processes=[host.slots for host in hosts])
    if not options.slurm:
        refuse_slurm_settings(spec, launcher="supervise --hostfile", apptainer=True)
    connect = over_srun(spec) if options.slurm else over_ssh(spec)
    if options.dry_run:
        # One agent a host; it starts the ranks with the places that the supervisor gives them.
        for host in hosts:
            print(f"# {host.slots} process(es) on {host.name}: {' '.join(spec.trainer_arguments)}")
            print(shlex.join(connect(host.name)))
        return 0
    if not options.slurm:
        check_names(hosts, source=options.hostfile)
        check_hosts(spec, hosts=[host.name for host in hosts])
    report = functools.partial(print, flush=True)
    return Supervisor(spec, hosts, connect=connect, restarts=options.restarts, report=report).run()


def _nodes_of_job(processes: int | None) -> tuple[Host, ...]:
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise UserError("--slurm, but SLURM_JOB_NODELIST is not set: this is no SLURM job; use `cluster slurm`")
    if processes is None or processes < 1:
        raise UserError("--slurm needs --procs N, at least 1: how many processes a node takes")
    return tuple(Host(node, processes) for node in expand_hostlist(nodes))
