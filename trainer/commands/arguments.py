"""Options that several commands have."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TypeAlias

# Where a command adds its own parser.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_recipe(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """RECIPE and --set; without RECIPE, `default` if there is one."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file or a recipe's name",
        nargs="?" if default else None,
        default=default,
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """--set."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="set one value of the recipe; may be given several times",
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume."""
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest whole checkpoint of the run folder, if any; never: refuse if there is one",
    )


def hold_stop_signal() -> None:
    """Have a scheduler's SIGUSR2 wait until the run can answer it (`trainer.preemption`), instead of killing it.

    Called before PyTorch is loaded, which takes seconds. SIGTERM still ends a run that has nothing to save yet.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN and --checkpoint."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, such as runs/demo")
    parser.add_argument(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="best, latest, step-NNNNNNNN, or auto: the best if there is one, else the newest [auto]",
    )
