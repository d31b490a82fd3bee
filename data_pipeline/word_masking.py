"""Masking of whole words and of spans of words, keyed by row as in `data_pipeline.masking`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.batch import Batch
from data_pipeline.hashing import Int64Array, UInt64Array, derive_key, hash64, high_half, low_half
from data_pipeline.masking import BoolArray, Chosen, TokenMasker

# Joshi et al. 2020, section 3.1: lengths are geometric, cut at ten words; 3.8 words on average.
SPAN_GEOMETRIC_P = 0.2
MAX_SPAN_WORDS = 10


class WholeWordMasker(TokenMasker):
    """Chooses whole words, each with the probability of the mask rate, so that a token's is the same.

    The chosen tokens are replaced one by one, as in the released whole-word models of Devlin et al. Words begin where
    the batch says; where it does not say, at the vocabulary's pieces that begin one (`word_start`, bool [vocab]).
    """

    def __init__(self, *, word_start: BoolArray, special_token_ids: dict[str, int], **settings: Any) -> None:
        super().__init__(special_ids=sorted(special_token_ids.values()), mask_id=special_token_ids["mask"], **settings)
        self._word_start = word_start.copy()
        for name, token in special_token_ids.items():
            # An unknown piece is a part of its word; padding is not looked at.
            self._word_start[token] = name not in ("unk", "pad")

    def _choose(self, batch: Batch) -> Chosen:
        first = self._first_tokens(batch)
        # A word that a row's cut begins in the middle shares the draw of the [CLS] before it, which nobody else uses.
        hits = self._hits(batch).ravel()[first]
        chosen = np.repeat(hits, np.diff(first, append=batch.input_ids.size))
        chosen &= self.maskable(batch).ravel()
        return Chosen(np.flatnonzero(chosen))

    def _first_tokens(self, batch: Batch) -> Int64Array:
        """Places, in the batch's flat B x S order, at which words and special tokens begin; each row's first is one."""
        starts = self._word_start.take(batch.input_ids) if batch.word_starts is None else batch.word_starts.copy()
        starts[:, 0] = True
        return np.flatnonzero(starts)


class SpanMasker(WholeWordMasker):
    """Chooses spans of whole words (Joshi et al. 2020) and replaces all tokens of a span in the same way.

    A row is a stationary sequence of gaps and spans. A gap is geometric, of at least one word, with the mean that
    makes the mask rate the probability of *every* word to be chosen; a row begins within a span with just this
    probability. Hence the rate is exact in expectation, whatever the row holds. Spans go on past [SEP] and [CLS],
    which count as words and are never chosen.
    """

    def __init__(self, *, seed: int, phase: int = 0, **settings: Any) -> None:
        super().__init__(seed=seed, phase=phase, **settings)
        self._span_key = derive_key("mask-span", seed, phase)
        self._first_key = derive_key("mask-first-span", seed, phase)
        self._kind_key = derive_key("mask-span-kind", seed, phase)
        share = SPAN_GEOMETRIC_P * (1.0 - SPAN_GEOMETRIC_P) ** np.arange(MAX_SPAN_WORDS)
        share /= share.sum()
        at_least = share[::-1].cumsum()[::-1]
        self._mean_words = float(at_least.sum())
        self._length_limits = _limits(share.cumsum()[:-1])
        # What is left of a span that lies over a given word: the longer the span, the likelier that it does.
        self._rest_limits = _limits((at_least / self._mean_words).cumsum()[:-1])

    def _choose(self, batch: Batch) -> Chosen:
        num_rows, width = batch.input_ids.shape
        first = self._first_tokens(batch)
        first_word = np.searchsorted(first, np.arange(num_rows + 1) * width)
        begins, ends = self._spans(batch.row_ids, words=np.diff(first_word))
        row, number = np.nonzero(begins < ends)
        borders = np.append(first, num_rows * width)
        start = borders[first_word[row] + begins[row, number]]
        length = borders[first_word[row] + ends[row, number]] - start
        place = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
        kind = high_half(hash64(hash64(self._kind_key, batch.row_ids)[row], number))
        maskable = self.maskable(batch).ravel()[place]
        return Chosen(place[maskable], np.repeat(kind, length)[maskable])

    def _spans(self, row_ids: Int64Array, *, words: Int64Array) -> tuple[Int64Array, Int64Array]:
        """First and end word of each row's spans, [B, M] in order; empty ones lie behind the row's last word."""
        rate = self._rate.at(row_ids)
        keys = hash64(self._span_key, row_ids)
        within = high_half(hash64(self._first_key, row_ids)) < _limits(rate)
        # Half as many again as a row holds on average; a row that needs more gets them.
        spans = 8 + math.ceil(1.5 * float((words * rate).max()) / self._mean_words)
        while True:
            draws = hash64(keys[:, None], np.arange(spans)[None, :])
            length = 1 + np.searchsorted(self._length_limits, low_half(draws), side="right")
            length[within, 0] = 1 + np.searchsorted(self._rest_limits, low_half(draws[within, 0]), side="right")
            gap = self._gaps(high_half(draws), rate=rate)
            gap[within, 0] = 0
            ends = np.cumsum(gap + length, axis=1)
            if (ends[:, -1] >= words).all():
                return np.minimum(ends - length, words[:, None]), np.minimum(ends, words[:, None])
            spans *= 2

    def _gaps(self, draws: UInt64Array, *, rate: npt.NDArray[np.float64]) -> Int64Array:
        end_of_gap = rate / (self._mean_words * (1.0 - rate))
        uniform = (draws.astype(np.float64) + 0.5) / 2.0**32
        return 1 + (np.log(uniform) / np.log1p(-end_of_gap)[:, None]).astype(np.int64)


def _limits(shares: npt.NDArray[np.float64]) -> UInt64Array:
    """`limit32` of each share."""
    return np.rint(shares * 2.0**32).astype(np.uint64)
