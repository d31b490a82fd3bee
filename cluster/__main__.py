"""The command line: one recipe on one host or many, under any launcher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cluster.commands import deepspeed, local, mpi, preflight, report, slurm, supervise, watch
from trainer.errors import run_command

_DESCRIPTION = """\
Start the training of a recipe on one host or many. Recipe and layout are checked before anything starts.

  python -m cluster local bert_mini --procs 8
  python -m cluster deepspeed bert_base --hostfile hosts
  python -m cluster mpi bert_base --hostfile hosts -n 16
  python -m cluster slurm bert_base --nodes 4 --gpus-per-node 8 --time 24:00:00
  python -m cluster supervise bert_base --hostfile hosts --restarts 3

Each takes --dry-run, which prints exactly what would run."""

_COMMANDS = (local, deepspeed, mpi, slurm, supervise, preflight, report, watch)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; exits with 2 and a usage line for an unknown option."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: the launcher's own, or 2 for a mistake, named in one line."""
    options = parse_arguments(arguments)
    return run_command(lambda: int(options.run(options)))


if __name__ == "__main__":
    sys.exit(main())
