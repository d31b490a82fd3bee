"""Arrays that are kept for as long as a run lasts, in half the bytes where their values allow it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# Signed both, so that arithmetic between them and int64 stays exact.
CompactArray: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def compact(values: CompactArray) -> CompactArray:
    """The values, none negative, as int32 where all fit, in memory of their own; else as they are."""
    return values.astype(np.int32) if values.max(initial=0) <= np.iinfo(np.int32).max else values
