"""`trainer profile`: a few steps of a recipe, measured by part and traced."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands, add_recipe
from trainer.recipe import load_recipe


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "profile", help="measure a recipe's steps by part, what they send, and write a Chrome trace of each rank"
    )
    add_recipe(parser)
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to measure [10]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where traces and table go [runs/NAME/profile]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load_recipe(options.recipe, overrides=options.overrides)
    from trainer.checkpoint_files import write_json
    from trainer.profile_run import profile
    from trainer.profile_text import describe_profile, profile_figures

    out = options.out or config.run_dir / "profile"
    found = profile(config, steps=options.steps, out=out)
    if found is not None:
        table = "\n".join(describe_profile(found))
        (out / "table.txt").write_text(f"{table}\n", encoding="utf-8")
        write_json(out / "figures.json", profile_figures(found))
        print(f"{table}\n\n{out}: table.txt, figures.json and a trace of each rank, for chrome://tracing or Perfetto")
    return 0
