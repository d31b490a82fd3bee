"""What a step returns: sums, never means, so that they add up the same however a batch was split."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepSums(NamedTuple):
    """One rank's sums over predicted tokens; float64 scalars on the device.

    loss in nats; predicted_tokens; correct_tokens, the hits of the most probable token (0 in a training step).
    """

    loss: Tensor
    predicted_tokens: Tensor
    correct_tokens: Tensor
