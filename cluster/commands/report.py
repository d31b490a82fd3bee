"""`cluster report`: a run's story as a page."""

from __future__ import annotations

import argparse

from cluster.commands.arguments import Commands, add_run
from cluster.report import write_report


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("report", help="write RUN/report.html: starts, saves, faults, restarts, throughput")
    add_run(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    print(f"wrote {write_report(options.run_dir)}")
    return 0
