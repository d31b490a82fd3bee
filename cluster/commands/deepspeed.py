"""`cluster deepspeed`: DeepSpeed's launcher over ssh."""

from __future__ import annotations

import argparse
import shutil

from cluster.commands.arguments import Commands, add_check, add_job, check_job, job_of, print_or_become
from cluster.commands.hosts import add_hostfile, add_preflight, check_ssh, look_at_hosts
from cluster.hostfile import read_hostfile
from cluster.launchers import deepspeed_launch
from trainer.errors import UserError


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("deepspeed", help="train on the hosts of a hostfile, started over ssh by deepspeed")
    add_job(parser)
    add_check(parser)
    add_preflight(parser)
    add_hostfile(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    hosts = read_hostfile(options.hostfile)
    spec = job_of(options, processes=[host.slots for host in hosts])
    launch = deepspeed_launch(spec, hosts=hosts, hostfile=options.hostfile)
    if not options.dry_run:
        if shutil.which("pdsh") is None:
            raise UserError("pdsh is not on the PATH, which deepspeed needs to start hosts; install the package pdsh")
        check_ssh(options, spec, hosts=hosts)
        check_job(options, spec)
        look_at_hosts(options, spec, hosts=hosts)
    return print_or_become(launch, dry_run=options.dry_run)
