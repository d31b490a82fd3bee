"""Draw a run's loss curves from its metrics.jsonl: python docs/plot_curve.py runs/demo docs/demo_curve.png"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from trainer.metrics import read_records


def draw(run_dir: Path, out: Path) -> None:
    """Training loss (smoothed over 5 records) and validation loss by step, and the unigram entropy they must beat."""
    records = read_records(run_dir / "metrics.jsonl")
    train = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    held_out = [(record["step"], record["validation/loss"]) for record in records if "validation/loss" in record]
    evaluate = [sys.executable, "-m", "trainer", "evaluate", str(run_dir), "--json"]
    entropy = json.loads(subprocess.run(evaluate, capture_output=True, text=True, check=True).stdout)["unigram_entropy"]
    figure, axes = plt.subplots(figsize=(8, 4), dpi=120, layout="constrained")
    steps, losses = zip(*train, strict=True)
    smooth = [sum(losses[max(0, i - 4) : i + 1]) / len(losses[max(0, i - 4) : i + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, color="#9ec5e8", linewidth=1, label="training loss")
    axes.plot(steps, smooth, color="#1f6fb2", linewidth=2, label="training loss, mean of 5")
    axes.plot(*zip(*held_out, strict=True), "o-", color="#d1495b", linewidth=2, label="held-out loss")
    axes.axhline(entropy, color="#444444", linestyle="--", linewidth=1.2, label="unigram entropy, held out")
    axes.set(xlabel="step (global batch)", ylabel="masked-language loss, nats a token", title=run_dir.name)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
