"""`trainer evaluate`: a run's held-out loss and accuracy."""

from __future__ import annotations

import argparse
import json

from trainer.commands.arguments import Commands, add_run


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("evaluate", help="held-out loss and accuracy of a run, beside the unigram baseline")
    add_run(parser)
    parser.add_argument("--shards", metavar="DIR", help="other shards to evaluate on, a folder or a URL")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
    print(f"unigram entropy     {baseline.entropy:.4f} nats: {baseline.entropy - result.loss:+.4f} above the loss")
    print(f"masked accuracy     {result.accuracy:.1%} of {result.predictions} masked tokens")
    print(f"most frequent token {baseline.most_frequent_rate:.1%}")
    if pairs is not None:
        print(f"pair loss, accuracy {pairs.loss:.4f} nats, {pairs.accuracy:.1%} of {pairs.predictions} pairs")
    return 0
