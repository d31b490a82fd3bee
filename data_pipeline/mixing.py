"""Mixing sources: which source each row is of, as a pure function of the row's number, in exact integers.

Row n is turn ⌊n/L⌋ of lane n mod L, L lanes, as in `data_pipeline.order`. In every lane the turns are dealt to the
sources one after the other: of the turns that earlier sources left, a source whose share of them is p has taken

    taken(t) = ⌊p·t + g/L⌋

after t turns, and a turn is its own when `taken` grows in it; g is the lane's place, a permutation of 0 ... L-1 for
each source. A source's row number is taken·L + lane: its lanes are the mixture's, so that a rank reads whole lanes of
every source, however many ranks there are, and each row of a source is dealt exactly once.

The bound. In a lane, `taken` is within 1 of p·t, so that source s (from 0), dealt from what is left, is within s+1
turns of its share, and within (s+1)·L rows over all lanes, however long the run is: a constant, so that the shares of
a run of n rows are off by O(1/n). For the first source it is less than one row after each whole turn, because
Σ_g ⌊x + g/L⌋ = ⌊L·x⌋ (Hermite's identity). Fractions are of Python's integers: nothing is rounded as n grows.

Weights are shares of *tokens*. A source's epoch has known numbers of rows and of tokens, so its share of rows is
proportional to weight · rows / tokens; tokens then agree whenever an epoch ends, and between are off by what the rows
of one unfinished epoch differ from their mean, which no more grows with n.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.batch import Batch
from data_pipeline.hashing import Int64Array
from data_pipeline.reader import EMPTY_ROW, PackedRow, RowReader

# Python integers, which do not overflow.
ExactArray = npt.NDArray[Any]


@dataclass(frozen=True)
class DealtRows:
    """For each asked row its source and its number among that source's rows, int64 [rows]."""

    source: Int64Array
    row: Int64Array


class RowDealer:
    """Deals the rows of a mixture to sources with these shares of the rows, which need not sum to 1."""

    def __init__(self, shares: Sequence[Fraction], *, lanes: int) -> None:
        self._lanes = lanes
        left = [sum(shares[source:], Fraction(0)) for source in range(len(shares))]
        self._parts = [share / rest for share, rest in zip(shares[:-1], left, strict=False)]
        self._places = [_spread(lanes, source) for source in range(len(self._parts))]

    def deal(self, rows: Int64Array) -> DealtRows:
        """Sources and their rows for row numbers in any order, with any gaps."""
        turn, lane = np.divmod(np.asarray(rows, dtype=np.int64), self._lanes)
        waiting = np.arange(len(turn))
        source = np.full(len(turn), len(self._parts), dtype=np.int64)
        row = np.empty(len(turn), dtype=np.int64)
        left: ExactArray = turn.astype(object)
        for number in range(len(self._parts)):
            before = self._taken(number, left, lane)
            own = (self._taken(number, left + 1, lane) > before).astype(bool)
            source[waiting[own]] = number
            row[waiting[own]] = before[own] * self._lanes + lane[own]
            left, lane, waiting = (left - before)[~own], lane[~own], waiting[~own]
        row[waiting] = left * self._lanes + lane
        return DealtRows(source=source, row=row)

    def rows_before(self, limits: Sequence[int]) -> int:
        """How many rows can be dealt before any source is asked for its row number `limits[source]` or a later one."""
        # More rows than all sources have cannot be dealt.
        turns = range(sum(limits) // self._lanes + 2)
        first = bisect_left(turns, True, key=lambda turn: self._exceeds(turn, limits)) - 1
        dealt = self.deal(np.arange(first * self._lanes, (first + 1) * self._lanes))
        beyond = dealt.row >= np.asarray(limits)[dealt.source]
        return first * self._lanes + int(np.argmax(beyond))

    def _exceeds(self, turns: int, limits: Sequence[int]) -> bool:
        """Whether the first so many turns of all lanes ask any source for a row beyond its limit."""
        lane = np.arange(self._lanes)
        left: ExactArray = np.full(self._lanes, turns, dtype=object)
        for number, limit in enumerate(limits):
            own = self._taken(number, left, lane) if number < len(self._parts) else left
            if bool(((own > 0) & ((own - 1) * self._lanes + lane >= limit)).any()):
                return True
            left = left - own
        return False

    def _taken(self, source: int, turns: ExactArray, lane: Int64Array) -> ExactArray:
        part = self._parts[source]
        scaled = turns * (part.numerator * self._lanes) + self._places[source][lane] * part.denominator
        taken: ExactArray = scaled // (part.denominator * self._lanes)
        return taken


def _spread(lanes: int, source: int) -> ExactArray:
    """A permutation of the lanes under which neighbours are far apart, unlike for each source.

    Ranks of the multiples of √prime modulo 1: a Kronecker sequence, evenly spread in one and in several dimensions.
    """
    prime = next(islice((n for n in count(2) if all(n % d for d in range(2, isqrt(n) + 1))), source, None))
    fraction = isqrt(prime << 128) % (1 << 64)
    points = sorted(range(lanes), key=lambda lane: lane * fraction % (1 << 64))
    places = np.empty(lanes, dtype=object)
    places[points] = range(lanes)
    return places


class MixedReader:
    """Reads the rows of a mixture; each source keeps epochs of its own and begins again when it has run out."""

    def __init__(self, readers: Sequence[RowReader], *, weights: Sequence[Fraction], lanes: int) -> None:
        self._readers = readers
        shares = [
            weight * Fraction(reader.order.rows_per_epoch, reader.tokens_per_epoch)
            for weight, reader in zip(weights, readers, strict=True)
        ]
        self._dealer = RowDealer(shares, lanes=lanes)

    @property
    def rows_before_repeat(self) -> int:
        """Rows before any source begins again."""
        return self._dealer.rows_before([reader.order.rows_per_epoch for reader in self._readers])

    def read(self, row_numbers: Int64Array) -> Batch:
        """As `RowReader.read`, the rows numbered over all sources."""
        present = np.flatnonzero(row_numbers != EMPTY_ROW)
        dealt = self._dealer.deal(row_numbers[present])
        rows: list[PackedRow | None] = [None] * len(row_numbers)
        for number, reader in enumerate(self._readers):
            own = np.flatnonzero(dealt.source == number)
            for place, row in zip(present[own].tolist(), reader.find(dealt.row[own]), strict=True):
                rows[place] = row
        return self._readers[0].assemble(row_numbers, rows)
