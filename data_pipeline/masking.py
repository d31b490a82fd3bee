"""Dynamic masking for masked-language modelling, keyed by row: the same row number, the same mask, on any rank.

Devlin et al. 2019, section 3.1 and appendix A.1: of the tokens, `mask_rate` are chosen; of these
`mask_token_rate` become [MASK], `random_token_rate` become a token drawn from the whole vocabulary, and the
rest stays. Chosen anew whenever a row is drawn (dynamic masking, Liu et al. 2019, section 4.1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from data_pipeline.batch import Batch
from data_pipeline.hashing import derive_key, hash32_grid, hash64


class TokenMasker:
    """Chooses and replaces tokens; special tokens are never chosen and padding never is."""

    def __init__(
        self,
        *,
        vocab_size: int,
        special_ids: list[int],
        mask_id: int,
        mask_rate: float,
        mask_token_rate: float,
        random_token_rate: float,
        seed: int,
        phase: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        self._mask_id = mask_id
        self._choice_limit = _limit(mask_rate)
        self._mask_limit = _limit(mask_token_rate)
        self._random_limit = _limit(mask_token_rate + random_token_rate)
        self._maskable = np.ones(vocab_size, dtype=bool)
        self._maskable[special_ids] = False
        self._choice_key = derive_key("mask-choice", seed, phase)
        self._replacement_key = derive_key("mask-replacement", seed, phase)

    def maskable(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which tokens of an unmasked batch may be chosen, [B, S]."""
        maskable: npt.NDArray[np.bool_] = self._maskable.take(batch.input_ids)
        return maskable

    def apply(self, batch: Batch) -> Batch:
        """The batch with masked input ids and with labels, [B, S]; rows are told apart by `row_ids` alone."""
        width = batch.input_ids.shape[1]
        draws = hash32_grid(hash64(self._choice_key, batch.row_ids), width)
        chosen = draws < self._choice_limit
        chosen &= self.maskable(batch)
        row, column = np.nonzero(chosen)
        original = batch.input_ids[row, column]
        labels = batch.labels.copy()
        labels[row, column] = original
        input_ids = batch.input_ids.copy()
        input_ids[row, column] = self._replace(original, hash64(self._replacement_key, batch.row_ids)[row], column)
        return replace(batch, input_ids=input_ids, labels=labels, predicted_tokens=len(row))

    def _replace(
        self, original: npt.NDArray[np.int32], row_keys: npt.NDArray[np.uint64], column: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        draws = hash64(row_keys, column)
        kind = draws >> np.uint64(32)
        random_ids = ((draws & np.uint64(0xFFFFFFFF)) * np.uint64(self._vocab_size)) >> np.uint64(32)
        replaced = np.where(kind < self._random_limit, random_ids.astype(np.int32), original)
        return np.where(kind < self._mask_limit, np.int32(self._mask_id), replaced).astype(np.int32, copy=False)


def _limit(rate: float) -> np.uint64:
    """The number of 32-bit draws, of 2**32, that fall under a rate."""
    limit: np.uint64 = np.uint64(round(rate * 2.0**32))
    return limit
