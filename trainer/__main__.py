"""The command line: a recipe becomes a trained, evaluated, exported encoder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import run_command
from trainer.recipe import dump_config, load_recipe

_DESCRIPTION = """\
Pretrain a BERT-class encoder from a recipe: a YAML file, or the name of one that comes along (demo, bert_base, ...).

  python -m trainer show-config bert_base
  python -m trainer pretrain RECIPE                                     one process
  deepspeed --num_gpus 8 --module trainer pretrain RECIPE               several
  torchrun --nproc-per-node 8 -m trainer pretrain RECIPE                likewise

A run writes runs/NAME: recipe, metrics, TensorBoard, checkpoints, export. Started again, it goes on where it was."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; exits with 2 and a usage line for an unknown option."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # The deepspeed launcher adds this to every process's command line; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pretrain = commands.add_parser("pretrain", help="train as a recipe says, or go on with an interrupted run")
    _add_recipe(pretrain)
    pretrain.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest whole checkpoint of the run folder, if any; never: refuse if there is one",
    )
    pretrain.set_defaults(run=_pretrain)

    evaluate = commands.add_parser("evaluate", help="held-out loss and accuracy of a run, beside the unigram baseline")
    _add_run(evaluate)
    evaluate.add_argument("--shards", type=Path, metavar="DIR", help="other shards to evaluate on")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="write a run's encoder as a folder that transformers loads")
    _add_run(export)
    export.add_argument("--out", type=Path, metavar="DIR", help="where to [RUN/export]")
    export.set_defaults(run=_export)

    import_ = commands.add_parser("import", help="read a Hugging Face BERT folder and say what it holds")
    import_.add_argument("folder", type=Path, metavar="HF_DIR")
    import_.add_argument("--out", type=Path, required=True, metavar="DIR", help="the weights folder to make")
    import_.set_defaults(run=_import)

    show = commands.add_parser("show-config", help="print the resolved recipe and exactly what DeepSpeed receives")
    _add_recipe(show)
    show.add_argument("--world-size", type=int, default=1, metavar="N", help="processes to resolve it for [1]")
    show.set_defaults(run=_show_config)

    parity = commands.add_parser("parity", help="compare loss curves over layouts; exit code 1 when one is off")
    _add_parity(parity)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 0, 1 when parity is off, 2 for a mistake, named in one line."""
    options = parse_arguments(arguments)
    return run_command(lambda: int(options.run(options)))


def _add_recipe(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file or a recipe's name",
        nargs="?" if default else None,
        default=default,
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="set one value of the recipe; may be given several times",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, such as runs/demo")
    parser.add_argument(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="best, latest, step-NNNNNNNN, or auto: the best if there is one, else the newest [auto]",
    )


def _add_parity(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser, default="parity")
    _add_numbers(parser, "--world-sizes", [1, 2, 4], help="processes [1 2 4]")
    _add_numbers(parser, "--zero-stages", [0, 1, 2, 3], help="ZeRO stages [0 1 2 3]")
    _add_numbers(parser, "--accumulations", [1, 2, 4], help="micro-batches a step [1 2 4]")
    parser.add_argument(
        "--precisions", default=["fp32", "bf16", "fp16"], nargs="+", choices=("fp32", "bf16", "fp16"), help="[all]"
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps a cell [50]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.set_defaults(run=_parity)


def _add_numbers(parser: argparse.ArgumentParser, name: str, default: list[int], *, help: str) -> None:
    parser.add_argument(name, type=int, nargs="+", default=default, metavar="N", help=help)


def _pretrain(options: argparse.Namespace) -> int:
    config = load_recipe(options.recipe, overrides=options.overrides)
    from trainer.pretrain import pretrain

    pretrain(config, resume=options.resume)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from trainer.evaluate import perplexity
    from trainer.evaluate_run import evaluate_run

    evaluation = evaluate_run(options.run_dir, which=options.checkpoint, shards=options.shards)
    result, baseline = evaluation.result, evaluation.baseline
    if options.json:
        figures = {
            "checkpoint": str(evaluation.checkpoint),
            "loss": result.loss,
            "accuracy": result.accuracy,
            "predicted_tokens": result.predicted_tokens,
            "unigram_entropy": baseline.entropy,
            "most_frequent_rate": baseline.most_frequent_rate,
        }
        print(json.dumps(figures))
        return 0
    print(f"checkpoint          {evaluation.checkpoint}")
    print(f"held-out MLM loss   {result.loss:.4f} nats (perplexity {perplexity(result.loss):.2f})")
    print(f"unigram entropy     {baseline.entropy:.4f} nats: {baseline.entropy - result.loss:+.4f} above the loss")
    print(f"masked accuracy     {result.accuracy:.1%} of {result.predicted_tokens} masked tokens")
    print(f"most frequent token {baseline.most_frequent_rate:.1%}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from trainer.export import export_checkpoint

    print(export_checkpoint(options.run_dir, which=options.checkpoint, out=options.out))
    return 0


def _import(options: argparse.Namespace) -> int:
    from trainer.imported import import_to

    imported = import_to(options.folder, out=options.out)
    parameters = sum(weight.numel() for weight in imported.weights.values())
    print(f"{options.out}: {imported.config.num_layers} layers of {imported.config.hidden_size}, {parameters} weights")
    for part in imported.missing:
        print(f"without {part}: {options.folder} holds no weights for it")
    for name in imported.dropped:
        print(f"left out: {name}, which this model has no place for")
    return 0


def _show_config(options: argparse.Namespace) -> int:
    config = load_recipe(options.recipe, overrides=options.overrides)
    from trainer.show_config import deepspeed_plan_for

    plan = deepspeed_plan_for(config, world_size=options.world_size)
    print(dump_config(config).rstrip())
    print(f"\n# DeepSpeed receives, on {options.world_size} process(es):")
    print(json.dumps(plan.config, indent=2))
    for note in plan.notes:
        print(f"# {note}")
    return 0


def _parity(options: argparse.Namespace) -> int:
    from trainer.parity import all_cells, judge, markdown_page, markdown_table
    from trainer.parity_run import run_parity

    config = load_recipe(options.recipe, overrides=options.overrides)
    cells = all_cells(
        world_sizes=options.world_sizes,
        zero_stages=options.zero_stages,
        precisions=options.precisions,
        grad_accum_steps=options.accumulations,
    )
    losses = run_parity(config, cells, steps=options.steps, report=lambda text: print(text, flush=True))
    verdicts = judge(losses, reference=cells[0])
    table = markdown_table(verdicts, steps=options.steps)
    print(table, end="")
    if options.table:
        options.table.write_text(markdown_page(verdicts, steps=options.steps), encoding="utf-8")
    off = [verdict for verdict in verdicts if not verdict.within_bounds]
    print(f"{len(verdicts)} cells, {len(off)} over their bounds")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
