"""The command line: a recipe becomes a trained, evaluated, exported encoder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainer.commands import (
    check,
    evaluate,
    export,
    finetune,
    import_hf,
    parity,
    plan,
    predict,
    pretrain,
    profile,
    serve,
    show_config,
    suite,
    sweep,
)
from trainer.errors import run_command

_DESCRIPTION = """\
Pretrain a BERT-class encoder, or fine-tune one, from a recipe: a YAML file, or the name of one that comes along.

  python -m trainer show-config bert_base
  python -m trainer pretrain RECIPE                                     one process
  python -m trainer finetune RECIPE                                     likewise from trained weights
  deepspeed --num_gpus 8 --module trainer pretrain RECIPE               several
  torchrun --nproc-per-node 8 -m trainer pretrain RECIPE                likewise

A run writes runs/NAME: recipe, metrics, TensorBoard, checkpoints, export. Started again, it goes on where it was."""

_COMMANDS = (
    check,
    pretrain,
    finetune,
    sweep,
    suite,
    evaluate,
    predict,
    serve,
    export,
    import_hf,
    show_config,
    parity,
    profile,
    plan,
)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; exits with 2 and a usage line for an unknown option."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # The deepspeed launcher adds this to every process's command line; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 0, 1 when parity is off, 2 for a mistake,
    named in one line, 75 when training was told to stop and has saved."""
    options = parse_arguments(arguments)
    return run_command(lambda: int(options.run(options)))


if __name__ == "__main__":
    sys.exit(main())
