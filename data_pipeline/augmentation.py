"""Random insertion, swap and deletion in a block's pieces (Wei and Zou 2019, section 2), before pairs and masks.

The units are tokens, or sentences as the vocabulary's sentence ends tell them. One after the other: each unit is
deleted with the rate `delete`, but a piece keeps one at least; each unit is chosen with the rate `swap`, and the
chosen of a piece change places two by two, an odd one staying; behind each unit, with the rate `insert`, a unit is
inserted that is drawn from the whole block. A piece never outgrows its place in its row: what insertion pushes beyond
the length that the piece had is cut off at its end, so that the number of rows is the same with and without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array, derive_key, hash64, high_half, limit32, low_half, scaled
from data_pipeline.packing import Pieces


@dataclass(frozen=True)
class Augmentation:
    """The rates, each from 0 to below 1, and what they are counted in."""

    level: Literal["token", "sentence"]
    insert: float = 0.0
    swap: float = 0.0
    delete: float = 0.0


def augment_pieces(
    pieces: Pieces, *, sentence_borders: Int64Array, rule: Augmentation, key: tuple[int, ...]
) -> tuple[Pieces, Int64Array]:
    """The disturbed pieces, end to end, and for each of their tokens its place in the block's former tokens.

    `pieces` cover the block's tokens in order. `sentence_borders` are the places behind sentence ends, increasing;
    `key` tells blocks, epochs, phases and seeds apart.
    """
    start, length, piece = _units(pieces, sentence_borders=sentence_borders, level=rule.level)
    kept = _delete(piece, rate=rule.delete, key=derive_key("augment-delete", *key))
    order = _swap(kept, piece, rate=rule.swap, key=derive_key("augment-swap", *key))
    order, piece = _insert(
        order, piece[kept], units=len(start), rate=rule.insert, key=derive_key("augment-insert", *key)
    )
    start, length = start[order], length[order]
    before = np.cumsum(length) - length
    first_unit = np.flatnonzero(np.diff(piece, prepend=-1))
    room = pieces.length[piece] - (before - before[first_unit][piece])
    length = np.clip(room, 0, length)
    end = np.cumsum(length)
    source = np.arange(end[-1]) + np.repeat(start - (end - length), length)
    piece_length = np.add.reduceat(length, first_unit)
    return Pieces(pieces.document, np.cumsum(piece_length) - piece_length, piece_length), source


def _units(
    pieces: Pieces, *, sentence_borders: Int64Array, level: Literal["token", "sentence"]
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Start, length and piece of each unit, in the order of the text."""
    total = int(pieces.length.sum())
    if level == "token":
        start = np.arange(total, dtype=np.int64)
    else:
        start = np.union1d(pieces.start, sentence_borders[sentence_borders < total])
    length = np.diff(start, append=total)
    return start, length, np.searchsorted(pieces.start, start, side="right") - 1


def _hits(count: int, *, rate: float, key: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = high_half(hash64(key, np.arange(count))) < limit32(rate)
    return hits


def _delete(piece: Int64Array, *, rate: float, key: int) -> Int64Array:
    """Numbers of the units that stay; the first of a piece that would lose all stays."""
    stays = ~_hits(len(piece), rate=rate, key=key)
    first = np.flatnonzero(np.diff(piece, prepend=-1))
    stays[first] |= ~np.logical_or.reduceat(stays, first)
    return np.flatnonzero(stays)


def _swap(kept: Int64Array, piece: Int64Array, *, rate: float, key: int) -> Int64Array:
    """The units in their new order: the chosen ones of a piece change places, first with second, third with fourth."""
    chosen = np.flatnonzero(_hits(len(kept), rate=rate, key=key))
    of_piece = piece[kept[chosen]]
    rank = np.arange(len(chosen)) - np.searchsorted(of_piece, of_piece)
    leads = (rank % 2 == 0) & (of_piece == np.append(of_piece[1:], -1))
    one, other = chosen[leads], chosen[np.flatnonzero(leads) + 1]
    order: Int64Array = kept.copy()
    order[one], order[other] = kept[other], kept[one]
    return order


def _insert(
    order: Int64Array, piece: Int64Array, *, units: int, rate: float, key: int
) -> tuple[Int64Array, Int64Array]:
    """The order with drawn units behind some of its own, and the piece of each."""
    draws = hash64(key, np.arange(len(order)))
    hits = high_half(draws) < limit32(rate)
    copies = 1 + hits
    longer, pieces = np.repeat(order, copies), np.repeat(piece, copies)
    longer[np.cumsum(copies)[hits] - 1] = scaled(low_half(draws[hits]), units)
    return longer, pieces
