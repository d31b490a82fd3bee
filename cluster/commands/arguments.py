"""Options that several commands have, and the job they describe."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cluster.channel import Connect
from cluster.check import run_check
from cluster.hostfile import Host
from cluster.job import JobSpec, describe_job
from cluster.launch import Launch

# Where a command adds its own parser.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_job(parser: argparse.ArgumentParser, *, profile: str | None = None) -> None:
    """RECIPE, --set, --profile and --dry-run."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe's name")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="set one value of the recipe; may be given several times",
    )
    parser.add_argument(
        "--profile",
        default=profile,
        metavar="SITE",
        help=f"a YAML file or a name of cluster/profiles/ [{profile or 'none'}]",
    )
    parser.add_argument("--dry-run", action="store_true", help="print exactly what would run, and start nothing")


def add_check(parser: argparse.ArgumentParser) -> None:
    """--no-check."""
    parser.add_argument(
        "--no-check", action="store_true", help="start without `trainer check`, which takes some seconds"
    )


def check_job(options: argparse.Namespace, spec: JobSpec) -> None:
    """Run `trainer check` unless it is not wanted."""
    if not options.no_check:
        run_check(spec, report=functools.partial(print, flush=True))


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, such as runs/bert_base")


def job_of(options: argparse.Namespace, *, processes: Sequence[int]) -> JobSpec:
    """The checked job that the command line describes, in the present folder."""
    return describe_job(
        options.recipe,
        overrides=options.overrides,
        profile=options.profile,
        processes=processes,
        workdir=Path.cwd(),
    )


def print_connections(connect: Connect, *, hosts: Sequence[Host]) -> int:
    """Print the command that starts a program of ours on each host."""
    for host in hosts:
        print(shlex.join(connect(host.name)))
    return 0


def print_or_become(launch: Launch, *, dry_run: bool) -> int:
    """Print a launch, or turn this process into it."""
    if not dry_run:
        launch.become()
    print(launch.text())
    return 0
