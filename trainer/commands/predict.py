"""`trainer predict`: what a fine-tuned run says of new texts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.arguments import Commands, add_run


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("predict", help="a JSON line for each text, in their order, from a fine-tuned run")
    add_run(parser)
    parser.add_argument(
        "--input",
        default="-",
        metavar="FILE",
        help="a .txt of lines, or a file as the recipe reads them, labels not needed; - is standard input [-]",
    )
    parser.add_argument("--out", default="-", metavar="FILE", help="- is standard output [-]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.task_predict import write_predictions

    out = None if options.out == "-" else Path(options.out)
    written = write_predictions(options.run_dir, which=options.checkpoint, source=options.input, out=out)
    if out is not None:
        print(f"{written:,} predictions in {out}", file=sys.stderr)
    return 0
