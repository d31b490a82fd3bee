"""Dynamic masking for masked-language modelling, keyed by row: the same row number, the same mask, on any rank.

Devlin et al. 2019, section 3.1 and appendix A.1: of the tokens, `mask_rate` are chosen; of these
`mask_token_rate` become [MASK], `random_token_rate` become a token drawn from the whole vocabulary, and the
rest stays. Chosen anew whenever a row is drawn (dynamic masking, Liu et al. 2019, section 4.1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.batch import Batch
from data_pipeline.hashing import (
    Int64Array,
    UInt32Array,
    UInt64Array,
    derive_key,
    hash32_grid,
    hash64,
    high_half,
    limit32,
    low_half,
    scaled,
)
from data_pipeline.mask_rate import MaskRate

BoolArray = npt.NDArray[np.bool_]


class Chosen(NamedTuple):
    """The tokens to predict, as increasing places [N] in the batch's flat B x S order.

    `kind` holds 32 random bits for each, which decide between [MASK], another token and the token itself; None where
    they are to be drawn for each token.
    """

    place: Int64Array
    kind: UInt64Array | None = None


class TokenMasker:
    """Chooses and replaces tokens one by one; special tokens are never chosen and padding never is."""

    def __init__(
        self,
        *,
        vocab_size: int,
        special_ids: list[int],
        mask_id: int,
        mask_rate: float | MaskRate,
        mask_token_rate: float,
        random_token_rate: float,
        seed: int,
        phase: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        self._mask_id = mask_id
        self._rate = mask_rate if isinstance(mask_rate, MaskRate) else MaskRate(mask_rate, mask_rate)
        self._mask_limit = limit32(mask_token_rate)
        self._random_limit = limit32(mask_token_rate + random_token_rate)
        self._maskable = np.ones(vocab_size, dtype=bool)
        self._maskable[special_ids] = False
        self._choice_key = derive_key("mask-choice", seed, phase)
        self._replacement_key = derive_key("mask-replacement", seed, phase)

    def maskable(self, batch: Batch) -> BoolArray:
        """Which tokens of an unmasked batch may be chosen, [B, S]."""
        maskable: BoolArray = self._maskable.take(batch.input_ids)
        return maskable

    def apply(self, batch: Batch) -> Batch:
        """The batch with masked input ids and with labels, [B, S]; rows are told apart by `row_ids` alone."""
        place, kind = self._choose(batch)
        row, column = np.divmod(place, batch.input_ids.shape[1])
        input_ids, labels = batch.input_ids.copy(), batch.labels.copy()
        flat_ids, flat_labels = input_ids.reshape(-1), labels.reshape(-1)
        original = flat_ids[place]
        flat_labels[place] = original
        draws = hash64(hash64(self._replacement_key, batch.row_ids)[row], column)
        flat_ids[place] = self._replace(original, draws, kind=high_half(draws) if kind is None else kind)
        return replace(batch, input_ids=input_ids, labels=labels, predicted_tokens=len(place))

    def _choose(self, batch: Batch) -> Chosen:
        chosen = self._hits(batch)
        chosen &= self.maskable(batch)
        return Chosen(np.flatnonzero(chosen))

    def _hits(self, batch: Batch) -> BoolArray:
        """A draw for each place of the batch, [B, S]: true with the probability of the row's mask rate."""
        draws: UInt32Array = hash32_grid(hash64(self._choice_key, batch.row_ids), batch.input_ids.shape[1])
        if (rate := self._rate.constant) is not None:
            return draws < _narrow_limit(rate)
        return draws < _narrow_limit(self._rate.at(batch.row_ids))[:, None]

    def _replace(
        self, original: npt.NDArray[np.int32], draws: UInt64Array, *, kind: UInt64Array
    ) -> npt.NDArray[np.int32]:
        random_ids = scaled(low_half(draws), self._vocab_size)
        replaced = np.where(kind < self._random_limit, random_ids.astype(np.int32), original)
        return np.where(kind < self._mask_limit, np.int32(self._mask_id), replaced).astype(np.int32, copy=False)


def _narrow_limit(rate: float | npt.NDArray[np.float64]) -> UInt32Array:
    """Limits for rates below 1 in the draws' own type, which is faster to compare with."""
    return np.minimum(np.rint(np.multiply(rate, 2.0**32)), 2.0**32 - 1).astype(np.uint32)
