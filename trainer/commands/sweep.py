"""`trainer sweep`: fine-tune over rates, batch sizes, seeds and recipes, and compare."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from trainer.commands.arguments import Commands, add_overrides
from trainer.errors import REQUEUE_EXIT_CODE
from trainer.recipe import load_finetune_recipe

Number = TypeVar("Number", int, float)


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("sweep", help="fine-tune over rates, batch sizes and seeds; ends with a table")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="one recipe, or several of one task to compare")
    add_overrides(parser)
    own = "[the recipe's]"
    parser.add_argument(
        "--rates", type=_numbers(float), default=[], metavar="A,B", help=f"learning rates, as 1e-5,2e-5 {own}"
    )
    parser.add_argument(
        "--batch-sizes", type=_numbers(int), default=[], metavar="A,B", help=f"global batch sizes, as 16,32 {own}"
    )
    parser.add_argument("--seeds", type=_numbers(int, least=0), default=[], metavar="A,B", help=f"as 1,2,3 {own}")
    parser.set_defaults(run=_run)


def _numbers(kind: Callable[[str], Number], *, least: int | None = None) -> Callable[[str], list[Number]]:
    """Numbers with commas between, each once: above 0, or from `least` on."""

    def read(text: str) -> list[Number]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers with commas between") from None
        if not all(0 < value < float("inf") if least is None else value >= least for value in values):
            raise argparse.ArgumentTypeError(
                f"{text!r} must be numbers {'above 0' if least is None else f'from {least} on'}"
            )
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return values

    return read


def _run(options: argparse.Namespace) -> int:
    configs = [load_finetune_recipe(recipe, overrides=options.overrides) for recipe in options.recipes]
    from trainer.sweep import sweep

    done = sweep(configs, rates=options.rates, batch_sizes=options.batch_sizes, seeds=options.seeds)
    return 0 if done else REQUEUE_EXIT_CODE
