"""What damaged blocks cost a run that leaves them out: rows and blocks in the metrics, each block named once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch.distributed as dist

from data_pipeline.batch import Batch
from data_pipeline.damage import SkippedBlocks
from data_pipeline.reader import EMPTY_ROW


class SkipReport:
    """Counts the skipped rows of the batches one rank consumes; `report` prints on the main rank."""

    def __init__(self, skipped: SkippedBlocks, *, report: Callable[[str], None]) -> None:
        self._skipped = skipped
        self._report = report
        self._rows = 0
        self._named: set[str] = set()

    def count(self, batches: Sequence[Batch]) -> None:
        """Count the rows of these batches that have a number and no token."""
        self._rows += sum(
            int(np.count_nonzero((batch.row_ids != EMPTY_ROW) & (batch.document_ids[:, 0] == 0))) for batch in batches
        )

    def collect(self) -> dict[str, float]:
        """All ranks' skipped rows since the last call, and the distinct blocks so far; collective."""
        own = (self._rows, self._skipped.findings())
        of_ranks: list[tuple[int, dict[str, str]]] = [own] * dist.get_world_size()
        dist.all_gather_object(of_ranks, own)
        self._rows = 0
        findings = {block: finding for _, found in of_ranks for block, finding in found.items()}
        for block in sorted(findings.keys() - self._named):
            self._report(f"skipping {block}: {findings[block]}")
        self._named |= findings.keys()
        return {
            "data/skipped_rows": float(sum(rows for rows, _ in of_ranks)),
            "data/skipped_blocks": float(len(findings)),
        }
