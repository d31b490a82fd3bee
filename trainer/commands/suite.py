"""`trainer suite`: GLUE or CLUE, with answers in their published form."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands, add_overrides
from trainer.errors import REQUEUE_EXIT_CODE
from trainer.recipe import load_finetune_recipe


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("suite", help="train, score and answer the tasks of GLUE or CLUE")
    parser.add_argument("suite", choices=("glue", "clue"), metavar="SUITE", help="glue or clue")
    parser.add_argument(
        "--files", type=Path, required=True, metavar="DIR", help="the published files, a folder a task (CoLA/train.tsv)"
    )
    parser.add_argument(
        "--recipe", required=True, metavar="RECIPE", help="start, rates and lengths: a recipe for classification"
    )
    parser.add_argument("--tasks", metavar="A,B", help="these tasks alone [all whose files are there]")
    add_overrides(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    base = load_finetune_recipe(options.recipe, overrides=options.overrides)
    from trainer.suites.run import run_suite

    names = None if options.tasks is None else options.tasks.split(",")
    return 0 if run_suite(options.suite, base, files=options.files, names=names) else REQUEUE_EXIT_CODE
