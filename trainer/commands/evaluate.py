"""`trainer evaluate`: a pretraining run's held-out loss and accuracy, or a fine-tuned run's scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.commands.arguments import Commands, add_run
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("evaluate", help="held-out loss of a run, or the scores of a fine-tuned one")
    add_run(parser)
    parser.add_argument(
        "--shards", metavar="DIR", help="other shards to evaluate a pretraining run on: a folder or a URL"
    )
    parser.add_argument("--file", type=Path, metavar="FILE", help="another labelled file to score a fine-tuned run on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.run_folder import load_any_run

    is_finetuned = isinstance(load_any_run(options.run_dir), FineTuneConfig)
    if is_finetuned and options.shards is not None:
        raise UserError(f"{options.run_dir} is a fine-tuned run, which is scored on files: name one by --file")
    if not is_finetuned and options.file is not None:
        raise UserError(f"{options.run_dir} is a pretraining run, which is evaluated on shards: name them by --shards")
    return _score(options) if is_finetuned else _evaluate(options)


def _score(options: argparse.Namespace) -> int:
    from trainer.task_predict import score_run

    scores = score_run(options.run_dir, which=options.checkpoint, file=options.file)
    if options.json:
        print(json.dumps(scores, ensure_ascii=False))
        return 0
    print(f"{'checkpoint':<12} {scores['checkpoint']}")
    for part, values in scores["parts"].items():
        for name, value in values.items():
            print(f"{part:<12} {name:<20} {value:.4f}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from trainer.evaluate import perplexity
    from trainer.evaluate_run import evaluate_run

    evaluation = evaluate_run(options.run_dir, which=options.checkpoint, shards=options.shards)
    result, pairs, baseline = evaluation.result.masked, evaluation.result.pairs, evaluation.baseline
    if options.json:
        figures = {
            "checkpoint": str(evaluation.checkpoint),
            "loss": result.loss,
            "accuracy": result.accuracy,
            "predicted_tokens": result.predictions,
            "unigram_entropy": baseline.entropy,
            "most_frequent_rate": baseline.most_frequent_rate,
        }
        if pairs is not None:
            figures |= {"pair_loss": pairs.loss, "pair_accuracy": pairs.accuracy, "pairs": pairs.predictions}
        print(json.dumps(figures))
        return 0
    print(f"checkpoint          {evaluation.checkpoint}")
    print(f"held-out MLM loss   {result.loss:.4f} nats (perplexity {perplexity(result.loss):.2f})")
    distance = baseline.entropy - result.loss
    side = "above" if distance > 0 else "below"
    print(f"unigram entropy     {baseline.entropy:.4f} nats: {abs(distance):.4f} {side} the loss")
    print(f"masked accuracy     {result.accuracy:.1%} of {result.predictions} masked tokens")
    print(f"most frequent token {baseline.most_frequent_rate:.1%}")
    if pairs is not None:
        print(f"pair loss, accuracy {pairs.loss:.4f} nats, {pairs.accuracy:.1%} of {pairs.predictions} pairs")
    return 0
