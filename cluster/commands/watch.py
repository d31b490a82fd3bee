"""`cluster status`, `logs` and `cancel`: after a job was submitted."""

from __future__ import annotations

import argparse
import sys

from cluster.commands.arguments import Commands, add_run
from cluster.slurm import batch_log, cancel_job, job_status, last_job, rank_errors, rank_log


def add_parser(commands: Commands) -> None:
    """Add the three commands to the command line."""
    status = commands.add_parser("status", help="what SLURM says of a run's last job")
    add_run(status)
    status.set_defaults(run=_status)
    logs = commands.add_parser("logs", help="print the last job's log")
    add_run(logs)
    logs.add_argument("--rank", type=int, metavar="R", help="this rank's [the batch script's, and all errors]")
    logs.set_defaults(run=_logs)
    cancel = commands.add_parser("cancel", help="end a run's last job")
    add_run(cancel)
    cancel.set_defaults(run=_cancel)


def _status(options: argparse.Namespace) -> int:
    print(job_status(last_job(options.run_dir)))
    return 0


def _logs(options: argparse.Namespace) -> int:
    run_dir, rank = options.run_dir, options.rank
    path = batch_log(run_dir) if rank is None else rank_log(run_dir, rank=rank)
    with path.open(encoding="utf-8", errors="replace") as log:
        sys.stdout.writelines(log)
    if rank is None:
        print(*rank_errors(run_dir), sep="\n")
    return 0


def _cancel(options: argparse.Namespace) -> int:
    job_id = last_job(options.run_dir)
    cancel_job(job_id)
    print(f"cancelled job {job_id}")
    return 0
