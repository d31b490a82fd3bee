"""What the sequences of a block's rows are made of: stretches of its tokens, in the order in which rows hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array
from data_pipeline.packing import PackingPlan


@dataclass(frozen=True)
class Sequences:
    """A block's rows before they are framed; a sequence is one segment, or two of a pair.

    `start` and `length`, int64 [segments], are stretches of the block's tokens; `opens`, bool [segments], is true
    where a segment is the first of its sequence. Row r holds the sequences row_starts[r] to row_starts[r+1], whose
    documents (numbers within the block) are `documents`. `pair_labels`, int8 [sequences], is None without pairs.
    """

    start: Int64Array
    length: Int64Array
    opens: npt.NDArray[np.bool_]
    row_starts: Int64Array
    documents: Int64Array
    pair_labels: npt.NDArray[np.int8] | None = None


def plain_sequences(plan: PackingPlan) -> Sequences:
    """Each piece as a sequence of its own."""
    return Sequences(
        start=plan.pieces.start[plan.piece],
        length=plan.pieces.length[plan.piece],
        opens=np.ones(len(plan.piece), dtype=bool),
        row_starts=plan.row_starts,
        documents=plan.pieces.document[plan.piece],
    )
