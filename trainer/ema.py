"""An exponential moving average of the weights, kept where their fp32 masters lie."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.fragments import Fragment, distinct_flats


class WeightAverage:
    """w̄ ← decay × w̄ + (1 − decay) × w after every applied update (Polyak and Juditsky 1992, with a window).

    One tensor beside each flat tensor of masters: as sharded as they are, and saved by the same fragments. It
    begins at the weights that it is made from; no method waits for the device.
    """

    def __init__(self, fragments: list[Fragment], *, decay: float) -> None:
        self._decay = decay
        flats = list(distinct_flats(fragments))
        self._place = {id(flat): number for number, flat in enumerate(flats)}
        self._flats = [flat.detach() for flat in flats]
        self._averages = [flat.clone() for flat in self._flats]

    def update(self) -> None:
        """Take in the present weights."""
        if self._flats:  # a rank of a small model may hold nothing but padding
            torch._foreach_lerp_(self._averages, self._flats, 1.0 - self._decay)

    def view(self, fragment: Fragment) -> Tensor:
        """The average of a fragment's elements, as a 1-D view."""
        return fragment.view(self._averages[self._place[id(fragment.flat)]])

    def swap(self) -> None:
        """Put the averages where the weights are and the weights where the averages are; twice is nothing, exactly."""
        for flat, average in zip(self._flats, self._averages, strict=True):
            kept = flat.clone()
            flat.copy_(average)
            average.copy_(kept)
