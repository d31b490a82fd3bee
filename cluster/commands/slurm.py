"""`cluster slurm`: a batch job."""

from __future__ import annotations

import argparse
from dataclasses import replace

from cluster.commands.arguments import Commands, add_check, add_job, check_job, job_of
from cluster.commands.hosts import add_preflight
from cluster.sbatch import SlurmOptions, sbatch_launch
from cluster.slurm import check_cluster, check_options, submit


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("slurm", help="submit the training to SLURM")
    add_job(parser, profile="generic_slurm")
    add_check(parser)
    add_preflight(parser)
    parser.add_argument("--nodes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--gpus-per-node", type=int, required=True, metavar="G", help="processes a node; with --profile cpu no GPUs"
    )
    parser.add_argument("--time", required=True, metavar="T", help="time limit: MINUTES, H:MM:SS or DAYS-HH:MM:SS")
    parser.add_argument("--partition", metavar="P", help="the profile's, or SLURM's default")
    parser.add_argument(
        "--continuations",
        type=int,
        default=1,
        metavar="K",
        help="for runs longer than the limit where requeueing is not allowed: K jobs one after the other [1]",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        metavar="K",
        help="mend faults inside the job, until K starts in a row brought no new step [end with the first fault]",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    asked = SlurmOptions(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        time=options.time,
        partition=options.partition,
        continuations=options.continuations,
        restarts=options.restarts,
    )
    check_options(asked)
    spec = job_of(options, processes=[asked.gpus_per_node] * asked.nodes)
    # The batch shell stands outside a container, and may lack what our side of it runs on.
    unsaid = asked.nodes > 1 and spec.profile.container is None
    asked = replace(asked, preflight=unsaid if options.preflight is None else options.preflight)
    launch = sbatch_launch(spec, asked, script=spec.run_dir / "job.sbatch")
    if options.dry_run:
        print(launch.text())
        return 0
    check_cluster(spec, asked)
    check_job(options, spec)
    job_id = submit(launch, run_dir=spec.run_dir)
    run = spec.config.run_dir
    print(f"submitted job {job_id}; python -m cluster status {run}, logs {run} --rank 0, cancel {run}")
    return 0
