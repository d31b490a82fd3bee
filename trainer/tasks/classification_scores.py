"""Scores of classification, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError

FloatArray = npt.NDArray[np.float64]


def require_sklearn() -> Any:
    """`sklearn.metrics`; UserError naming the extra where it is not installed."""
    try:
        import sklearn.metrics
    except ImportError:
        raise UserError("scoring a task needs the package scikit-learn; pip install 'bertline[tasks]'") from None
    return sklearn.metrics


def label_metrics(targets: Sequence[str], found: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, F1 averaged over labels, and, for two labels, Matthews' correlation."""
    metrics = require_sklearn()
    scores = {
        "accuracy": float(metrics.accuracy_score(targets, found)),
        "f1_macro": float(metrics.f1_score(targets, found, labels=list(labels), average="macro", zero_division=0.0)),
    }
    if len(labels) == 2:
        scores["matthews"] = float(metrics.matthews_corrcoef(targets, found))
    return scores


def multi_label_metrics(
    targets: Sequence[Sequence[str]], found: Sequence[Sequence[str]], *, labels: Sequence[str]
) -> dict[str, float]:
    """F1 over all decisions and averaged over labels, and the share of records with exactly the right labels."""
    metrics = require_sklearn()
    true, guess = (
        np.array([[label in names for label in labels] for names in of_records]) for of_records in (targets, found)
    )
    scores = {
        f"f1_{average}": float(metrics.f1_score(true, guess, average=average, zero_division=0.0))
        for average in ("micro", "macro")
    }
    return {**scores, "exact_match": float((true == guess).all(axis=1).mean())}


def number_metrics(targets: Sequence[float], found: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, 0 where one side is constant, and the mean squared error."""
    true, guess = np.array(targets, dtype=np.float64), np.array(found, dtype=np.float64)
    return {
        "pearson": _correlation(true, guess),
        "spearman": _correlation(_ranks(true), _ranks(guess)),
        "mean_squared_error": float(np.square(true - guess).mean()),
    }


def _correlation(one: FloatArray, other: FloatArray) -> float:
    if one.std() == 0.0 or other.std() == 0.0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: FloatArray = ((ends - counts + ends - 1) / 2)[inverse]
    return ranks
