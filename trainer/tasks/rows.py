"""What the rows of training hold: the examples of a file, or in each epoch something else that is drawn for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.hashing import Int64Array, hash64, high_half, scaled
from trainer.tasks.examples import Example


@dataclass(frozen=True)
class TrainingRows:
    """The rows of one epoch.

    examples: one for each row; by their lengths rows are dealt to ranks, whatever is drawn for them.
    draw: from a row's number and the epoch what it holds there, a function of these and the seed alone; without it
    always its example. drawn_by: the settings that rows are drawn and grouped by, as a checkpoint remembers
    them.
    group_size: so many rows, one after the other in the order, stay together in one forward pass.
    """

    examples: Sequence[Example]
    draw: Callable[[int, int], Example] | None = None
    drawn_by: str = ""
    group_size: int = 1

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, number: int, *, epoch: int) -> Example:
        """What a row holds in an epoch."""
        return self.examples[number] if self.draw is None else self.draw(number, epoch)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that the rows give to the model, and of what else is drawn by which rules."""
        digest = hashlib.sha256(self.drawn_by.encode())
        for example in self.examples:
            targets = example.targets if example.targets is not None else np.zeros(0)
            for array in (example.input_ids, example.token_type_ids, example.rows, targets):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def draw_others(key: int, *, own: int, count: int, total: int) -> list[int]:
    """`count` different numbers below `total`, none of them `own`, decided by `key`; `count` < `total`."""
    found: dict[int, None] = {}
    drawn = 0
    while len(found) < count:
        counters: Int64Array = np.arange(drawn, drawn + 2 * count)
        others = scaled(high_half(hash64(key, counters)), total - 1)
        found.update(dict.fromkeys((others + (others >= own)).tolist()))
        drawn += len(counters)
    return list(found)[:count]
