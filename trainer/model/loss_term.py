"""What a model's forward pass returns for each thing it is trained to predict."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The name under which masked-language modelling stands among a step's terms.
MASKED_LANGUAGE_MODEL = "mlm"
NOT_COUNTED = -1


class LossTerm(NamedTuple):
    """Sums over what one batch predicts, never means: a mean is only right over the whole global batch."""

    loss: Tensor
    """Scalar, in nats; fp32 with a graph, even where nothing is predicted, as it comes from a model."""
    predictions: Tensor
    """Scalar: how many the loss is a sum over."""
    correct: Tensor
    """Scalar: how many have the label as their most likely class; NOT_COUNTED where nobody asked."""


def classification_term(
    logits: Tensor, targets: Tensor, *, count_correct: bool, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> LossTerm:
    """Cross-entropy of logits [N, classes] against targets [N] int64; sums over the N predictions.

    `label_smoothing` mixes an even distribution into the targets (Szegedy et al. 2016, section 7); `z_loss` weighs
    the square of each prediction's log-sum-exp, which holds logits near zero (Chowdhery et al. 2022, section 5).
    """
    scores = logits.float()
    loss = F.cross_entropy(scores, targets, reduction="sum", label_smoothing=label_smoothing)
    if z_loss > 0.0:
        loss = loss + z_loss * scores.logsumexp(dim=-1).square().sum()
    predictions = torch.full((), targets.numel(), dtype=torch.int64, device=logits.device)
    if count_correct:
        correct = (logits.detach().argmax(dim=-1) == targets).sum()
    else:
        correct = torch.full_like(predictions, NOT_COUNTED)
    return LossTerm(loss, predictions, correct)
