"""The loader of one phase: a rank's micro-batches of each global batch, made in the background, exactly resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
import webdataset as wds

from data_pipeline.batch import Batch
from data_pipeline.hashing import Int64Array
from data_pipeline.masking import TokenMasker
from data_pipeline.order import rank_rows
from data_pipeline.prefetch import Prefetcher
from data_pipeline.reader import Reader
from trainer.errors import UserError
from trainer.phases import BatchSizes


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its rows; everything else about the order is derived from it."""

    fingerprint: str
    data_config_hash: str
    seed: int
    phase: int
    next_row: int


_CURSOR_MEANING = {
    "fingerprint": ("the shards", "train on the shards it was made with"),
    "data_config_hash": ("row length, packing, lanes, weights or masking", "restore these settings of the recipe"),
    "seed": ("the seed", "restore the recipe's seed"),
    "phase": ("the phase", "restore the steps of the recipe's phases"),
}


class TrainLoader:
    """Iterates over a phase's global steps; each item is this rank's micro-batches of one step.

    Iteration never ends: epochs follow each other, each in an order of its own. Batches are made ahead in a
    background thread, whose failure is raised by the next step. `state_dict` describes what was handed out,
    not what was made ahead.
    """

    def __init__(
        self,
        reader: Reader,
        masker: TokenMasker,
        *,
        cursor: Cursor,
        batch_sizes: BatchSizes,
        micro_batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        prefetch_batches: int,
    ) -> None:
        self._reader = reader
        self._masker = masker
        self._cursor = cursor
        self._step = 0
        self._batch_sizes = batch_sizes
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_world_size = dp_world_size
        self._prefetch_batches = prefetch_batches
        self._batches: Prefetcher[Batch] | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._batches is None:
            pipeline = wds.DataPipeline(
                self._planned_rows,
                wds.map(self._reader.read),
                wds.map(self._masker.apply),
            )
            self._batches = Prefetcher(pipeline, depth=self._prefetch_batches)
        rows = self._batch_sizes.at(self._step)
        micro_batches = [next(self._batches) for _ in range(self._micro_steps(rows))]
        self._step += 1
        self._cursor = self._at(self._cursor.next_row + rows)
        return micro_batches

    def _planned_rows(self) -> Iterator[Int64Array]:
        first_row = self._cursor.next_row
        for step in count(self._step):
            size = self._batch_sizes.at(step)
            rows = rank_rows(first_row, batch_size=size, dp_rank=self._dp_rank, dp_world_size=self._dp_world_size)
            yield from np.split(rows, self._micro_steps(size))
            first_row += size

    def _micro_steps(self, rows: int) -> int:
        return rows // (self._micro_batch_size * self._dp_world_size)

    @property
    def steps_before_repeat(self) -> int:
        """Whole batches before any source begins again."""
        return self._batch_sizes.steps_within(self._reader.rows_before_repeat)

    def seek(self, step: int) -> None:
        """Go on from the batch after `step` steps of the phase. Call before iterating."""
        self._require_not_begun()
        self._step = step
        self._cursor = self._at(self._batch_sizes.rows_before(step))

    def _at(self, next_row: int) -> Cursor:
        return Cursor(**{**asdict(self._cursor), "next_row": next_row})

    def state_dict(self) -> dict[str, Any]:
        """The cursor behind the last step handed out."""
        return asdict(self._cursor)

    def load_state_dict(self, state: dict[str, Any], *, step: int) -> None:
        """Go on from a cursor saved after `step` steps of the phase; UserError when it belongs to other rows.

        Call before iterating. Batch sizes may have changed since: rows go on where they ended.
        """
        self._require_not_begun()
        own = asdict(self._cursor)
        for key, (what, fix) in _CURSOR_MEANING.items():
            if state[key] != own[key]:
                raise UserError(
                    f"the checkpoint was made with another {key} ({what}): {_short(state[key])}, now "
                    f"{_short(own[key])}; its rows cannot be continued: {fix}, or start a new run under another name"
                )
        self._step = step
        self._cursor = self._at(int(state["next_row"]))

    def _require_not_begun(self) -> None:
        if self._batches is not None:
            raise RuntimeError("a loader is told where to go on before the first step")

    def close(self) -> None:
        """End the background thread."""
        if self._batches is not None:
            self._batches.close()


def _short(value: object) -> str:
    return str(value)[:12]
