"""The scores that suites publish."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.suites.suite_task import Metric, SuiteTask
from trainer.tasks.classification_scores import number_metrics, require_sklearn
from trainer.tasks.task import Prediction

_POSITIVE = "1"


def published(task: SuiteTask, targets: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The task's own metrics; F1 is of the label 1."""
    if task.is_number:
        numbers = number_metrics(targets, [prediction["value"] for prediction in predictions])
        return {name: numbers[name] for name in task.metrics}
    sklearn = require_sklearn()
    found = [prediction["label"] for prediction in predictions]
    scorers: Mapping[Metric, Any] = {
        "accuracy": lambda: sklearn.accuracy_score(targets, found),
        "f1": lambda: sklearn.f1_score(targets, found, pos_label=_POSITIVE, zero_division=0),
        "matthews": lambda: sklearn.matthews_corrcoef(targets, found),
    }
    return {name: float(scorers[name]()) for name in task.metrics}


def average(rows: Sequence[Mapping[str, Any]]) -> float:
    """Over tasks, of the mean of each one's scores, as GLUE and CLUE publish it."""
    return statistics.fmean(
        statistics.fmean(value for scores in row["dev"].values() for value in scores.values()) for row in rows
    )


def markdown(rows: Sequence[Mapping[str, Any]], *, absent: Sequence[str]) -> str:
    """The table of dev scores × 100, their average, and what was not at hand."""
    lines = ["| task | dev file | scores × 100 | seed |", "|---|---|---|---|"]
    for row in rows:
        for file, scores in row["dev"].items():
            shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in scores.items())
            lines.append(f"| {row['task']} | {file} | {shown} | {row['seed']} |")
    lines.append(f"| average of {len(rows)} tasks | | {100 * average(rows):.2f} | |")
    missing = f"\nNot at hand: {', '.join(absent)}.\n" if absent else ""
    return "\n".join(lines) + "\n" + missing
