"""The mask rate as a function of the row's number, so that no rank, batch size or resume changes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array


@dataclass(frozen=True)
class MaskRate:
    """Linear from `start` at row 0 of the phase to `end` at row `rows`, then constant."""

    start: float
    end: float
    rows: int = 1

    @property
    def constant(self) -> float | None:
        """The rate of every row, None where it changes."""
        return self.start if self.start == self.end else None

    def at(self, row_ids: Int64Array) -> npt.NDArray[np.float64]:
        """The rate of each row, [B]; an empty row, -1, has that of row 0."""
        passed = np.clip(row_ids, 0, self.rows) / self.rows
        rates: npt.NDArray[np.float64] = self.start + (self.end - self.start) * passed
        return rates
