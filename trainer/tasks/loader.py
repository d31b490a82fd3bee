"""The order of examples in fine-tuning, and one rank's part of each global batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline.hashing import Int64Array, derive_key, permutation
from trainer.errors import UserError
from trainer.tasks.examples import Example, TaskBatch, make_batch

_CURSOR_MEANING = {
    "fingerprint": "the training file, the vocabulary, the labels or data.max_length",
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


def deal(lengths: Int64Array, *, micro_batch_size: int, dp_rank: int, dp_world_size: int) -> list[Int64Array]:
    """One rank's micro-batches of a global batch, as places in it.

    Sorted by length, examples are dealt in turn, so that ranks get about equal work, and each rank cuts its hand
    into micro-batches of like lengths, of which attention is made in one go.
    """
    order = np.argsort(lengths, kind="stable")[dp_rank::dp_world_size]
    return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]


class ExampleLoader:
    """Iterates over global steps; each item is this rank's micro-batches. It never ends and resumes exactly."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        term: str,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_world_size: int,
    ) -> None:
        self._examples = examples
        self._lengths = np.array([len(example) for example in examples], dtype=np.int64)
        self._order = ExampleOrder(len(examples), seed=seed)
        self._term = term
        self._global_batch_size = global_batch_size
        self._deal = {"micro_batch_size": micro_batch_size, "dp_rank": dp_rank, "dp_world_size": dp_world_size}
        self._identity = {"fingerprint": fingerprint_of(examples), "seed": seed}
        self._next_row = 0

    def __iter__(self) -> Iterator[list[TaskBatch]]:
        return self

    def __next__(self) -> list[TaskBatch]:
        numbers = self._order.examples(self._next_row, self._global_batch_size)
        self._next_row += self._global_batch_size
        return [
            make_batch([self._examples[number] for number in numbers[places]], term=self._term)
            for places in deal(self._lengths[numbers], **self._deal)
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


def fingerprint_of(examples: Sequence[Example]) -> str:
    """SHA-256, in hex, of all that the examples give to the model, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        targets = example.targets if example.targets is not None else np.zeros(0)
        for array in (example.input_ids, example.token_type_ids, example.rows, targets):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
