"""The order of rows made visible: one hash a row of the global batches, as so many ranks read them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Batch
from data_pipeline.corpus import Corpus
from data_pipeline.from_recipe import loader_for
from trainer.config import Config
from trainer.errors import UserError

_HASH_BYTES = 16


class HashedRow(NamedTuple):
    """A row of the global batch that takes a run from `step` to `step` + 1; `row` counts since the phase began."""

    step: int
    row: int
    hash: str


def row_hashes(
    config: Config, corpus: Corpus, *, first_step: int, end_step: int, world_size: int
) -> Iterator[HashedRow]:
    """Rows of the steps [first_step, end_step) in order, read by the training loaders of all ranks of such a run.

    Raises UserError where the recipe does not fit the number of ranks or has fewer steps.
    """
    with ExitStack() as opened:
        loaders = [
            opened.enter_context(closing(loader_for(config, corpus, dp_rank=rank, dp_world_size=world_size)))
            for rank in range(world_size)
        ]
        if end_step > loaders[0].num_steps:
            raise UserError(
                f"--steps ends at {end_step}, and the run at step {loaders[0].num_steps}; ask for earlier ones"
            )
        for loader in loaders:
            loader.seek(first_step)
        for step in range(first_step, end_step):
            rows = [
                HashedRow(step, int(number), row_hash(batch, place))
                for loader in loaders
                for batch in next(loader)
                for place, number in enumerate(batch.row_ids)
            ]
            yield from sorted(rows)


def row_hash(batch: Batch, row: int) -> str:
    """A hash, in hex, of all that a row is: source, documents, tokens and their places, masked positions, labels."""
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    digest.update(np.array([batch.row_sources[row], len(batch.row_documents[row])], dtype="<i8").tobytes())
    digest.update(batch.row_documents[row].astype("<i8").tobytes())
    # Labels are there at the masked positions alone.
    for array in (batch.input_ids, batch.position_ids, batch.document_ids, batch.labels):
        digest.update(array[row].astype("<i8").tobytes())
    return digest.hexdigest()
