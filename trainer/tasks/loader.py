"""The order of examples in fine-tuning, and one rank's part of each global batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.hashing import Int64Array, derive_key, permutation
from trainer.errors import UserError
from trainer.tasks.examples import TaskBatch, make_batch
from trainer.tasks.rows import TrainingRows

_CURSOR_MEANING = {
    "fingerprint": "the training file, the vocabulary, the labels, data.max_length, or how rows are drawn",
    "seed": "the seed",
}


class ExampleOrder:
    """Row n, counted over all epochs, is a pure function of (seed, number of examples, n): shuffled by epoch."""

    def __init__(self, num_examples: int, *, seed: int) -> None:
        self._size = num_examples
        self._seed = seed
        self._epoch: tuple[int, Int64Array] | None = None

    def examples(self, first_row: int, count: int) -> Int64Array:
        """Numbers of the examples in rows [first_row, first_row + count)."""
        rows = np.arange(first_row, first_row + count)
        parts = [self._shuffled(epoch)[rows[rows // self._size == epoch] % self._size] for epoch in self._epochs(rows)]
        return np.concatenate(parts)

    def _epochs(self, rows: Int64Array) -> range:
        return range(int(rows[0]) // self._size, int(rows[-1]) // self._size + 1)

    def _shuffled(self, epoch: int) -> Int64Array:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, permutation(derive_key("fine-tuning", self._seed, epoch), self._size)
        return self._epoch[1]


def deal(
    lengths: Int64Array, *, micro_batch_size: int, dp_rank: int, dp_world_size: int, group_size: int = 1
) -> list[Int64Array]:
    """One rank's micro-batches of a global batch, as places in it.

    Sorted by length, examples are dealt in turn, so that ranks get about equal work, and each rank cuts its hand
    into micro-batches of like lengths, of which attention is made in one go. `group_size` examples, one after the
    other in the batch, are dealt as one; it divides the batch and the micro-batch.
    """
    groups = lengths.reshape(-1, group_size)
    order = np.argsort(groups.sum(axis=1), kind="stable")[dp_rank::dp_world_size]
    places = (order[:, None] * group_size + np.arange(group_size)).ravel()
    return [places[start : start + micro_batch_size] for start in range(0, len(places), micro_batch_size)]


class ExampleLoader:
    """Iterates over global steps; each item is this rank's micro-batches. It never ends and resumes exactly."""

    def __init__(
        self,
        rows: TrainingRows,
        *,
        term: str,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_world_size: int,
    ) -> None:
        self._rows = rows
        self._lengths = np.array([len(example) for example in rows.examples], dtype=np.int64)
        self._order = ExampleOrder(len(rows), seed=seed)
        self._term = term
        self._global_batch_size = global_batch_size
        self._deal = {
            "micro_batch_size": micro_batch_size,
            "dp_rank": dp_rank,
            "dp_world_size": dp_world_size,
            "group_size": rows.group_size,
        }
        self._identity = {"fingerprint": rows.fingerprint(), "seed": seed}
        self._next_row = 0

    def __iter__(self) -> Iterator[list[TaskBatch]]:
        return self

    def __next__(self) -> list[TaskBatch]:
        first = self._next_row
        numbers = self._order.examples(first, self._global_batch_size)
        self._next_row += self._global_batch_size
        return [
            make_batch(
                [
                    self._rows.example(int(numbers[place]), epoch=(first + int(place)) // len(self._rows))
                    for place in own
                ],
                term=self._term,
            )
            for own in deal(self._lengths[numbers], **self._deal)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands behind the last step handed out."""
        return {**self._identity, "next_row": self._next_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor; UserError when it belongs to other examples."""
        for key, what in _CURSOR_MEANING.items():
            if state[key] != self._identity[key]:
                raise UserError(
                    f"the checkpoint was made with another {key} ({what}): {str(state[key])[:12]}, now "
                    f"{str(self._identity[key])[:12]}; its rows cannot be continued: restore it, or start a new run "
                    "under another name"
                )
        self._next_row = int(state["next_row"])
