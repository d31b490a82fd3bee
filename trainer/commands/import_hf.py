"""`trainer import`: a Hugging Face BERT or ModernBERT folder as a model of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("import", help="read a Hugging Face BERT or ModernBERT folder and say what it holds")
    parser.add_argument("folder", type=Path, metavar="HF_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the weights folder to make")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.imported import import_to

    imported = import_to(options.folder, out=options.out)
    parameters = sum(weight.numel() for weight in imported.weights.values())
    print(f"{options.out}: {imported.config.num_layers} layers of {imported.config.hidden_size}, {parameters} weights")
    for part in imported.missing:
        print(f"without {part}: {options.folder} holds no weights for it")
    return 0
