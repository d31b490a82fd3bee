"""`trainer parity`: loss curves compared over layouts."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands, add_recipe
from trainer.recipe import load_recipe

ZERO_STAGES = ("0", "1", "2", "3", "3-offload")


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("parity", help="compare loss curves over layouts; exit code 1 when one is off")
    add_recipe(parser, default="parity")
    _add_numbers(parser, "--world-sizes", [1, 2, 4], help="processes [1 2 4]")
    _add_numbers(parser, "--num-stages", [1, 2, 4], help="pipeline stages [1 2 4]")
    parser.add_argument(
        "--zero-stages", nargs="+", choices=ZERO_STAGES, default=ZERO_STAGES, help=f"ZeRO [{' '.join(ZERO_STAGES)}]"
    )
    _add_numbers(parser, "--accumulations", [1, 2, 4], help="micro-batches a step [1 2 4]")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), help="[all that this machine's devices compute in]"
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps a cell [50]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.set_defaults(run=_run)


def _add_numbers(parser: argparse.ArgumentParser, name: str, default: list[int], *, help: str) -> None:
    parser.add_argument(name, type=int, nargs="+", default=default, metavar="N", help=help)


def _run(options: argparse.Namespace) -> int:
    from trainer.parity import all_cells, judge, markdown_page, markdown_table, refusal_table
    from trainer.parity_run import run_parity, trainable_precisions

    config = load_recipe(options.recipe, overrides=options.overrides)
    cells = all_cells(
        world_sizes=options.world_sizes,
        ds_configs=[f"zero{stage.replace('-', '_')}" for stage in options.zero_stages],
        precisions=options.precisions or trainable_precisions(),
        grad_accum_steps=options.accumulations,
        num_stages=options.num_stages,
    )
    losses, refused = run_parity(config, cells, steps=options.steps, report=lambda text: print(text, flush=True))
    verdicts = judge(losses, reference=cells[0])
    print(markdown_table(verdicts, steps=options.steps) + refusal_table(refused), end="")
    if options.table:
        options.table.write_text(markdown_page(verdicts, refused, steps=options.steps), encoding="utf-8")
    off = [verdict for verdict in verdicts if not verdict.within_bounds]
    print(f"{len(verdicts)} cells, {len(off)} over their bounds; {len(refused)} refused")
    return 1 if off else 0
