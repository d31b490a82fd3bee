"""`trainer export`: a run's encoder as a folder that transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands, add_run


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("export", help="write a run's encoder as a folder that transformers loads")
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to [RUN/export]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.export import export_checkpoint

    print(export_checkpoint(options.run_dir, which=options.checkpoint, out=options.out))
    return 0
