"""Sentence pairs: each piece is cut in two, [CLS] A [SEP] B [SEP], and B is replaced, or the two change places.

Next-sentence prediction (Devlin et al. 2019, section 3.1): label 0 where B follows A, 1 where it is a stretch of
another document, a half of the pairs each. With k negatives each piece becomes 1 + k sequences in a random order, one
with the true B and k with others, and the true one is to be found: negative sampling with a softmax over all.
Sentence-order prediction (Lan et al. 2020, section 3.1): label 0 in the right order, 1 where A and B are swapped.

A negative is drawn, with replacement, from the other documents of the same block, each document alike, and is as long
as the true B where its document is; drawing is no visit. Where the true B ends with a sentence the negative does too.
What allows no pair, a piece of one token or a block of one document in next-sentence prediction, stays one segment
without a label. How many rows there are depends on document lengths alone, never on a draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array, derive_key, hash64, high_half, limit32, low_half, scaled
from data_pipeline.packing import PackingPlan, Pieces, PieceShape
from data_pipeline.sequences import Sequences

NO_PAIR = -100
_IS_NEXT, _IS_NOT = 0, 1
# [CLS] before A, [SEP] behind A and behind B.
_PAIR_FRAME_TOKENS = 3
_EVEN = limit32(0.5)


@dataclass(frozen=True)
class PairRule:
    """Which pairs are made; `negatives` None is one sequence a piece."""

    kind: Literal["nsp", "sop"]
    negatives: int | None = None

    @property
    def candidates(self) -> int:
        """Sequences that one prediction is made from."""
        return 1 + (self.negatives or 0)

    @property
    def shape(self) -> PieceShape:
        """What a piece takes of a row."""
        return PieceShape(frame_tokens=_PAIR_FRAME_TOKENS, copies=self.candidates)


@dataclass(frozen=True)
class Borders:
    """Places in a block's tokens: behind each sentence's end, and before each word; int64, increasing."""

    sentences: Int64Array
    words: Int64Array


@dataclass(frozen=True)
class _Halves:
    """Two segments for each sequence of each piece: int64 [pieces, candidates, 2]; `label` [pieces, candidates]."""

    start: Int64Array
    length: Int64Array
    label: npt.NDArray[np.int8]


def pair_sequences(plan: PackingPlan, borders: Borders, *, rule: PairRule, key: tuple[int, ...]) -> Sequences:
    """The plan's pieces as pairs; `key` tells blocks, epochs, phases and seeds apart."""
    pieces = plan.pieces
    several = len(pieces.document) > 0 and pieces.document[0] != pieces.document[-1]
    paired = (pieces.length > 1) & (several if rule.kind == "nsp" else True)
    cut = np.where(paired, _cut(pieces, borders, key=derive_key("pair-cut", *key)), pieces.length)
    start = np.stack([pieces.start, pieces.start + cut], axis=1)[:, None, :]
    length = np.stack([cut, pieces.length - cut], axis=1)[:, None, :]
    halves = _Halves(start, length, np.full((len(cut), 1), _IS_NEXT, dtype=np.int8))
    label_draws = high_half(hash64(derive_key("pair-label", *key), np.arange(len(cut))))
    if rule.kind == "sop":
        halves = _swap(halves, chosen=paired & (label_draws < _EVEN))
    elif several:
        drawn = _negatives(halves, pieces, borders, count=rule.negatives or 1, key=derive_key("pair-negative", *key))
        if rule.negatives is None:
            halves = _choose(halves, drawn, chosen=label_draws < _EVEN)
        else:
            halves = _insert(halves, drawn, place=scaled(label_draws, rule.candidates))
    return _arrange(plan, halves, paired=paired, candidates=rule.candidates)


def _cut(pieces: Pieces, borders: Borders, *, key: int) -> Int64Array:
    """Tokens of A: up to the sentence end nearest to a random place, else to the nearest word start, else there."""
    draws = high_half(hash64(key, np.arange(len(pieces.length))))
    inner = np.maximum(pieces.length - 1, 1)
    target = pieces.start + 1 + scaled(draws, inner)
    low, high = pieces.start + 1, pieces.start + inner
    place = _nearest(borders.sentences, target, low=low, high=high)
    place = np.where(place < 0, _nearest(borders.words, target, low=low, high=high), place)
    return np.where(place < 0, target, place) - pieces.start


def _negatives(halves: _Halves, pieces: Pieces, borders: Borders, *, count: int, key: int) -> _Halves:
    """The pieces' A with `count` stretches of other documents each."""
    first_piece = np.flatnonzero(np.diff(pieces.document, prepend=-1))
    last_piece = np.append(first_piece[1:], len(pieces.document)) - 1
    begin, end = pieces.start[first_piece], pieces.start[last_piece] + pieces.length[last_piece]
    draws = hash64(key, np.arange(len(pieces.length) * count)).reshape(-1, count)
    own = np.repeat(np.arange(len(begin)), last_piece - first_piece + 1)[:, None]
    other = scaled(high_half(draws), len(begin) - 1)
    other += other >= own
    wanted = halves.length[:, :, 1]
    room = np.maximum(end[other] - begin[other] - wanted, 0)
    target = begin[other] + scaled(low_half(draws), room + 1)
    start = _nearest(np.union1d(borders.sentences, begin), target, low=begin[other], high=begin[other] + room)
    stop = np.minimum(start + wanted, end[other])
    true_end = halves.start[:, :, 1] + wanted
    ends_sentence = _nearest(borders.sentences, true_end, low=true_end, high=true_end) >= 0
    sentence_end = _nearest(borders.sentences, stop, low=start + 1, high=stop)
    stop = np.where(ends_sentence & (sentence_end > 0), sentence_end, stop)
    first_start, first_length = (np.broadcast_to(part[:, :, 0], start.shape) for part in (halves.start, halves.length))
    return _Halves(
        start=np.stack([first_start, start], axis=2),
        length=np.stack([first_length, stop - start], axis=2),
        label=np.full(start.shape, _IS_NOT, dtype=np.int8),
    )


def _swap(halves: _Halves, *, chosen: npt.NDArray[np.bool_]) -> _Halves:
    swapped = chosen[:, None, None]
    return _Halves(
        start=np.where(swapped, halves.start[:, :, ::-1], halves.start),
        length=np.where(swapped, halves.length[:, :, ::-1], halves.length),
        label=chosen[:, None].astype(np.int8),
    )


def _choose(true: _Halves, drawn: _Halves, *, chosen: npt.NDArray[np.bool_]) -> _Halves:
    replaced = chosen[:, None]
    return _Halves(
        start=np.where(replaced[:, :, None], drawn.start, true.start),
        length=np.where(replaced[:, :, None], drawn.length, true.length),
        label=np.where(replaced, drawn.label, true.label),
    )


def _insert(true: _Halves, drawn: _Halves, *, place: Int64Array) -> _Halves:
    """The true pair at a random place among the drawn ones."""
    order = np.arange(drawn.label.shape[1] + 1)[None, :]
    # Candidate 0 is the true one; the drawn ones keep their order around it.
    source = np.where(order == place[:, None], 0, order + (order < place[:, None]))
    rows = np.arange(len(place))[:, None]
    start, length, label = (
        np.concatenate([getattr(true, name), getattr(drawn, name)], axis=1)[rows, source]
        for name in ("start", "length", "label")
    )
    return _Halves(start, length, label)


def _arrange(plan: PackingPlan, halves: _Halves, *, paired: npt.NDArray[np.bool_], candidates: int) -> Sequences:
    """Segments in the order of the plan's rows; a piece without a pair is its first segment alone."""
    pairs = paired[plan.piece]
    kept = np.zeros((len(pairs), candidates, 2), dtype=bool)
    kept[pairs] = True
    kept[:, 0, 0] = True
    shape = (len(pairs), candidates, 2)
    labels = np.where(paired[:, None], halves.label, NO_PAIR).astype(np.int8)[plan.piece]
    first = np.concatenate([[0], np.cumsum(np.where(pairs, candidates, 1))])
    sequence_kept = kept[:, :, 0]
    return Sequences(
        start=np.broadcast_to(halves.start[plan.piece], shape)[kept],
        length=np.broadcast_to(halves.length[plan.piece], shape)[kept],
        opens=np.broadcast_to([True, False], shape)[kept],
        row_starts=first[plan.row_starts],
        documents=np.broadcast_to(plan.pieces.document[plan.piece][:, None], shape[:2])[sequence_kept],
        pair_labels=np.broadcast_to(labels, shape[:2])[sequence_kept],
    )


def _nearest(borders: Int64Array, target: Int64Array, *, low: Int64Array, high: Int64Array) -> Int64Array:
    """The border nearest to each target among those from `low` to `high`, which hold the target; -1 for none."""
    if len(borders) == 0:
        return np.full(target.shape, -1, dtype=np.int64)
    after = np.searchsorted(borders, target)
    above, below = borders[np.minimum(after, len(borders) - 1)], borders[np.maximum(after - 1, 0)]
    above_fits, below_fits = (above >= low) & (above <= high), (below >= low) & (below <= high)
    prefer_below = below_fits & (~above_fits | (target - below < above - target))
    return np.where(prefer_below, below, np.where(above_fits, above, -1))
