"""`trainer export`: a run as a folder that transformers or ONNX Runtime loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.arguments import Commands, add_run
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.seq2seq_config import Seq2SeqConfig


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("export", help="write a run as a folder that transformers or ONNX Runtime loads")
    add_run(parser)
    parser.add_argument("--format", choices=("hf", "onnx"), default="hf", help="hf: safetensors; onnx: model.onnx [hf]")
    parser.add_argument(
        "--encoder", action="store_true", help="of a fine-tuned run the encoder alone, without its head"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to [RUN/export, RUN/export-onnx]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.export import export_checkpoint
    from trainer.imported import MODEL_FILE
    from trainer.run_folder import load_any_run
    from trainer.task_export import export_task

    is_imported = (options.run_dir / MODEL_FILE).exists()
    config = None if is_imported else load_any_run(options.run_dir)
    task = config.task if isinstance(config, FineTuneConfig) else None
    if options.encoder and task is None:
        raise UserError(f"{options.run_dir} is no fine-tuned run and has no task's head; leave --encoder out")
    writes = isinstance(task, Seq2SeqConfig)
    if options.encoder and writes:
        raise UserError(
            f"{options.run_dir} writes texts: encoder and decoder are exported together; leave --encoder out"
        )
    export = export_task if task is not None and not options.encoder and not writes else export_checkpoint
    print(export(options.run_dir, which=options.checkpoint, out=options.out, form=options.format))
    return 0
