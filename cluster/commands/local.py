"""`cluster local`: several processes on this host."""

from __future__ import annotations

import argparse

from cluster.commands.arguments import Commands, add_check, add_job, check_job, job_of, print_or_become
from cluster.launchers import local_launch
from trainer.errors import UserError


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("local", help="train on this host")
    add_job(parser)
    add_check(parser)
    parser.add_argument("--procs", type=int, required=True, metavar="N", help="processes: one a GPU, or sharing cores")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.procs < 1:
        raise UserError(f"--procs {options.procs} must be at least 1")
    spec = job_of(options, processes=[options.procs])
    launch = local_launch(spec)
    if not options.dry_run:
        check_job(options, spec)
    return print_or_become(launch, dry_run=options.dry_run)
