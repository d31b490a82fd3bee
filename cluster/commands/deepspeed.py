"""`cluster deepspeed`: DeepSpeed's launcher over ssh."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from cluster.commands.arguments import Commands, add_job, job_of, print_or_become
from cluster.hostfile import check_names, read_hostfile
from cluster.launchers import deepspeed_launch
from cluster.ssh import check_hosts
from trainer.errors import UserError


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("deepspeed", help="train on the hosts of a hostfile, started over ssh by deepspeed")
    add_job(parser)
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="a line NAME slots=N for each")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    hosts = read_hostfile(options.hostfile)
    spec = job_of(options, processes=[host.slots for host in hosts])
    launch = deepspeed_launch(spec, hosts=hosts, hostfile=options.hostfile)
    if not options.dry_run:
        if shutil.which("pdsh") is None:
            raise UserError("pdsh is not on the PATH, which deepspeed needs to start hosts; install the package pdsh")
        check_names(hosts, source=options.hostfile)
        check_hosts(spec, hosts=[host.name for host in hosts])
    return print_or_become(launch, dry_run=options.dry_run)
