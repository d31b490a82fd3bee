"""`cluster supervise`: train on hosts through faults."""

from __future__ import annotations

import argparse
import os
import sys

from cluster.commands.arguments import Commands, add_check, add_job, check_job, job_of, print_connections
from cluster.commands.hosts import add_hosts, add_preflight, check_ssh, connection, hosts_of, wants_preflight
from cluster.preflight import preflight
from cluster.supervisor import Supervisor
from trainer.errors import UserError


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("supervise", help="train over ssh or in a SLURM job, and start again after faults")
    add_job(parser)
    add_check(parser)
    add_hosts(parser)
    add_preflight(parser)
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="K", help="give up when so many in a row brought no new step [3]"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.restarts < 0:
        raise UserError(f"--restarts {options.restarts} must be at least 0")
    hosts = hosts_of(options)
    spec = job_of(options, processes=[host.slots for host in hosts])
    look, agents = (connection(options, spec, module=module) for module in ("cluster.look", "cluster.agent"))
    if options.dry_run:
        print(f"# {spec.world_size} rank(s), started by these: {' '.join(spec.trainer_arguments)}")
        return print_connections(agents, hosts=hosts)
    if not options.slurm:
        check_ssh(options, spec, hosts=hosts)
    check_job(options, spec)
    if wants_preflight(options, hosts=len(hosts)):
        preflight(spec, hosts, look=look, agents=agents, report=say)
    return Supervisor(spec, hosts, connect=agents, restarts=options.restarts, report=say).run()


def say(line: str) -> None:
    """Print a line for whoever still reads; the run does not end with its reader, and events.jsonl has it all."""
    try:
        print(line, flush=True)
    except OSError:
        # Nor must Python complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
