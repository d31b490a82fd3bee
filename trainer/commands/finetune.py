"""`trainer finetune`: train a task on a pretrained encoder."""

from __future__ import annotations

import argparse

from trainer.commands.arguments import Commands, add_recipe, add_resume, hold_stop_signal
from trainer.errors import REQUEUE_EXIT_CODE
from trainer.recipe import load_finetune_recipe


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("finetune", help="train a task as a recipe says, or go on with an interrupted run")
    add_recipe(parser)
    add_resume(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    hold_stop_signal()
    config = load_finetune_recipe(options.recipe, overrides=options.overrides)
    from trainer.finetune import finetune

    return 0 if finetune(config, resume=options.resume) else REQUEUE_EXIT_CODE
