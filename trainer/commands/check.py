"""`trainer check`: whether a recipe can run, and what it takes; nothing is started."""

from __future__ import annotations

import argparse

from trainer.commands.arguments import Commands, add_recipe
from trainer.recipe import load_recipe


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("check", help="check a recipe for a layout: batch, rows, memory, disk; starts nothing")
    add_recipe(parser)
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="processes to check it for [1]")
    parser.add_argument("--num-stages", type=int, metavar="P", help="pipeline stages [parallel.num_stages]")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the devices it would run on [those of this machine]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    stages = [] if options.num_stages is None else [f"parallel.num_stages={options.num_stages}"]
    config = load_recipe(options.recipe, overrides=[*options.overrides, *stages])
    import torch

    from trainer.check import check_recipe
    from trainer.check_text import describe
    from trainer.runtime import started_process_bytes

    device_type = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    program_bytes = started_process_bytes() if device_type == "cpu" else 0
    check = check_recipe(config, world_size=options.world_size, device_type=device_type, program_bytes=program_bytes)
    print("\n".join(describe(check, world_size=options.world_size)))
    return 0
