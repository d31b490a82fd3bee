"""What goes into a step and what comes out of it: batches with named loss terms, and sums of these, never means.

A term (`mlm`, say) has a loss and a number of predictions. The loss that is trained is, over all terms,
weight x (sum of the term's losses) / (sum of its predictions) of the whole global batch, however that was split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from trainer.model.loss_term import LossTerm

# One rank's sums by the term's name; float64 scalars on the device, `correct` 0 in a training step.
StepSums = dict[str, LossTerm]


class StepBatch(Protocol):
    """One micro-batch of any task."""

    def model_inputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the model's forward takes, by argument name."""
        ...

    def term_counts(self) -> Mapping[str, int]:
        """How many predictions each loss term will be a sum over."""
        ...


def stacked(sums: StepSums) -> Tensor:
    """Float64 [terms, 3] of (loss, predictions, correct), in the order of the terms: ready to be summed over ranks."""
    return torch.stack([torch.stack([value.double() for value in term]) for term in sums.values()])


def weighted_mean(losses: Sequence[float], counts: Sequence[float], weights: Sequence[float]) -> float:
    """The trained loss from each term's sums; a term without predictions adds nothing."""
    return sum(weight * loss / max(count, 1.0) for loss, count, weight in zip(losses, counts, weights, strict=True))
