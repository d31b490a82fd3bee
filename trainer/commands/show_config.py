"""`trainer show-config`: the resolved recipe, what DeepSpeed receives and the learning rate over the steps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.commands.arguments import Commands, add_recipe
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import dump_config, load_any_recipe


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("show-config", help="print the resolved recipe and exactly what DeepSpeed receives")
    add_recipe(parser)
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="processes to resolve it for [1]")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw the learning rate over the steps, and sketch it here"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load_any_recipe(options.recipe, overrides=options.overrides)
    from trainer.show_config import deepspeed_plan_for

    plan = deepspeed_plan_for(config, world_size=options.world_size)
    print(dump_config(config).rstrip())
    print(f"\n# DeepSpeed receives, on {options.world_size} process(es):")
    print(json.dumps(plan.config, indent=2))
    for note in plan.notes:
        print(f"# {note}")
    if options.plot is not None:
        if isinstance(config, FineTuneConfig):
            raise UserError(f"--plot draws a pretraining recipe's rate, and {options.recipe} is one for fine-tuning")
        from trainer.schedule_plot import plot_schedule, sketch_schedule

        plot_schedule(config, out=options.plot)
        print(f"\n{sketch_schedule(config)}\n\n# drawn to {options.plot}")
    return 0
