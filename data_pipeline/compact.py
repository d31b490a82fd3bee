"""Arrays that are kept for long, in no more bytes than their values need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# Signed both, so that arithmetic between them and int64 stays exact.
CompactArray: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def compact(values: CompactArray) -> CompactArray:
    """The values, none negative, as int32 where all fit, in memory of their own; else as they are."""
    return values.astype(np.int32) if values.max(initial=0) <= np.iinfo(np.int32).max else values


@dataclass(frozen=True)
class Bits:
    """Truth values, eight to a byte of `packed`, given back a range at a time."""

    packed: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: npt.NDArray[np.bool_]) -> Bits:
        """The values, bool [n], packed."""
        return cls(np.packbits(values))

    def between(self, start: int, end: int) -> npt.NDArray[np.bool_]:
        """The values from `start` to `end`, bool [end - start]."""
        first = start // 8
        bits = np.unpackbits(self.packed[first : -(-end // 8)])
        return bits[start - 8 * first : end - 8 * first].view(np.bool_)
