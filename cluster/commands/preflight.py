"""`cluster preflight`: only the look at the hosts."""

from __future__ import annotations

import argparse
import functools

from cluster.commands.arguments import Commands, add_job, job_of, print_connections
from cluster.commands.hosts import add_hosts, check_ssh, connection, hosts_of
from cluster.preflight import preflight


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("preflight", help="look at all hosts without starting the training")
    add_job(parser)
    add_hosts(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    hosts = hosts_of(options)
    spec = job_of(options, processes=[host.slots for host in hosts])
    look, agents = (connection(options, spec, module=module) for module in ("cluster.look", "cluster.agent"))
    if options.dry_run:
        return print_connections(look, hosts=hosts) or print_connections(agents, hosts=hosts)
    if not options.slurm:
        check_ssh(options, spec, hosts=hosts)
    preflight(spec, hosts, look=look, agents=agents, report=functools.partial(print, flush=True))
    return 0
